//! The part of processor state that decides what a piece of code means, besides its bytes.

use crate::{CpuState, control, flags, fpu, segment::attribute};

/// Mode bits: part of a block's key. Two blocks with the same bytes and the same mode translate alike.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(transparent)]
pub struct Mode(pub u32);

impl Mode {
    const CODE32: u32 = 1 << 0;
    const CODE64: u32 = 1 << 1;
    const PROTECTED: u32 = 1 << 2;
    const VIRTUAL_8086: u32 = 1 << 3;
    const CPL_SHIFT: u32 = 4;
    /// CS, DS, ES, SS have base 0 and admit every offset (always so in 64-bit mode).
    const FLAT: u32 = 1 << 6;
    const STACK32: u32 = 1 << 7;
    /// x87 and MMX instructions raise #NM or #UD (CR0.EM or CR0.TS).
    const X87_TRAPS: u32 = 1 << 8;
    /// SSE instructions raise #UD or #NM (CR0.EM, CR0.TS, CR4.OSFXSR clear).
    const SSE_TRAPS: u32 = 1 << 9;
    /// Alignment checks are armed (CPL 3, CR0.AM, RFLAGS.AC).
    const ALIGNMENT: u32 = 1 << 10;
    const LONG: u32 = 1 << 11;
    /// Some SSE floating-point exception is not masked (MXCSR).
    const FLOAT_TRAPS: u32 = 1 << 12;

    /// Bits of the code that runs: 16, 32 or 64.
    pub const fn code_bits(self) -> u32 {
        if self.0 & Self::CODE64 != 0 {
            64
        } else if self.0 & Self::CODE32 != 0 {
            32
        } else {
            16
        }
    }

    /// 64-bit mode proper (not compatibility mode).
    pub const fn is_64bit(self) -> bool {
        self.0 & Self::CODE64 != 0
    }

    /// EFER.LMA: IA-32e mode, 64-bit or compatibility.
    pub const fn is_long(self) -> bool {
        self.0 & Self::LONG != 0
    }

    /// CR0.PE is set and RFLAGS.VM clear: selectors are selectors.
    pub const fn is_protected(self) -> bool {
        self.0 & Self::PROTECTED != 0 && self.0 & Self::VIRTUAL_8086 == 0
    }

    /// Virtual-8086 mode.
    pub const fn is_virtual_8086(self) -> bool {
        self.0 & Self::VIRTUAL_8086 != 0
    }

    /// Current privilege level.
    pub const fn cpl(self) -> u8 {
        (self.0 >> Self::CPL_SHIFT) as u8 & 3
    }

    /// CS, DS, ES and SS need no base added and no limit checked.
    pub const fn is_flat(self) -> bool {
        self.0 & Self::FLAT != 0
    }

    /// Width in bits of the stack pointer: 16, 32 or 64.
    pub const fn stack_bits(self) -> u32 {
        if self.is_64bit() {
            64
        } else if self.0 & Self::STACK32 != 0 {
            32
        } else {
            16
        }
    }

    /// x87/MMX instructions trap; CR0 says how.
    pub const fn x87_traps(self) -> bool {
        self.0 & Self::X87_TRAPS != 0
    }

    /// SSE instructions trap; CR0 and CR4 say how.
    pub const fn sse_traps(self) -> bool {
        self.0 & Self::SSE_TRAPS != 0
    }

    /// SSE floating-point instructions may raise #XM: not all of their exceptions are masked.
    pub const fn float_traps(self) -> bool {
        self.0 & Self::FLOAT_TRAPS != 0
    }

    /// Misaligned data accesses raise #AC.
    pub const fn checks_alignment(self) -> bool {
        self.0 & Self::ALIGNMENT != 0
    }

    /// The mode that `state` is in.
    pub fn of(state: &CpuState) -> Self {
        use control::{cr0, cr4, efer};
        let protected = state.cr0 & cr0::PE != 0;
        let v86 = protected && state.rflags & flags::VM != 0;
        let long = state.efer & efer::LMA != 0;
        let cs = &state.segments[1];
        let mut bits = 0;
        if long && cs.has(attribute::LONG) {
            bits |= Self::CODE64;
        } else if cs.has(attribute::DEFAULT_32) && !v86 {
            bits |= Self::CODE32;
        }
        if protected {
            bits |= Self::PROTECTED;
        }
        if v86 {
            bits |= Self::VIRTUAL_8086;
        }
        if long {
            bits |= Self::LONG;
        }
        bits |= (state.cpl as u32 & 3) << Self::CPL_SHIFT;
        if bits & Self::CODE64 != 0 || Self::segments_are_flat(state) {
            bits |= Self::FLAT;
        }
        if state.segments[2].has(attribute::DEFAULT_32) {
            bits |= Self::STACK32;
        }
        if state.cr0 & (cr0::EM | cr0::TS) != 0 {
            bits |= Self::X87_TRAPS | Self::SSE_TRAPS;
        }
        if state.cr4 & cr4::OSFXSR == 0 {
            bits |= Self::SSE_TRAPS;
        }
        if state.cpl == 3 && state.cr0 & cr0::AM != 0 && state.rflags & flags::AC != 0 {
            bits |= Self::ALIGNMENT;
        }
        if state.mxcsr & fpu::MXCSR_MASKS != fpu::MXCSR_MASKS {
            bits |= Self::FLOAT_TRAPS;
        }
        Self(bits)
    }

    fn segments_are_flat(state: &CpuState) -> bool {
        [0, 1, 2, 3].iter().all(|&i| {
            let s = &state.segments[i];
            let writable_data = s.attributes
                & (attribute::CODE | attribute::WRITABLE | attribute::EXPAND_DOWN)
                == attribute::WRITABLE;
            let readable_code = i == 1 && s.has(attribute::CODE | attribute::WRITABLE);
            s.base == 0
                && s.limit == u32::MAX
                && s.has(attribute::PRESENT)
                && (writable_data || readable_code)
        })
    }
}
