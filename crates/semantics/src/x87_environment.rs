//! FNSTENV, FLDENV, FNSAVE and FRSTOR: the environment in its four formats (SDM Vol. 1 8.1.10), and the registers.

use x86::{CpuState, Width};

use crate::{
    Insn, Machine,
    helper::Helper,
    operand,
    x87_state::{self, BUSY, ERROR_SUMMARY, EXCEPTIONS, abridge, set_control, tag_word},
};

/// Number of words (or dwords) in an environment.
const FIELDS: u64 = 7;

/// Immediate bit: the formats of real-address and virtual-8086 mode.
const REAL: u64 = 1 << 8;

/// How an environment is laid out.
#[derive(Clone, Copy)]
struct Layout {
    /// Of a field: 16 or 32 bits.
    width: Width,
    /// [`REAL`] or 0.
    real: u64,
}

impl Layout {
    fn of<M: Machine>(m: &M, i: &Insn) -> Self {
        let width = if matches!(i.memory_bytes, 14 | 94) { Width::Word } else { Width::Dword };
        Self { width, real: if m.mode().is_protected() { 0 } else { REAL } }
    }

    /// Bytes of the environment.
    fn bytes(self) -> u64 {
        FIELDS * self.width.bytes()
    }
}

/// Helper: field `immediate` (with [`REAL`]) of the environment, with 32 bits; 16-bit layouts take the low half.
pub extern "C" fn helper_environment(state: &mut CpuState, immediate: u64, _: u64, _: u64) -> u64 {
    let x87 = &state.x87;
    let (ip, dp) = (x87.instruction_pointer & 0xffff_ffff, x87.data_pointer & 0xffff_ffff);
    let opcode = u64::from(x87.opcode & 0x7ff);
    const ONES: u64 = 0xffff_0000;
    match immediate {
        n if n & !REAL == 0 => u64::from(x87.control) | ONES,
        n if n & !REAL == 1 => u64::from(x87.status) | ONES,
        n if n & !REAL == 2 => u64::from(tag_word(x87)) | ONES,
        3 => ip,
        4 => u64::from(x87.instruction_selector) | opcode << 16,
        5 => dp,
        6 => u64::from(x87.data_selector) | ONES,
        // Linear addresses in two pieces.
        n if n == REAL | 3 => ip & 0xffff | ONES,
        n if n == REAL | 4 => ip >> 16 << 12 | opcode,
        n if n == REAL | 5 => dp & 0xffff | ONES,
        _ => dp >> 16 << 12,
    }
}

/// Helper: sets field `immediate` (with [`REAL`]) from `a`. Field 0 is set last: masks decide what is pending.
pub extern "C" fn helper_set_environment(state: &mut CpuState, immediate: u64, a: u64, _: u64) -> u64 {
    let x87 = &mut state.x87;
    match immediate {
        n if n & !REAL == 0 => set_control(x87, a as u16),
        n if n & !REAL == 1 => x87.status = a as u16,
        n if n & !REAL == 2 => x87.tags = abridge(a as u16),
        3 => x87.instruction_pointer = a,
        4 => {
            x87.instruction_selector = a as u16;
            x87.opcode = (a >> 16) as u16 & 0x7ff;
        }
        5 => x87.data_pointer = a,
        6 => x87.data_selector = a as u16,
        n if n == REAL | 3 => x87.instruction_pointer = a & 0xffff,
        n if n == REAL | 4 => {
            x87.instruction_pointer |= (a >> 12 & 0xffff) << 16;
            x87.instruction_selector = 0;
            x87.opcode = a as u16 & 0x7ff;
        }
        n if n == REAL | 5 => x87.data_pointer = a & 0xffff,
        _ => {
            x87.data_pointer |= (a >> 12 & 0xffff) << 16;
            x87.data_selector = 0;
        }
    }
    0
}

/// Helper: masks all exceptions, so that none is pending (FNSTENV).
pub extern "C" fn helper_mask_all(state: &mut CpuState, _: u64, _: u64, _: u64) -> u64 {
    state.x87.control |= EXCEPTIONS;
    state.x87.status &= !(ERROR_SUMMARY | BUSY);
    0
}

/// `base + offset`.
fn at<M: Machine>(m: &mut M, base: M::Int, offset: u64) -> M::Int {
    let offset = m.constant(Width::Qword, offset);
    m.add(Width::Qword, base, offset)
}

/// Stores the environment.
fn store_environment<M: Machine>(m: &mut M, base: M::Int, layout: Layout) -> Result<(), M::Stop> {
    let none = m.constant(Width::Qword, 0);
    for n in 0..FIELDS {
        let value = m.call(Helper::X87Environment, n | layout.real, none, none)?;
        let value = m.resize(Width::Qword, layout.width, value);
        let address = at(m, base, n * layout.width.bytes());
        m.store(layout.width, address, value)?;
    }
    Ok(())
}

/// Loads the fields of an environment, zero-extended to 64 bits.
fn load_environment<M: Machine>(m: &mut M, base: M::Int, layout: Layout) -> Result<[M::Int; 7], M::Stop> {
    let mut fields = [base; FIELDS as usize];
    for (n, field) in (0..).zip(&mut fields) {
        let address = at(m, base, n * layout.width.bytes());
        let value = m.load(layout.width, address)?;
        *field = m.resize(layout.width, Width::Qword, value);
    }
    Ok(fields)
}

fn set_environment<M: Machine>(m: &mut M, fields: [M::Int; 7], layout: Layout) -> Result<(), M::Stop> {
    let none = m.constant(Width::Qword, 0);
    for n in (0..FIELDS).rev() {
        // The pointers' low parts (3 and 5) come before their high parts (4 and 6).
        let n = match n {
            6 => 5,
            5 => 6,
            4 => 3,
            3 => 4,
            n => n,
        };
        m.call(Helper::X87SetEnvironment, n | layout.real, fields[n as usize], none)?;
    }
    Ok(())
}

/// FNSTENV.
pub fn fnstenv<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    x87_state::check(m, false)?;
    let layout = Layout::of(m, i);
    let base = operand::address(m, i, layout.bytes() as u16, true)?;
    m.probe_write(base, layout.bytes() as u16)?;
    store_environment(m, base, layout)?;
    let none = m.constant(Width::Qword, 0);
    m.call(Helper::X87MaskAll, 0, none, none).map(|_| ())
}

/// FLDENV.
pub fn fldenv<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    x87_state::check(m, true)?;
    let layout = Layout::of(m, i);
    let base = operand::address(m, i, layout.bytes() as u16, false)?;
    let fields = load_environment(m, base, layout)?;
    set_environment(m, fields, layout)
}

/// FNSAVE: the environment, ST(0) to ST(7), then FNINIT.
pub fn fnsave<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    x87_state::check(m, false)?;
    let layout = Layout::of(m, i);
    let bytes = layout.bytes() as u16 + 80;
    let base = operand::address(m, i, bytes, true)?;
    m.probe_write(base, bytes)?;
    store_environment(m, base, layout)?;
    let none = m.constant(Width::Qword, 0);
    for n in 0..8 {
        let low = m.call(Helper::X87Register, 2 * n, none, none)?;
        let address = at(m, base, layout.bytes() + 10 * n);
        m.store(Width::Qword, address, low)?;
        let high = m.call(Helper::X87Register, 2 * n + 1, none, none)?;
        let high = m.resize(Width::Qword, Width::Word, high);
        let address = at(m, base, layout.bytes() + 10 * n + 8);
        m.store(Width::Word, address, high)?;
    }
    m.call(Helper::X87Initialize, 0, none, none).map(|_| ())
}

/// FRSTOR.
pub fn frstor<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    x87_state::check(m, true)?;
    let layout = Layout::of(m, i);
    let base = operand::address(m, i, layout.bytes() as u16 + 80, false)?;
    let fields = load_environment(m, base, layout)?;
    let mut registers = [(base, base); 8];
    for (offset, register) in (layout.bytes()..).step_by(10).zip(&mut registers) {
        let address = at(m, base, offset);
        let low = m.load(Width::Qword, address)?;
        let address = at(m, base, offset + 8);
        let high = m.load(Width::Word, address)?;
        *register = (low, m.resize(Width::Word, Width::Qword, high));
    }
    set_environment(m, fields, layout)?;
    for (n, (low, high)) in (0..).zip(registers) {
        m.call(Helper::X87SetRegister, n, low, high)?;
    }
    Ok(())
}
