//! The machine around an engine: the board (what a PC consists of), the exit loop that drives it, its console, its
//! configuration, and the `transvisor` command over them.
//!
//! Data flows: arguments -> [`config::Config`] -> [`board::Board`] -> [`machine::run`] -> [`outcome::Outcome`].

mod alarm;
pub mod arguments;
pub mod board;
pub mod choice;
pub mod command;
pub mod compare_command;
pub mod config;
pub mod console;
pub mod doctor;
pub mod harness;
mod jitdump;
pub mod machine;
pub mod outcome;
pub mod panic_watch;
pub mod profile;
pub mod profile_command;
pub mod progress;
pub mod report;
pub mod size;
pub mod wake;
