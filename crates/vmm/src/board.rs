//! The board: what a PC consists of, and how its parts answer the processor's exits.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;

use devices::{Chipset, ChipsetConfig, PowerEvent};
use memory::{DeviceMemory, Ram};
use vcpu::{Answer, Clock, Exit, Vcpu};
use x86::hypercall::{KVM_HC_KICK_CPU, KVM_HC_SCHED_YIELD, KVM_HC_SEND_IPI, KVM_HC_VAPIC_POLL_IRQ, error};

use crate::{arguments::SerialArgument, config::Config};

/// Why a machine could not be built or could not go on. None of these is the guest's doing.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// Guest memory.
    #[error("--memory: {0}")]
    Memory(#[from] memory::RamError),
    /// Kernel, initramfs or command line.
    #[error(transparent)]
    Boot(#[from] boot::BootError),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] vcpu::EngineError),
    /// The profile's directory.
    #[error(transparent)]
    Profile(#[from] profiler::store::StoreError),
    /// The file for the serial console.
    #[error("--serial file={path}: {source}; name a file that can be written")]
    Serial {
        /// Path as given.
        path: String,
        /// What the host says.
        source: io::Error,
    },
    /// Threads, timers, signals.
    #[error("the host refused {what}: {source}")]
    Host {
        /// What was asked for.
        what: &'static str,
        /// What the host says.
        source: io::Error,
    },
    /// The console can't be written to any more.
    #[error("writing the guest's console failed: {0}")]
    Console(io::Error),
}

/// A PC: RAM, one processor, and everything that hangs on its buses. Owned by the vCPU thread.
pub struct Board {
    /// The processor and its engine.
    pub vcpu: Box<dyn Vcpu>,
    /// All devices.
    pub chipset: Chipset,
    /// The one clock.
    pub clock: Clock,
    /// What records the processor's profile, if it is recorded, and the memory in which symbols are found.
    pub recorder: Option<(Arc<runtime::Recorder>, Ram)>,
    /// CR8 as it was last seen, see [`Board::give_task_priority`].
    cr8: u64,
    /// The processor was kicked (KVM_HC_KICK_CPU): its next HLT ends at once.
    kicked: bool,
}

impl Board {
    /// Builds the machine and loads the kernel; the processor stands at the kernel's entry.
    pub fn build(
        config: &Config,
        console: Box<dyn Write + Send>,
    ) -> Result<(Self, boot::Booted), MachineError> {
        let ram = Ram::new(config.memory.0)?;
        let booted = boot::load(
            &ram,
            &boot::BootConfig {
                initramfs: config.initramfs.clone().map(boot::Source::Path),
                cmdline: config.cmdline.clone(),
                entry: config.entry,
                ..boot::BootConfig::new(boot::Source::Path(config.kernel.clone()))
            },
        )?;
        let clock = Clock::host();
        let paravirt = config.paravirt;
        let (mut vcpu, code, recorder): (Box<dyn Vcpu>, _, _) = match &config.kvm {
            Some(device) => {
                (Box::new(kvm::Engine::new(device, ram.clone(), clock.clone(), paravirt)?), None, None)
            }
            None => {
                let engine = runtime::EngineConfig { paravirt, ..config.engine };
                let mut engine = runtime::Engine::new(engine, ram.clone(), clock.clone())?;
                if let Some(translations) = &config.translations {
                    engine.use_translations(translations);
                }
                let recorder = engine.recorder().map(|recorder| (recorder, ram.clone()));
                let code = Arc::clone(engine.code_pages());
                (Box::new(engine), Some(code), recorder)
            }
        };
        let memory = paravirt.then(|| DeviceMemory::new(ram, code));
        let chipset = Chipset::new(clock.clone(), ChipsetConfig { memory, ..ChipsetConfig::new(console) });
        vcpu.update_state(&mut |state| booted.start.apply(state));
        Ok((Self { vcpu, chipset, clock, recorder, cr8: 0, kicked: false }, booted))
    }

    /// CR8 and the local APIC's TPR are one register, kept in two places: what the processor wrote goes to the APIC after each exit.
    fn take_task_priority(&mut self) {
        let cr8 = self.vcpu.task_priority();
        if cr8 != self.cr8 {
            self.chipset.set_tpr(cr8 as u8);
            self.cr8 = cr8;
        }
    }

    /// What was written to the APIC goes to CR8 with the next entry.
    pub fn give_task_priority(&mut self) -> Option<u64> {
        let priority = u64::from(self.chipset.tpr());
        (priority != self.cr8).then(|| {
            self.cr8 = priority;
            priority
        })
    }

    /// Does what an exit asks of the devices.
    pub fn answer(&mut self, exit: Exit) -> Answer {
        self.chipset.collect_eoi();
        self.take_task_priority();
        match exit {
            Exit::PortRead { port, size } => Answer::Value(self.chipset.port_read(port, size).into()),
            Exit::PortWrite { port, size, value } => {
                self.chipset.port_write(port, size, value);
                Answer::Done
            }
            Exit::MmioRead { address, size } => Answer::Value(self.chipset.mmio_read(address, size)),
            Exit::MmioWrite { address, size, value } => {
                self.chipset.mmio_write(address, size, value);
                Answer::Done
            }
            Exit::MsrRead { index } => match self.chipset.msr_read(index) {
                Ok(value) => Answer::Value(value),
                Err(devices::Refused) => Answer::Fault,
            },
            Exit::MsrWrite { index, value } => {
                // A TSC deadline counts in the guest's TSC.
                self.chipset.set_tsc_offset(self.vcpu.tsc_offset());
                match self.chipset.msr_write(index, value) {
                    Ok(()) => Answer::Done,
                    Err(devices::Refused) => Answer::Fault,
                }
            }
            Exit::Hypercall { number, arguments, wide } => {
                Answer::Value(self.hypercall(number, arguments, wide))
            }
            Exit::Halt | Exit::InterruptWindow | Exit::Kicked | Exit::Shutdown => Answer::Done,
        }
    }

    /// KVM's hypercalls, as Documentation/virt/kvm/x86/hypercalls.rst has them; the result.
    fn hypercall(&mut self, number: u64, [a, b, c, d]: [u64; 4], wide: bool) -> u64 {
        match number {
            // That it leaves is all: the board looks for interrupts before it enters again.
            KVM_HC_VAPIC_POLL_IRQ => 0,
            KVM_HC_KICK_CPU => {
                self.kicked |= b == 0;
                0
            }
            KVM_HC_SEND_IPI => {
                let set = if wide { u128::from(b) << 64 | u128::from(a) } else { u128::from(b << 32 | a) };
                self.chipset.send_ipi(set, c as u32, d).unwrap_or(error::EINVAL)
            }
            // There is no other processor to yield to.
            KVM_HC_SCHED_YIELD => 0,
            _ => error::ENOSYS,
        }
    }

    /// Takes the kick that a HLT waits for.
    pub fn take_kick(&mut self) -> bool {
        std::mem::take(&mut self.kicked)
    }

    /// What the guest asked of its power supply, if anything.
    pub fn power_event(&mut self) -> Option<PowerEvent> {
        self.chipset.power_event()
    }
}

/// Where the serial console's output goes.
pub fn serial_output(serial: &SerialArgument) -> Result<Box<dyn Write + Send>, MachineError> {
    Ok(match serial {
        SerialArgument::Stdio => Box::new(io::stdout()),
        SerialArgument::Null => Box::new(io::sink()),
        SerialArgument::File(path) => Box::new(
            File::create(path)
                .map_err(|source| MachineError::Serial { path: path.display().to_string(), source })?,
        ),
    })
}

#[cfg(test)]
mod tests {
    use boot::acpi::platform as told;
    use devices::layout as built;

    /// Devices and ACPI tables name no common crate; what the tables tell must be where the chipset put it.
    #[test]
    fn acpi_tells_where_the_devices_are() {
        let pairs: [(&str, u64, u64); 14] = [
            ("PM1a event", told::PM1A_EVENT.into(), built::PM1A_EVENT.into()),
            ("PM1a event length", told::PM1A_EVENT_LENGTH.into(), built::PM1A_EVENT_LENGTH.into()),
            ("PM1a control", told::PM1A_CONTROL.into(), built::PM1A_CONTROL.into()),
            ("PM1a control length", told::PM1A_CONTROL_LENGTH.into(), built::PM1A_CONTROL_LENGTH.into()),
            ("PM timer", told::PM_TIMER.into(), built::PM_TIMER.into()),
            ("PM timer length", told::PM_TIMER_LENGTH.into(), built::PM_TIMER_LENGTH.into()),
            ("GPE0", told::GPE0.into(), built::GPE0.into()),
            ("GPE0 length", told::GPE0_LENGTH.into(), built::GPE0_LENGTH.into()),
            ("reset register", told::RESET.into(), built::RESET.into()),
            ("reset value", told::RESET_VALUE.into(), built::RESET_VALUE.into()),
            ("S5", told::SLEEP_TYPE_S5.into(), built::SLEEP_TYPE_S5.into()),
            ("IOAPIC", told::IOAPIC.into(), built::IOAPIC),
            ("COM1", told::COM1.into(), built::UART.into()),
            ("PCI configuration", told::PCI_CONFIG.into(), built::PCI_CONFIG_ADDRESS.into()),
        ];
        for (what, told, built) in pairs {
            assert_eq!(told, built, "{what}");
        }
    }
}
