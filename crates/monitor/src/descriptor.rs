//! Descriptors in the GDT and the LDT (SDM Vol. 3A 3.4.5, 3.5, 7.2.3).

use memory::GuestVirt;
use x86::{Exception, Segment, Width, segment::attribute};

use crate::{Context, Result};

/// A selector's table indicator: LDT rather than GDT.
const TABLE_LDT: u16 = 1 << 2;

/// A descriptor as read from its table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptor {
    /// Its (first) eight bytes.
    pub bits: u64,
    /// Where it is.
    pub address: GuestVirt,
    /// The selector that named it.
    pub selector: u16,
    /// Offset within the table, and the table's limit, for 16-byte descriptors.
    room: u64,
}

/// Whether a selector is null whatever its RPL.
pub(crate) fn is_null(selector: u16) -> bool {
    selector & !3 == 0
}

impl Descriptor {
    /// Reads the descriptor that `selector` names; `outside` is raised if its table does not reach that far.
    pub fn read(cx: &mut Context<'_>, selector: u16, outside: Exception) -> Result<Self> {
        Self::find(cx, selector)?.ok_or(outside.into())
    }

    /// As [`Descriptor::read`], with `None` where the table does not reach that far (for LAR and relatives).
    pub fn find(cx: &mut Context<'_>, selector: u16) -> Result<Option<Self>> {
        let table = if selector & TABLE_LDT != 0 { &cx.state.ldtr } else { &cx.state.gdtr };
        if selector & TABLE_LDT != 0 && !table.has(attribute::PRESENT) {
            return Ok(None);
        }
        let offset = u64::from(selector & !7);
        let limit = u64::from(table.limit);
        if offset + 7 > limit {
            return Ok(None);
        }
        let mut address = GuestVirt(table.base.wrapping_add(offset));
        if !cx.state.mode.is_long() {
            address.0 &= 0xffff_ffff;
        }
        let bits = cx.mmu.load_supervisor(cx.state, address, Width::Qword)?;
        Ok(Some(Self { bits, address, selector, room: limit - offset }))
    }

    /// Second half of a 16-byte system descriptor in IA-32e mode; `None` where the table ends before it.
    pub fn upper(&self, cx: &mut Context<'_>) -> Result<Option<u64>> {
        if self.room < 15 {
            return Ok(None);
        }
        Ok(Some(cx.mmu.load_supervisor(cx.state, self.address.offset(8), Width::Qword)?))
    }

    /// Access rights, in the layout of [`Segment::attributes`].
    pub fn attributes(&self) -> u16 {
        (self.bits >> 40) as u16 & 0xf0ff
    }

    fn has(&self, bits: u16) -> bool {
        self.attributes() & bits == bits
    }

    /// Descriptor privilege level.
    pub fn dpl(&self) -> u8 {
        (self.bits >> 45) as u8 & 3
    }

    /// P.
    pub fn is_present(&self) -> bool {
        self.has(attribute::PRESENT)
    }

    /// Code segment.
    pub fn is_code(&self) -> bool {
        self.has(attribute::NON_SYSTEM | attribute::CODE)
    }

    /// Conforming code segment.
    pub fn is_conforming(&self) -> bool {
        self.has(attribute::NON_SYSTEM | attribute::CODE | attribute::CONFORMING)
    }

    /// Data segment, or code segment that can be read.
    pub fn is_readable(&self) -> bool {
        self.has(attribute::NON_SYSTEM) && (!self.has(attribute::CODE) || self.has(attribute::WRITABLE))
    }

    /// Writable data segment.
    pub fn is_writable(&self) -> bool {
        self.has(attribute::NON_SYSTEM | attribute::WRITABLE) && !self.has(attribute::CODE)
    }

    /// L: 64-bit code.
    pub fn is_long(&self) -> bool {
        self.has(attribute::LONG)
    }

    /// D/B.
    pub fn is_default_32(&self) -> bool {
        self.has(attribute::DEFAULT_32)
    }

    /// The type of a system descriptor or gate ([`x86::segment::system`]); `None` for code and data.
    pub fn system_type(&self) -> Option<u8> {
        if self.has(attribute::NON_SYSTEM) { None } else { Some((self.bits >> 40) as u8 & 0xf) }
    }

    /// The segment that it describes, with its own selector.
    pub fn segment(&self) -> Segment {
        Segment::from_descriptor(self.selector, self.bits)
    }

    /// The segment of a 16-byte LDT or TSS descriptor.
    pub fn long_segment(&self, upper: u64) -> Segment {
        let mut segment = self.segment();
        segment.base |= upper << 32;
        segment
    }

    /// Sets the accessed bit in the table, if it is clear, and here. Processors do it when they load a segment register.
    pub fn mark_accessed(&mut self, cx: &mut Context<'_>) -> Result {
        self.set_bits(cx, u64::from(attribute::ACCESSED) << 40)
    }

    /// Sets bits in the table, if any of them is clear, and here.
    pub fn set_bits(&mut self, cx: &mut Context<'_>, bits: u64) -> Result {
        if self.bits & bits != bits {
            self.bits |= bits;
            self.write_access_byte(cx)?;
        }
        Ok(())
    }

    /// Clears bits in the table, and here.
    pub fn clear_bits(&mut self, cx: &mut Context<'_>, bits: u64) -> Result {
        self.bits &= !bits;
        self.write_access_byte(cx)
    }

    fn write_access_byte(&self, cx: &mut Context<'_>) -> Result {
        let value = self.bits >> 40 & 0xff;
        Ok(cx.mmu.store_supervisor(cx.state, self.address.offset(5), Width::Byte, value)?)
    }
}
