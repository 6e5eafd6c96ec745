//! Provisional: the interpreter alone, without a runtime around it.

use std::sync::Arc;

use anyhow::{Result, bail};
use memory::{CodePages, Mmu, Ram, Stop};
use semantics::decode;
use x86::{CpuState, Flags, GuestPhys, Segment, control, flags, paging};

use crate::image::{CODE, CODE_SIZE, COMPARED_FLAGS, DATA, DATA_SIZE, Fault, Image, Ran, set_segments};

/// A way to run a case. All must agree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Way {
    Interpreted,
    CompiledSingly,
    Compiled,
    Chained,
}

const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const LOW_DIRECTORY: u64 = 0x3000;
const WINDOW_DIRECTORY: u64 = 0x4000;
const DATA_TABLE: u64 = 0x5000;
const IDT: u64 = 0x6000;
const TSS: u64 = 0x7000;
const GDT: u64 = 0x7800;
const DATA_PHYSICAL: u64 = 0x10_0000;
const CODE_PHYSICAL: u64 = 0x40_0000;
const MEMORY: u64 = CODE_PHYSICAL + CODE_SIZE;

/// .
pub struct Subject {
    state: Box<CpuState>,
    mmu: Mmu,
    ram: Ram,
}

impl Subject {
    /// A fresh guest.
    pub fn start(_: Way) -> Result<Self> {
        let ram = Ram::new(MEMORY)?;
        let word = |address, value: u64| ram.write(GuestPhys(address), &value.to_le_bytes());
        let user = paging::PRESENT | paging::WRITABLE | paging::USER;
        word(PML4, PDPT | user)?;
        word(PDPT, LOW_DIRECTORY | user)?;
        word(PDPT + 8 * (CODE >> 30), WINDOW_DIRECTORY | user)?;
        word(LOW_DIRECTORY, paging::PRESENT | paging::WRITABLE | paging::LARGE)?;
        for page in 0..CODE_SIZE >> 21 {
            let entry = CODE_PHYSICAL + (page << 21) | paging::PRESENT | paging::USER | paging::LARGE;
            word(WINDOW_DIRECTORY + 8 * ((CODE >> 21 & 0x1ff) + page), entry)?;
        }
        word(WINDOW_DIRECTORY + 8 * (DATA >> 21 & 0x1ff), DATA_TABLE | user)?;
        for page in 0..DATA_SIZE >> 12 {
            word(DATA_TABLE + 8 * page, DATA_PHYSICAL + (page << 12) | user | paging::NO_EXECUTE)?;
        }
        ram.write(GuestPhys(CODE_PHYSICAL), &vec![0xf4; CODE_SIZE as usize])?;
        let mmu = Mmu::new(ram.clone(), CodePages::new(&ram));
        let _: Option<Arc<()>> = None;
        Ok(Self { state: Box::new(CpuState::new()), mmu, ram })
    }

    /// .
    pub fn run(&mut self, code: &[u8], offset: u64, bits: u32, start: &Image) -> Result<Ran> {
        self.ram.write(GuestPhys(DATA_PHYSICAL), &start.data)?;
        let base = CODE + offset;
        self.ram.write(GuestPhys(CODE_PHYSICAL + offset), code)?;
        let state = &mut self.state;
        set_state(state, base, bits, start);
        self.mmu.select_view(state);
        let end = base + code.len() as u64;
        let mut fault = None;
        let mut steps = 0;
        while (base..end).contains(&state.rip) {
            steps += 1;
            if steps > 100_000 {
                bail!("the case does not end");
            }
            let stop = match decode::decode_one(&code[(state.rip - base) as usize..], state.rip, state.mode) {
                Ok(insn) => match interpreter::step(state, &mut self.mmu, &insn) {
                    Ok(()) => continue,
                    Err(Stop::Exception(exception)) => exception,
                    Err(Stop::Board) => bail!("board access"),
                },
                Err(error) => error.exception().unwrap_or(x86::Exception::UD),
            };
            let vector = stop.vector as u8;
            fault = Some(Fault { vector, address: (vector == 14).then_some(stop.address) });
            break;
        }
        let mut data = vec![0; DATA_SIZE as usize];
        self.ram.read(GuestPhys(DATA_PHYSICAL), &mut data)?;
        let image = Image {
            gpr: state.gpr,
            rip: state.rip.wrapping_sub(base),
            flags: state.rflags() & COMPARED_FLAGS,
            xmm: state.xmm,
            mxcsr: state.mxcsr,
            x87: state.x87.clone(),
            data,
        };
        Ok(Ran { image, fault })
    }
}

fn set_state(state: &mut CpuState, base: u64, bits: u32, image: &Image) {
    use control::cr4;
    state.gpr = image.gpr;
    state.rip = base + image.rip;
    state.flags = Flags::from_bits(image.flags);
    state.rflags = flags::FIXED_ONE | image.flags & flags::DF;
    state.xmm = image.xmm;
    state.mxcsr = image.mxcsr;
    state.x87 = image.x87;
    state.cr3 = PML4;
    state.cr4 = cr4::PAE | cr4::PGE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::FSGSBASE | cr4::OSXSAVE;
    state.xcr0 = control::xcr0::X87 | control::xcr0::SSE;
    set_segments(state, bits);
    state.tr = Segment { base: TSS, limit: 0x67, selector: 0x40, attributes: 0x8b };
    state.gdtr = Segment { base: GDT, limit: 0x4f, ..Segment::default() };
    state.idtr = Segment { base: IDT, limit: 0x1ff, ..Segment::default() };
    state.halted = false;
    state.interrupt_shadow = 0;
    state.pending_exception = 0;
    state.update_mode();
}
