//! x87 basic arithmetic, comparison and transcendental instructions (SDM Vol. 1 5.2.2 to 5.2.4): the definitions, and
//! the helpers that find stack faults, run the kernel (`x87_native`) and deliver result, status and pops as the
//! masks say (SDM Vol. 1 8.5).

use x86::{CpuState, Width, fpu::X87};

use crate::{
    Flag, Insn, Machine, Operand,
    helper::Helper,
    operand, vector,
    x87_native::{Native, Operands, Shape},
    x87_state::{
        self, C0, C1, C2, C3, CONDITIONS, DENORMAL, EXCEPTIONS, INVALID, STACK_FAULT, ZERO_DIVIDE, is_empty,
        physical, set_status, set_top,
    },
};

/// The quiet NaN that masked invalid operations give.
pub const INDEFINITE: [u64; 2] = [0xc000_0000_0000_0000, 0xffff];

/// Exceptions that leave operands and stack alone if they are not masked.
const BEFORE_RESULT: u16 = INVALID | DENORMAL | ZERO_DIVIDE;

/// What a helper is told in its immediate.
#[derive(Clone, Copy)]
pub struct Request {
    /// The kernel's number.
    pub native: u8,
    /// ST(i) that is read and written.
    pub destination: u8,
    /// ST(i) that is read.
    pub source: u8,
    /// How many registers are popped at the end.
    pub pops: u8,
}

impl Request {
    /// As an immediate.
    pub fn pack(self) -> u64 {
        u64::from(u32::from_le_bytes([self.native, self.destination, self.source, self.pops]))
    }

    /// The opposite of [`Request::pack`].
    pub fn unpack(immediate: u64) -> Self {
        let [native, destination, source, pops] = (immediate as u32).to_le_bytes();
        Self { native, destination, source, pops }
    }
}

/// Marks a stack fault; true if the masked response is to follow.
pub fn stack_fault(x87: &mut X87, overflow: bool) -> bool {
    let c1 = if overflow { C1 } else { 0 };
    set_status(x87, x87.status & !C1 | INVALID | STACK_FAULT | c1);
    x87.control & INVALID != 0
}

/// Takes over the status that an instruction left. True if its result is to be delivered: none of the exceptions in
/// `preventing` occurred unmasked. Condition codes are delivered in any case (processors do so even where the SDM says
/// that comparisons don't).
pub fn complete(x87: &mut X87, native_status: u16, conditions: u16, preventing: u16) -> bool {
    let raised = native_status & EXCEPTIONS;
    set_status(x87, x87.status & !conditions | raised | native_status & conditions);
    raised & !x87.control & preventing == 0
}

/// Writes ST(i) and makes it not empty.
pub fn write(x87: &mut X87, i: usize, value: [u64; 2]) {
    let register = physical(x87, i);
    x87.registers[register] = value;
    x87.tags |= 1 << register;
}

/// Pops registers.
pub fn pop(x87: &mut X87, count: u8) {
    for _ in 0..count {
        x87.tags &= !(1 << x87.top());
        set_top(x87, x87.top() + 1);
    }
}

/// Pushes a value; the caller has checked that there is room.
pub fn push(x87: &mut X87, value: [u64; 2]) {
    set_top(x87, x87.top().wrapping_sub(1));
    write(x87, 0, value);
}

/// Helper: an instruction that replaces ST(destination). `a` is the memory operand.
pub extern "C" fn helper_arithmetic(state: &mut CpuState, immediate: u64, a: u64, _: u64) -> u64 {
    let x87 = &mut state.x87;
    let request = Request::unpack(immediate);
    let kernel = Native::numbered(request.native);
    let (destination, source) = (usize::from(request.destination), usize::from(request.source));
    let uses_source = matches!(kernel.shape, Shape::Binary | Shape::Remainder | Shape::Popping);
    let pushes = kernel.shape == Shape::Pushing;

    let underflow = is_empty(x87, destination) || uses_source && is_empty(x87, source);
    if underflow || pushes && !is_empty(x87, 7) {
        x87.status &= !(kernel.conditions & C2);
        if stack_fault(x87, !underflow) {
            write(x87, destination, INDEFINITE);
            pop(x87, request.pops);
            if pushes {
                push(x87, INDEFINITE);
            }
        }
        return 0;
    }

    let mut operands = Operands {
        a: x87.registers[physical(x87, destination)],
        b: x87.registers[physical(x87, source)],
        memory: match kernel.shape {
            Shape::Remainder => Operands::environment(x87),
            _ => [a, 0, 0, 0],
        },
        ..Operands::new(x87)
    };
    let status = (kernel.run)(&mut operands);
    if !complete(x87, status, kernel.conditions, BEFORE_RESULT) {
        return 0;
    }
    // C2: the operand is out of range, and stays.
    let out_of_range = pushes && status & kernel.conditions & C2 != 0;
    if pushes && !out_of_range {
        write(x87, destination, operands.b);
        push(x87, operands.a);
    } else {
        write(x87, destination, operands.a);
        pop(x87, request.pops);
    }
    0
}

/// Comparisons that set CF, PF and ZF rather than C0, C2 and C3 have this in the immediate.
const TO_FLAGS: u64 = 1 << 32;

/// Helper: compares ST(0) with ST(source), memory (`a`) or zero. For [`TO_FLAGS`] it gives the low byte of RFLAGS, and
/// no condition code changes.
pub extern "C" fn helper_compare(state: &mut CpuState, immediate: u64, a: u64, _: u64) -> u64 {
    let x87 = &mut state.x87;
    let request = Request::unpack(immediate);
    let kernel = Native::numbered(request.native);
    let source = usize::from(request.source);

    let result;
    let completes;
    if is_empty(x87, 0) || kernel.shape == Shape::Binary && is_empty(x87, source) {
        result = C0 | C2 | C3;
        completes = stack_fault(x87, false);
    } else {
        let mut operands = Operands {
            a: x87.registers[physical(x87, 0)],
            b: x87.registers[physical(x87, source)],
            memory: [a, 0, 0, 0],
            ..Operands::new(x87)
        };
        let status = (kernel.run)(&mut operands);
        result = status & (C0 | C2 | C3);
        completes = complete(x87, status, 0, BEFORE_RESULT);
    }
    if immediate & TO_FLAGS == 0 {
        x87.status = x87.status & !CONDITIONS | result;
    }
    if completes {
        pop(x87, request.pops);
    }
    // C0, C2, C3 are bits 8, 10, 14 as CF, PF, ZF are bits 0, 2, 6.
    u64::from(result >> 8)
}

/// Helper: FXAM.
pub extern "C" fn helper_examine(state: &mut CpuState, _: u64, _: u64, _: u64) -> u64 {
    let x87 = &mut state.x87;
    let [fraction, sign_exponent] = x87.registers[physical(x87, 0)];
    let class = if is_empty(x87, 0) {
        C3 | C0
    } else {
        match (sign_exponent & 0x7fff, fraction) {
            (0, 0) => C3,
            (0, _) => C3 | C2,
            (_, _) if fraction >> 63 == 0 => 0,
            (0x7fff, 0x8000_0000_0000_0000) => C2 | C0,
            (0x7fff, _) => C0,
            _ => C2,
        }
    };
    let sign = if sign_exponent & 0x8000 != 0 { C1 } else { 0 };
    x87.status = x87.status & !CONDITIONS | class | sign;
    0
}

/// Helper: ST(0) with its sign cleared (immediate 0) or inverted (1).
pub extern "C" fn helper_sign(state: &mut CpuState, immediate: u64, _: u64, _: u64) -> u64 {
    let x87 = &mut state.x87;
    if is_empty(x87, 0) {
        if stack_fault(x87, false) {
            write(x87, 0, INDEFINITE);
        }
        return 0;
    }
    x87.status &= !C1;
    let sign_exponent = &mut x87.registers[x87.top()][1];
    *sign_exponent = if immediate == 0 { *sign_exponent & 0x7fff } else { *sign_exponent ^ 0x8000 };
    0
}

/// Number of ST(i) in operand `n`; ST(0) where there is none.
pub(crate) fn stack_operand(i: &Insn, n: usize) -> u8 {
    match i.operand(n) {
        Operand::St(index) => index,
        _ => 0,
    }
}

/// Loads the memory operand (2, 4 or 8 bytes), or gives 0 where there is none.
fn memory_operand<M: Machine>(m: &mut M, i: &Insn) -> Result<M::Int, M::Stop> {
    if i.operand(0) != Operand::Memory {
        return Ok(m.constant(Width::Qword, 0));
    }
    let width = i.operand_width(0);
    let value = operand::read(m, i, 0)?;
    Ok(m.resize(width, Width::Qword, value))
}

/// The kernel for the operand's form, of [register, m32, m64, m16int, m32int].
fn by_form(i: &Insn, forms: [Native; 5], integer: bool) -> Native {
    let form = match (i.operand(0), integer, i.memory_bytes) {
        (Operand::Memory, false, 4) => 1,
        (Operand::Memory, false, _) => 2,
        (Operand::Memory, true, 2) => 3,
        (Operand::Memory, true, _) => 4,
        _ => 0,
    };
    forms[form]
}

/// FADD and relatives.
fn arithmetic<M: Machine>(
    m: &mut M,
    i: &Insn,
    forms: [Native; 5],
    integer: bool,
    pops: u8,
) -> Result<(), M::Stop> {
    let request = Request {
        native: by_form(i, forms, integer) as u8,
        destination: stack_operand(i, 0),
        source: stack_operand(i, 1),
        pops,
    };
    run(m, i, Helper::X87Arithmetic, request.pack())?;
    Ok(())
}

/// Checks, loads the memory operand, calls the helper, records the instruction.
fn run<M: Machine>(m: &mut M, i: &Insn, helper: Helper, immediate: u64) -> Result<M::Int, M::Stop> {
    x87_state::check(m, true)?;
    let memory = memory_operand(m, i)?;
    let none = m.constant(Width::Qword, 0);
    let result = m.call(helper, immediate, memory, none)?;
    x87_state::record(m, i);
    Ok(result)
}

/// Instructions on ST(0), or ST(0) and ST(1), without operands.
fn implicit<M: Machine>(m: &mut M, i: &Insn, native: Native) -> Result<(), M::Stop> {
    let (destination, source, pops) = match native.kernel().shape {
        Shape::Popping => (1, 0, 1),
        _ => (0, 1, 0),
    };
    let request = Request { native: native as u8, destination, source, pops };
    run(m, i, Helper::X87Arithmetic, request.pack())?;
    Ok(())
}

/// FCOM and relatives.
fn compare<M: Machine>(
    m: &mut M,
    i: &Insn,
    forms: [Native; 5],
    integer: bool,
    pops: u8,
) -> Result<(), M::Stop> {
    // FCOMPP and FUCOMPP have no operands: ST(1).
    let source = if i.operand_count == 0 { 1 } else { stack_operand(i, 1) };
    let request = Request { native: by_form(i, forms, integer) as u8, destination: 0, source, pops };
    run(m, i, Helper::X87Compare, request.pack())?;
    Ok(())
}

/// FCOMI and relatives: OF, SF and AF are cleared.
fn compare_to_flags<M: Machine>(m: &mut M, i: &Insn, native: Native, pops: u8) -> Result<(), M::Stop> {
    let request = Request { native: native as u8, destination: 0, source: stack_operand(i, 1), pops };
    let result = run(m, i, Helper::X87Compare, request.pack() | TO_FLAGS)?;
    let values = [(Flag::Carry, 0), (Flag::Parity, 2), (Flag::Zero, 6)]
        .map(|(flag, position)| (flag, m.bit(Width::Qword, result, position)));
    vector::set_flags(m, &values);
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

use Native::*;
const ADD: [Native; 5] = [Add, AddM32, AddM64, AddI16, AddI32];
const SUB: [Native; 5] = [Sub, SubM32, SubM64, SubI16, SubI32];
const SUBR: [Native; 5] = [Subr, SubrM32, SubrM64, SubrI16, SubrI32];
const MUL: [Native; 5] = [Mul, MulM32, MulM64, MulI16, MulI32];
const DIV: [Native; 5] = [Div, DivM32, DivM64, DivI16, DivI32];
const DIVR: [Native; 5] = [Divr, DivrM32, DivrM64, DivrI16, DivrI32];
const COM: [Native; 5] = [Com, ComM32, ComM64, ComI16, ComI32];
const UCOM: [Native; 5] = [Ucom; 5];
const TST: [Native; 5] = [Tst; 5];

definitions! {
    fadd = arithmetic(ADD, false, 0);
    faddp = arithmetic(ADD, false, 1);
    fiadd = arithmetic(ADD, true, 0);
    fsub = arithmetic(SUB, false, 0);
    fsubp = arithmetic(SUB, false, 1);
    fisub = arithmetic(SUB, true, 0);
    fsubr = arithmetic(SUBR, false, 0);
    fsubrp = arithmetic(SUBR, false, 1);
    fisubr = arithmetic(SUBR, true, 0);
    fmul = arithmetic(MUL, false, 0);
    fmulp = arithmetic(MUL, false, 1);
    fimul = arithmetic(MUL, true, 0);
    fdiv = arithmetic(DIV, false, 0);
    fdivp = arithmetic(DIV, false, 1);
    fidiv = arithmetic(DIV, true, 0);
    fdivr = arithmetic(DIVR, false, 0);
    fdivrp = arithmetic(DIVR, false, 1);
    fidivr = arithmetic(DIVR, true, 0);
    fsqrt = implicit(Sqrt);
    frndint = implicit(Rndint);
    f2xm1 = implicit(TwoXm1);
    fsin = implicit(Sin);
    fcos = implicit(Cos);
    fscale = implicit(Scale);
    fprem = implicit(Prem);
    fprem1 = implicit(Prem1);
    fpatan = implicit(Patan);
    fyl2x = implicit(Yl2x);
    fyl2xp1 = implicit(Yl2xp1);
    fptan = implicit(Ptan);
    fsincos = implicit(Sincos);
    fxtract = implicit(Xtract);
    fcom = compare(COM, false, 0);
    fcomp = compare(COM, false, 1);
    fcompp = compare(COM, false, 2);
    ficom = compare(COM, true, 0);
    ficomp = compare(COM, true, 1);
    fucom = compare(UCOM, false, 0);
    fucomp = compare(UCOM, false, 1);
    fucompp = compare(UCOM, false, 2);
    ftst = compare(TST, false, 0);
    fcomi = compare_to_flags(Com, 0);
    fcomip = compare_to_flags(Com, 1);
    fucomi = compare_to_flags(Ucom, 0);
    fucomip = compare_to_flags(Ucom, 1);
    fxam = on_top(Helper::X87Examine, 0);
    fabs = on_top(Helper::X87Sign, 0);
    fchs = on_top(Helper::X87Sign, 1);
}

/// A helper of its own, without operands.
fn on_top<M: Machine>(m: &mut M, i: &Insn, helper: Helper, immediate: u64) -> Result<(), M::Stop> {
    run(m, i, helper, immediate).map(|_| ())
}
