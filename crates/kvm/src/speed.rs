//! How fast a guest runs: a few bytes of real-mode code that count down and halt.

use std::time::Instant;

use kvm_ioctls::VcpuExit;
use memory::Ram;
use x86::GuestPhys;

use crate::{Host, KvmError};

/// mov ecx, N; loop: dec ecx; jnz loop; hlt. 16-bit code.
const ROUNDS: u32 = 50_000;
const CODE_AT: u64 = 0x1000;
/// Instructions of a run: two a round.
const INSTRUCTIONS: f64 = 2.0 * ROUNDS as f64;
/// The best of them counts: the host may be busy.
const RUNS: usize = 3;

fn code() -> Vec<u8> {
    let mut code = vec![0x66, 0xb9];
    code.extend(ROUNDS.to_le_bytes());
    code.extend([0x66, 0x49, 0x75, 0xfc, 0xf4]);
    code
}

/// Guest instructions a second.
pub(crate) fn measure(host: &Host) -> Result<f64, KvmError> {
    let mut best = 0.0f64;
    for _ in 0..RUNS {
        best = best.max(INSTRUCTIONS / once(host)?);
    }
    Ok(best)
}

fn once(host: &Host) -> Result<f64, KvmError> {
    let refused = KvmError::refused;
    let memory = |error: memory::RamError| KvmError::Refused {
        what: "memory for the guest that measures its speed",
        source: std::io::Error::other(error.to_string()),
    };
    let ram = Ram::new(1 << 20).map_err(memory)?;
    ram.write(GuestPhys(CODE_AT), &code()).map_err(memory)?;
    let vm = host.kvm.create_vm().map_err(refused("a virtual machine"))?;
    crate::virtual_machine::attach(&vm, &ram)?;
    let mut vcpu = vm.create_vcpu(0).map_err(refused("a virtual processor"))?;
    let mut special = vcpu.get_sregs().map_err(refused("its registers"))?;
    (special.cs.base, special.cs.selector) = (0, 0);
    vcpu.set_sregs(&special).map_err(refused("its registers"))?;
    let mut registers = vcpu.get_regs().map_err(refused("its registers"))?;
    (registers.rip, registers.rflags) = (CODE_AT, 2);
    vcpu.set_regs(&registers).map_err(refused("its registers"))?;
    let begun = Instant::now();
    loop {
        match vcpu.run() {
            Ok(VcpuExit::Hlt) => return Ok(begun.elapsed().as_secs_f64()),
            Ok(VcpuExit::Intr) => {}
            Err(error) if error.errno() == libc::EINTR => {}
            Ok(other) => {
                let source = std::io::Error::other(format!("{other:?}"));
                return Err(KvmError::Refused { what: "to run a loop of three instructions", source });
            }
            Err(error) => return Err(refused("to run")(error)),
        }
    }
}
