//! Facts of the x86 architecture, and nothing else: registers, control bits, descriptors, page-table entries,
//! exceptions, MSR numbers, and [`CpuState`], the one layout of guest processor state that the interpreter, the
//! monitor and compiled code share. No policy, no I/O, no dependencies.

pub mod address;
pub mod control;
pub mod exception;
pub mod flags;
pub mod fpu;
pub mod hypercall;
pub mod lazy_flags;
pub mod mode;
pub mod msr;
pub mod paging;
pub mod segment;
pub mod state;
pub mod width;

pub use address::{GuestPhys, GuestVirt, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE};
pub use exception::{Exception, Vector};
pub use flags::Flags;
pub use lazy_flags::LazyFlags;
pub use mode::Mode;
pub use segment::{Segment, SegmentRegister};
pub use state::CpuState;
pub use width::Width;
