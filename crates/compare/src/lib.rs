//! The same guests under several monitors and on the host, in turn: what that costs, in tables and charts.
//!
//! Data flows one way: [`contestant`] (command lines) -> [`console`] (one runs) with [`usage`] (what it cost) -> [`boot`],
//! [`workloads`] or [`nanobench`] (everyone runs, once a round) -> [`statistics`] -> [`comparison`] -> [`chart`]. Who fails
//! ([`failure`]) is left out from then on, and the others go on.
//! No engine and no monitor is named here: a contestant is a command.

pub mod boot;
pub mod chart;
pub mod comparison;
pub mod console;
pub mod contestant;
pub mod failure;
pub mod nanobench;
pub mod native;
pub mod statistics;
pub mod usage;
pub mod workloads;
