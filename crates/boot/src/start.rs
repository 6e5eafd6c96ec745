//! The state in which the first processor enters the kernel, and the tables in RAM that this state needs.

use memory::Ram;
use x86::control::{cr0, cr4, efer};
use x86::paging::{LARGE, PRESENT, WRITABLE};
use x86::{CpuState, GuestPhys, PAGE_SIZE, Segment, SegmentRegister};

use crate::{BootError, layout};

/// By which contract the kernel is entered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    /// 64-bit mode, RSI = boot_params (Documentation/arch/x86/boot.rst, "64-bit boot protocol").
    Linux64,
    /// 32-bit protected mode without paging, EBX = hvm_start_info (Xen: docs/misc/pvh.pandoc).
    Pvh,
}

/// How the first processor starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StartState {
    /// The contract.
    pub protocol: Protocol,
    /// First instruction.
    pub rip: u64,
    /// boot_params or hvm_start_info.
    pub info: GuestPhys,
}

const RBX: usize = 3;
const RSI: usize = 6;

/// Selectors of the start-up GDT; boot.rst names the first two __BOOT_CS and __BOOT_DS.
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;
const BOOT_TSS: u16 = 0x20;

/// Descriptors (SDM Vol. 3A 3.4.5), accessed: execute/read and read/write over 4 GiB, and a busy TSS of 0x68 bytes.
const CODE64: u64 = 0x00af_9b00_0000_ffff;
const CODE32: u64 = 0x00cf_9b00_0000_ffff;
const DATA: u64 = 0x00cf_9300_0000_ffff;
const TSS: u64 = 0x0000_8b00_0000_0067;

/// A page directory maps 1 GiB with 2 MiB pages.
const IDENTITY_GIB: u64 = 4;
const ENTRIES: u64 = 512;

impl StartState {
    fn gdt(&self) -> [u64; 6] {
        let code = match self.protocol {
            Protocol::Linux64 => CODE64,
            Protocol::Pvh => CODE32,
        };
        [0, 0, code, DATA, TSS, 0]
    }

    /// Writes the GDT and, for 64-bit mode, identity page tables for the first 4 GiB.
    pub(crate) fn prepare(&self, ram: &Ram) -> Result<(), BootError> {
        let gdt: Vec<u8> = self.gdt().iter().flat_map(|entry| entry.to_le_bytes()).collect();
        ram.write(layout::GDT, &gdt)?;
        if self.protocol == Protocol::Linux64 {
            write_identity_map(ram)?;
        }
        Ok(())
    }

    /// Makes `state` (as after power-up) the state in which the kernel is entered.
    pub fn apply(&self, state: &mut CpuState) {
        let gdt = self.gdt();
        let load = |selector: u16| Segment::from_descriptor(selector, gdt[usize::from(selector >> 3)]);
        for register in [SegmentRegister::Es, SegmentRegister::Ss, SegmentRegister::Ds] {
            state.segments[register as usize] = load(BOOT_DS);
        }
        for register in [SegmentRegister::Fs, SegmentRegister::Gs] {
            state.segments[register as usize] = load(BOOT_DS);
        }
        state.segments[SegmentRegister::Cs as usize] = load(BOOT_CS);
        state.tr = load(BOOT_TSS);
        state.gdtr =
            Segment { base: layout::GDT.0, limit: (size_of_val(&gdt) - 1) as u32, ..Segment::default() };
        state.idtr = Segment::default();
        state.gpr = [0; 16];
        state.cpl = 0;
        // Interrupts off; both protocols demand it.
        state.set_rflags(0);
        state.rip = self.rip;
        match self.protocol {
            Protocol::Linux64 => {
                state.cr3 = layout::PAGE_TABLES.0;
                state.cr4 = cr4::PAE;
                state.efer = efer::LME | efer::LMA;
                state.cr0 = cr0::PE | cr0::ET | cr0::NE | cr0::PG;
                state.gpr[RSI] = self.info.0;
                // Not demanded, but code that pushes before it sets its own stack must not wreck page zero.
                state.gpr[x86::state::RSP] = layout::STACK_TOP.0;
            }
            Protocol::Pvh => {
                state.cr3 = 0;
                state.cr4 = 0;
                state.efer = 0;
                state.cr0 = cr0::PE | cr0::ET;
                state.gpr[RBX] = self.info.0;
            }
        }
        state.update_mode();
    }
}

fn write_identity_map(ram: &Ram) -> Result<(), BootError> {
    let table = |index: u64| layout::PAGE_TABLES.0 + index * PAGE_SIZE;
    let mut bytes = vec![0; ((2 + IDENTITY_GIB) * PAGE_SIZE) as usize];
    let mut put = |at: u64, entry: u64| {
        let at = (at - layout::PAGE_TABLES.0) as usize;
        bytes[at..at + 8].copy_from_slice(&entry.to_le_bytes());
    };
    put(table(0), table(1) | PRESENT | WRITABLE);
    for gib in 0..IDENTITY_GIB {
        put(table(1) + gib * 8, table(2 + gib) | PRESENT | WRITABLE);
        for entry in 0..ENTRIES {
            let address = (gib * ENTRIES + entry) << 21;
            put(table(2 + gib) + entry * 8, address | PRESENT | WRITABLE | LARGE);
        }
    }
    Ok(ram.write(layout::PAGE_TABLES, &bytes)?)
}
