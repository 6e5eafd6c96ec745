//! The smallest runtime that can run compiled blocks: one RAM, one TLB array, an entry thunk, no chaining.

#![allow(dead_code, reason = "not every test uses all of it")]

pub mod random;

use std::{arch::naked_asm, mem::offset_of, sync::OnceLock};

use memmap2::MmapMut;
use memory::tlb::{ENTRY_SHIFT, Entry, RECENT as RECENT_PAGES};
use semantics::{
    Insn,
    helper::{Helper, VectorOp},
};
use transvisor_translator::{
    CodeBlock, Thunks,
    abi::{
        ChainSlot, FIRST_HELPER, FIRST_RUNTIME_HELPER, FIRST_THUNK, JUMP_CACHE_ENTRIES, JumpEntry, Leave,
        RuntimeFunctions, RuntimeHelper, SlowPath, SlowPathFn, TABLE_LENGTH,
    },
    misses, mxcsr,
};
use x86::{CpuState, Segment, SegmentRegister, control, segment::attribute};

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
    code: MmapMut,
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
        match unsafe { enter(self.code.as_ptr(), state) } {
            0 => Leave::Unlinked,
            1 => Leave::Guard,
            2 => Leave::Indirect,
            3 => Leave::Step,
            4 => Leave::Poll,
            5 => Leave::Hot,
            6 => Leave::Callout,
            other => panic!("block returned {other}"),
        }
    }

    /// Host address of the block.
    pub fn code(&self) -> u64 {
        self.code.as_ptr() as u64
    }

    /// Links a slot to a block, found under a TLB addend.
    ///
    /// # Safety
    /// The other block must stay where it is while this one is run.
    pub unsafe fn link(&self, slot: usize, to: &Placed, addend: u64) {
        if let Some(jump) = self.block.exits[slot].jump {
            let base = self.code.as_ptr().cast_mut();
            let field = self.code() + u64::from(jump.displacement);
            let displacement = i32::try_from(to.code().wrapping_sub(field + 4) as i64).expect("within reach");
            let protect = |rights| {
                // SAFETY: exactly the pages of the code, which nobody runs now.
                let protected = unsafe { libc::mprotect(base.cast(), self.slots, rights) };
                assert_eq!(protected, 0, "executable memory");
            };
            protect(libc::PROT_READ | libc::PROT_WRITE);
            // SAFETY: within the code.
            unsafe {
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
        unsafe { self.code.as_ptr().add(self.slots).cast::<ChainSlot>().add(n) }
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

/// The functions that compiled code may call.
extern "C" fn nothing(_: *mut CpuState) -> u64 {
    0
}

/// A monitor that leaves every callout to whoever looks at the test's result.
extern "C" fn callout(state: *mut CpuState, insn: *const Insn) -> u64 {
    // SAFETY: compiled code gives its state and the instruction beside it, and uses neither meanwhile.
    let (state, insn) = unsafe { (&mut *state, &*insn) };
    state.rip = insn.rip;
    state.instructions -= 1;
    Leave::Callout as u64
}

/// What compiled code may call.
pub fn function_table(thunks: &Thunks) -> FunctionTable {
    let mut table = Box::new([core::ptr::null(); TABLE_LENGTH]);
    for (n, helper) in Helper::ALL.iter().enumerate() {
        table[FIRST_HELPER + n] = helper.function() as *const u8;
    }
    table[FIRST_RUNTIME_HELPER + RuntimeHelper::VectorOp as usize] = vector_op as *const u8;
    table[FIRST_RUNTIME_HELPER + RuntimeHelper::Divide as usize] = divide as *const u8;
    table[FIRST_RUNTIME_HELPER + RuntimeHelper::Bulk as usize] = no_bulk as *const u8;
    table[FIRST_RUNTIME_HELPER + RuntimeHelper::Callout as usize] = callout as *const u8;
    // There is one view, and time stands still.
    table[FIRST_RUNTIME_HELPER + RuntimeHelper::SelectView as usize] = nothing as *const u8;
    table[FIRST_RUNTIME_HELPER + RuntimeHelper::ReadTsc as usize] = nothing as *const u8;
    table[FIRST_RUNTIME_HELPER + RuntimeHelper::LoadMxcsr as usize] = mxcsr::load as *const u8;
    table[FIRST_RUNTIME_HELPER + RuntimeHelper::MakeRecent as usize] = misses::make as *const u8;
    table[FIRST_RUNTIME_HELPER + RuntimeHelper::FillMiss as usize] = misses::fill as *const u8;
    table[FIRST_RUNTIME_HELPER + RuntimeHelper::StackMiss as usize] = misses::stack as *const u8;
    table[FIRST_RUNTIME_HELPER + RuntimeHelper::StoreMxcsr as usize] = mxcsr::store as *const u8;
    table[FIRST_THUNK..][..SlowPath::ALL.len()].copy_from_slice(thunks.addresses());
    table
}

/// Puts a block into executable memory, and its slots, unlinked, into writable pages behind it.
pub fn place(block: CodeBlock) -> Placed {
    place_counting(block, 0)
}

/// The same for a block that counts its executions, down from `counter`.
pub fn place_counting(block: CodeBlock, counter: i32) -> Placed {
    let slots = block.code.len().next_multiple_of(4096);
    let counter_at = slots + block.data_size();
    let length = counter_at + 8;
    let mut memory = MmapMut::map_anon(length).expect("anonymous memory");
    let base = memory.as_ptr() as u64;
    memory[..block.code.len()].copy_from_slice(&block.code);
    block
        .link(&mut memory[..block.code.len()], base, base + slots as u64, base + counter_at as u64)
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
    Placed { code: memory, slots, block }
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
        machine.state.tlb = machine.tlb[RECENT..].as_mut_ptr().cast();
        machine.state.tlb_mask = ((ENTRIES - 1) << ENTRY_SHIFT) as u64;
        // One array serves for fetches too.
        machine.state.fetch_tlb = machine.state.tlb;
        machine.state.fetch_tlb_mask = machine.state.tlb_mask;
        machine.state.jump_cache = machine.jumps.as_mut_ptr().cast();
        machine.state.helpers = machine.table.as_ptr();
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

/// The thunks, compiled once for all tests of a process.
pub fn thunks() -> &'static Thunks {
    static THUNKS: OnceLock<Thunks> = OnceLock::new();
    THUNKS.get_or_init(|| {
        let slow_paths: [SlowPathFn; SlowPath::ALL.len()] = [
            load::<1, false>,
            load::<2, false>,
            load::<4, false>,
            load::<8, false>,
            load::<16, false>,
            load::<1, true>,
            load::<2, true>,
            load::<4, true>,
            load::<8, true>,
            store::<1>,
            store::<2>,
            store::<4>,
            store::<8>,
            store::<16>,
            atomic,
            compare_exchange,
            compare_exchange_pair,
            probe_write,
            settle_flags,
            fill::<false>,
            fill::<true>,
            pack_flags,
        ];
        Thunks::new(&RuntimeFunctions { slow_paths, abandon }).expect("thunks")
    })
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

/// Changes every register that a System V function may change, so that a thunk that fails to save one is noticed.
#[unsafe(naked)]
pub extern "C" fn clobber() {
    naked_asm!(
        "mov eax, 0x5a5a5a5a",
        "mov ecx, eax",
        "mov edx, eax",
        "mov esi, eax",
        "mov edi, eax",
        "mov r8, rax",
        "mov r9, rax",
        "mov r10, rax",
        "mov r11, rax",
        "movq xmm0, rax",
        "movq xmm1, rax",
        "movq xmm2, rax",
        "movq xmm3, rax",
        "movq xmm4, rax",
        "movq xmm5, rax",
        "movq xmm6, rax",
        "movq xmm7, rax",
        "movq xmm8, rax",
        "movq xmm9, rax",
        "movq xmm10, rax",
        "movq xmm11, rax",
        "movq xmm12, rax",
        "movq xmm13, rax",
        "movq xmm14, rax",
        "movq xmm15, rax",
        "ret",
    )
}

/// RAM at an address, if all of it is there (and writable).
fn ram<'a>(state: *mut CpuState, address: u64, bytes: usize, write: bool) -> Option<&'a mut [u8]> {
    clobber();
    // SAFETY: `Machine::new` made `engine` point to its RAM, which nothing else refers to while code runs.
    let ram = unsafe { &mut *(*state).engine.cast::<Ram>() };
    ram.slow += 1;
    let end = if write { READ_ONLY } else { RAM_START + RAM_SIZE as u64 };
    let last = address.checked_add(bytes as u64)?;
    if address < RAM_START || last > end {
        return None;
    }
    let first = (address - RAM_START) as usize;
    Some(&mut ram.bytes[first..first + bytes])
}

unsafe extern "C" fn load<const N: usize, const UPDATE: bool>(
    state: *mut CpuState,
    address: u64,
    _: u64,
    _: u64,
    _: u64,
) -> u64 {
    let Some(bytes) = ram(state, address, N, UPDATE) else { return 0 };
    let mut value = [0; 16];
    value[..N].copy_from_slice(bytes);
    // SAFETY: the state is the caller's.
    let state = unsafe { &mut *state };
    if N == 16 {
        state.scratch_vector[0] = u128::from_le_bytes(value);
    } else {
        state.scratch[0] = u128::from_le_bytes(value) as u64;
    }
    1
}

unsafe extern "C" fn store<const N: usize>(
    state: *mut CpuState,
    address: u64,
    value: u64,
    _: u64,
    _: u64,
) -> u64 {
    let Some(bytes) = ram(state, address, N, true) else { return 0 };
    // SAFETY: the state is the caller's.
    let vector = unsafe { (*state).scratch_vector[0] };
    let value = if N == 16 { vector } else { value.into() };
    bytes.copy_from_slice(&value.to_le_bytes()[..N]);
    1
}

unsafe extern "C" fn atomic(state: *mut CpuState, address: u64, operand: u64, op: u64, bytes: u64) -> u64 {
    let Some(place) = ram(state, address, bytes as usize, true) else { return 0 };
    let mut old = [0; 8];
    old[..place.len()].copy_from_slice(place);
    let old = u64::from_le_bytes(old);
    let new = match op {
        0 => old.wrapping_add(operand),
        1 => old.wrapping_sub(operand),
        2 => old & operand,
        3 => old | operand,
        4 => old ^ operand,
        _ => operand,
    };
    place.copy_from_slice(&new.to_le_bytes()[..bytes as usize]);
    // SAFETY: the state is the caller's.
    unsafe { (*state).scratch[0] = old };
    1
}

unsafe extern "C" fn compare_exchange(
    state: *mut CpuState,
    address: u64,
    expected: u64,
    new: u64,
    bytes: u64,
) -> u64 {
    let Some(place) = ram(state, address, bytes as usize, true) else { return 0 };
    let mut old = [0; 8];
    old[..place.len()].copy_from_slice(place);
    let old = u64::from_le_bytes(old);
    if old == expected {
        place.copy_from_slice(&new.to_le_bytes()[..bytes as usize]);
    }
    // SAFETY: the state is the caller's.
    unsafe { (*state).scratch[0] = old };
    1
}

unsafe extern "C" fn compare_exchange_pair(
    state: *mut CpuState,
    address: u64,
    _: u64,
    _: u64,
    _: u64,
) -> u64 {
    let Some(place) = ram(state, address, 16, true) else { return 0 };
    // SAFETY: the state is the caller's.
    let state = unsafe { &mut *state };
    let old = u128::from_le_bytes((&*place).try_into().unwrap());
    if old == state.scratch_vector[1] {
        place.copy_from_slice(&state.scratch_vector[2].to_le_bytes());
    }
    state.scratch_vector[0] = old;
    1
}

unsafe extern "C" fn probe_write(state: *mut CpuState, address: u64, bytes: u64, _: u64, _: u64) -> u64 {
    ram(state, address, bytes as usize, true).is_some().into()
}

/// What [`SlowPath::FillRead`] and [`SlowPath::FillWrite`] do.
unsafe extern "C" fn fill<const WRITE: bool>(
    state: *mut CpuState,
    address: u64,
    bytes: u64,
    alignment: u64,
    _: u64,
) -> u64 {
    if address & alignment != 0 || address % 4096 + bytes > 4096 {
        return 0;
    }
    let page = address & !0xfff;
    let Some(place) = ram(state, page, 4096, WRITE) else { return 0 };
    let addend = (place.as_ptr() as u64).wrapping_sub(page);
    let write = if WRITE { page } else { memory::tlb::INVALID };
    // SAFETY: the state is the caller's, and `Machine::new` made its TLB.
    unsafe {
        let entry = (*state).tlb.cast::<Entry>().add((page >> 12) as usize % ENTRIES);
        *entry = Entry { read: page, write, execute: page, addend };
        (*state).scratch[0] = addend;
    }
    1
}

/// What [`SlowPath::PackFlags`] does.
pub unsafe extern "C" fn pack_flags(state: *mut CpuState, _: u64, _: u64, _: u64, _: u64) -> u64 {
    // SAFETY: called by a thunk, below compiled code, which has no other use of the state meanwhile.
    unsafe { (*state).pack_flags() };
    1
}

/// What [`SlowPath::SettleFlags`] does.
pub unsafe extern "C" fn settle_flags(state: *mut CpuState, _: u64, _: u64, _: u64, _: u64) -> u64 {
    // SAFETY: called by a thunk, below compiled code, which has no other use of the state meanwhile.
    unsafe { (*state).settle_flags() };
    1
}

extern "C" fn vector_op(state: &mut CpuState, op: u64, immediate: u64) -> u64 {
    let op = VectorOp::ALL[op as usize];
    let [_, a, b] = state.scratch_vector;
    let loaded = mxcsr::suspend(state);
    state.scratch_vector[0] = op.function()(state, a, b, immediate as u8);
    if loaded {
        mxcsr::resume(state);
    }
    0
}

/// Repetitions may go element by element.
extern "C" fn no_bulk(_: &mut CpuState, _: u64) {}

extern "C" fn divide(state: &mut CpuState, high: u64, low: u64, divisor: u64, signed: u64) -> u64 {
    let dividend = u128::from(high) << 64 | u128::from(low);
    if divisor == 0 {
        return 0;
    }
    let (quotient, remainder, fits) = if signed != 0 {
        let (dividend, divisor) = (dividend as i128, i128::from(divisor as i64));
        let quotient = dividend.wrapping_div(divisor);
        (quotient as u64, dividend.wrapping_rem(divisor) as u64, i64::try_from(quotient).is_ok())
    } else {
        let quotient = dividend / u128::from(divisor);
        (quotient as u64, (dividend % u128::from(divisor)) as u64, u64::try_from(quotient).is_ok())
    };
    state.scratch[0] = quotient;
    state.scratch[2] = remainder;
    fits.into()
}
