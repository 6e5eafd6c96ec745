//! Exceptions (SDM Vol. 3A ch. 6).

/// An exception vector, 0..=31.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names are the SDM's mnemonics, Vol. 3A table 6-1")]
pub enum Vector {
    DivideError = 0,
    Debug = 1,
    NonMaskableInterrupt = 2,
    Breakpoint = 3,
    Overflow = 4,
    BoundRange = 5,
    InvalidOpcode = 6,
    DeviceNotAvailable = 7,
    DoubleFault = 8,
    InvalidTss = 10,
    SegmentNotPresent = 11,
    StackFault = 12,
    GeneralProtection = 13,
    PageFault = 14,
    X87FloatingPoint = 16,
    AlignmentCheck = 17,
    MachineCheck = 18,
    SimdFloatingPoint = 19,
}

/// An exception about to be delivered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exception {
    /// Which.
    pub vector: Vector,
    /// Error code, where the vector has one.
    pub error_code: Option<u32>,
    /// The linear address that CR2 gets; only for #PF.
    pub address: u64,
}

impl Exception {
    /// An exception without error code.
    pub const fn new(vector: Vector) -> Self {
        Self { vector, error_code: None, address: 0 }
    }

    /// An exception with error code.
    pub const fn with_code(vector: Vector, error_code: u32) -> Self {
        Self { vector, error_code: Some(error_code), address: 0 }
    }

    /// #DE.
    pub const DE: Self = Self::new(Vector::DivideError);
    /// #BR.
    pub const BR: Self = Self::new(Vector::BoundRange);
    /// #UD.
    pub const UD: Self = Self::new(Vector::InvalidOpcode);
    /// #NM.
    pub const NM: Self = Self::new(Vector::DeviceNotAvailable);
    /// #GP(0).
    pub const GP0: Self = Self::with_code(Vector::GeneralProtection, 0);
    /// #SS(0).
    pub const SS0: Self = Self::with_code(Vector::StackFault, 0);
    /// #AC(0).
    pub const AC0: Self = Self::with_code(Vector::AlignmentCheck, 0);
    /// #MF.
    pub const MF: Self = Self::new(Vector::X87FloatingPoint);
    /// #XM.
    pub const XM: Self = Self::new(Vector::SimdFloatingPoint);

    /// #GP(selector): the error code is the selector without its RPL.
    pub const fn gp(selector: u16) -> Self {
        Self::with_code(Vector::GeneralProtection, (selector & !3) as u32)
    }

    /// #SS(selector).
    pub const fn ss(selector: u16) -> Self {
        Self::with_code(Vector::StackFault, (selector & !3) as u32)
    }

    /// #NP(selector).
    pub const fn np(selector: u16) -> Self {
        Self::with_code(Vector::SegmentNotPresent, (selector & !3) as u32)
    }

    /// #TS(selector).
    pub const fn ts(selector: u16) -> Self {
        Self::with_code(Vector::InvalidTss, (selector & !3) as u32)
    }

    /// #PF at a linear address, with [`page_fault`] bits.
    pub const fn page_fault(address: u64, error_code: u32) -> Self {
        Self { vector: Vector::PageFault, error_code: Some(error_code), address }
    }
}

/// Bits of the #PF error code (SDM Vol. 3A 4.7).
pub mod page_fault {
    /// The page was present: a protection violation.
    pub const PRESENT: u32 = 1 << 0;
    /// The access was a write.
    pub const WRITE: u32 = 1 << 1;
    /// The access was a user-mode one.
    pub const USER: u32 = 1 << 2;
    /// A reserved bit was set in a paging-structure entry.
    pub const RESERVED: u32 = 1 << 3;
    /// The access was an instruction fetch.
    pub const FETCH: u32 = 1 << 4;
}
