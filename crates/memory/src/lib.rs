//! Guest memory as an engine sees it: RAM, the page walk, the softmmu TLB, and which pages hold translated code.
//!
//! Data flows linear address -> [`tlb`] (hit: host address) -> [`walk`] (miss) -> [`ram`] or a
//! [`mmio`] access that the board must answer. [`Mmu`] ties them together, one per vCPU; [`Ram`] and
//! [`CodePages`] are shared by all.

pub mod code_pages;
pub mod device_memory;
pub mod host;
pub mod mmio;
pub mod mmu;
pub mod ram;
pub mod tlb;
pub mod walk;
pub mod window;

pub use code_pages::{CodePages, CodeWatch};
pub use device_memory::DeviceMemory;
pub use mmio::{MmioAccess, MmioLog};
pub use mmu::{AtomicOp, Mmu, Stop};
pub use ram::{Ram, RamError};
pub use walk::Access;
pub use window::WindowStats;
pub use x86::{GuestPhys, GuestVirt};
