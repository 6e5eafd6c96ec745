//! Event delivery in real mode: the interrupt vector table (SDM Vol. 3B 21.1.4). No error codes, no privilege.

use memory::GuestVirt;
use x86::{Exception, Vector, Width, flags};

use crate::{Context, Result, delivery::Delivery, segment_load::real_segment, stack::Stack};

/// Pushes FLAGS, CS and IP and goes where the table says.
pub(crate) fn deliver_real(cx: &mut Context<'_>, delivery: &Delivery) -> Result {
    let offset = u64::from(delivery.vector) * 4;
    if offset + 3 > u64::from(cx.state.idtr.limit) {
        return Err(Exception::with_code(Vector::GeneralProtection, 0).into());
    }
    let address = GuestVirt(cx.state.idtr.base.wrapping_add(offset) & 0xffff_ffff);
    let entry = cx.mmu.load_supervisor(cx.state, address, Width::Dword)?;
    let mut stack = Stack::current(cx.state);
    stack.push(cx, Width::Word, delivery.return_rflags)?;
    stack.push(cx, Width::Word, u64::from(cx.state.segments[1].selector))?;
    stack.push(cx, Width::Word, delivery.return_rip)?;

    stack.commit(cx.state);
    cx.state.segments[1] = real_segment(cx, 1, (entry >> 16) as u16);
    cx.state.rip = entry & 0xffff;
    cx.state.rflags &= !(flags::IF | flags::TF | flags::AC | flags::RF);
    cx.mode_changed();
    Ok(())
}
