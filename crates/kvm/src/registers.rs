//! Architectural state between [`CpuState`] and KVM's structures.
//!
//! What KVM does not keep stays as it is: the plain MSRs of the monitor's table, and PDPTEs, which KVM reads from memory.

use kvm_bindings::{
    KVM_VCPUEVENT_VALID_SHADOW, KVM_X86_SHADOW_INT_MOV_SS, KVM_X86_SHADOW_INT_STI, Msrs, kvm_debugregs,
    kvm_dtable, kvm_fpu, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs,
};
use kvm_ioctls::VcpuFd;
use x86::{
    CpuState, Segment, control::cr0, flags, fpu::X87, msr::*, segment::attribute, state::Msrs as PlainMsrs,
    state::shadow,
};

use crate::KvmError;

/// MSRs that KVM keeps, with their place in the state.
type Place = fn(&mut PlainMsrs) -> &mut u64;
const MSRS: &[(u32, Place)] = &[
    (IA32_STAR, |m| &mut m.star),
    (IA32_LSTAR, |m| &mut m.lstar),
    (IA32_CSTAR, |m| &mut m.cstar),
    (IA32_FMASK, |m| &mut m.fmask),
    (IA32_KERNEL_GS_BASE, |m| &mut m.kernel_gs_base),
    (IA32_SYSENTER_CS, |m| &mut m.sysenter_cs),
    (IA32_SYSENTER_ESP, |m| &mut m.sysenter_esp),
    (IA32_SYSENTER_EIP, |m| &mut m.sysenter_eip),
    (IA32_TSC_AUX, |m| &mut m.tsc_aux),
    (IA32_TSC_ADJUST, |m| &mut m.tsc_adjust),
    (IA32_PAT, |m| &mut m.pat),
    (IA32_SPEC_CTRL, |m| &mut m.spec_ctrl),
    (KVM_SYSTEM_TIME_NEW, |m| &mut m.kvm_system_time),
    (KVM_WALL_CLOCK_NEW, |m| &mut m.kvm_wall_clock),
];

/// Reads everything that KVM keeps into `state`.
pub(crate) fn fetch(vcpu: &VcpuFd, state: &mut CpuState) -> Result<(), KvmError> {
    let refused = KvmError::refused;
    let regs = vcpu.get_regs().map_err(refused("the registers"))?;
    let sregs = vcpu.get_sregs().map_err(refused("the special registers"))?;
    let fpu = vcpu.get_fpu().map_err(refused("the floating-point registers"))?;
    let debug = vcpu.get_debug_regs().map_err(refused("the debug registers"))?;
    let xcrs = vcpu.get_xcrs().map_err(refused("XCR0"))?;
    let events = vcpu.get_vcpu_events().map_err(refused("pending events"))?;
    general_from(&regs, state);
    special_from(&sregs, state);
    floating_from(&fpu, state);
    state.dr[..4].copy_from_slice(&debug.db);
    (state.dr[6], state.dr[7]) = (debug.dr6, debug.dr7);
    if let Some(xcr0) = xcrs.xcrs[..xcrs.nr_xcrs.min(16) as usize].iter().find(|xcr| xcr.xcr == 0) {
        state.xcr0 = xcr0.value;
    }
    state.interrupt_shadow = shadow_from(events.interrupt.shadow);
    state.nmi_blocked = events.nmi.masked != 0;
    for &(index, place) in MSRS {
        // One that this KVM lacks keeps what it was: the guest was not told of it.
        if let Some(value) = read_msr(vcpu, index) {
            *place(&mut state.msrs) = value;
        }
    }
    state.cpl = privilege(state);
    state.update_mode();
    Ok(())
}

/// Writes to KVM what differs between two states.
pub(crate) fn store(vcpu: &VcpuFd, before: &mut PlainMsrs, state: &mut CpuState) -> Result<(), KvmError> {
    let refused = KvmError::refused;
    state.settle_flags();
    let mut sregs = vcpu.get_sregs().map_err(refused("the special registers"))?;
    special_to(state, &mut sregs);
    vcpu.set_sregs(&sregs).map_err(refused("these special registers"))?;
    vcpu.set_regs(&general_to(state)).map_err(refused("these registers"))?;
    vcpu.set_fpu(&floating_to(state)).map_err(refused("these floating-point registers"))?;
    let debug = kvm_debugregs {
        db: [state.dr[0], state.dr[1], state.dr[2], state.dr[3]],
        dr6: state.dr[6],
        dr7: state.dr[7],
        ..Default::default()
    };
    vcpu.set_debug_regs(&debug).map_err(refused("these debug registers"))?;
    let mut xcrs = vcpu.get_xcrs().map_err(refused("XCR0"))?;
    let used = xcrs.nr_xcrs.min(16) as usize;
    if let Some(xcr0) = xcrs.xcrs[..used].iter_mut().find(|xcr| xcr.xcr == 0 && xcr.value != state.xcr0) {
        xcr0.value = state.xcr0;
        vcpu.set_xcrs(&xcrs).map_err(refused("this XCR0"))?;
    }
    let mut events = vcpu.get_vcpu_events().map_err(refused("pending events"))?;
    events.interrupt.shadow = shadow_to(state.interrupt_shadow);
    events.nmi.masked = state.nmi_blocked.into();
    events.flags |= KVM_VCPUEVENT_VALID_SHADOW;
    vcpu.set_vcpu_events(&events).map_err(refused("these pending events"))?;
    for &(index, place) in MSRS {
        let value = *place(&mut state.msrs);
        if value != *place(before) {
            write_msr(vcpu, index, value)?;
        }
    }
    Ok(())
}

/// An MSR, if KVM has it.
pub(crate) fn read_msr(vcpu: &VcpuFd, index: u32) -> Option<u64> {
    let mut msrs = Msrs::from_entries(&[kvm_msr_entry { index, ..Default::default() }]).ok()?;
    let count = vcpu.get_msrs(&mut msrs).ok()?;
    (count == 1).then(|| msrs.as_slice()[0].data)
}

/// Sets an MSR that KVM has.
pub(crate) fn write_msr(vcpu: &VcpuFd, index: u32, data: u64) -> Result<(), KvmError> {
    let refused = || KvmError::Refused {
        what: "the value of an MSR",
        source: std::io::Error::other(format!("MSR {index:#x} := {data:#x}")),
    };
    let entry = kvm_msr_entry { index, data, ..Default::default() };
    let msrs = Msrs::from_entries(&[entry]).map_err(|_| refused())?;
    match vcpu.set_msrs(&msrs) {
        Ok(1) => Ok(()),
        _ => Err(refused()),
    }
}

/// RDX and RBX trade places with RCX against the order of encoding.
fn general_from(regs: &kvm_regs, state: &mut CpuState) {
    state.gpr = [
        regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi, regs.r8, regs.r9,
        regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
    ];
    state.rip = regs.rip;
    state.set_rflags(regs.rflags);
}

fn general_to(state: &CpuState) -> kvm_regs {
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = state.gpr;
    let (rip, rflags) = (state.rip, state.rflags());
    kvm_regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags }
}

fn special_from(sregs: &kvm_sregs, state: &mut CpuState) {
    state.segments = [&sregs.es, &sregs.cs, &sregs.ss, &sregs.ds, &sregs.fs, &sregs.gs].map(segment_from);
    state.ldtr = segment_from(&sregs.ldt);
    state.tr = segment_from(&sregs.tr);
    let table =
        |table: &kvm_dtable| Segment { base: table.base, limit: table.limit.into(), ..Segment::default() };
    state.gdtr = table(&sregs.gdt);
    state.idtr = table(&sregs.idt);
    (state.cr0, state.cr2, state.cr3, state.cr4) = (sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4);
    (state.cr8, state.efer) = (sregs.cr8, sregs.efer);
}

fn special_to(state: &CpuState, sregs: &mut kvm_sregs) {
    let [es, cs, ss, ds, fs, gs] = state.segments.each_ref().map(segment_to);
    (sregs.es, sregs.cs, sregs.ss, sregs.ds, sregs.fs, sregs.gs) = (es, cs, ss, ds, fs, gs);
    sregs.ldt = segment_to(&state.ldtr);
    sregs.tr = segment_to(&state.tr);
    let table = |s: &Segment| kvm_dtable { base: s.base, limit: s.limit as u16, ..Default::default() };
    sregs.gdt = table(&state.gdtr);
    sregs.idt = table(&state.idtr);
    (sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4) = (state.cr0, state.cr2, state.cr3, state.cr4);
    (sregs.cr8, sregs.efer) = (state.cr8, state.efer);
}

fn segment_from(s: &kvm_segment) -> Segment {
    let bit = |value: u8, mask: u16| if value != 0 { mask } else { 0 };
    // An unusable register is one with a null selector, which we call not present.
    let present = s.present != 0 && s.unusable == 0;
    let attributes = u16::from(s.type_ & 0xf)
        | bit(s.s, attribute::NON_SYSTEM)
        | u16::from(s.dpl & 3) << 5
        | bit(present.into(), attribute::PRESENT)
        | bit(s.avl, attribute::AVAILABLE)
        | bit(s.l, attribute::LONG)
        | bit(s.db, attribute::DEFAULT_32)
        | bit(s.g, attribute::GRANULARITY);
    Segment { base: s.base, limit: s.limit, selector: s.selector, attributes }
}

fn segment_to(s: &Segment) -> kvm_segment {
    let bit = |mask: u16| u8::from(s.has(mask));
    kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: s.kind(),
        present: bit(attribute::PRESENT),
        dpl: s.dpl(),
        db: bit(attribute::DEFAULT_32),
        s: bit(attribute::NON_SYSTEM),
        l: bit(attribute::LONG),
        g: bit(attribute::GRANULARITY),
        avl: bit(attribute::AVAILABLE),
        unusable: u8::from(!s.has(attribute::PRESENT)),
        padding: 0,
    }
}

/// The privilege level is SS.DPL, but for real mode (0) and virtual-8086 mode (3).
fn privilege(state: &CpuState) -> u8 {
    if state.cr0 & cr0::PE == 0 {
        0
    } else if state.rflags & flags::VM != 0 {
        3
    } else {
        state.segments[2].dpl()
    }
}

/// KVM has ST(0) first, as FXSAVE does; we have R0 first.
fn floating_from(fpu: &kvm_fpu, state: &mut CpuState) {
    let x87 = &mut state.x87;
    *x87 = X87 {
        control: fpu.fcw,
        status: fpu.fsw,
        tags: fpu.ftwx.into(),
        opcode: fpu.last_opcode,
        instruction_pointer: fpu.last_ip,
        data_pointer: fpu.last_dp,
        ..X87::new()
    };
    for (position, bytes) in fpu.fpr.iter().enumerate() {
        let value = u128::from_le_bytes(*bytes);
        let index = (x87.top() + position) & 7;
        x87.registers[index] = [value as u64, (value >> 64) as u64 & 0xffff];
    }
    state.xmm = fpu.xmm.map(u128::from_le_bytes);
    state.mxcsr = fpu.mxcsr;
}

fn floating_to(state: &CpuState) -> kvm_fpu {
    let x87 = &state.x87;
    let mut fpu = kvm_fpu {
        fcw: x87.control,
        fsw: x87.status,
        ftwx: x87.tags as u8,
        last_opcode: x87.opcode,
        last_ip: x87.instruction_pointer,
        last_dp: x87.data_pointer,
        xmm: state.xmm.map(u128::to_le_bytes),
        mxcsr: state.mxcsr,
        ..Default::default()
    };
    for (position, bytes) in fpu.fpr.iter_mut().enumerate() {
        let [low, high] = x87.registers[(x87.top() + position) & 7];
        *bytes = (u128::from(high & 0xffff) << 64 | u128::from(low)).to_le_bytes();
    }
    fpu
}

const SHADOWS: [(u32, u32); 2] =
    [(KVM_X86_SHADOW_INT_STI, shadow::STI), (KVM_X86_SHADOW_INT_MOV_SS, shadow::MOV_SS)];

fn shadow_from(theirs: u8) -> u32 {
    SHADOWS.iter().filter(|(bit, _)| u32::from(theirs) & bit != 0).map(|(_, ours)| ours).sum()
}

fn shadow_to(ours: u32) -> u8 {
    SHADOWS.iter().filter(|(_, bit)| ours & bit != 0).map(|(theirs, _)| *theirs as u8).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scrambled() -> CpuState {
        let mut state = CpuState::new();
        for (index, register) in state.gpr.iter_mut().enumerate() {
            *register = 0x1111_2222_3333_0000 + index as u64;
        }
        state.rip = 0xffff_8000_1234_5678;
        state.set_rflags(0x246);
        state
    }

    #[test]
    fn general_registers_keep_their_names() {
        let state = scrambled();
        let regs = general_to(&state);
        // Encoding order: rax rcx rdx rbx rsp rbp rsi rdi.
        assert_eq!((regs.rcx, regs.rbx, regs.rsp), (state.gpr[1], state.gpr[3], state.gpr[4]));
        let mut back = CpuState::new();
        general_from(&regs, &mut back);
        assert_eq!((back.gpr, back.rip, back.rflags()), (state.gpr, state.rip, state.rflags()));
    }

    #[test]
    fn segments_go_there_and_back() {
        for descriptor in [0x00af_9b00_0000_ffff, 0x00cf_f300_0000_ffff, 0x0000_8b00_1234_0067] {
            let segment = Segment::from_descriptor(0x2b, descriptor);
            assert_eq!(segment_from(&segment_to(&segment)), segment);
        }
        let null = segment_to(&Segment::default());
        assert_eq!((null.unusable, null.present), (1, 0));
        let code = segment_to(&Segment::from_descriptor(0x10, 0x00af_9b00_0000_ffff));
        assert_eq!((code.type_, code.s, code.l, code.db, code.g, code.limit), (0xb, 1, 1, 0, 1, u32::MAX));
    }

    #[test]
    fn special_registers_go_there_and_back() {
        let mut state = scrambled();
        (state.cr0, state.cr2, state.cr3, state.cr4) = (0x8005_0033, 0xdead_beef, 0x1000, 0x6a0);
        (state.cr8, state.efer) = (5, 0xd01);
        state.idtr = Segment { base: 0xffff_fe00_0000_0000, limit: 0xfff, ..Segment::default() };
        let mut sregs = kvm_sregs { apic_base: 0xfee0_0900, ..Default::default() };
        special_to(&state, &mut sregs);
        assert_eq!(sregs.apic_base, 0xfee0_0900);
        let mut back = CpuState::new();
        special_from(&sregs, &mut back);
        assert_eq!((back.cr0, back.cr2, back.cr3, back.cr4), (state.cr0, state.cr2, state.cr3, state.cr4));
        assert_eq!((back.cr8, back.efer, back.idtr), (5, 0xd01, state.idtr));
        assert_eq!(back.segments, state.segments);
    }

    #[test]
    fn the_top_of_the_x87_stack_comes_first() {
        let mut state = CpuState::new();
        state.x87.status = 6 << 11;
        state.x87.registers[6] = [0x8000_0000_0000_0000, 0x3fff];
        state.xmm[15] = 0x1234;
        let fpu = floating_to(&state);
        assert_eq!(fpu.fpr[0][7..10], [0x80, 0xff, 0x3f]);
        let mut back = CpuState::new();
        floating_from(&fpu, &mut back);
        assert_eq!((back.x87, back.xmm), (state.x87, state.xmm));
    }

    #[test]
    fn shadows_have_other_bits() {
        for ours in [0, shadow::STI, shadow::MOV_SS, shadow::STI | shadow::MOV_SS] {
            assert_eq!(shadow_from(shadow_to(ours)), ours);
        }
        assert_eq!(u32::from(shadow_to(shadow::STI)), KVM_X86_SHADOW_INT_STI);
    }

    #[test]
    fn privilege_is_that_of_the_stack_segment() {
        let mut state = CpuState::new();
        assert_eq!(privilege(&state), 0);
        state.cr0 |= cr0::PE;
        state.segments[2] = Segment::from_descriptor(0x2b, 0x00cf_f300_0000_ffff);
        assert_eq!(privilege(&state), 3);
    }
}
