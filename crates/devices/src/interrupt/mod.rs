//! Interrupts from a device's line to the vCPU.
//!
//! [`wires`]: devices set levels, from any thread. [`fabric`] drains the wires into the 8259 pair ([`pic`]) and the
//! IOAPIC ([`ioapic`]), carries [`Message`]s to the local APICs ([`lapic`]), and answers the board's question what
//! the vCPU is to take.

pub mod fabric;
pub mod ioapic;
pub mod lapic;
pub mod message;
pub mod pic;
pub mod wires;

pub use fabric::InterruptFabric;
pub use message::{DeliveryMode, Message};
pub use wires::{IrqLine, Wires};
