//! The port map: who is at which port, and how a piece of an access becomes a register access of its device.

use super::Chipset;
use crate::{acpi_pm, bus::Bus, interrupt::pic::PicSelect, layout, power::PowerEvent};

/// Who answers a range of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PortTarget {
    PicMaster,
    PicSlave,
    PicElcr,
    Pit,
    ControlB,
    ControlA,
    I8042Data,
    I8042Command,
    Rtc,
    PostCode,
    DebugConsole,
    DebugExit,
    Uart,
    AcpiPm,
    PciAddress,
    PciData,
    Attached(usize),
}

/// Ports of a standard board: first, length, widest access, target.
const STANDARD: [(u16, u64, u8, PortTarget); 14] = [
    (layout::PIC_MASTER, 2, 1, PortTarget::PicMaster),
    (layout::PIC_SLAVE, 2, 1, PortTarget::PicSlave),
    (layout::PIC_ELCR, 2, 1, PortTarget::PicElcr),
    (layout::PIT, 4, 1, PortTarget::Pit),
    (layout::SYSTEM_CONTROL_B, 1, 1, PortTarget::ControlB),
    (layout::SYSTEM_CONTROL_A, 1, 1, PortTarget::ControlA),
    (layout::I8042_DATA, 1, 1, PortTarget::I8042Data),
    (layout::I8042_COMMAND, 1, 1, PortTarget::I8042Command),
    (layout::RTC, 2, 1, PortTarget::Rtc),
    (layout::POST_CODE, 1, 1, PortTarget::PostCode),
    (layout::UART, 8, 1, PortTarget::Uart),
    (layout::PM1A_EVENT, acpi_pm::LENGTH, 4, PortTarget::AcpiPm),
    (layout::PCI_CONFIG_ADDRESS, 4, 4, PortTarget::PciAddress),
    (layout::PCI_CONFIG_DATA, 4, 4, PortTarget::PciData),
];

/// The bus of a standard board.
pub(super) fn standard(debug_console: bool, debug_exit: bool) -> Bus<PortTarget> {
    let mut bus = Bus::new(0xffff);
    let console = debug_console.then_some((layout::DEBUG_CONSOLE, 1, 1, PortTarget::DebugConsole));
    let exit = debug_exit.then_some((layout::DEBUG_EXIT, 4, 4, PortTarget::DebugExit));
    for (first, length, widest, target) in STANDARD.into_iter().chain(console).chain(exit) {
        let claimed = bus.claim(u64::from(first), length, widest, target);
        debug_assert_eq!(claimed, Ok(()));
    }
    bus
}

impl Chipset {
    pub(super) fn read_port_target(&mut self, target: PortTarget, offset: u64, size: u8, now: u64) -> u64 {
        let byte = match target {
            PortTarget::AcpiPm => return self.acpi_pm.read(offset, size, now),
            PortTarget::PciAddress if size == 4 => return u64::from(self.pci.address()),
            PortTarget::PciData => return self.pci.read_data(offset, size),
            PortTarget::Attached(index) => {
                return self
                    .attached
                    .get_mut(index)
                    .map_or(u64::MAX, |device| device.read(offset, size, now));
            }
            PortTarget::PicMaster => self.interrupts.read_pic(PicSelect::Master, offset),
            PortTarget::PicSlave => self.interrupts.read_pic(PicSelect::Slave, offset),
            PortTarget::PicElcr => self.interrupts.read_elcr(offset),
            PortTarget::Pit => self.pit.read(offset, now),
            PortTarget::ControlB => self.pit.read_control_b(now),
            PortTarget::ControlA => self.i8042.read_control_a(),
            PortTarget::I8042Data => self.i8042.read_data(),
            PortTarget::I8042Command => self.i8042.read_status(),
            PortTarget::Rtc => self.rtc.read(offset, now),
            PortTarget::PostCode => self.debug.post_code(),
            PortTarget::DebugConsole => self.debug.read_console(),
            PortTarget::Uart => self.uart.read(offset),
            // The reset control register reads as zero; the rest of CONFIG_ADDRESS is no byte register.
            PortTarget::PciAddress if is_reset(offset, size) => 0,
            PortTarget::PciAddress | PortTarget::DebugExit => return u64::MAX,
        };
        u64::from(byte)
    }

    pub(super) fn write_port_target(
        &mut self,
        target: PortTarget,
        offset: u64,
        size: u8,
        value: u64,
        now: u64,
    ) {
        let byte = value as u8;
        let event = match target {
            PortTarget::PicMaster => return self.interrupts.write_pic(PicSelect::Master, offset, byte),
            PortTarget::PicSlave => return self.interrupts.write_pic(PicSelect::Slave, offset, byte),
            PortTarget::PicElcr => return self.interrupts.write_elcr(offset, byte),
            PortTarget::Pit => return self.pit.write(offset, byte, now),
            PortTarget::ControlB => return self.pit.write_control_b(byte, now),
            PortTarget::Rtc => return self.rtc.write(offset, byte, now),
            PortTarget::PostCode => return self.debug.write_post_code(byte),
            PortTarget::DebugConsole => return self.debug.write_console(byte, now),
            PortTarget::Uart => return self.uart.write(offset, byte, now),
            PortTarget::PciData => return,
            PortTarget::Attached(index) => {
                if let Some(device) = self.attached.get_mut(index) {
                    device.write(offset, size, value, now);
                }
                return;
            }
            PortTarget::PciAddress if size == 4 => return self.pci.set_address(value as u32),
            // Bit 2 starts the reset that bits 1 and 3 choose the kind of.
            PortTarget::PciAddress if is_reset(offset, size) && byte & 0x04 != 0 => Some(PowerEvent::Reset),
            PortTarget::PciAddress => None,
            PortTarget::ControlA => self.i8042.write_control_a(byte),
            PortTarget::I8042Data => self.i8042.write_data(byte),
            PortTarget::I8042Command => self.i8042.write_command(byte),
            PortTarget::AcpiPm => self.acpi_pm.write(offset, size, value, now),
            PortTarget::DebugExit => self.debug.write_exit(value as u32),
        };
        if let Some(event) = event {
            self.power.request(event);
        }
    }
}

/// Whether a piece of the PCI address range is the reset control register.
fn is_reset(offset: u64, size: u8) -> bool {
    size == 1 && offset == u64::from(layout::RESET - layout::PCI_CONFIG_ADDRESS)
}
