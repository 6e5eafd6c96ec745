//! Addresses that must not be mixed.

/// log2 of the small page size.
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in a small page.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
/// Clears the offset within a small page when and-ed.
pub const PAGE_MASK: u64 = !(PAGE_SIZE - 1);

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// First byte of the small page that holds this address.
            pub const fn page(self) -> Self {
                Self(self.0 & PAGE_MASK)
            }

            /// Offset within the small page, 0..4096.
            pub const fn page_offset(self) -> u64 {
                self.0 & !PAGE_MASK
            }

            /// The address `bytes` further on, wrapping at 2^64.
            pub const fn offset(self, bytes: u64) -> Self {
                Self(self.0.wrapping_add(bytes))
            }
        }

        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address! {
    /// A guest-physical address: what comes out of the page walk.
    GuestPhys
}

address! {
    /// A linear address: after segmentation, before paging (SDM Vol. 3A 3.1).
    GuestVirt
}

impl GuestVirt {
    /// Whether bits 63..47 are all equal, as 4-level paging demands (SDM Vol. 1 3.3.7.1).
    pub const fn is_canonical(self) -> bool {
        (((self.0 as i64) << 16) >> 16) as u64 == self.0
    }
}
