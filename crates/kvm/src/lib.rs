//! The hardware-assisted engine: `impl Vcpu` over /dev/kvm. Same board, same devices, same kernels as by translation.
//!
//! KVM has the processor and nothing else: the interrupt controllers, timers and the local APIC are the board's, in user
//! space, as with every engine. So interrupts are injected ([`engine`]), accesses to ports, MMIO and the APIC's MSRs
//! are exits ([`exchange`]), and CPUID is the monitor's table as far as KVM can keep its word ([`cpuid`]). MSRs that are
//! neither KVM's ([`msr`] has the list) nor the board's are answered from the monitor's table too.
//!
//! Time: where KVM can scale the TSC the guest's ticks once a nanosecond, as the monitor's does; elsewhere it has the
//! host's frequency, and CPUID says so. kvmclock is KVM's own. TSC deadlines are converted to the board's clock.
//!
//! Data flows: [`Host`] (is there a KVM, is it hardware) -> [`Engine::new`] -> `run` -> exchange -> the board's answer.

pub mod engine;
pub mod host;

mod cpuid;
mod error;
mod exchange;
mod kick;
mod msr;
mod registers;
mod speed;
mod virtual_machine;

pub use engine::Engine;
pub use error::KvmError;
pub use host::{Backing, DEVICE, Host};
