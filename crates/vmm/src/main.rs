//! The `transvisor` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    transvisor::command::main(std::env::args_os().collect())
}
