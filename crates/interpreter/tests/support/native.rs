//! Runs an instruction on the host processor: the oracle for ring-3 instructions.
//!
//! A page of code loads registers and flags from a page beside it, executes the instruction, and stores them back.
//! Guest memory is mapped at [`MEMORY`] in this process, so memory operands mean the same on both sides. Signals that
//! the instruction causes are caught and continue behind it.

use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicI32, AtomicU64, Ordering},
};

/// Where the memory that instructions may use is mapped, here and in the guest.
pub const MEMORY: u64 = 0x10_0000;
/// Its size in bytes.
pub const MEMORY_SIZE: usize = 0x2000;

const PAGE: usize = 0x1000;
const RFLAGS_IN: usize = PAGE + 16 * 8;
const OUT: usize = PAGE + 0x200;
const RFLAGS_OUT: usize = OUT + 16 * 8;
const HOST_RSP: usize = PAGE + 0x400;
const HOST_MXCSR: usize = PAGE + 0x408;
const STATE_IN: usize = PAGE + 0x600;
const STATE_OUT: usize = PAGE + 0x800;

/// General registers in encoding order, and RFLAGS.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Registers {
    pub gpr: [u64; 16],
    pub rflags: u64,
}

/// x87, MMX and SSE state as FXSAVE64 lays it out.
pub type FxImage = [u8; 512];

/// The one native processor of this process.
pub struct Native {
    page: *mut u8,
}

/// Where the signal handler continues, and what it saw.
static RECOVERY: AtomicU64 = AtomicU64::new(0);
static SIGNAL: AtomicI32 = AtomicI32::new(0);
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

// SAFETY: the mapping is private to the holder of the lock.
unsafe impl Send for Native {}

extern "C" fn on_signal(signal: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    SIGNAL.store(signal, Ordering::Relaxed);
    // SAFETY: the kernel gives a valid context; moving RIP behind the instruction leaves the rest as it was.
    unsafe {
        let context = context.cast::<libc::ucontext_t>();
        (*context).uc_mcontext.gregs[libc::REG_RIP as usize] = RECOVERY.load(Ordering::Relaxed) as i64;
    }
}

impl Native {
    /// Takes the native processor; other tests wait for it.
    pub fn take() -> (Self, MutexGuard<'static, ()>) {
        let guard = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // SAFETY: plain mappings; the fixed one is below where Linux places anything by itself.
        let page = unsafe {
            let memory = libc::mmap(
                MEMORY as *mut libc::c_void,
                MEMORY_SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                -1,
                0,
            );
            assert_eq!(memory as u64, MEMORY, "the host does not map {MEMORY:#x}");
            let page = libc::mmap(
                core::ptr::null_mut(),
                2 * PAGE,
                libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            assert_ne!(page, libc::MAP_FAILED, "the host does not map executable memory");
            page.cast::<u8>()
        };
        // SAFETY: the handler is async-signal-safe (two atomics); its stack lives as long as the process.
        unsafe {
            let stack = Box::leak(vec![0u8; 64 << 10].into_boxed_slice());
            let alternative =
                libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: stack.len() };
            libc::sigaltstack(&alternative, core::ptr::null_mut());
            let mut action: libc::sigaction = core::mem::zeroed();
            action.sa_sigaction = on_signal as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
            for signal in [libc::SIGFPE, libc::SIGILL, libc::SIGSEGV, libc::SIGBUS] {
                libc::sigaction(signal, &action, core::ptr::null_mut());
            }
        }
        (Self { page }, guard)
    }

    /// The memory at [`MEMORY`].
    pub fn memory(&mut self) -> &mut [u8] {
        // SAFETY: mapped for the process's life, and `self` is its only user while the lock is held.
        unsafe { core::slice::from_raw_parts_mut(MEMORY as *mut u8, MEMORY_SIZE) }
    }

    /// Executes one instruction. `Err` is the signal that it caused; memory may have changed then.
    pub fn run(&mut self, instruction: &[u8], registers: &Registers) -> Result<Registers, i32> {
        self.execute(assemble(instruction, false), registers)
    }

    /// The same with `state` loaded before and taken out again behind the instruction, whether it faulted or not.
    pub fn run_with_state(
        &mut self,
        instruction: &[u8],
        registers: &Registers,
        state: &mut FxImage,
    ) -> Result<Registers, i32> {
        // SAFETY: both images lie in the second page.
        unsafe {
            core::ptr::copy_nonoverlapping(state.as_ptr(), self.page.add(STATE_IN), state.len());
            self.page.add(HOST_MXCSR).cast::<u32>().write(0x1f80);
        }
        let result = self.execute(assemble(instruction, true), registers);
        // SAFETY: as above.
        unsafe { core::ptr::copy_nonoverlapping(self.page.add(STATE_OUT), state.as_mut_ptr(), state.len()) };
        result
    }

    fn execute(&mut self, (code, behind): (Vec<u8>, usize), registers: &Registers) -> Result<Registers, i32> {
        // SAFETY: the code fits its page and is a function without arguments that keeps what the ABI wants kept; the
        // context lies in the second page.
        unsafe {
            core::ptr::copy_nonoverlapping(code.as_ptr(), self.page, code.len());
            let slot = |offset: usize| self.page.add(offset).cast::<u64>();
            for (n, value) in registers.gpr.iter().enumerate() {
                slot(PAGE + n * 8).write(*value);
            }
            slot(RFLAGS_IN).write(registers.rflags);
            SIGNAL.store(0, Ordering::Relaxed);
            RECOVERY.store(self.page as u64 + behind as u64, Ordering::Relaxed);
            call(self.page);
            let mut result = Registers { rflags: slot(RFLAGS_OUT).read(), ..Registers::default() };
            for (n, value) in result.gpr.iter_mut().enumerate() {
                *value = slot(OUT + n * 8).read();
            }
            match SIGNAL.load(Ordering::Relaxed) {
                0 => Ok(result),
                signal => Err(signal),
            }
        }
    }
}

/// Calls the assembled function, which may use every vector and x87 register.
///
/// # Safety
/// `code` is a function from [`assemble`].
unsafe fn call(code: *mut u8) {
    // SAFETY: the caller's; `extern "C"` lets the callee use all XMM and x87 registers.
    unsafe { core::mem::transmute::<*mut u8, extern "C" fn()>(code)() }
}

/// The function around an instruction, and the offset behind the instruction.
fn assemble(instruction: &[u8], with_state: bool) -> (Vec<u8>, usize) {
    /// An instruction that ends with the RIP-relative address of a context slot.
    fn with_slot(code: &mut Vec<u8>, bytes: &[u8], slot: usize) {
        code.extend(bytes);
        let end = code.len() + 4;
        code.extend((slot as i32 - end as i32).to_le_bytes());
    }
    fn mov(code: &mut Vec<u8>, opcode: u8, register: usize, slot: usize) {
        let rex = if register < 8 { 0x48 } else { 0x4c };
        with_slot(code, &[rex, opcode, (register as u8 & 7) << 3 | 5], slot);
    }
    const LOAD: u8 = 0x8b;
    const STORE: u8 = 0x89;
    const RSP: usize = 4;

    let mut code = Vec::new();
    // push rbx rbp r12 r13 r14 r15; pushfq
    code.extend([0x53, 0x55, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57, 0x9c]);
    mov(&mut code, STORE, RSP, HOST_RSP);
    if with_state {
        with_slot(&mut code, &[0x48, 0x0f, 0xae, 0x0d], STATE_IN); // fxrstor64
    }
    with_slot(&mut code, &[0xff, 0x35], RFLAGS_IN); // push
    code.push(0x9d); // popfq
    for register in (0..16).filter(|&register| register != RSP).chain([RSP]) {
        mov(&mut code, LOAD, register, PAGE + register * 8);
    }
    code.extend(instruction);
    let behind = code.len();
    for register in 0..16 {
        mov(&mut code, STORE, register, OUT + register * 8);
    }
    mov(&mut code, LOAD, RSP, HOST_RSP);
    code.push(0x9c); // pushfq
    with_slot(&mut code, &[0x8f, 0x05], RFLAGS_OUT); // pop
    if with_state {
        with_slot(&mut code, &[0x48, 0x0f, 0xae, 0x05], STATE_OUT); // fxsave64
        code.extend([0xdb, 0xe3]); // fninit
        with_slot(&mut code, &[0x0f, 0xae, 0x15], HOST_MXCSR); // ldmxcsr
    }
    // popfq; pop r15 r14 r13 r12 rbp rbx; ret
    code.extend([0x9d, 0x41, 0x5f, 0x41, 0x5e, 0x41, 0x5d, 0x41, 0x5c, 0x5d, 0x5b, 0xc3]);
    assert!(code.len() < PAGE);
    (code, behind)
}
