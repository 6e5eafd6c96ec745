//! The MMU as its callers see it, over page tables built in guest RAM.

mod code;
mod flushes;
mod guest;
mod mmio;
mod rights;
mod smoke;
mod structures;
mod window;
