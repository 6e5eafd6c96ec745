//! Model-specific registers: RDMSR, WRMSR and the one table of those that exist (SDM Vol. 4; Vol. 3A 4.10, 12.12).
//!
//! A register that is not in [`TABLE`] does not exist: #GP(0). Registers of the local APIC belong to the board.

use memory::GuestVirt;
use semantics::Insn;
use vcpu::{Answer, Clock, Exit};
use x86::{
    CpuState, Exception,
    control::{cr0, efer},
    msr::*,
};

use crate::{Context, Result, Stop, kvmclock};

/// How a register is read.
enum Read {
    /// Always this.
    Constant(u64),
    /// From the state.
    State(fn(&CpuState) -> u64),
    /// The guest's TSC.
    Tsc,
    /// The board knows.
    Board,
    /// Write-only: #GP(0).
    Fault,
}

/// How a register is written.
enum Write {
    /// Stored, if the check admits the value; #GP(0) otherwise.
    State(fn(&mut CpuState) -> &mut u64, fn(u64) -> bool),
    /// By a function, which may refuse.
    With(fn(&mut Context<'_>, u64) -> Result),
    /// Accepted if the check admits it, and forgotten.
    Ignore(fn(u64) -> bool),
    /// The board's business.
    Board,
    /// Read-only: #GP(0).
    Fault,
}

/// A register, or a range of them that are treated alike.
struct Row {
    first: u32,
    last: u32,
    read: Read,
    write: Write,
}

const fn row(index: u32, read: Read, write: Write) -> Row {
    Row { first: index, last: index, read, write }
}

/// Bits of IA32_ARCH_CAPABILITIES: the families of speculation bugs that a translated processor does not have, and
/// enhanced IBRS, so that Linux picks no software mitigation (arch/x86/kernel/cpu/bugs.c).
pub mod arch_capabilities {
    /// Not susceptible to Meltdown, nor to L1TF.
    pub const RDCL_NO: u64 = 1 << 0;
    /// Enhanced IBRS: set once, no retpolines.
    pub const IBRS_ALL: u64 = 1 << 1;
    /// No L1D flush on VM entry.
    pub const SKIP_L1DFL_VMENTRY: u64 = 1 << 3;
    /// No speculative store bypass.
    pub const SSB_NO: u64 = 1 << 4;
    /// No MDS.
    pub const MDS_NO: u64 = 1 << 5;
    /// No machine check on page-size changes.
    pub const IF_PSCHANGE_MC_NO: u64 = 1 << 6;
    /// No TAA.
    pub const TAA_NO: u64 = 1 << 8;
    /// No shared-buffer data sampling.
    pub const SBDR_SSDP_NO: u64 = 1 << 13;
    /// No fill-buffer stale data propagation.
    pub const FBSDP_NO: u64 = 1 << 14;
    /// No primary stale data propagation.
    pub const PSDP_NO: u64 = 1 << 15;
    /// No branch history injection.
    pub const BHI_NO: u64 = 1 << 20;
    /// No post-barrier return stack buffer prediction.
    pub const PBRSB_NO: u64 = 1 << 24;
    /// No gather data sampling.
    pub const GDS_NO: u64 = 1 << 26;
    /// No register-file data sampling.
    pub const RFDS_NO: u64 = 1 << 27;
    /// No indirect target selection.
    pub const ITS_NO: u64 = 1 << 62;
    /// What is announced.
    pub const ANNOUNCED: u64 = RDCL_NO
        | IBRS_ALL
        | SKIP_L1DFL_VMENTRY
        | SSB_NO
        | MDS_NO
        | IF_PSCHANGE_MC_NO
        | TAA_NO
        | SBDR_SSDP_NO
        | FBSDP_NO
        | PSDP_NO
        | BHI_NO
        | PBRSB_NO
        | GDS_NO
        | RFDS_NO
        | ITS_NO;
}

/// IA32_BIOS_SIGN_ID: a microcode revision in the upper half that no blacklist names.
const MICROCODE_REVISION: u64 = 1 << 32;
/// IA32_FEATURE_CONTROL: locked, nothing enabled.
const FEATURE_CONTROL_LOCKED: u64 = 1;
/// MSR_PLATFORM_INFO: maximum non-turbo ratio 10 (times 100 MHz).
const PLATFORM_RATIO: u64 = 10 << 8;
/// IA32_MISC_ENABLE: branch-trace storage and precise event sampling are unavailable.
const MISC_ENABLE_UNAVAILABLE: u64 = 1 << 11 | 1 << 12;

/// Every register, in order.
const TABLE: &[Row] = &[
    row(IA32_TSC, Read::Tsc, Write::With(write_tsc)),
    row(IA32_PLATFORM_ID, Read::Constant(0), Write::Fault),
    row(IA32_APIC_BASE, Read::Board, Write::Board),
    row(IA32_FEATURE_CONTROL, Read::Constant(FEATURE_CONTROL_LOCKED), Write::Fault),
    row(IA32_TSC_ADJUST, Read::State(|s| s.msrs.tsc_adjust), Write::With(write_tsc_adjust)),
    row(
        IA32_SPEC_CTRL,
        Read::State(|s| s.msrs.spec_ctrl),
        Write::State(|s| &mut s.msrs.spec_ctrl, spec_ctrl),
    ),
    row(IA32_PRED_CMD, Read::Fault, Write::Ignore(|value| value & !1 == 0)),
    row(IA32_BIOS_SIGN_ID, Read::Constant(MICROCODE_REVISION), Write::Ignore(any)),
    row(MSR_PLATFORM_INFO, Read::Constant(PLATFORM_RATIO), Write::Fault),
    row(IA32_ARCH_CAPABILITIES, Read::Constant(arch_capabilities::ANNOUNCED), Write::Fault),
    row(
        IA32_SYSENTER_CS,
        Read::State(|s| s.msrs.sysenter_cs),
        Write::State(|s| &mut s.msrs.sysenter_cs, any),
    ),
    row(
        IA32_SYSENTER_ESP,
        Read::State(|s| s.msrs.sysenter_esp),
        Write::State(|s| &mut s.msrs.sysenter_esp, canonical),
    ),
    row(
        IA32_SYSENTER_EIP,
        Read::State(|s| s.msrs.sysenter_eip),
        Write::State(|s| &mut s.msrs.sysenter_eip, canonical),
    ),
    row(IA32_MCG_CAP, Read::Constant(0), Write::Fault),
    row(IA32_MCG_STATUS, Read::Constant(0), Write::Ignore(|value| value == 0)),
    row(
        IA32_MISC_ENABLE,
        Read::State(|s| s.msrs.misc_enable | MISC_ENABLE_UNAVAILABLE),
        Write::State(|s| &mut s.msrs.misc_enable, any),
    ),
    row(IA32_DEBUGCTL, Read::Constant(0), Write::Ignore(|value| value == 0)),
    row(IA32_PAT, Read::State(|s| s.msrs.pat), Write::State(|s| &mut s.msrs.pat, memory_types)),
    row(IA32_TSC_DEADLINE, Read::Board, Write::Board),
    Row { first: X2APIC_FIRST, last: X2APIC_LAST, read: Read::Board, write: Write::Board },
    row(KVM_WALL_CLOCK_NEW, Read::State(|s| s.msrs.kvm_wall_clock), Write::With(kvmclock::write_wall_clock)),
    row(
        KVM_SYSTEM_TIME_NEW,
        Read::State(|s| s.msrs.kvm_system_time),
        Write::With(kvmclock::write_system_time),
    ),
    row(KVM_PV_EOI_EN, Read::Board, Write::Board),
    row(IA32_EFER, Read::State(|s| s.efer), Write::With(write_efer)),
    row(IA32_STAR, Read::State(|s| s.msrs.star), Write::State(|s| &mut s.msrs.star, any)),
    row(IA32_LSTAR, Read::State(|s| s.msrs.lstar), Write::State(|s| &mut s.msrs.lstar, canonical)),
    row(IA32_CSTAR, Read::State(|s| s.msrs.cstar), Write::State(|s| &mut s.msrs.cstar, canonical)),
    row(IA32_FMASK, Read::State(|s| s.msrs.fmask), Write::State(|s| &mut s.msrs.fmask, low_half)),
    row(
        IA32_FS_BASE,
        Read::State(|s| s.segments[4].base),
        Write::State(|s| &mut s.segments[4].base, canonical),
    ),
    row(
        IA32_GS_BASE,
        Read::State(|s| s.segments[5].base),
        Write::State(|s| &mut s.segments[5].base, canonical),
    ),
    row(
        IA32_KERNEL_GS_BASE,
        Read::State(|s| s.msrs.kernel_gs_base),
        Write::State(|s| &mut s.msrs.kernel_gs_base, canonical),
    ),
    row(IA32_TSC_AUX, Read::State(|s| s.msrs.tsc_aux), Write::State(|s| &mut s.msrs.tsc_aux, low_half)),
];

fn any(_: u64) -> bool {
    true
}

fn canonical(value: u64) -> bool {
    GuestVirt(value).is_canonical()
}

fn low_half(value: u64) -> bool {
    value >> 32 == 0
}

/// IBRS, STIBP and BHI_DIS_S; SSBD is not announced.
fn spec_ctrl(value: u64) -> bool {
    const IBRS: u64 = 1 << 0;
    const STIBP: u64 = 1 << 1;
    const BHI_DIS_S: u64 = 1 << 10;
    value & !(IBRS | STIBP | BHI_DIS_S) == 0
}

/// Every byte of PAT is UC, WC, WT, WP, WB or UC- (SDM Vol. 3A 12.12.2).
fn memory_types(value: u64) -> bool {
    value.to_le_bytes().iter().all(|kind| matches!(kind, 0 | 1 | 4 | 5 | 6 | 7))
}

/// KVM's registers, which a machine without paravirtual features lacks.
const PARAVIRTUAL: std::ops::RangeInclusive<u32> = KVM_WALL_CLOCK_NEW..=0x4b56_4dff;

/// For each register from EFER to TSC_AUX, the frequent ones: how many rows begin at or before it.
static AFTER_EFER: [u8; (IA32_TSC_AUX - IA32_EFER + 1) as usize] = {
    let mut after = [0; (IA32_TSC_AUX - IA32_EFER + 1) as usize];
    let mut n = 0;
    while n < after.len() {
        let mut rows = 0;
        while rows < TABLE.len() && TABLE[rows].first <= IA32_EFER + n as u32 {
            rows += 1;
        }
        after[n] = rows as u8;
        n += 1;
    }
    after
};

fn find(state: &CpuState, index: u32) -> Result<&'static Row, Exception> {
    if PARAVIRTUAL.contains(&index) && !state.paravirt {
        return Err(Exception::GP0);
    }
    let after = match AFTER_EFER.get(index.wrapping_sub(IA32_EFER) as usize) {
        Some(&after) => usize::from(after),
        None => TABLE.partition_point(|row| row.first <= index),
    };
    match after.checked_sub(1).map(|n| &TABLE[n]) {
        Some(row) if index <= row.last => Ok(row),
        _ => Err(Exception::GP0),
    }
}

/// What RDMSR of a register gives. [`Stop::Exit`]: the board knows.
pub fn read(state: &CpuState, clock: &Clock, index: u32) -> Result<u64> {
    match find(state, index)?.read {
        Read::Constant(value) => Ok(value),
        Read::State(read) => Ok(read(state)),
        Read::Tsc => Ok(crate::tsc(state, clock)),
        Read::Board => Err(Stop::Exit(Exit::MsrRead { index })),
        Read::Fault => Err(Exception::GP0.into()),
    }
}

/// What WRMSR of a register that is plain storage does, for engines whose processor has those with effects itself:
/// here they are #GP(0). [`Stop::Exit`]: the board's business.
pub fn store(state: &mut CpuState, index: u32, value: u64) -> Result {
    store_row(state, find(state, index)?, index, value)
}

fn store_row(state: &mut CpuState, row: &Row, index: u32, value: u64) -> Result {
    match &row.write {
        Write::State(_, check) | Write::Ignore(check) if !check(value) => Err(Exception::GP0.into()),
        Write::State(field, _) => {
            *field(state) = value;
            Ok(())
        }
        Write::Ignore(_) => Ok(()),
        Write::Board => Err(Stop::Exit(Exit::MsrWrite { index, value })),
        Write::With(_) | Write::Fault => Err(Exception::GP0.into()),
    }
}

/// RDMSR.
pub(crate) fn rdmsr(cx: &mut Context<'_>, insn: &Insn) -> Result {
    cx.require_cpl0()?;
    let value = read(cx.state, cx.clock, cx.state.gpr[1] as u32)?;
    cx.set_edx_eax(value);
    cx.advance(insn);
    Ok(())
}

/// WRMSR.
pub(crate) fn wrmsr(cx: &mut Context<'_>, insn: &Insn) -> Result {
    cx.require_cpl0()?;
    write(cx, cx.state.gpr[1] as u32, cx.edx_eax())?;
    cx.advance(insn);
    Ok(())
}

/// What WRMSR of a register does.
pub(crate) fn write(cx: &mut Context<'_>, index: u32, value: u64) -> Result {
    let row = find(cx.state, index)?;
    match row.write {
        Write::With(write) => write(cx, value),
        _ => store_row(cx.state, row, index, value),
    }
}

/// Completes a RDMSR or WRMSR that the board answered.
pub(crate) fn complete(cx: &mut Context<'_>, insn: &Insn, exit: Exit, answer: Answer) -> Result {
    match (exit, answer) {
        (_, Answer::Fault) => return Err(Exception::GP0.into()),
        (Exit::MsrRead { .. }, Answer::Value(value)) => cx.set_edx_eax(value),
        (Exit::MsrRead { .. }, Answer::Done) => cx.set_edx_eax(0),
        _ => {}
    }
    cx.advance(insn);
    Ok(())
}

fn write_tsc(cx: &mut Context<'_>, value: u64) -> Result {
    let change = value.wrapping_sub(cx.tsc());
    move_tsc(cx, change);
    Ok(())
}

fn write_tsc_adjust(cx: &mut Context<'_>, value: u64) -> Result {
    let change = value.wrapping_sub(cx.state.msrs.tsc_adjust);
    move_tsc(cx, change);
    Ok(())
}

/// The TSC and its adjustment move together (SDM Vol. 3B 18.17.3).
fn move_tsc(cx: &mut Context<'_>, change: u64) {
    let msrs = &mut cx.state.msrs;
    msrs.tsc_offset = msrs.tsc_offset.wrapping_add(change);
    msrs.tsc_adjust = msrs.tsc_adjust.wrapping_add(change);
    kvmclock::refresh(cx);
}

/// LMA is read-only, LME can't change while paging is on (SDM Vol. 3A 2.2.1, 9.8.5).
fn write_efer(cx: &mut Context<'_>, value: u64) -> Result {
    let old = cx.state.efer;
    let new = value & !efer::LMA | old & efer::LMA;
    let reserved = value & !(efer::SCE | efer::LME | efer::LMA | efer::NXE) != 0;
    if reserved || ((old ^ new) & efer::LME != 0 && cx.state.cr0 & cr0::PG != 0) {
        return Err(Exception::GP0.into());
    }
    cx.state.efer = new;
    cx.state.update_mode();
    if (old ^ new) & efer::NXE != 0 {
        cx.mmu.flush_all(cx.state);
    }
    Ok(())
}
