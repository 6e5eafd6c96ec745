//! Operands of callout instructions: general registers, and memory through segmentation.

use memory::{GuestPhys, GuestVirt};
use semantics::{Insn, MemoryOperand, Operand, Register};
use x86::{Exception, SegmentRegister, Width, control::cr0, flags, segment::attribute};

use crate::{Context, Result};

impl Context<'_> {
    /// CR0.PE.
    pub(crate) fn is_protected(&self) -> bool {
        self.state.cr0 & cr0::PE != 0
    }

    /// Selectors are paragraph numbers: real mode or virtual-8086 mode.
    pub(crate) fn is_real_style(&self) -> bool {
        !self.is_protected() || self.state.rflags & flags::VM != 0
    }

    /// Virtual-8086 mode.
    pub(crate) fn is_virtual_8086(&self) -> bool {
        self.state.mode.is_virtual_8086()
    }

    /// RFLAGS.IOPL, 0..=3.
    pub(crate) fn iopl(&self) -> u8 {
        ((self.state.rflags & flags::IOPL) >> 12) as u8
    }

    /// #GP(0) unless CPL is 0. Virtual-8086 mode has CPL 3, real mode CPL 0.
    #[inline]
    pub(crate) fn require_cpl0(&self) -> Result<(), Exception> {
        if self.state.cpl == 0 { Ok(()) } else { Err(Exception::GP0) }
    }

    /// #UD in real and virtual-8086 mode.
    pub(crate) fn require_selectors(&self) -> Result<(), Exception> {
        if self.is_real_style() { Err(Exception::UD) } else { Ok(()) }
    }

    /// Recomputes what derives from CPL, RFLAGS.AC, RFLAGS.VM and segment registers.
    #[inline]
    pub(crate) fn mode_changed(&mut self) {
        self.state.update_mode();
        self.mmu.select_view(self.state);
    }

    /// Reads a general register operand, zero-extended.
    pub(crate) fn gpr(&self, register: Register) -> u64 {
        let value = self.state.gpr[register.index as usize & 15];
        if register.high { value >> 8 & 0xff } else { register.width.truncate(value) }
    }

    /// Writes a general register operand; 32 bits clear the upper half.
    pub(crate) fn set_gpr(&mut self, register: Register, value: u64) {
        let place = &mut self.state.gpr[register.index as usize & 15];
        *place = match register.width {
            Width::Byte if register.high => *place & !0xff00 | (value & 0xff) << 8,
            Width::Byte | Width::Word => *place & !register.width.mask() | register.width.truncate(value),
            Width::Dword | Width::Qword => register.width.truncate(value),
        };
    }

    /// Offset of the memory operand within its segment.
    pub(crate) fn effective_address(&self, insn: &Insn) -> u64 {
        let operand = &insn.memory;
        let mut offset = operand.displacement;
        if operand.base != MemoryOperand::NONE {
            offset = offset.wrapping_add(self.state.gpr[operand.base as usize & 15]);
        }
        if operand.index != MemoryOperand::NONE {
            offset = offset.wrapping_add(self.state.gpr[operand.index as usize & 15] << (operand.scale & 3));
        }
        operand.width.truncate(offset)
    }

    /// Segmentation of a data access (SDM Vol. 3A 5.3 and 5.4; Vol. 1 3.3.7.1 for canonical addresses).
    pub(crate) fn linear(
        &self,
        register: SegmentRegister,
        offset: u64,
        bytes: u64,
        write: bool,
    ) -> Result<GuestVirt, Exception> {
        let fault = if register == SegmentRegister::Ss { Exception::SS0 } else { Exception::GP0 };
        let segment = self.state.segment(register);
        let last = bytes.saturating_sub(1);
        if self.state.mode.is_64bit() {
            let base =
                if matches!(register, SegmentRegister::Fs | SegmentRegister::Gs) { segment.base } else { 0 };
            let address = GuestVirt(base.wrapping_add(offset));
            if !address.is_canonical() || !address.offset(last).is_canonical() {
                return Err(fault);
            }
            return Ok(address);
        }
        if !self.is_real_style() {
            let code = segment.has(attribute::CODE);
            let allowed = match (code, write) {
                (true, true) => false,
                (true, false) | (false, true) => segment.has(attribute::WRITABLE),
                (false, false) => true,
            };
            if !segment.has(attribute::PRESENT) || !allowed {
                return Err(fault);
            }
        }
        if !segment_admits(segment, offset, last) {
            return Err(fault);
        }
        Ok(GuestVirt(segment.base.wrapping_add(offset) & 0xffff_ffff))
    }

    /// Linear address of the instruction's memory operand.
    pub(crate) fn operand_address(
        &self,
        insn: &Insn,
        bytes: u64,
        write: bool,
    ) -> Result<GuestVirt, Exception> {
        self.linear(insn.memory.segment, self.effective_address(insn), bytes, write)
    }

    /// Loads `width` bytes at `displacement` from the start of the memory operand.
    pub(crate) fn load_operand(&mut self, insn: &Insn, displacement: u64, width: Width) -> Result<u64> {
        let offset = insn.memory.width.truncate(self.effective_address(insn).wrapping_add(displacement));
        let address = self.linear(insn.memory.segment, offset, width.bytes(), false)?;
        Ok(self.mmu.load(self.state, address, width)?)
    }

    /// Reads operand `n` (register, memory or immediate) at `width`; registers may be wider.
    pub(crate) fn read_operand(&mut self, insn: &Insn, n: usize, width: Width) -> Result<u64> {
        match insn.operand(n) {
            Operand::Gpr(register) => Ok(width.truncate(self.gpr(register))),
            Operand::Memory => self.load_operand(insn, 0, width),
            Operand::Immediate => Ok(width.truncate(insn.immediate)),
            Operand::Immediate2 => Ok(width.truncate(u64::from(insn.immediate2))),
            _ => Err(Exception::UD.into()),
        }
    }

    /// Writes operand `n`: a register at its own width, or `width` bytes of memory.
    pub(crate) fn write_operand(&mut self, insn: &Insn, n: usize, width: Width, value: u64) -> Result {
        match insn.operand(n) {
            Operand::Gpr(register) => self.set_gpr(register, value),
            Operand::Memory => {
                let address = self.operand_address(insn, width.bytes(), true)?;
                self.mmu.store(self.state, address, width, value)?;
            }
            _ => return Err(Exception::UD.into()),
        }
        Ok(())
    }

    /// Writes guest-physical memory, for the processor's and the monitor's own structures there. An error, and nothing written,
    /// outside RAM.
    pub(crate) fn write_physical(
        &mut self,
        address: GuestPhys,
        bytes: &[u8],
    ) -> Result<(), memory::RamError> {
        self.mmu.ram().write(address, bytes)?;
        self.mmu.code_pages().device_wrote(address, bytes.len() as u64);
        Ok(())
    }

    /// Goes on after the instruction.
    #[inline]
    pub(crate) fn advance(&mut self, insn: &Insn) {
        self.state.rip = insn.next_rip();
    }

    /// Sets EDX:EAX as RDMSR, RDTSC and XGETBV do: the upper halves are cleared.
    #[inline]
    pub(crate) fn set_edx_eax(&mut self, value: u64) {
        self.state.gpr[0] = value & 0xffff_ffff;
        self.state.gpr[2] = value >> 32;
    }

    /// EDX:EAX.
    #[inline]
    pub(crate) fn edx_eax(&self) -> u64 {
        self.state.gpr[2] << 32 | self.state.gpr[0] & 0xffff_ffff
    }
}

/// Whether offsets `first ..= first + last` lie within a segment (SDM Vol. 3A 5.3).
pub(crate) fn segment_admits(segment: &x86::Segment, first: u64, last: u64) -> bool {
    let end = first.wrapping_add(last);
    if end < first {
        return false;
    }
    let expands_down = segment.attributes
        & (attribute::CODE | attribute::EXPAND_DOWN | attribute::NON_SYSTEM)
        == attribute::EXPAND_DOWN | attribute::NON_SYSTEM;
    if expands_down {
        let upper = if segment.has(attribute::DEFAULT_32) { 0xffff_ffff } else { 0xffff };
        first > u64::from(segment.limit) && end <= upper
    } else {
        end <= u64::from(segment.limit)
    }
}
