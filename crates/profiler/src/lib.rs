//! Profiles of guests: what a run is made of, whom its addresses belong to, and how it is shown.
//!
//! Nothing here knows an engine. The engine fills in a [`model::Profile`], [`naming`] names its addresses by
//! [`symbols`] and [`lines`], and by what [`guest`] saw in the guest's memory while it ran; [`store`] keeps it in a directory, and
//! [`report`], [`flame`], [`text`], [`diff`] and [`jitdump`] show it.

mod arrange;
pub mod diff;
pub mod elf;
pub mod flame;
pub mod guest;
pub mod jitdump;
pub mod kallsyms;
pub mod lines;
pub mod listing;
pub mod model;
pub mod naming;
pub mod orc;
pub mod report;
pub mod store;
pub mod symbols;
pub mod text;
