//! The MMU as its callers see it, over page tables built in guest RAM.

#[allow(dead_code, reason = "used as the tests come")]
mod guest;
mod smoke;
