//! From an offset within a segment to a linear address (SDM Vol. 3A ch. 3, 6).

use memory::Stop;
use x86::{CpuState, Exception, GuestVirt, Segment, SegmentRegister, segment::attribute};

/// The fault that an access through a segment raises.
#[cold]
fn fault(segment: SegmentRegister) -> Stop {
    let exception = if segment == SegmentRegister::Ss { Exception::SS0 } else { Exception::GP0 };
    Stop::Exception(exception)
}

/// The linear address of `bytes` at `offset`.
///
/// In 64-bit mode the canonical check is left to the access, which raises #GP(0), except that the stack's #SS(0) is
/// raised here.
#[inline(always)]
pub(crate) fn linear(
    state: &CpuState,
    segment: SegmentRegister,
    offset: u64,
    bytes: u16,
    write: bool,
) -> Result<u64, Stop> {
    if state.mode.is_64bit() {
        return match segment {
            SegmentRegister::Fs | SegmentRegister::Gs => Ok(state.segment(segment).base.wrapping_add(offset)),
            SegmentRegister::Ss if !is_canonical(offset, bytes) => Err(fault(segment)),
            _ => Ok(offset),
        };
    }
    if state.mode.is_flat()
        && (segment as u8) < SegmentRegister::Fs as u8
        && !(write && segment == SegmentRegister::Cs)
    {
        return Ok(offset);
    }
    checked(state, segment, offset, bytes, write)
}

/// Whether all bytes have canonical addresses.
#[inline(always)]
fn is_canonical(offset: u64, bytes: u16) -> bool {
    let last = offset.wrapping_add(u64::from(bytes.max(1)) - 1);
    GuestVirt(offset).is_canonical() && GuestVirt(last).is_canonical()
}

/// Base of a segment as an address computation uses it.
#[inline]
pub(crate) fn base(state: &CpuState, segment: SegmentRegister) -> u64 {
    match segment {
        SegmentRegister::Fs | SegmentRegister::Gs => state.segment(segment).base,
        _ if state.mode.is_64bit() => 0,
        _ => state.segment(segment).base,
    }
}

fn checked(
    state: &CpuState,
    segment: SegmentRegister,
    offset: u64,
    bytes: u16,
    write: bool,
) -> Result<u64, Stop> {
    let register = state.segment(segment);
    let allowed =
        !state.mode.is_protected() || (register.has(attribute::PRESENT) && permits(register, write));
    if !allowed || !within_limit(register, offset, u64::from(bytes)) {
        return Err(fault(segment));
    }
    Ok(register.base.wrapping_add(offset) & 0xffff_ffff)
}

/// Whether the segment's type permits the access (SDM Vol. 3A 6.7).
fn permits(segment: &Segment, write: bool) -> bool {
    let code = segment.has(attribute::CODE);
    let writable_or_readable = segment.has(attribute::WRITABLE);
    if write { !code && writable_or_readable } else { !code || writable_or_readable }
}

/// Whether all bytes lie within the limit; expand-down segments hold what is above it.
fn within_limit(segment: &Segment, offset: u64, bytes: u64) -> bool {
    let last = offset + bytes.max(1) - 1;
    if segment.attributes & (attribute::CODE | attribute::EXPAND_DOWN) == attribute::EXPAND_DOWN {
        let upper = if segment.has(attribute::DEFAULT_32) { 0xffff_ffff } else { 0xffff };
        return offset > u64::from(segment.limit) && last <= upper;
    }
    last <= u64::from(segment.limit)
}

/// #GP(0) unless an instruction can be fetched at this offset in CS.
#[inline]
pub(crate) fn check_target(state: &CpuState, target: u64) -> Result<(), Stop> {
    let valid = if state.mode.is_64bit() {
        GuestVirt(target).is_canonical()
    } else {
        target <= u64::from(state.segment(SegmentRegister::Cs).limit)
    };
    if valid { Ok(()) } else { Err(Exception::GP0.into()) }
}
