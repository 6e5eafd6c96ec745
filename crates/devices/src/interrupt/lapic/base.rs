//! IA32_APIC_BASE, and what changes of the APIC's mode do (SDM Vol. 3A 11.4.3, 11.4.4, 11.12.5).

use super::{Illegal, LocalApic};
use crate::layout::{LOCAL_APIC, LOCAL_APIC_LENGTH, PHYSICAL_BITS};

const BSP: u64 = 1 << 8;
const X2APIC: u64 = 1 << 10;
const ENABLE: u64 = 1 << 11;
const ADDRESS: u64 = ((1 << PHYSICAL_BITS) - 1) & !(LOCAL_APIC_LENGTH - 1);

pub(super) fn after_reset(id: u32) -> u64 {
    LOCAL_APIC | ENABLE | if id == 0 { BSP } else { 0 }
}

impl LocalApic {
    /// Whether IA32_APIC_BASE enables the APIC at all.
    #[inline]
    pub fn is_enabled(&self) -> bool {
        self.base & ENABLE != 0
    }

    /// Whether the registers are MSRs.
    #[inline]
    pub fn is_x2apic(&self) -> bool {
        self.base & X2APIC != 0
    }

    /// Guest-physical address of the register page, if there is one now.
    #[inline]
    pub fn mmio_base(&self) -> Option<u64> {
        (self.base & (ENABLE | X2APIC) == ENABLE).then_some(self.base & ADDRESS)
    }

    /// Reads IA32_APIC_BASE.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Writes IA32_APIC_BASE. Reserved bits and the transitions that figure 11-27 does not have are refused.
    pub fn set_base(&mut self, value: u64) -> Result<(), Illegal> {
        if value & !(ADDRESS | BSP | X2APIC | ENABLE) != 0 {
            return Err(Illegal);
        }
        let mode = |base: u64| (base & ENABLE != 0, base & X2APIC != 0);
        match (mode(self.base), mode(value)) {
            // X2APIC without ENABLE is no state; x2APIC is entered from xAPIC and left to disabled only.
            (_, (false, true)) | ((false, _), (true, true)) | ((true, true), (true, false)) => {
                return Err(Illegal);
            }
            ((true, _), (false, _)) => self.reset_registers(),
            ((true, false), (true, true)) => {
                // The ICR's destination has another format now.
                self.command &= 0xffff_ffff;
            }
            _ => {}
        }
        self.base = value;
        Ok(())
    }

    /// Registers as after power-up, but for the ID, the mode, and the pins.
    fn reset_registers(&mut self) {
        let mut timer = self.timer.clone();
        timer.reset();
        let pv_eoi = self.pv_eoi.after_reset();
        *self = Self { base: self.base, timer, lint: self.lint, nmi: self.nmi, pv_eoi, ..Self::new(self.id) };
    }

    /// INIT: all registers but the ID and IA32_APIC_BASE go to their power-up state (11.4.7.3).
    pub(super) fn reset_by_init(&mut self) {
        self.reset_registers();
        self.nmi = false;
    }
}
