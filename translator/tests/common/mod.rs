//! The smallest runtime that can run compiled blocks: one RAM, one TLB array, an entry thunk, no chaining.

#![allow(dead_code, unused_imports, reason = "not every test uses all of it")]

mod functions;
pub mod random;

use std::{arch::naked_asm, mem::offset_of};

use memmap2::MmapMut;
use memory::tlb::{ENTRY_SHIFT, Entry, RECENT as RECENT_PAGES};
use semantics::Insn;
use transvisor_translator::{
    CodeBlock,
    abi::{ChainSlot, JUMP_CACHE_ENTRIES, JumpEntry, Leave, TABLE_LENGTH},
    carried, mxcsr,
};
use x86::{CpuState, Segment, SegmentRegister, control, segment::attribute};

pub use functions::{clobber, function_table, pack_flags, settle_flags, thunks};

/// Linear address where RAM begins.
pub const RAM_START: u64 = 0x10_0000;
/// Bytes of RAM.
pub const RAM_SIZE: usize = 16 * 4096;
/// This page and the ones after it can be read only.
pub const READ_ONLY: u64 = RAM_START + 12 * 4096;
const ENTRIES: usize = 64;
/// What lies in front of them.
const RECENT: usize = RECENT_PAGES + 1;

/// What compiled code runs in.
pub struct Machine {
    pub state: Box<CpuState>,
    pub ram: Box<Ram>,
    /// Recent pages (all zeros is none), then the array.
    tlb: Box<[Entry; RECENT + ENTRIES]>,
    jumps: Box<[JumpEntry]>,
    table: FunctionTable,
}

/// What `CpuState::helpers` points to.
pub type FunctionTable = Box<[*const u8; TABLE_LENGTH]>;

/// Guest RAM.
#[repr(C, align(4096))]
pub struct Ram {
    pub bytes: [u8; RAM_SIZE],
    /// Slow paths taken.
    pub slow: u64,
}

/// Executable memory with a block and its slots.
pub struct Placed {
    memory: MmapMut,
    /// Where the code begins, and the slots.
    start: usize,
    slots: usize,
    pub block: CodeBlock,
}

impl Placed {
    /// Runs the block until it leaves.
    ///
    /// # Safety
    /// What the state points to (TLB array, tables, engine) is there.
    pub unsafe fn run(&self, state: &mut CpuState) -> Leave {
        // SAFETY: compiled code keeps to `abi`; the rest is the caller's promise.
        match unsafe { enter(self.code() as *const u8, state) } {
            0 => Leave::Unlinked,
            1 => Leave::Guard,
            2 => Leave::Indirect,
            3 => Leave::Step,
            4 => Leave::Poll,
            5 => Leave::Hot,
            6 => Leave::Callout,
            7 => Leave::WindowOff,
            other => panic!("block returned {other}"),
        }
    }

    /// Host address of the block.
    pub fn code(&self) -> u64 {
        self.memory.as_ptr() as u64 + self.start as u64
    }

    /// Links a slot to a block, found under a TLB addend.
    ///
    /// # Safety
    /// The other block must stay where it is while this one is run.
    pub unsafe fn link(&self, slot: usize, to: &Placed, addend: u64) {
        if let Some(jump) = self.block.exits[slot].jump {
            let base = self.memory.as_ptr().cast_mut();
            let field = self.code() + u64::from(jump.displacement);
            let displacement = i32::try_from((to.code() + carried::ENTRY).wrapping_sub(field + 4) as i64)
                .expect("within reach");
            let protect = |rights| {
                // SAFETY: exactly the pages of the code, which nobody runs now.
                let protected = unsafe { libc::mprotect(base.cast(), self.slots, rights) };
                assert_eq!(protected, 0, "executable memory");
            };
            protect(libc::PROT_READ | libc::PROT_WRITE);
            // SAFETY: within the code.
            unsafe {
                let base = base.add(self.start);
                base.add(jump.displacement as usize).cast::<i32>().write_unaligned(displacement);
                if let Some(at) = jump.addend {
                    base.add(at as usize).cast::<u64>().write_unaligned(addend);
                }
            }
            protect(libc::PROT_READ | libc::PROT_EXEC);
            return;
        }
        // SAFETY: slots are in a page of their own, which `place` left writable.
        unsafe {
            let slot = self.slot(slot).cast_mut();
            (*slot).code = to.code();
            (*slot).addend = addend;
        }
    }

    pub fn slot(&self, n: usize) -> *const ChainSlot {
        // SAFETY: `place` made room for all slots of the block.
        unsafe { self.memory.as_ptr().add(self.slots).cast::<ChainSlot>().add(n) }
    }
}

/// State in 64-bit mode at CPL 0, without paging.
pub fn long_mode_state() -> Box<CpuState> {
    let mut state = Box::new(CpuState::new());
    state.cr0 = control::cr0::PE | control::cr0::ET;
    state.cr4 |= control::cr4::OSFXSR | control::cr4::OSXMMEXCPT;
    state.efer |= control::efer::LMA;
    let data = attribute::PRESENT | attribute::NON_SYSTEM | attribute::WRITABLE | attribute::DEFAULT_32;
    state.segments = [Segment { base: 0, limit: u32::MAX, selector: 16, attributes: data }; 6];
    state.segments[SegmentRegister::Cs as usize] = Segment {
        base: 0,
        limit: u32::MAX,
        selector: 8,
        attributes: data & !attribute::DEFAULT_32 | attribute::CODE | attribute::LONG,
    };
    state.update_mode();
    state
}

/// State in flat 32-bit protected mode at CPL 0, without paging; FS and GS have limits.
pub fn protected_state() -> Box<CpuState> {
    let mut state = long_mode_state();
    state.efer = 0;
    let cs = &mut state.segments[SegmentRegister::Cs as usize];
    cs.attributes = cs.attributes & !attribute::LONG | attribute::DEFAULT_32;
    for segment in [SegmentRegister::Fs, SegmentRegister::Gs] {
        state.segments[segment as usize].limit = 0x1_ffff;
    }
    state.update_mode();
    state
}

/// Puts a block into executable memory, and its slots, unlinked, into writable pages behind it.
pub fn place(block: CodeBlock) -> Placed {
    place_counting(block, 0)
}

/// The same for a block that counts its executions, down from `counter`.
pub fn place_counting(block: CodeBlock, counter: i32) -> Placed {
    let start = CodeBlock::next_place(0).expect("there is one");
    let slots = (start + block.code.len()).next_multiple_of(4096);
    let counter_at = slots + block.data_size();
    let length = counter_at + 8;
    let mut memory = MmapMut::map_anon(length).expect("anonymous memory");
    let base = memory.as_ptr() as u64;
    let code = &mut memory[start..start + block.code.len()];
    code.copy_from_slice(&block.code);
    block
        .link(code, base + start as u64, base + slots as u64, base + counter_at as u64)
        .expect("within reach");
    memory[counter_at..counter_at + 4].copy_from_slice(&counter.to_le_bytes());
    for (n, exit) in block.exits.iter().enumerate() {
        let code = unlinked as *const () as u64;
        let slot = ChainSlot { code, addend: 0, target: exit.target, number: 0 };
        // SAFETY: within the mapping, and aligned to a page.
        unsafe { memory.as_mut_ptr().add(slots).cast::<ChainSlot>().add(n).write(slot) };
    }
    for (n, &insn) in block.callouts.iter().enumerate() {
        // SAFETY: likewise, behind the slots.
        unsafe { memory.as_mut_ptr().add(slots + block.callouts_at()).cast::<Insn>().add(n).write(insn) };
    }
    // SAFETY: exactly the pages of the code.
    let protected =
        unsafe { libc::mprotect(memory.as_mut_ptr().cast(), slots, libc::PROT_READ | libc::PROT_EXEC) };
    assert_eq!(protected, 0, "executable memory");
    Placed { memory, start, slots, block }
}

impl Machine {
    /// A machine in 64-bit mode at CPL 0.
    pub fn new() -> Self {
        let state = long_mode_state();
        let tlb = Box::new([Entry::EMPTY; RECENT + ENTRIES]);
        let jump = JumpEntry { rip: u64::MAX, code: 0, addend: 0, mode: 0 };
        let jumps = vec![jump; JUMP_CACHE_ENTRIES].into_boxed_slice();
        let table = function_table(thunks());
        let ram = Box::new(Ram { bytes: [0; RAM_SIZE], slow: 0 });
        let mut machine = Self { state, ram, tlb, jumps, table };
        machine.flush();
        machine.state.tlb = machine.tlb.as_mut_ptr().wrapping_add(RECENT).cast();
        machine.state.tlb_mask = ((ENTRIES - 1) << ENTRY_SHIFT) as u64;
        // One array serves for fetches too.
        machine.state.fetch_tlb = machine.state.tlb;
        machine.state.fetch_tlb_mask = machine.state.tlb_mask;
        machine.state.jump_cache = machine.jumps.as_mut_ptr().cast();
        machine.state.helpers = machine.table.as_ptr();
        transvisor_translator::carried::attach(&mut machine.state);
        machine.state.engine = (&raw mut *machine.ram).cast();
        machine
    }

    /// The TLB addend of all pages.
    pub fn addend(&self) -> u64 {
        (self.ram.bytes.as_ptr() as u64).wrapping_sub(RAM_START)
    }

    /// Takes the right to execute from a page.
    pub fn forbid_execution(&mut self, page: u64) {
        self.tlb[RECENT + (page >> 12) as usize % ENTRIES].execute = memory::tlb::INVALID;
    }

    /// Fills the TLB for all of RAM.
    pub fn fill(&mut self) {
        for page in (RAM_START..RAM_START + RAM_SIZE as u64).step_by(4096) {
            let index = RECENT + (page >> 12) as usize % ENTRIES;
            let addend = self.addend();
            let write = if page < READ_ONLY { page } else { memory::tlb::INVALID };
            self.tlb[index] = Entry { read: page, write, execute: page, addend };
        }
    }

    /// Exchanges what two pages are mapped to, for the fast path only.
    pub fn exchange(&mut self, a: u64, b: u64) {
        self.drop_recent();
        let distance = b.wrapping_sub(a);
        let entries = [a, b].map(|page| RECENT + (page >> 12) as usize % ENTRIES);
        self.tlb[entries[0]].addend = self.tlb[entries[0]].addend.wrapping_add(distance);
        self.tlb[entries[1]].addend = self.tlb[entries[1]].addend.wrapping_sub(distance);
    }

    /// Empties the TLB: every access goes the slow way.
    pub fn flush(&mut self) {
        self.tlb.fill(Entry::EMPTY);
        self.drop_recent();
    }

    fn drop_recent(&mut self) {
        self.tlb[..RECENT].fill(Entry { read: 0, write: 0, execute: 0, addend: 0 });
    }

    /// The entry that the jump cache has for a target.
    pub fn jump_entry(&mut self, rip: u64) -> &mut JumpEntry {
        &mut self.jumps[transvisor_translator::abi::jump_index(rip)]
    }

    /// Runs a block until it leaves.
    pub fn run(&mut self, placed: &Placed) -> Leave {
        // SAFETY: everything that the state points to lives in `self`.
        let leave = unsafe { placed.run(&mut self.state) };
        self.state.settle_flags();
        leave
    }

    /// The slot that the last run left through.
    pub fn left_through(&self) -> *const ChainSlot {
        self.state.scratch[0] as *const ChainSlot
    }
}

#[unsafe(naked)]
unsafe extern "C" fn enter(code: *const u8, state: *mut CpuState) -> u64 {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "sub rsp, 8",
        "mov r15, rsi",
        "mov [r15 + {host_stack}], rsp",
        "mov rax, rdi",
        "xor edi, edi",
        "call rax",
        "cmp dword ptr [r15 + {mxcsr_loaded}], 0",
        "je 2f",
        "call {unload_mxcsr}",
        "2: add rsp, 8",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        host_stack = const offset_of!(CpuState, host_stack),
        mxcsr_loaded = const offset_of!(CpuState, mxcsr_loaded),
        unload_mxcsr = sym mxcsr::unload,
    )
}

#[unsafe(naked)]
pub unsafe extern "C" fn abandon() -> ! {
    naked_asm!(
        "mov rax, [r15 + {scratch} + 8]",
        "sub [r15 + {instructions}], rax",
        "mov rsp, [r15 + {host_stack}]",
        "sub rsp, 8",
        "mov eax, 3",
        "ret",
        scratch = const offset_of!(CpuState, scratch),
        instructions = const offset_of!(CpuState, instructions),
        host_stack = const offset_of!(CpuState, host_stack),
    )
}

/// What unlinked slots lead to: rdi is the slot's address.
#[unsafe(naked)]
unsafe extern "C" fn unlinked() {
    naked_asm!(
        "mov [r15 + {scratch}], rdi",
        "xor eax, eax",
        "ret",
        scratch = const offset_of!(CpuState, scratch),
    )
}

/// The same at CPL 3.
pub fn user_state() -> Box<CpuState> {
    let mut state = long_mode_state();
    state.cpl = 3;
    state.update_mode();
    state
}
