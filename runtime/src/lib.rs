//! The translation engine: `impl Vcpu` by interpreting guest blocks and compiling those that are warm.
//!
//! Data flows: CS:RIP -> [`finder`] (fetch, look up, decode) -> [`block`] -> [`tier`] (interpret or compile) -> [`compiler`]
//! -> [`links`] and [`code_memory`] (install, chain) -> [`enter`] (run it) -> [`compiled`] (why it left) -> [`dispatch`]
//! (events, the next block). [`step`] does single instructions, [`events`] what the board asks, [`invalidate`] what a
//! write to code means. [`profile`] counts all of it, if that is asked for. [`persistent`] keeps code from run to run. [`block_cache`] says who owns what and when a block is dead.

pub mod block_cache;
pub mod callouts;
mod code_memory;
pub mod helpers;
pub mod tier;

mod block;
mod breakpoints;
mod compiled;
mod compiler;
mod counters;
mod dispatch;
mod engine;
mod enter;
mod events;
mod finder;
mod hash;
mod invalidate;
mod jump_cache;
mod kick;
mod links;
mod lookup;
mod page_record;
pub mod persistent;
pub mod profile;
mod region;
mod step;
mod stress;
mod worker;

pub use block_cache::CodeCache;
pub use compiled::LeaveCounters;
pub use engine::{Engine, EngineConfig};
pub use profile::{Installed, Recorder};
pub use tier::EngineMode;
