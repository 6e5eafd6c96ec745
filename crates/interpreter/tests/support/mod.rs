//! A small machine for tests: RAM, an MMU and a state, with code and data at fixed addresses and paging off.
#![allow(dead_code, reason = "each test binary uses a part")]

use memory::{CodePages, GuestPhys, Mmu, Ram};
use semantics::decode::decode_block;
pub mod native;
pub mod state;

use transvisor_interpreter::{BlockExit, DecodedBlock, run_block};
use x86::{CpuState, Mode, Segment, control};

/// Where code is.
pub const CODE: u64 = 0x1000;
/// Where data is: a few pages, with RSP in their middle.
pub const DATA: u64 = 0x10000;

/// A processor and its memory.
pub struct Guest {
    pub state: CpuState,
    pub mmu: Mmu,
}

impl Guest {
    /// `bits` is the code size: 64, 32 (flat) or 16 (real mode).
    pub fn new(bits: u32) -> Self {
        let ram = Ram::new(2 << 20).unwrap();
        let pages = CodePages::new(&ram);
        let mut mmu = Mmu::new(ram, pages);
        let mut state = CpuState::new();
        match bits {
            64 => {
                state.cr0 |= control::cr0::PE;
                state.efer |= control::efer::LME | control::efer::LMA;
                state.segments = [Segment::from_descriptor(0x18, 0x00cf_9300_0000_ffff); 6];
                state.segments[1] = Segment::from_descriptor(0x10, 0x00af_9b00_0000_ffff);
            }
            32 => {
                state.cr0 |= control::cr0::PE;
                state.segments = [Segment::from_descriptor(0x18, 0x00cf_9300_0000_ffff); 6];
                state.segments[1] = Segment::from_descriptor(0x10, 0x00cf_9b00_0000_ffff);
            }
            _ => state.segments = [Segment::real(0); 6],
        }
        state.cr4 |= control::cr4::OSFXSR | control::cr4::FSGSBASE;
        state.update_mode();
        state.rip = CODE;
        state.gpr = [0; 16];
        state.gpr[4] = if bits == 16 { 0x8000 } else { DATA + 0x800 };
        mmu.select_view(&mut state);
        Self { state, mmu }
    }

    /// Bytes in memory at a linear (= physical) address.
    pub fn read(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.mmu.ram().read(GuestPhys(address), &mut bytes).unwrap();
        bytes
    }

    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.mmu.ram().write(GuestPhys(address), bytes).unwrap();
    }

    pub fn mode(&self) -> Mode {
        self.state.mode
    }

    /// Runs the bytes, which are at [`CODE`], as one block.
    pub fn run(&mut self, code: &[u8]) -> BlockExit {
        self.run_at(code, CODE)
    }

    /// The same from an instruction at `rip` on.
    pub fn run_at(&mut self, code: &[u8], rip: u64) -> BlockExit {
        self.state.rip = rip;
        let block = decode_block(&code[(rip - CODE) as usize..], rip, self.state.mode);
        run_block(&mut self.state, &mut self.mmu, &DecodedBlock::new(&block))
    }

    /// Runs blocks from [`CODE`] until control leaves the given bytes or something stops it.
    pub fn run_all(&mut self, code: &[u8]) -> BlockExit {
        self.state.rip = CODE;
        loop {
            let rip = self.state.rip;
            let Some(rest) = rip.checked_sub(CODE).and_then(|at| code.get(at as usize..)) else {
                return BlockExit::Next;
            };
            if rest.is_empty() {
                return BlockExit::Next;
            }
            let block = DecodedBlock::new(&decode_block(rest, rip, self.state.mode));
            assert!(!block.is_empty(), "no instruction at {rip:#x}");
            match run_block(&mut self.state, &mut self.mmu, &block) {
                BlockExit::Next => {}
                exit => return exit,
            }
        }
    }
}
