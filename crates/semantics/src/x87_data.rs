//! x87 loads, stores, exchanges and conditional moves (SDM Vol. 1 5.2.1, 5.2.5), and what moves TOP or empties
//! registers.
//!
//! A store is two helpers: the first converts and changes nothing, then memory is written, then the second takes over
//! status and pop. So a store that faults, or that the board must answer first, can be started again.

use x86::{CpuState, Width, fpu::X87};

use crate::{
    ConditionCode, Insn, Machine, Operand,
    helper::Helper,
    operand,
    vector::EXTRA_OPERAND,
    x87_arithmetic::{INDEFINITE, Request, complete, pop, push, stack_fault, stack_operand, write},
    x87_native::{Native, Operands},
    x87_state::{
        self, C1, EXCEPTIONS, INVALID, OVERFLOW, STACK_FAULT, UNDERFLOW, is_empty, physical, set_status,
        set_top,
    },
};

/// Makes room for a push; false if there is none. The masked response is done here.
fn room(x87: &mut X87) -> bool {
    if is_empty(x87, 7) {
        return true;
    }
    if stack_fault(x87, true) {
        push(x87, INDEFINITE);
    }
    false
}

/// Helper: pushes memory (`a`, and `b` for the two high bytes of ten) in the kernel's format, or its constant.
pub extern "C" fn helper_load(state: &mut CpuState, immediate: u64, a: u64, b: u64) -> u64 {
    let x87 = &mut state.x87;
    if !room(x87) {
        return 0;
    }
    let kernel = Native::numbered(Request::unpack(immediate).native);
    // Masked, so that there is a value to take in any case.
    let mut operands = Operands { memory: [a, b & 0xffff, 0, 0], ..Operands::new(x87) };
    operands.control |= EXCEPTIONS;
    let status = (kernel.run)(&mut operands);
    // An unmasked denormal is reported, and loaded.
    if complete(x87, status, kernel.conditions, INVALID) {
        push(x87, operands.a);
    }
    0
}

/// Helper: pushes an 80-bit value as it is.
pub extern "C" fn helper_load_extended(state: &mut CpuState, _: u64, a: u64, b: u64) -> u64 {
    let x87 = &mut state.x87;
    if room(x87) {
        x87.status &= !C1;
        push(x87, [a, b & 0xffff]);
    }
    0
}

/// Helper: pushes ST(source).
pub extern "C" fn helper_load_register(state: &mut CpuState, immediate: u64, _: u64, _: u64) -> u64 {
    let x87 = &mut state.x87;
    let source = usize::from(Request::unpack(immediate).source);
    if is_empty(x87, source) {
        if stack_fault(x87, false) {
            push(x87, INDEFINITE);
        }
        return 0;
    }
    if !room(x87) {
        return 0;
    }
    x87.status &= !C1;
    push(x87, x87.registers[physical(x87, source)]);
    0
}

/// Formats that stores convert to, for the value of masked stack underflow.
fn indefinite(native: Native) -> [u64; 2] {
    match native {
        Native::StoreM32 => [0xffc0_0000, 0],
        Native::StoreM64 => [0xfff8_0000_0000_0000, 0],
        Native::StoreI16 | Native::TruncateI16 => [0x8000, 0],
        Native::StoreI32 | Native::TruncateI32 => [0x8000_0000, 0],
        Native::StoreI64 | Native::TruncateI64 => [0x8000_0000_0000_0000, 0],
        _ => INDEFINITE, // packed BCD's has the same bits
    }
}

/// In the outcome of a store (the extra operand): memory is to be written. The status word is in bits 15..0, bytes 8
/// and 9 of the value in 47..32.
const STORED: u32 = 16;

/// The kernel number that stands for storing all 80 bits.
const EXTENDED: u8 = 0xff;

/// Helper: ST(0) in the kernel's format, and the outcome in the extra operand. Changes nothing else.
pub extern "C" fn helper_store_value(state: &mut CpuState, immediate: u64, _: u64, _: u64) -> u64 {
    let x87 = &state.x87;
    let native = Request::unpack(immediate).native;
    let top = x87.registers[x87.top()];
    let (status, [low, high]) = if is_empty(x87, 0) {
        let value = if native == EXTENDED { INDEFINITE } else { indefinite(STORES[usize::from(native)]) };
        (INVALID | STACK_FAULT, value)
    } else if native == EXTENDED {
        (0, top)
    } else {
        let mut operands = Operands { a: top, ..Operands::new(x87) };
        let status = (STORES[usize::from(native)].kernel().run)(&mut operands);
        let [low, high, ..] = operands.memory;
        (status & (EXCEPTIONS | C1), [low, high])
    };
    let prevented = status & !x87.control & (INVALID | OVERFLOW | UNDERFLOW) != 0;
    state.scratch[6] = u64::from(status) | u64::from(!prevented) << STORED | (high & 0xffff) << 32;
    low
}

/// Helper: takes over the outcome (`a`) of a store, and pops.
pub extern "C" fn helper_store_finish(state: &mut CpuState, immediate: u64, a: u64, _: u64) -> u64 {
    let x87 = &mut state.x87;
    set_status(x87, x87.status & !C1 | a as u16);
    if a >> STORED & 1 != 0 {
        pop(x87, Request::unpack(immediate).pops);
    }
    0
}

/// Helper: ST(destination) = ST(0), then pops.
pub extern "C" fn helper_store_register(state: &mut CpuState, immediate: u64, _: u64, _: u64) -> u64 {
    let x87 = &mut state.x87;
    let request = Request::unpack(immediate);
    let value = if is_empty(x87, 0) {
        if !stack_fault(x87, false) {
            return 0;
        }
        INDEFINITE
    } else {
        x87.status &= !C1;
        x87.registers[x87.top()]
    };
    write(x87, usize::from(request.destination), value);
    pop(x87, request.pops);
    0
}

/// Helper: ST(destination) = ST(0) unless that is empty, then pops in any case.
pub extern "C" fn helper_copy_and_pop(state: &mut CpuState, immediate: u64, _: u64, _: u64) -> u64 {
    let x87 = &mut state.x87;
    let destination = usize::from(Request::unpack(immediate).destination);
    x87.status &= !C1;
    if !is_empty(x87, 0) {
        write(x87, destination, x87.registers[x87.top()]);
    }
    pop(x87, 1);
    0
}

/// Helper: exchanges ST(0) and ST(source). Where the stack fault is masked, empty ones become the indefinite first.
pub extern "C" fn helper_exchange(state: &mut CpuState, immediate: u64, _: u64, _: u64) -> u64 {
    let x87 = &mut state.x87;
    let source = usize::from(Request::unpack(immediate).source);
    if is_empty(x87, 0) || is_empty(x87, source) {
        if !stack_fault(x87, false) {
            return 0;
        }
        for i in [0, source] {
            if is_empty(x87, i) {
                write(x87, i, INDEFINITE);
            }
        }
    } else {
        x87.status &= !C1;
    }
    let (top, other) = (physical(x87, 0), physical(x87, source));
    x87.registers.swap(top, other);
    0
}

/// Helper: ST(0) = ST(source) if `a` is not zero. Empty registers are faults even if it is.
pub extern "C" fn helper_move_if(state: &mut CpuState, immediate: u64, a: u64, _: u64) -> u64 {
    let x87 = &mut state.x87;
    let source = usize::from(Request::unpack(immediate).source);
    if is_empty(x87, 0) || is_empty(x87, source) {
        if stack_fault(x87, false) {
            write(x87, 0, INDEFINITE);
        }
        return 0;
    }
    if a != 0 {
        write(x87, 0, x87.registers[physical(x87, source)]);
    }
    0
}

/// Helper: ST(destination) becomes empty, then TOP goes up by `pops`, without a look at tags.
pub extern "C" fn helper_free(state: &mut CpuState, immediate: u64, _: u64, _: u64) -> u64 {
    let x87 = &mut state.x87;
    let request = Request::unpack(immediate);
    x87.status &= !C1;
    x87.tags &= !(1 << physical(x87, usize::from(request.destination)));
    pop(x87, request.pops);
    0
}

/// Helper: TOP += immediate, modulo 8.
pub extern "C" fn helper_rotate(state: &mut CpuState, immediate: u64, _: u64, _: u64) -> u64 {
    let x87 = &mut state.x87;
    x87.status &= !C1;
    set_top(x87, x87.top() + immediate as usize);
    0
}

/// Calls a helper that has no memory operand.
fn on_registers<M: Machine>(m: &mut M, i: &Insn, helper: Helper, immediate: u64) -> Result<(), M::Stop> {
    x87_state::check(m, true)?;
    let none = m.constant(Width::Qword, 0);
    m.call(helper, immediate, none, none)?;
    x87_state::record(m, i);
    Ok(())
}

fn request(native: u8, destination: u8, source: u8, pops: u8) -> u64 {
    Request { native, destination, source, pops }.pack()
}

/// Loads the ten bytes of the memory operand.
fn load_ten_bytes<M: Machine>(m: &mut M, i: &Insn) -> Result<(M::Int, M::Int), M::Stop> {
    let address = operand::address(m, i, 10, false)?;
    let low = m.load(Width::Qword, address)?;
    let eight = m.constant(Width::Qword, 8);
    let address = m.add(Width::Qword, address, eight);
    let high = m.load(Width::Word, address)?;
    Ok((low, m.resize(Width::Word, Width::Qword, high)))
}

/// FLD.
pub fn fld<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    match (i.operand(0), i.memory_bytes) {
        (Operand::St(source), _) => on_registers(m, i, Helper::X87LoadRegister, request(0, 0, source, 0)),
        (_, 4) => load_memory(m, i, Native::LoadM32),
        (_, 8) => load_memory(m, i, Native::LoadM64),
        _ => {
            x87_state::check(m, true)?;
            let (low, high) = load_ten_bytes(m, i)?;
            m.call(Helper::X87LoadExtended, 0, low, high)?;
            x87_state::record(m, i);
            Ok(())
        }
    }
}

/// FILD.
pub fn fild<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let native = match i.memory_bytes {
        2 => Native::LoadI16,
        4 => Native::LoadI32,
        _ => Native::LoadI64,
    };
    load_memory(m, i, native)
}

fn load_memory<M: Machine>(m: &mut M, i: &Insn, native: Native) -> Result<(), M::Stop> {
    x87_state::check(m, true)?;
    let width = i.operand_width(0);
    let value = operand::read(m, i, 0)?;
    let value = m.resize(width, Width::Qword, value);
    let none = m.constant(Width::Qword, 0);
    m.call(Helper::X87Load, request(native as u8, 0, 0, 0), value, none)?;
    x87_state::record(m, i);
    Ok(())
}

/// FBLD.
pub fn fbld<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    x87_state::check(m, true)?;
    let (low, high) = load_ten_bytes(m, i)?;
    m.call(Helper::X87Load, request(Native::LoadBcd as u8, 0, 0, 0), low, high)?;
    x87_state::record(m, i);
    Ok(())
}

fn constant<M: Machine>(m: &mut M, i: &Insn, native: Native) -> Result<(), M::Stop> {
    on_registers(m, i, Helper::X87Load, request(native as u8, 0, 0, 0))
}

/// The kernels of stores, as their helper's immediate numbers them.
static STORES: [Native; 9] = [
    Native::StoreM32,
    Native::StoreM64,
    Native::StoreI16,
    Native::StoreI32,
    Native::StoreI64,
    Native::TruncateI16,
    Native::TruncateI32,
    Native::TruncateI64,
    Native::StoreBcd,
];

/// Stores ST(0): `store` is an index into [`STORES`], or [`EXTENDED`].
fn store<M: Machine>(m: &mut M, i: &Insn, store: u8, pops: u8) -> Result<(), M::Stop> {
    x87_state::check(m, true)?;
    let bytes = i.memory_bytes;
    let address = operand::address(m, i, bytes, true)?;
    let none = m.constant(Width::Qword, 0);
    let value = m.call(Helper::X87StoreValue, request(store, 0, 0, 0), none, none)?;
    let outcome = m.state(EXTRA_OPERAND, Width::Qword);
    let stored = m.bit(Width::Qword, outcome, STORED);
    m.when(stored, |m| {
        if let Some(width) = Width::from_bytes(usize::from(bytes)) {
            let value = m.resize(Width::Qword, width, value);
            return m.store(width, address, value);
        }
        m.probe_write(address, 10)?;
        m.store(Width::Qword, address, value)?;
        let eight = m.constant(Width::Qword, 8);
        let address = m.add(Width::Qword, address, eight);
        let shift = m.constant(Width::Qword, 32);
        let high = m.shift_right(Width::Qword, outcome, shift);
        let high = m.resize(Width::Qword, Width::Word, high);
        m.store(Width::Word, address, high)
    })?;
    // What an unmasked exception keeps from memory must be allowed there all the same.
    let kept = m.bool_not(stored);
    m.when(kept, |m| m.probe_write(address, bytes))?;
    m.call(Helper::X87StoreFinish, request(0, 0, 0, pops), outcome, none)?;
    x87_state::record(m, i);
    Ok(())
}

fn store_float<M: Machine>(m: &mut M, i: &Insn, pops: u8) -> Result<(), M::Stop> {
    match (i.operand(0), i.memory_bytes) {
        (Operand::Memory, 4) => store(m, i, 0, pops),
        (Operand::Memory, 8) => store(m, i, 1, pops),
        (Operand::Memory, _) => store(m, i, EXTENDED, pops),
        _ => on_registers(m, i, Helper::X87StoreRegister, request(0, stack_operand(i, 0), 0, pops)),
    }
}

/// `first` is the index of the 16-bit form.
fn store_integer<M: Machine>(m: &mut M, i: &Insn, first: u8, pops: u8) -> Result<(), M::Stop> {
    let form = match i.memory_bytes {
        2 => 0,
        4 => 1,
        _ => 2,
    };
    store(m, i, first + form, pops)
}

/// D9 D8+i, undocumented: FSTP that does not look whether ST(0) is empty.
fn copy_and_pop<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    on_registers(m, i, Helper::X87CopyAndPop, request(0, stack_operand(i, 0), 0, 1))
}

fn exchange<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    on_registers(m, i, Helper::X87Exchange, request(0, 0, stack_operand(i, 1), 0))
}

fn free<M: Machine>(m: &mut M, i: &Insn, pops: u8) -> Result<(), M::Stop> {
    on_registers(m, i, Helper::X87Free, request(0, stack_operand(i, 0), 0, pops))
}

fn move_if<M: Machine>(m: &mut M, i: &Insn, code: ConditionCode) -> Result<(), M::Stop> {
    x87_state::check(m, true)?;
    let condition = m.condition(code);
    let condition = m.bool_to_int(Width::Qword, condition);
    let none = m.constant(Width::Qword, 0);
    m.call(Helper::X87MoveIf, request(0, 0, stack_operand(i, 1), 0), condition, none)?;
    x87_state::record(m, i);
    Ok(())
}

/// `name = function(arguments);`
macro_rules! definitions {
    ($($name:ident = $function:ident($($argument:expr),*);)*) => {$(
        #[doc = concat!("`", stringify!($name), "`")]
        pub fn $name<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
            $function(m, i, $($argument),*)
        }
    )*};
}

definitions! {
    fld1 = constant(Native::LoadOne);
    fldl2t = constant(Native::LoadL2t);
    fldl2e = constant(Native::LoadL2e);
    fldpi = constant(Native::LoadPi);
    fldlg2 = constant(Native::LoadLg2);
    fldln2 = constant(Native::LoadLn2);
    fldz = constant(Native::LoadZero);
    fstpnce = copy_and_pop();
    fst = store_float(0);
    fstp = store_float(1);
    fist = store_integer(2, 0);
    fistp = store_integer(2, 1);
    fisttp = store_integer(5, 1);
    fbstp = store(8, 1);
    fxch = exchange();
    ffree = free(0);
    ffreep = free(1);
    fincstp = on_registers(Helper::X87Rotate, 1);
    fdecstp = on_registers(Helper::X87Rotate, 7);
    fcmovb = move_if(ConditionCode::B);
    fcmove = move_if(ConditionCode::E);
    fcmovbe = move_if(ConditionCode::Be);
    fcmovu = move_if(ConditionCode::P);
    fcmovnb = move_if(ConditionCode::Ae);
    fcmovne = move_if(ConditionCode::Ne);
    fcmovnbe = move_if(ConditionCode::A);
    fcmovnu = move_if(ConditionCode::Np);
}
