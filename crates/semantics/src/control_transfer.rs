//! Near control transfer (SDM Vol. 1 5.1.7). Far transfers, INT and IRET are callouts.

use x86::{Exception, GuestVirt, Width};

use crate::{ConditionCode, Flag, Insn, Machine, Operand, Register, Transfer, operand, stack};

const RCX: u8 = 1;

/// Checks a constant target. In 64-bit mode and in flat segments nothing is left for run time.
fn check_near<M: Machine>(m: &mut M, target: u64) -> Result<(), M::Stop> {
    if m.mode().is_64bit() {
        return if GuestVirt(target).is_canonical() { Ok(()) } else { Err(m.raise(Exception::GP0)) };
    }
    if m.mode().is_flat() {
        return Ok(());
    }
    let target = m.constant(Width::Qword, target);
    m.check_target(target)
}

/// Goes to the constant target if the condition holds. `first` is done before, once nothing can fault any more.
fn branch_near<M: Machine>(
    m: &mut M,
    i: &Insn,
    condition: M::Bool,
    first: impl FnOnce(&mut M),
) -> Result<(), M::Stop> {
    let target = i.immediate;
    let always_valid =
        if m.mode().is_64bit() { GuestVirt(target).is_canonical() } else { m.mode().is_flat() };
    if !always_valid {
        m.when(condition, |m| check_near(m, target))?;
    }
    first(m);
    m.branch(condition, target)
}

/// Reads an indirect target, as a 64-bit integer.
fn indirect_target<M: Machine>(m: &mut M, i: &Insn) -> Result<M::Int, M::Stop> {
    let target = operand::read(m, i, 0)?;
    Ok(m.resize(i.operand_width(0), Width::Qword, target))
}

/// JMP, near.
pub fn jmp<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    if i.operand(0) == Operand::Near {
        check_near(m, i.immediate)?;
        return m.jump(i.immediate, Transfer::Jump);
    }
    let target = indirect_target(m, i)?;
    m.check_target(target)?;
    m.jump_indirect(target, Transfer::Jump)
}

/// CALL, near. As on Intel's processors, a target that can't be fetched from is found when the return address is on the
/// stack already (rSP does not move); the SDM's pseudocode and AMD's check first.
pub fn call<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let return_to = m.constant(i.width, i.next_rip());
    if i.operand(0) == Operand::Near {
        check_near(m, i.immediate)?;
        stack::push(m, i.width, return_to)?;
        return m.jump(i.immediate, Transfer::Call);
    }
    let target = indirect_target(m, i)?;
    m.foresee_target(target)?;
    let top = stack::store_below(m, i.width, i.width, return_to)?;
    m.check_target(target)?;
    let pointer = stack::pointer(m);
    m.set_gpr(pointer, top);
    m.jump_indirect(target, Transfer::Call)
}

/// RET, near, with or without bytes to release.
pub fn ret<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let (target, after) = stack::peek(m, i.width)?;
    let target = m.resize(i.width, Width::Qword, target);
    m.check_target(target)?;
    let after = if i.operand(0) == Operand::Immediate {
        let width = stack::pointer(m).width;
        let released = m.constant(width, i.immediate);
        m.add(width, after, released)
    } else {
        after
    };
    let pointer = stack::pointer(m);
    m.set_gpr(pointer, after);
    m.jump_indirect(target, Transfer::Return)
}

/// Jcc.
pub fn jcc<M: Machine, const CODE: u8>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let condition = m.condition(ConditionCode::from_number(CODE));
    branch_near(m, i, condition, |_| {})
}

/// JCXZ, JECXZ, JRCXZ.
pub fn jcxz<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let count = m.gpr(Register::new(RCX, i.address_width));
    let zero = m.constant(i.address_width, 0);
    let condition = m.equal(i.address_width, count, zero);
    branch_near(m, i, condition, |_| {})
}

/// LOOP.
pub fn loop_<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    loop_while(m, i, None)
}

/// LOOPE.
pub fn loope<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    loop_while(m, i, Some(true))
}

/// LOOPNE.
pub fn loopne<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    loop_while(m, i, Some(false))
}

fn loop_while<M: Machine>(m: &mut M, i: &Insn, zero_flag: Option<bool>) -> Result<(), M::Stop> {
    let width = i.address_width;
    let counter = Register::new(RCX, width);
    let one = m.constant(width, 1);
    let zero = m.constant(width, 0);
    let count = m.gpr(counter);
    let count = m.sub(width, count, one);
    let done = m.equal(width, count, zero);
    let mut condition = m.bool_not(done);
    if let Some(wanted) = zero_flag {
        let flag = m.flag(Flag::Zero);
        let holds = if wanted { flag } else { m.bool_not(flag) };
        condition = m.bool_and(condition, holds);
    }
    branch_near(m, i, condition, |m| m.set_gpr(counter, count))
}
