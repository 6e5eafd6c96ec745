//! x87 control instructions (SDM Vol. 1 5.2.6) that don't move whole environments; those are in `x87_environment`.

use core::mem::offset_of;

use x86::{CpuState, Exception, Width, control, fpu::X87};

use crate::{
    Insn, Machine, Operand,
    helper::Helper,
    operand,
    x87_state::{self, STATUS, field},
};

const CONTROL: usize = field(offset_of!(X87, control));

/// Calls a helper that takes nothing and gives nothing.
fn call<M: Machine>(m: &mut M, helper: Helper) -> Result<(), M::Stop> {
    let none = m.constant(Width::Qword, 0);
    m.call(helper, 0, none, none).map(|_| ())
}

/// FNINIT.
pub fn fninit<M: Machine>(m: &mut M, _: &Insn) -> Result<(), M::Stop> {
    x87_state::check(m, false)?;
    call(m, Helper::X87Initialize)
}

/// FNCLEX.
pub fn fnclex<M: Machine>(m: &mut M, _: &Insn) -> Result<(), M::Stop> {
    x87_state::check(m, false)?;
    call(m, Helper::X87ClearExceptions)
}

/// FLDCW.
pub fn fldcw<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    x87_state::check(m, true)?;
    let address = operand::address(m, i, 2, false)?;
    let value = m.load(Width::Word, address)?;
    let value = m.resize(Width::Word, Width::Qword, value);
    let none = m.constant(Width::Qword, 0);
    m.call(Helper::X87SetControl, 0, value, none).map(|_| ())
}

/// Stores a word of x87 state to memory or AX.
fn store_word<M: Machine>(m: &mut M, i: &Insn, offset: usize) -> Result<(), M::Stop> {
    x87_state::check(m, false)?;
    let value = m.state(offset, Width::Word);
    match i.operand(0) {
        Operand::Gpr(register) => {
            m.set_gpr(register, value);
            Ok(())
        }
        _ => {
            let address = operand::address(m, i, 2, true)?;
            m.store(Width::Word, address, value)
        }
    }
}

/// FNSTCW.
pub fn fnstcw<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    store_word(m, i, CONTROL)
}

/// FNSTSW.
pub fn fnstsw<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    store_word(m, i, STATUS)
}

/// FWAIT: #NM only if both CR0.MP and CR0.TS are set.
pub fn fwait<M: Machine>(m: &mut M, _: &Insn) -> Result<(), M::Stop> {
    if m.mode().x87_traps() {
        let cr0 = m.state(offset_of!(CpuState, cr0), Width::Qword);
        let monitor = m.bit(Width::Qword, cr0, control::cr0::MP.trailing_zeros());
        let task_switched = m.bit(Width::Qword, cr0, control::cr0::TS.trailing_zeros());
        let both = m.bool_and(monitor, task_switched);
        m.raise_if(both, Exception::NM)?;
    }
    x87_state::check_pending(m)
}

/// FNOP.
pub fn fnop<M: Machine>(m: &mut M, _: &Insn) -> Result<(), M::Stop> {
    x87_state::check(m, true)
}

/// FNENI, FNDISI, FNSETPM: nothing since the 80387 (SDM Vol. 3B 23.18.6).
pub fn ignored<M: Machine>(m: &mut M, _: &Insn) -> Result<(), M::Stop> {
    x87_state::check(m, false)
}
