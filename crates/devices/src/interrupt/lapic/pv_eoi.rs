//! The paravirtual EOI (Linux Documentation/virt/kvm/x86/msr.rst, MSR_KVM_PV_EOI_EN): a guest ends an interrupt by clearing a
//! bit in its memory, and needs to leave for that only where the bit was clear already.
//!
//! The bit is set before an entry while the EOI of the vector in service would do nothing but let it be forgotten: nothing
//! waits behind it, and no IOAPIC wants to hear of it. After each exit it is looked at before anything else, so what
//! ISR tells is never late. It needs no atomic access: one vCPU, which does not run meanwhile.

use memory::{DeviceMemory, GuestPhys};

use super::{Illegal, LocalApic, Outgoing};

/// Bit 0 of the register.
const ENABLE: u64 = 1;
/// Bit 1 is reserved.
const RESERVED: u64 = 2;
/// Bit 0 of the guest's word: the EOI may be made by clearing it.
const OFFERED: u8 = 1;
/// Bytes of the guest's word.
const LENGTH: u64 = 4;

/// The register, and the state of the guest's bit.
#[derive(Clone, Debug, Default)]
pub(super) struct PvEoi {
    memory: Option<DeviceMemory>,
    register: u64,
    /// The bit was set, and is or was not yet seen cleared.
    offered: bool,
}

impl PvEoi {
    pub(super) fn after_reset(&self) -> Self {
        Self { memory: self.memory.clone(), ..Self::default() }
    }

    fn address(&self) -> GuestPhys {
        GuestPhys(self.register & !(ENABLE | RESERVED))
    }

    /// Whether the guest has cleared the bit.
    fn is_taken(&self) -> bool {
        let mut byte = [OFFERED];
        if let Some(memory) = &self.memory {
            // Can't fail: the address was checked.
            let _ = memory.read(self.address(), &mut byte);
        }
        byte[0] & OFFERED == 0
    }

    fn set(&mut self, offered: bool) {
        if let Some(memory) = &self.memory {
            let _ = memory.write(self.address(), &[if offered { OFFERED } else { 0 }]);
        }
        self.offered = offered;
    }
}

impl LocalApic {
    /// Where the guest's bit is; without, the register does not exist.
    pub fn connect_memory(&mut self, memory: DeviceMemory) {
        self.pv_eoi.memory = Some(memory);
    }

    /// Reads KVM_PV_EOI_EN.
    pub fn pv_eoi_register(&self) -> Result<u64, Illegal> {
        if self.pv_eoi.memory.is_some() { Ok(self.pv_eoi.register) } else { Err(Illegal) }
    }

    /// Writes KVM_PV_EOI_EN: the address of a word in RAM, and bit 0 to enable. Refused as KVM does.
    pub fn set_pv_eoi_register(&mut self, value: u64) -> Result<(), Illegal> {
        let memory = self.pv_eoi.memory.as_ref().ok_or(Illegal)?;
        let address = GuestPhys(value & !ENABLE);
        if value & RESERVED != 0 || (value & ENABLE != 0 && !memory.contains(address, LENGTH)) {
            return Err(Illegal);
        }
        if self.pv_eoi.offered {
            self.pv_eoi.set(false);
        }
        self.pv_eoi.register = value;
        Ok(())
    }

    /// Takes notice of an EOI by a store.
    #[inline]
    pub fn collect_eoi(&mut self) -> Option<Outgoing> {
        if !self.pv_eoi.offered || !self.pv_eoi.is_taken() {
            return None;
        }
        self.pv_eoi.offered = false;
        self.end_of_interrupt()
    }

    /// Sets the guest's bit, or takes it back.
    #[inline]
    pub fn offer_eoi(&mut self) {
        if self.pv_eoi.register & ENABLE == 0 {
            return;
        }
        let idle = self.irr.highest().is_none();
        let offer = idle && self.isr.highest().is_some_and(|vector| !self.tmr.contains(vector));
        if offer != self.pv_eoi.offered {
            self.pv_eoi.set(offer);
        }
    }
}

#[cfg(test)]
mod tests {
    use memory::Ram;

    use super::super::{DeliveryMode, Message};
    use super::*;

    const WORD: u64 = 0x5004;

    fn apic() -> (LocalApic, DeviceMemory) {
        let memory = DeviceMemory::new(Ram::new(1 << 20).unwrap(), None);
        let mut apic = LocalApic::new(0);
        apic.connect_memory(memory.clone());
        apic.write_mmio(0xf0, 0x1ff, 0);
        apic.set_pv_eoi_register(WORD | ENABLE).unwrap();
        (apic, memory)
    }

    fn word(memory: &DeviceMemory) -> u8 {
        let mut byte = [0];
        memory.read(GuestPhys(WORD), &mut byte).unwrap();
        byte[0]
    }

    fn take(apic: &mut LocalApic, vector: u8, level_triggered: bool) {
        let mode = DeliveryMode::Fixed;
        apic.receive(&Message { destination: 0, logical: false, mode, vector, level_triggered });
        assert_eq!(apic.acknowledge(), Some(vector));
    }

    fn in_service(apic: &mut LocalApic, vector: u8) -> bool {
        apic.read_mmio(0x100 + u64::from(vector >> 5) * 0x10, 0) >> (vector & 31) & 1 != 0
    }

    #[test]
    fn a_store_ends_the_interrupt() {
        let (mut apic, memory) = apic();
        apic.offer_eoi();
        assert_eq!(word(&memory), 0, "nothing is in service");
        take(&mut apic, 0x41, false);
        apic.offer_eoi();
        assert_eq!(word(&memory), OFFERED);
        assert_eq!(apic.collect_eoi(), None);
        assert!(in_service(&mut apic, 0x41), "the guest did not clear it yet");
        apic.offer_eoi();
        memory.write(GuestPhys(WORD), &[0]).unwrap();
        assert_eq!(apic.collect_eoi(), None);
        assert!(!in_service(&mut apic, 0x41));
        apic.offer_eoi();
        assert_eq!(apic.collect_eoi(), None, "a clear bit means nothing while it is not offered");
    }

    #[test]
    fn it_is_taken_back_where_an_eoi_matters() {
        let (mut apic, memory) = apic();
        take(&mut apic, 0x41, false);
        apic.offer_eoi();
        // Another one waits behind it: the guest must leave.
        apic.receive(&Message {
            destination: 0,
            logical: false,
            mode: DeliveryMode::Fixed,
            vector: 0x31,
            level_triggered: false,
        });
        apic.offer_eoi();
        assert_eq!(word(&memory), 0);
        assert_eq!(apic.collect_eoi(), None);
        assert!(in_service(&mut apic, 0x41), "a bit that was taken back ends nothing");
        apic.write_mmio(0xb0, 0, 0);
        assert_eq!(apic.acknowledge(), Some(0x31));
        apic.write_mmio(0xb0, 0, 0);
        // The IOAPIC must hear of a level-triggered one.
        take(&mut apic, 0x51, true);
        apic.offer_eoi();
        assert_eq!(word(&memory), 0);
    }

    #[test]
    fn a_real_eoi_in_spite_of_the_offer_takes_it_back() {
        let (mut apic, memory) = apic();
        take(&mut apic, 0x41, false);
        take(&mut apic, 0x51, false);
        apic.offer_eoi();
        apic.write_mmio(0xb0, 0, 0);
        apic.offer_eoi();
        assert_eq!(word(&memory), OFFERED, "now for the outer one");
        apic.write_mmio(0xb0, 0, 0);
        apic.offer_eoi();
        assert_eq!(word(&memory), 0);
        assert!(!in_service(&mut apic, 0x41) && !in_service(&mut apic, 0x51));
    }

    #[test]
    fn values_that_are_refused() {
        let (mut apic, memory) = apic();
        for value in [WORD | 2, WORD | 3, 1 << 20 | 1, 0xf_ffff, 0xfee0_0001, !0 << 2 | 1, u64::MAX] {
            assert_eq!(apic.set_pv_eoi_register(value), Err(Illegal), "{value:#x}");
        }
        assert_eq!(apic.pv_eoi_register(), Ok(WORD | ENABLE));
        take(&mut apic, 0x41, false);
        apic.offer_eoi();
        // A disabled register may hold any address; what was offered is taken back.
        assert_eq!(apic.set_pv_eoi_register(1 << 40), Ok(()));
        assert_eq!(word(&memory), 0);
        apic.offer_eoi();
        assert_eq!(apic.collect_eoi(), None);
        assert!(in_service(&mut apic, 0x41));
        let mut bare = LocalApic::new(0);
        assert_eq!(bare.set_pv_eoi_register(0), Err(Illegal));
        assert_eq!(bare.pv_eoi_register(), Err(Illegal));
    }

    #[test]
    fn init_disables_it() {
        let (mut apic, _) = apic();
        apic.receive(&Message {
            destination: 0,
            logical: false,
            mode: DeliveryMode::Init,
            vector: 0,
            level_triggered: false,
        });
        assert_eq!(apic.pv_eoi_register(), Ok(0));
    }
}
