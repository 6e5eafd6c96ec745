//! kvmclock: the pages through which the guest learns what time the TSC tells (Linux
//! Documentation/virt/kvm/x86/msr.rst, struct pvclock_vcpu_time_info and pvclock_wall_clock).
//!
//! The TSC ticks once a nanosecond, so `system_time + (tsc - tsc_timestamp)` is exact for ever and a page is written
//! only when the guest asks for it or moves its TSC.

use std::time::{SystemTime, UNIX_EPOCH};

use memory::GuestPhys;
use vcpu::Clock;
use x86::hypercall::error;

use crate::{Context, Result};

/// Bit 0 of the system-time MSR.
const ENABLE: u64 = 1;
/// PVCLOCK_TSC_STABLE_BIT: readings of different processors can be compared.
const STABLE: u8 = 1;
/// nanoseconds = (ticks << SHIFT) * MULTIPLIER >> 32. One tick is one nanosecond.
const MULTIPLIER: u32 = 1 << 31;
const SHIFT: i8 = 1;
const _: () = assert!(Clock::TSC_HZ == 1_000_000_000);

/// WRMSR of MSR_KVM_SYSTEM_TIME_NEW.
pub(crate) fn write_system_time(cx: &mut Context<'_>, value: u64) -> Result {
    cx.state.msrs.kvm_system_time = value;
    refresh(cx);
    Ok(())
}

/// Writes the time page again, if the guest has one: its TSC has moved.
pub(crate) fn refresh(cx: &mut Context<'_>) {
    let register = cx.state.msrs.kvm_system_time;
    if register & ENABLE == 0 {
        return;
    }
    let mut page = [0; 32];
    let version = next_version(cx, register & !ENABLE);
    page[0..4].copy_from_slice(&version.to_le_bytes());
    page[8..16].copy_from_slice(&cx.tsc().to_le_bytes());
    page[16..24].copy_from_slice(&cx.clock.now().to_le_bytes());
    page[24..28].copy_from_slice(&MULTIPLIER.to_le_bytes());
    page[28] = SHIFT as u8;
    page[29] = STABLE;
    write(cx, register & !ENABLE, &page);
}

/// WRMSR of MSR_KVM_WALL_CLOCK_NEW: the real time at which the machine's clock stood at zero.
pub(crate) fn write_wall_clock(cx: &mut Context<'_>, value: u64) -> Result {
    cx.state.msrs.kvm_wall_clock = value;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
    let start = now.saturating_sub(cx.clock.now());
    let version = next_version(cx, value);
    let mut page = [0; 12];
    page[0..4].copy_from_slice(&version.to_le_bytes());
    page[4..8].copy_from_slice(&((start / 1_000_000_000) as u32).to_le_bytes());
    page[8..12].copy_from_slice(&((start % 1_000_000_000) as u32).to_le_bytes());
    write(cx, value, &page);
    Ok(())
}

/// KVM_CLOCK_PAIRING_WALLCLOCK: the one kind of pairing.
const WALL_CLOCK: u64 = 0;

/// KVM_HC_CLOCK_PAIRING: the real time, and the TSC at that time, as struct kvm_clock_pairing at `address`; the call's result.
pub(crate) fn pair(cx: &mut Context<'_>, address: u64, kind: u64) -> u64 {
    if kind != WALL_CLOCK {
        return error::EOPNOTSUPP;
    }
    let (time, tsc) = (SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(), cx.tsc());
    let mut pairing = [0; 64];
    pairing[0..8].copy_from_slice(&time.as_secs().to_le_bytes());
    pairing[8..16].copy_from_slice(&u64::from(time.subsec_nanos()).to_le_bytes());
    pairing[16..24].copy_from_slice(&tsc.to_le_bytes());
    match cx.write_physical(GuestPhys(address), &pairing) {
        Ok(()) => 0,
        Err(_) => error::EFAULT,
    }
}

/// The version field counts up by two; odd versions are updates in progress.
fn next_version(cx: &Context<'_>, address: u64) -> u32 {
    let mut version = [0; 4];
    let _ = cx.mmu.ram().read(GuestPhys(address), &mut version);
    (u32::from_le_bytes(version) | 1).wrapping_add(1)
}

/// A page outside RAM is the guest's loss: real KVM ignores it too.
fn write(cx: &mut Context<'_>, address: u64, bytes: &[u8]) {
    let _ = cx.write_physical(GuestPhys(address), bytes);
}
