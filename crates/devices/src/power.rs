//! What a guest can ask of the machine as a whole: off, reset, a debug exit. Devices report the request, and
//! [`PowerControl`] keeps the first until the board asks.

/// A request for the machine as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerEvent {
    /// ACPI S5: the machine is off.
    PowerOff,
    /// Reset by the reset control register, the keyboard controller or port 0x92.
    Reset,
    /// A write to the debug exit port; the status is `(value << 1) | 1`, as QEMU's isa-debug-exit has it.
    DebugExit(u8),
}

/// The first request that was made and not yet taken.
#[derive(Debug, Default)]
pub struct PowerControl {
    event: Option<PowerEvent>,
}

impl PowerControl {
    /// Notes a request; the first one wins.
    pub fn request(&mut self, event: PowerEvent) {
        self.event.get_or_insert(event);
    }

    /// The request, if any; it stays.
    pub fn event(&self) -> Option<PowerEvent> {
        self.event
    }

    /// Takes the request.
    pub fn take(&mut self) -> Option<PowerEvent> {
        self.event.take()
    }
}
