//! Event delivery in 32-bit protected mode and from virtual-8086 mode: 16- and 32-bit interrupt and trap gates, and
//! task gates (SDM Vol. 3A 6.12; Vol. 3B 21.3; the operation of INT n in Vol. 2).

use memory::GuestVirt;
use x86::{Exception, Segment, Vector, Width, flags, segment::system, state::RSP};

use crate::{
    Context, Result,
    delivery::{Delivery, check_gate_access, enter_handler, entry_outside_limit, require_ring0_from_v86},
    gate::{Gate, gate_code_segment, legacy_inner_stack},
    stack::Stack,
    task,
};

/// Delivers through the IDT of 8-byte gates.
pub(crate) fn deliver_protected(cx: &mut Context<'_>, delivery: &Delivery) -> Result {
    let external = delivery.source.external();
    let gate = read_gate(cx, delivery)?;
    if gate.kind == system::TASK_GATE {
        return task::enter_through_idt(cx, &gate, delivery);
    }
    let mut code = gate_code_segment(cx, gate.selector, external)?;
    require_ring0_from_v86(cx, &code, external)?;
    let cpl = cx.state.cpl;
    let from_v86 = cx.state.rflags & flags::VM != 0;
    let new_cpl = if code.is_conforming() { cpl } else { code.dpl() };
    let inner = if new_cpl != cpl { Some(legacy_inner_stack(cx, new_cpl, external)?) } else { None };
    let mut cs = code.segment();
    cs.selector = gate.selector & !3 | u16::from(new_cpl);
    entry_outside_limit(&cs, gate.offset, external)?;

    let width = if gate.kind & 8 != 0 { Width::Dword } else { Width::Word };
    let mut stack = match inner {
        Some((ss, pointer)) => Stack::legacy(ss, pointer, new_cpl, external),
        None => Stack::current_external(cx.state, external),
    };
    let old = cx.state.segments.map(|segment| u64::from(segment.selector));
    let [es, old_cs, ss, ds, fs, gs] = old;
    if inner.is_some() {
        if from_v86 {
            for selector in [gs, fs, ds, es] {
                stack.push(cx, width, selector)?;
            }
        }
        stack.push(cx, width, ss)?;
        stack.push(cx, width, cx.state.gpr[RSP])?;
    }
    stack.push(cx, width, delivery.return_rflags)?;
    stack.push(cx, width, old_cs)?;
    stack.push(cx, width, delivery.return_rip)?;
    if let Some(error_code) = delivery.error_code {
        stack.push(cx, width, u64::from(error_code))?;
    }
    code.mark_accessed(cx)?;
    cs.attributes = code.attributes();

    cx.state.segments[1] = cs;
    cx.state.cpl = new_cpl;
    if let Some((ss, _)) = inner {
        cx.state.segments[2] = ss;
        if from_v86 {
            for n in [0, 3, 4, 5] {
                cx.state.segments[n] = Segment::default();
            }
        }
    }
    stack.commit(cx.state);
    cx.state.rip = gate.offset;
    enter_handler(cx, matches!(gate.kind, system::INTERRUPT_GATE | system::INTERRUPT_GATE16));
    Ok(())
}

fn read_gate(cx: &mut Context<'_>, delivery: &Delivery) -> Result<Gate> {
    let fault: Exception = delivery.gate_fault(Vector::GeneralProtection);
    let offset = u64::from(delivery.vector) * 8;
    if offset + 7 > u64::from(cx.state.idtr.limit) {
        return Err(fault.into());
    }
    let address = GuestVirt(cx.state.idtr.base.wrapping_add(offset) & 0xffff_ffff);
    let gate = Gate::parse(cx.mmu.load_supervisor(cx.state, address, Width::Qword)?, 0);
    let known = matches!(
        gate.kind,
        system::TASK_GATE
            | system::INTERRUPT_GATE16
            | system::TRAP_GATE16
            | system::INTERRUPT_GATE
            | system::TRAP_GATE
    );
    if !known {
        return Err(fault.into());
    }
    check_gate_access(cx, delivery, &gate)?;
    Ok(gate)
}
