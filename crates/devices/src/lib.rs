//! The devices of a PC, and how they hang on its buses.
//!
//! A device is a plain struct: register reads and writes, `advance` to a point of the virtual clock, and
//! [`IrqLine`]s that it drives. It knows neither its address nor who else is on the bus. The board's view is
//! [`Chipset`], which owns all of them: an access goes port or address -> [`Bus`] (who claims it) -> the device's
//! registers -> interrupt wires -> PIC pair and IOAPIC -> local APIC, and the board asks the local APIC what the vCPU
//! is to take.
//!
//! There is one time, nanoseconds of [`vcpu::Clock`]. Devices compute their counts from it on demand, and tell when
//! something next happens by itself (`next_deadline`), so that a halted guest costs nothing.
//!
//! Nothing here trusts the guest: any access is answered, none panics, and every buffer is bounded.

pub mod acpi_pm;
pub mod bus;
pub mod chipset;
pub mod debug_ports;
pub mod i8042;
pub mod interrupt;
pub mod layout;
pub mod pci;
pub mod pit;
pub mod power;
pub mod rtc;
mod time;
pub mod uart;

pub use bus::{Bus, BusError, Device};
pub use chipset::{Chipset, ChipsetConfig, PowerEvent, Refused};
pub use interrupt::{IrqLine, Message};
