//! Addresses of the guest kernel's image in host code.
//!
//! Linux on x86-64 lies in 1 GiB of linear addresses, and KASLR moves it there by multiples of 2 MiB. Its code is then the same
//! but for addresses in that range, and so is our code for it: every such address in it is 32 bits, sign-extended where more are wanted, with
//! encodings of the same length wherever the image lies. The template translator notes each constant in the range that it writes
//! ([`AddressField`]); which of them are addresses at all, only the guest's bytes tell.

use core::ops::Range;

use memory::tlb::{ENTRY_SHIFT, MAX_ENTRIES};
use x86::PAGE_SHIFT;

use crate::abi::{JUMP_CACHE_ENTRIES, JumpEntry, jump_index};

/// Linear addresses of the kernel's image (Linux: Documentation/x86/x86_64/mm.rst).
pub const IMAGE: Range<u64> = 0xffff_ffff_8000_0000..0xffff_ffff_c000_0000;

/// What KASLR moves it by is a multiple of this (CONFIG_PHYSICAL_ALIGN).
pub const SLIDE: u64 = 2 << 20;

/// Bits of an offset in the TLB array.
const INDEX: u32 = ((MAX_ENTRIES - 1) << ENTRY_SHIFT) as u32;

const _: () = assert!((SLIDE >> (PAGE_SHIFT - ENTRY_SHIFT)).is_multiple_of(1 << ENTRY_SHIFT));

/// A constant, 32 bits, that may be an address in [`IMAGE`] or computed from one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AddressField {
    /// Offset in the code.
    pub offset: u32,
    /// What is there.
    pub kind: AddressKind,
    /// Low half of the address.
    pub address: u32,
}

/// What a field holds of its address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AddressKind {
    /// Its low half.
    Value = 0,
    /// The offset of its page's entry in the largest TLB array.
    TlbIndex = 1,
    /// The offset of its entry in the jump cache.
    JumpIndex = 2,
}

/// Whether it is the low half of an address in [`IMAGE`].
#[inline]
pub const fn is_low_half(value: u32) -> bool {
    value >> 30 == 2
}

impl AddressField {
    pub(crate) fn value(offset: usize, value: u32) -> Self {
        Self { offset: offset as u32, kind: AddressKind::Value, address: value }
    }

    pub(crate) fn tlb_index(offset: usize, address: u64) -> Option<Self> {
        let new = Self { offset: offset as u32, kind: AddressKind::TlbIndex, address: address as u32 };
        IMAGE.contains(&address).then_some(new)
    }

    pub(crate) fn jump_index(offset: usize, address: u64) -> Option<Self> {
        let new = Self { offset: offset as u32, kind: AddressKind::JumpIndex, address: address as u32 };
        IMAGE.contains(&address).then_some(new)
    }
}

impl AddressKind {
    /// The kind of that number.
    pub fn of(number: u32) -> Option<Self> {
        [Self::Value, Self::TlbIndex, Self::JumpIndex].into_iter().find(|kind| *kind as u32 == number)
    }

    /// A field's contents after its address has moved by `by`, a multiple of [`SLIDE`].
    pub fn moved(self, value: u32, by: u64) -> u32 {
        match self {
            Self::Value => value.wrapping_add(by as u32),
            Self::TlbIndex => value.wrapping_add((by >> (PAGE_SHIFT - ENTRY_SHIFT)) as u32) & INDEX,
            Self::JumpIndex => {
                let size = size_of::<JumpEntry>();
                let most = ((JUMP_CACHE_ENTRIES - 1) * size) as u32;
                value.wrapping_add((jump_index(by) * size) as u32) & most
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn low_halves_are_those_of_the_image() {
        for address in [IMAGE.start, IMAGE.end - 1, IMAGE.start + SLIDE] {
            assert!(is_low_half(address as u32), "{address:#x}");
        }
        assert!(!is_low_half(IMAGE.end as u32) && !is_low_half((IMAGE.start - 1) as u32));
    }

    #[test]
    fn an_index_moves_with_its_address() {
        let index = |address: u64| (address >> (PAGE_SHIFT - ENTRY_SHIFT)) as u32 & INDEX;
        let jump = |address: u64| (jump_index(address) * size_of::<JumpEntry>()) as u32;
        let address = 0xffff_ffff_81a3_4567_u64;
        for slides in [1_u64, 31, 32, 33, 100, (-5_i64) as u64] {
            let by = slides.wrapping_mul(SLIDE);
            let there = address.wrapping_add(by);
            assert_eq!(AddressKind::TlbIndex.moved(index(address), by), index(there));
            assert_eq!(AddressKind::JumpIndex.moved(jump(address), by), jump(there));
        }
    }
}
