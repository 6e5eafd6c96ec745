//! Segment registers and descriptors (SDM Vol. 3A 3.4, 3.5, 6.11, 7.2).

/// Segment-register numbers as instructions encode them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names are the registers'")]
pub enum SegmentRegister {
    Es = 0,
    Cs = 1,
    Ss = 2,
    Ds = 3,
    Fs = 4,
    Gs = 5,
}

/// A segment register with its hidden part, or LDTR, TR, GDTR, IDTR (which use base and limit).
///
/// `attributes` holds bits 55..40 of the descriptor shifted down by 40, so bits 7..0 are type, S, DPL, P
/// and bits 15..12 are AVL, L, D/B, G (the VMCS access-rights layout). `limit` is in bytes, after granularity.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Segment {
    /// Linear base address.
    pub base: u64,
    /// Last valid offset, in bytes (granularity applied).
    pub limit: u32,
    /// Visible selector.
    pub selector: u16,
    /// Access rights, see [`attribute`].
    pub attributes: u16,
}

/// Bits of [`Segment::attributes`].
pub mod attribute {
    /// Accessed (code and data).
    pub const ACCESSED: u16 = 1 << 0;
    /// Data: writable; code: readable.
    pub const WRITABLE: u16 = 1 << 1;
    /// Data: expand-down; code: conforming.
    pub const EXPAND_DOWN: u16 = 1 << 2;
    /// Code: conforming (the same bit as [`EXPAND_DOWN`]).
    pub const CONFORMING: u16 = 1 << 2;
    /// Code segment.
    pub const CODE: u16 = 1 << 3;
    /// Code or data rather than system.
    pub const NON_SYSTEM: u16 = 1 << 4;
    /// Descriptor privilege level, both bits.
    pub const DPL: u16 = 3 << 5;
    /// Present. A null selector in a segment register has this clear.
    pub const PRESENT: u16 = 1 << 7;
    /// Available to software.
    pub const AVAILABLE: u16 = 1 << 12;
    /// 64-bit code segment.
    pub const LONG: u16 = 1 << 13;
    /// D/B: 32-bit default operand size, stack pointer, or upper bound.
    pub const DEFAULT_32: u16 = 1 << 14;
    /// Limit counts 4 KiB pages.
    pub const GRANULARITY: u16 = 1 << 15;
}

impl Segment {
    /// Descriptor privilege level.
    pub const fn dpl(&self) -> u8 {
        ((self.attributes & attribute::DPL) >> 5) as u8
    }

    /// The four type bits.
    pub const fn kind(&self) -> u8 {
        (self.attributes & 0xf) as u8
    }

    /// Whether all of `bits` are set in the attributes.
    pub const fn has(&self, bits: u16) -> bool {
        self.attributes & bits == bits
    }

    /// The hidden part that an 8-byte code or data descriptor gives.
    pub const fn from_descriptor(selector: u16, descriptor: u64) -> Self {
        let attributes = (descriptor >> 40) as u16 & 0xf0ff;
        let raw_limit = (descriptor & 0xffff) as u32 | ((descriptor >> 32) as u32 & 0xf_0000);
        let limit =
            if attributes & attribute::GRANULARITY != 0 { raw_limit << 12 | 0xfff } else { raw_limit };
        let base = (descriptor >> 16) & 0xff_ffff | (descriptor >> 32) & 0xff00_0000;
        Self { base, limit, selector, attributes }
    }

    /// What real mode and virtual-8086 mode load: base = selector * 16 (SDM Vol. 3B 21.1.1).
    pub const fn real(selector: u16) -> Self {
        Self { base: (selector as u64) << 4, limit: 0xffff, selector, attributes: 0x93 }
    }
}

/// System-descriptor and gate types (SDM Vol. 3A table 3-2).
pub mod system {
    /// 16-bit TSS, available.
    pub const TSS16_AVAILABLE: u8 = 1;
    /// LDT.
    pub const LDT: u8 = 2;
    /// 16-bit TSS, busy.
    pub const TSS16_BUSY: u8 = 3;
    /// 16-bit call gate.
    pub const CALL_GATE16: u8 = 4;
    /// Task gate.
    pub const TASK_GATE: u8 = 5;
    /// 16-bit interrupt gate.
    pub const INTERRUPT_GATE16: u8 = 6;
    /// 16-bit trap gate.
    pub const TRAP_GATE16: u8 = 7;
    /// 32- or 64-bit TSS, available.
    pub const TSS_AVAILABLE: u8 = 9;
    /// 32- or 64-bit TSS, busy.
    pub const TSS_BUSY: u8 = 11;
    /// 32- or 64-bit call gate.
    pub const CALL_GATE: u8 = 12;
    /// 32- or 64-bit interrupt gate.
    pub const INTERRUPT_GATE: u8 = 14;
    /// 32- or 64-bit trap gate.
    pub const TRAP_GATE: u8 = 15;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_kernel_code_descriptor() {
        let cs = Segment::from_descriptor(0x10, 0x00af_9b00_0000_ffff);
        assert_eq!((cs.base, cs.limit, cs.dpl()), (0, u32::MAX, 0));
        assert!(cs.has(attribute::CODE | attribute::LONG | attribute::PRESENT));
        assert!(!cs.has(attribute::DEFAULT_32));
    }
}
