//! Accesses of compiled code to the window ([`memory::window`]): where they are, and what the host's faults at them lead to.
//!
//! A fault comes as SIGSEGV to the vCPU's thread, which is in compiled code then, so nothing that the handler uses is in use elsewhere: it
//! may have the [`Mmu`] put the page into the window, and the access is made again. If the window can't have it, control goes to where the
//! guest's instruction is abandoned ([`Windows`]).
//! An access that keeps faulting, at one page after the other, is not worth the window: the engine is asked to look, and has the region made anew
//! ([`Windows::take_scattered`]). A fault anywhere else is left to whoever handled the signal before.
//!
//! It is here, and not where compiled code is run, so that tests of translations run them as the engine does.

use core::arch::asm;
use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::BTreeMap,
    io,
    marker::PhantomData,
    mem::MaybeUninit,
    ops::Range,
    ptr::{null, null_mut},
    sync::{OnceLock, atomic::Ordering},
};

use memory::{
    Mmu,
    window::{BASE, HIGH, LOW, UNUSED, linear_of},
};
use x86::{CpuState, GuestVirt, state::exit_request};

use crate::{CodeBlock, Guess, Part};

/// An access of compiled code to the window.
struct Site {
    /// Where the guest's instruction is abandoned.
    refused: u64,
    /// Where the code begins that it is in.
    code: u64,
    /// The guest's instruction.
    rip: u64,
    /// The address is not where it was guessed to be.
    misses: Option<Guess>,
    faults: Cell<Faults>,
}

/// How often an access has faulted lately.
#[derive(Clone, Copy, Default)]
struct Faults {
    count: u32,
    /// [`memory::window::WindowStats::cleared`], and the count of instructions, at the first one.
    cleared: u64,
    since: u64,
    /// The count of instructions at the last one that was counted.
    last: u64,
}

/// After so many faults among so many instructions an access is scattered: by the page it has cost a signal and a mapping, which is
/// as much as hundreds of lookups.
const SCATTERED: u32 = 32;
const LATELY: u64 = 50_000_000;

/// So many times among so many instructions an access misses the part of the window that was guessed: it is likely to go on doing so, and
/// what is made anew costs as much as fifty signals. With 32, gcc took 5,200 signals instead of 1,500, python3 2,070 instead of 850.
const MISGUESSED: u32 = 8;
const OFTEN: u64 = 4_000_000;

/// Whose misses are within so many instructions is in the other part; others are in either.
const ALWAYS: u64 = 100_000;

/// Faults for pages count if so many instructions lie between them, and they have to go on for so long: who goes over many pages for the
/// first time may well come again.
const APART: u64 = 20_000;
const SUSTAINED: u64 = 4_000_000;

impl Site {
    /// A fault; returns whether by that it is scattered.
    fn note(&self, cleared: u64, instructions: u64) -> bool {
        let mut faults = self.faults.get();
        let lately = if self.misses.is_some() { OFTEN } else { LATELY };
        if faults.cleared != cleared || instructions.wrapping_sub(faults.since) > lately {
            faults =
                Faults { count: 0, cleared, since: instructions, last: instructions.wrapping_sub(APART) };
        }
        if self.misses.is_none() && instructions.wrapping_sub(faults.last) < APART {
            return false;
        }
        faults.count += 1;
        faults.last = instructions;
        self.faults.set(faults);
        faults.count >= self.most()
            && (self.misses.is_some() || instructions.wrapping_sub(faults.since) >= SUSTAINED)
    }

    /// How many faults are too many.
    fn most(&self) -> u32 {
        if self.misses.is_some() { MISGUESSED } else { SCATTERED }
    }
}

/// See [`Windows::take_scattered`].
pub struct Scattered {
    /// Where the code begins.
    pub code: u64,
    /// The guest's instructions that find pages that the window does not have, or are in either part.
    pub faulting: Vec<u64>,
    /// Those that access the other part of the window than this one, or nothing in it. Each once: a second time they are looked up.
    pub missing: BTreeMap<u64, Part>,
}

/// Where compiled code accesses the window.
#[derive(Default)]
pub struct Windows {
    /// By the address of the instruction.
    accesses: BTreeMap<u64, Site>,
    /// Code with scattered accesses, by its address.
    scattered: RefCell<Vec<u64>>,
    /// Of code memory.
    generation: u64,
    /// Page faults where no checked access can be.
    stray: Cell<u64>,
    /// How many accesses were made again since the count of instructions was that.
    again: Cell<(u64, u32)>,
}

/// Accesses that are made again while no instruction is counted, at most: far more than the code between two counts has pages.
const MOST_AGAIN: u32 = 200;

impl Windows {
    /// How many accesses faulted at addresses that they should have been refused for before: always 0, but for a bug of the translator.
    pub fn stray(&self) -> u64 {
        self.stray.get()
    }

    /// Whether an access whose page has come in may be made again: a host that faults at it all the same must not do so for ever.
    fn may_again(&self, instructions: u64) -> bool {
        let (at, count) = self.again.get();
        let count = if at == instructions { count + 1 } else { 0 };
        self.again.set((instructions, count));
        count < MOST_AGAIN
    }

    /// Code was installed at an address. Returns whether code memory was emptied before, so that nothing is known of older code any more.
    pub fn installed(&mut self, generation: u64, address: u64, code: &CodeBlock) -> bool {
        let is_new = generation != self.generation;
        if is_new {
            self.accesses.clear();
            self.scattered.get_mut().clear();
            self.generation = generation;
        }
        for access in &code.window_accesses {
            let refused = address + u64::from(access.refused);
            let (rip, misses) = (access.rip, access.misses);
            let site = Site { refused, code: address, rip, misses, faults: Cell::default() };
            self.accesses.insert(address + u64::from(access.access), site);
        }
        is_new
    }

    /// Code with accesses that keep faulting, each time at another page, or that keep missing the part of the window that was guessed.
    pub fn take_scattered(&mut self) -> Option<Scattered> {
        let code = self.scattered.get_mut().pop()?;
        let own = || self.accesses.range(code..).map(|(_, site)| site).take_while(|site| site.code == code);
        // Others are likely to come to it too.
        let many = |site: &&Site| site.faults.get().count >= site.most() / 4;
        let mut scattered = Scattered { code, faulting: Vec::new(), missing: BTreeMap::new() };
        for site in own().filter(many) {
            let Some(guess) = site.misses else {
                scattered.faulting.push(site.rip);
                continue;
            };
            // What else is guessed by that register in this code is not known better.
            let same = own().filter(|other| other.misses == Some(guess)).map(|other| other.rip);
            let Faults { since, last, .. } = site.faults.get();
            if last.wrapping_sub(since) < ALWAYS {
                scattered.missing.extend(same.map(|rip| (rip, guess.part)));
            } else {
                scattered.faulting.extend(same);
            }
        }
        Some(scattered)
    }
}

/// Whose compiled code a thread runs.
#[derive(Clone, Copy)]
struct Current {
    windows: *const Windows,
    state: *mut CpuState,
}

const NOBODY: Current = Current { windows: null(), state: null_mut() };

thread_local! {
    static CURRENT: Cell<Current> = const { Cell::new(NOBODY) };
}

/// While it lives, faults of the thread at accesses of this engine's code are handled.
pub struct Handled {
    /// It is the thread's own.
    thread: PhantomData<*const ()>,
}

impl Handled {
    /// # Safety
    /// Both stay where they are as long as this lives. While compiled code runs on this thread, the state's `engine` is an [`Mmu`] that nobody else uses.
    pub unsafe fn new(windows: *const Windows, state: *mut CpuState) -> Self {
        STACK.with(|stack| _ = stack.get_or_init(SignalStack::new));
        set_base();
        CURRENT.set(Current { windows, state });
        Self { thread: PhantomData }
    }
}

impl Drop for Handled {
    fn drop(&mut self) {
        CURRENT.set(NOBODY);
    }
}

thread_local! {
    static STACK: OnceCell<SignalStack> = const { OnceCell::new() };
}

/// The stack that a thread handles signals on: Rust gives it one of a few KiB, too little for what a fault leads to.
struct SignalStack {
    start: *mut libc::c_void,
}

impl SignalStack {
    const SIZE: usize = 256 << 10;

    /// Without memory for it, the thread's old one stays.
    fn new() -> Self {
        let (rights, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: new memory, which is unmapped only after the thread has let go of it.
        unsafe {
            let start = libc::mmap(null_mut(), Self::SIZE, rights, kind, -1, 0);
            if start != libc::MAP_FAILED {
                let stack = libc::stack_t { ss_sp: start, ss_flags: 0, ss_size: Self::SIZE };
                libc::sigaltstack(&raw const stack, null_mut());
            }
            Self { start }
        }
    }
}

impl Drop for SignalStack {
    fn drop(&mut self) {
        if self.start == libc::MAP_FAILED {
            return;
        }
        let none = libc::stack_t { ss_sp: null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
        // SAFETY: it is used no longer, since this is no signal's handler.
        unsafe {
            libc::sigaltstack(&raw const none, null_mut());
            libc::munmap(self.start, Self::SIZE);
        }
    }
}

/// Whether programs may change their GS base (Linux: Documentation/arch/x86/x86_64/fsgs.rst), by which the window is accessed.
fn can_set_base() -> bool {
    const FSGSBASE: u64 = 1 << 1;
    // SAFETY: reads the process' auxiliary vector.
    let features = unsafe { libc::getauxval(libc::AT_HWCAP2) };
    features & FSGSBASE != 0
}

/// Points GS at the window. Nothing else in a process of x86-64 Linux has a use for it.
fn set_base() {
    // SAFETY: the processor and the kernel allow it (`can_set_base` was asked before there were any windows); no code but that for the
    // window uses GS.
    unsafe { asm!("wrgsbase {}", in(reg) BASE, options(nomem, nostack, preserves_flags)) };
}

/// Has faults handled on all threads. `false`: the host does not allow what that needs.
pub fn prepare() -> bool {
    static READY: OnceLock<bool> = OnceLock::new();
    *READY.get_or_init(|| can_set_base() && install_handler().is_ok())
}

static mut BEFORE: MaybeUninit<libc::sigaction> = MaybeUninit::zeroed();

fn install_handler() -> io::Result<()> {
    // SAFETY: a zeroed sigaction is valid; the handler is of the type that SA_SIGINFO asks for. `BEFORE` is written here, once, before any
    // handler reads it.
    let failed = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_fault as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaction(libc::SIGSEGV, &raw const action, (&raw mut BEFORE).cast()) != 0
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The vector of a page fault.
const PAGE_FAULT: i64 = 14;
/// In its error code: the access was a write.
const WRITE: i64 = 1 << 1;

/// Whether an access may be at a linear address that was checked, or is from a register or by an index that was.
fn is_in_reach(address: u64) -> bool {
    let near = |part: Range<u64>| {
        address.wrapping_sub(part.start).wrapping_add(UNUSED) < part.end - part.start + 2 * UNUSED
    };
    near(LOW) || near(HIGH)
}

extern "C" fn on_fault(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel gives a ucontext. `Handled` vouches for what is current; compiled code is suspended in an access to the guest's
    // memory, so nobody else uses the state or the MMU.
    unsafe {
        let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let Current { windows, state } = CURRENT.get();
        if !windows.is_null() {
            let at = registers[libc::REG_RIP as usize] as u64;
            if let Some(site) = (*windows).accesses.get(&at) {
                let mmu = &mut *(*state).engine.cast::<Mmu>();
                let mut has_page = false;
                if site.misses.is_some() {
                    mmu.window_missed(&mut *state);
                } else if registers[libc::REG_TRAPNO as usize] == PAGE_FAULT {
                    let write = registers[libc::REG_ERR as usize] & WRITE != 0;
                    let address = linear_of(registers[libc::REG_CR2 as usize] as u64);
                    (*windows).stray.update(|stray| stray + u64::from(!is_in_reach(address)));
                    has_page = mmu.window_fault(&mut *state, GuestVirt(address), write);
                }
                // Of a general-protection fault the address is not known, and it is in no window.
                if site.note(mmu.window_stats().cleared, (*state).instructions) {
                    (*windows).scattered.borrow_mut().push(site.code);
                    (*state).exit_request.fetch_or(exit_request::ENGINE, Ordering::Relaxed);
                }
                if !has_page || !(*windows).may_again((*state).instructions) {
                    registers[libc::REG_RIP as usize] = site.refused as i64;
                }
                return;
            }
        }
        // Not ours: the access is made again under what was there before.
        libc::sigaction(libc::SIGSEGV, (&raw const BEFORE).cast(), null_mut());
    }
}
