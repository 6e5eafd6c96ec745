//! For whoever adds cases to `tests/insn`: turns lines of code bytes (hexadecimal, on standard input) into the lines
//! that begin a case. `echo 48 01 d8 | cargo run -p transvisor-tests --example case` (`-- 32` for 32-bit code).

use std::io::BufRead;

use anyhow::{Context, Result};
use transvisor_tests::ins;

fn main() -> Result<()> {
    let bits = std::env::args().nth(1).map_or(Ok(64), |bits| bits.parse()).context("bits: 64 or 32")?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let digits: String = line.split_whitespace().collect();
        let bytes = (0..digits.len())
            .step_by(2)
            .map(|at| digits.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok()))
            .collect::<Option<Vec<u8>>>()
            .with_context(|| format!("`{line}` are no hexadecimal bytes"))?;
        let (text, _) = ins::disassemble(&bytes, bits);
        let bytes: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        println!("{} ; {text}", bytes.join(" "));
    }
    Ok(())
}
