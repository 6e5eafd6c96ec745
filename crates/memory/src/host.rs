//! Single host accesses to guest memory.
//!
//! Other vCPU threads and devices touch the same bytes at any time, so none of these may be an ordinary Rust access:
//! they are host instructions, one for one guest access. That makes aligned accesses single-copy atomic and keeps the
//! guest's memory order, since the host orders loads and stores as x86 does and the compiler moves nothing across.

use core::arch::asm;
use core::arch::x86_64::__m128i;

use x86::Width;

/// Bytes of a line within which a locked instruction is cheap at any alignment.
pub const CACHE_LINE: u64 = 64;

/// Loads `width` bytes, zero-extended.
///
/// # Safety
/// `host` must point to `width` bytes of mapped guest memory.
#[inline(always)]
pub unsafe fn load(host: *const u8, width: Width) -> u64 {
    let value: u64;
    // SAFETY: the caller vouches for the bytes; the instructions only read them.
    unsafe {
        match width {
            Width::Byte => {
                asm!("movzx {0:e}, byte ptr [{1}]", out(reg) value, in(reg) host, options(nostack, preserves_flags, readonly));
            }
            Width::Word => {
                asm!("movzx {0:e}, word ptr [{1}]", out(reg) value, in(reg) host, options(nostack, preserves_flags, readonly));
            }
            Width::Dword => {
                asm!("mov {0:e}, dword ptr [{1}]", out(reg) value, in(reg) host, options(nostack, preserves_flags, readonly));
            }
            Width::Qword => {
                asm!("mov {0}, qword ptr [{1}]", out(reg) value, in(reg) host, options(nostack, preserves_flags, readonly));
            }
        }
    }
    value
}

/// Stores the low `width` bytes.
///
/// # Safety
/// `host` must point to `width` bytes of mapped guest memory.
#[inline(always)]
pub unsafe fn store(host: *mut u8, width: Width, value: u64) {
    // SAFETY: the caller vouches for the bytes; guest memory holds no Rust objects.
    unsafe {
        match width {
            Width::Byte => {
                asm!("mov byte ptr [{0}], {1}", in(reg) host, in(reg_byte) value as u8, options(nostack, preserves_flags));
            }
            Width::Word => {
                asm!("mov word ptr [{0}], {1:x}", in(reg) host, in(reg) value, options(nostack, preserves_flags));
            }
            Width::Dword => {
                asm!("mov dword ptr [{0}], {1:e}", in(reg) host, in(reg) value, options(nostack, preserves_flags));
            }
            Width::Qword => {
                asm!("mov qword ptr [{0}], {1}", in(reg) host, in(reg) value, options(nostack, preserves_flags));
            }
        }
    }
}

/// Loads 16 bytes.
///
/// # Safety
/// `host` must point to 16 bytes of mapped guest memory.
#[inline(always)]
pub unsafe fn load128(host: *const u8) -> u128 {
    let value: __m128i;
    // SAFETY: the caller vouches for the bytes; __m128i and u128 have the same size and admit all bit patterns.
    unsafe {
        asm!("movdqu {0}, xmmword ptr [{1}]", out(xmm_reg) value, in(reg) host, options(nostack, preserves_flags, readonly));
        core::mem::transmute(value)
    }
}

/// Stores 16 bytes.
///
/// # Safety
/// `host` must point to 16 bytes of mapped guest memory.
#[inline(always)]
pub unsafe fn store128(host: *mut u8, value: u128) {
    // SAFETY: as for `load128`; guest memory holds no Rust objects.
    unsafe {
        let value: __m128i = core::mem::transmute(value);
        asm!("movdqu xmmword ptr [{0}], {1}", in(reg) host, in(xmm_reg) value, options(nostack, preserves_flags));
    }
}

/// Copies bytes out of guest memory.
///
/// # Safety
/// `host` must point to that many bytes of mapped guest memory.
pub unsafe fn copy_out(host: *const u8, bytes: &mut [u8]) {
    // SAFETY: the caller vouches for the source, the slice for the destination; the ABI keeps DF clear.
    unsafe {
        asm!("rep movsb", inout("rcx") bytes.len() => _, inout("rsi") host => _, inout("rdi") bytes.as_mut_ptr() => _,
            options(nostack, preserves_flags));
    }
}

/// Copies bytes into guest memory.
///
/// # Safety
/// `host` must point to that many bytes of mapped guest memory.
pub unsafe fn copy_in(host: *mut u8, bytes: &[u8]) {
    // SAFETY: the caller vouches for the destination, the slice for the source; the ABI keeps DF clear.
    unsafe {
        asm!("rep movsb", inout("rcx") bytes.len() => _, inout("rsi") bytes.as_ptr() => _, inout("rdi") host => _,
            options(nostack, preserves_flags));
    }
}

/// Whether a locked instruction on these bytes stays within a cache line. Beyond it the host takes a bus lock, which
/// many hosts punish (split-lock detection) or refuse.
#[inline]
pub fn lockable(host: *const u8, length: u64) -> bool {
    host as u64 & (CACHE_LINE - 1) <= CACHE_LINE - length
}

/// Atomic exchange; returns the old value.
///
/// # Safety
/// `host` must point to `width` bytes of mapped guest memory, [`lockable`].
#[inline]
pub unsafe fn exchange(host: *mut u8, width: Width, value: u64) -> u64 {
    let mut old = value;
    // SAFETY: the caller vouches for the bytes; guest memory holds no Rust objects.
    unsafe {
        match width {
            Width::Byte => {
                let mut byte = value as u8;
                asm!("xchg byte ptr [{0}], {1}", in(reg) host, inout(reg_byte) byte, options(nostack, preserves_flags));
                old = byte.into();
            }
            Width::Word => {
                asm!("xchg word ptr [{0}], {1:x}", in(reg) host, inout(reg) old, options(nostack, preserves_flags));
            }
            Width::Dword => {
                asm!("xchg dword ptr [{0}], {1:e}", in(reg) host, inout(reg) old, options(nostack, preserves_flags));
            }
            Width::Qword => {
                asm!("xchg qword ptr [{0}], {1}", in(reg) host, inout(reg) old, options(nostack, preserves_flags));
            }
        }
    }
    width.truncate(old)
}

/// Atomic addition; returns the old value.
///
/// # Safety
/// `host` must point to `width` bytes of mapped guest memory, [`lockable`].
#[inline]
pub unsafe fn fetch_add(host: *mut u8, width: Width, value: u64) -> u64 {
    let mut old = value;
    // SAFETY: the caller vouches for the bytes; guest memory holds no Rust objects.
    unsafe {
        match width {
            Width::Byte => {
                let mut byte = value as u8;
                asm!("lock xadd byte ptr [{0}], {1}", in(reg) host, inout(reg_byte) byte, options(nostack));
                old = byte.into();
            }
            Width::Word => {
                asm!("lock xadd word ptr [{0}], {1:x}", in(reg) host, inout(reg) old, options(nostack));
            }
            Width::Dword => {
                asm!("lock xadd dword ptr [{0}], {1:e}", in(reg) host, inout(reg) old, options(nostack));
            }
            Width::Qword => {
                asm!("lock xadd qword ptr [{0}], {1}", in(reg) host, inout(reg) old, options(nostack));
            }
        }
    }
    width.truncate(old)
}

/// Atomic compare-and-exchange; returns the old value.
///
/// # Safety
/// `host` must point to `width` bytes of mapped guest memory, [`lockable`].
#[inline]
pub unsafe fn compare_exchange(host: *mut u8, width: Width, expected: u64, new: u64) -> u64 {
    let old: u64;
    // SAFETY: the caller vouches for the bytes; guest memory holds no Rust objects.
    unsafe {
        match width {
            Width::Byte => {
                asm!("lock cmpxchg byte ptr [{0}], {1}", in(reg) host, in(reg_byte) new as u8,
                    inout("rax") expected => old, options(nostack));
            }
            Width::Word => {
                asm!("lock cmpxchg word ptr [{0}], {1:x}", in(reg) host, in(reg) new,
                    inout("rax") expected => old, options(nostack));
            }
            Width::Dword => {
                asm!("lock cmpxchg dword ptr [{0}], {1:e}", in(reg) host, in(reg) new,
                    inout("rax") expected => old, options(nostack));
            }
            Width::Qword => {
                asm!("lock cmpxchg qword ptr [{0}], {1}", in(reg) host, in(reg) new,
                    inout("rax") expected => old, options(nostack));
            }
        }
    }
    width.truncate(old)
}

/// Atomic 16-byte compare-and-exchange; returns the old value.
///
/// # Safety
/// `host` must point to 16 bytes of mapped guest memory, aligned, and the host must have CMPXCHG16B.
#[inline]
pub unsafe fn compare_exchange128(host: *mut u8, expected: u128, new: u128) -> u128 {
    let low: u64;
    let high: u64;
    // SAFETY: the caller vouches for the bytes, their alignment and the instruction. RBX, which the compiler keeps
    // for itself, is back when the block ends; the address has a register of its own so that it can't be in RBX. (`core::arch`'s function became a call of a library that isn't linked.)
    unsafe {
        asm!("xchg rbx, {new_low}", "lock cmpxchg16b xmmword ptr [rdi]", "mov rbx, {new_low}",
            in("rdi") host, new_low = inout(reg) new as u64 => _, in("rcx") (new >> 64) as u64,
            inout("rax") expected as u64 => low, inout("rdx") (expected >> 64) as u64 => high, options(nostack));
    }
    u128::from(high) << 64 | u128::from(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDTHS: [Width; 4] = [Width::Byte, Width::Word, Width::Dword, Width::Qword];

    #[test]
    fn every_width_touches_its_bytes_and_no_others() {
        for width in WIDTHS {
            for offset in 0..8 {
                let mut bytes = [0xee_u8; 24];
                let host = &raw mut bytes[offset];
                // SAFETY: at most 8 bytes from offset 0..8 of 24.
                let seen = unsafe {
                    store(host, width, 0x8877_6655_4433_2211);
                    load(host, width)
                };
                assert_eq!(seen, width.truncate(0x8877_6655_4433_2211));
                let end = offset + width.bytes() as usize;
                assert!(bytes[..offset].iter().chain(&bytes[end..]).all(|&byte| byte == 0xee));
            }
        }
    }

    #[test]
    fn locked_operations_return_the_old_value() {
        #[repr(align(64))]
        struct Line([u8; 64]);
        for width in WIDTHS {
            let mut line = Line([0xff; 64]);
            let host = &raw mut line.0[3];
            // SAFETY: at most 8 bytes from offset 3 of a cache line.
            unsafe {
                assert_eq!(fetch_add(host, width, 2), width.mask());
                assert_eq!(load(host, width), 1);
                assert_eq!(exchange(host, width, 0x1234_5678_9abc_def0), 1);
                let now = width.truncate(0x1234_5678_9abc_def0);
                assert_eq!(compare_exchange(host, width, now ^ 1, 7), now, "not equal: nothing stored");
                assert_eq!(load(host, width), now);
                assert_eq!(compare_exchange(host, width, now, 7), now);
                assert_eq!(load(host, width), 7);
            }
            assert_eq!(line.0[2], 0xff);
            assert_eq!(line.0[3 + width.bytes() as usize], 0xff);
        }
    }

    #[test]
    fn a_line_split_is_not_lockable() {
        let line = core::ptr::without_provenance::<u8>(0x1000);
        assert!(lockable(line.wrapping_add(56), 8));
        assert!(!lockable(line.wrapping_add(57), 8));
        assert!(lockable(line.wrapping_add(63), 1));
    }
}
