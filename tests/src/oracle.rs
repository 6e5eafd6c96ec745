//! The host processor, run one instruction at a time in a child process under ptrace.
//!
//! The child maps the code and data windows (one memfd, shared with us), then only ever executes what it is told to.
//! Whatever a case does to it (faults, wild jumps, a broken stack) stays in the child.

use std::{io, ptr};

use iced_x86::{Instruction, Mnemonic};
use libc::{c_int, c_void, pid_t};
use memory::window;
use x86::{fpu::X87, state::RSP};

use crate::{
    image::{
        CODE, CODE_SIZE, CODE16, COMPARED_FLAGS, DATA, DATA_SIZE, DATA16, Fault, Image, Ran, code_address,
        keep_upper_stack_pointer,
    },
    program::uses_x87,
};

/// What lies where no code is.
const HLT: u8 = 0xf4;

/// A child process that executes cases natively. Dropping it kills the child.
pub struct Oracle {
    child: pid_t,
    /// Our view of the windows: code, then data.
    view: *mut u8,
    registers: libc::user_regs_struct,
    /// Where in the code window the last case's code was, and its length: to be erased.
    last: (u64, usize),
}

// SAFETY: the mapping and the child belong to this value alone. (ptrace requests must come from the thread that forked:
// whoever moves an Oracle gets ESRCH as an error, not undefined behaviour.)
unsafe impl Send for Oracle {}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

impl Oracle {
    /// Starts the child.
    pub fn start() -> io::Result<Self> {
        let size = (CODE_SIZE + DATA_SIZE) as usize;
        // SAFETY: plain system calls; the mapping is checked before use. After fork, the child (of a process that may
        // have several threads) calls nothing but async-signal-safe functions.
        unsafe {
            let memory = check(libc::memfd_create(c"oracle".as_ptr(), libc::MFD_CLOEXEC))?;
            check(libc::ftruncate(memory, size as i64))?;
            let view = libc::mmap(
                ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                memory,
                0,
            );
            if view == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            let child = check(libc::fork())?;
            if child == 0 {
                child_main(memory);
            }
            libc::close(memory);
            // As in the engines' guests, there is HLT where no code is.
            ptr::write_bytes(view.cast::<u8>(), HLT, CODE_SIZE as usize);
            let mut oracle = Self { child, view: view.cast(), registers: std::mem::zeroed(), last: (0, 0) };
            let status = oracle.wait()?;
            if !libc::WIFSTOPPED(status) {
                return Err(io::Error::other(
                    "the oracle's child ended: are ptrace and modify_ldt permitted here, and its windows free?",
                ));
            }
            oracle.ptrace(libc::PTRACE_SETOPTIONS, libc::PTRACE_O_EXITKILL as usize as *mut c_void)?;
            let mut registers: libc::user_regs_struct = std::mem::zeroed();
            oracle.ptrace(libc::PTRACE_GETREGS, (&raw mut registers).cast())?;
            oracle.registers = registers;
            Ok(oracle)
        }
    }

    fn wait(&self) -> io::Result<c_int> {
        let mut status = 0;
        // SAFETY: `status` outlives the call.
        check(unsafe { libc::waitpid(self.child, &raw mut status, 0) })?;
        Ok(status)
    }

    /// A request whose data is a pointer to a live structure of the request's type (or a value, where it takes one).
    fn ptrace(&self, request: libc::c_uint, data: *mut c_void) -> io::Result<()> {
        // SAFETY: each caller passes what ptrace(2) asks for with `request`.
        let result = unsafe { libc::ptrace(request, self.child, ptr::null_mut::<c_void>(), data) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn window(&mut self, offset: u64, length: usize) -> &mut [u8] {
        assert!(offset as usize + length <= (CODE_SIZE + DATA_SIZE) as usize);
        // SAFETY: within the mapping (just checked), which lives as long as self; the child is stopped while we look.
        unsafe { std::slice::from_raw_parts_mut(self.view.add(offset as usize), length) }
    }

    /// Puts `code` at `CODE + offset`, starts at its beginning with the state of `start`, and executes until `steps`
    /// instructions are done (a REP instruction counts once), RIP leaves the code, or a fault. `bits` is 64, or 32 for
    /// compatibility mode.
    pub fn run(
        &mut self,
        code: &[u8],
        offset: u64,
        bits: u32,
        start: &Image,
        steps: usize,
    ) -> io::Result<Ran> {
        let (last, length) = std::mem::replace(&mut self.last, (offset, code.len()));
        self.window(last, length).fill(HLT);
        self.window(offset, code.len()).copy_from_slice(code);
        self.window(CODE_SIZE, DATA_SIZE as usize).copy_from_slice(&start.data);
        let base = code_address(offset, bits);
        self.set_state(base, bits, start)?;
        let mut fault = None;
        let mut done = 0;
        let end = base + code.len() as u64;
        let mut rip = base + start.rip;
        while done < steps && (base..end).contains(&rip) {
            self.ptrace(libc::PTRACE_SINGLESTEP, ptr::null_mut())?;
            let status = self.wait()?;
            if !libc::WIFSTOPPED(status) {
                return Err(io::Error::other(format!(
                    "the oracle's child ended with wait status {status:#x}"
                )));
            }
            // SAFETY: plain data, written by ptrace.
            let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
            self.ptrace(libc::PTRACE_GETREGS, (&raw mut registers).cast())?;
            let signal = libc::WSTOPSIG(status);
            if signal != libc::SIGTRAP {
                fault = Some(self.fault(signal, &instruction_at(code, (rip - base) as usize, bits))?);
                break;
            }
            // A REP instruction traps after each iteration, with RIP still at itself.
            if registers.rip != rip || !is_repeated(code, (rip - base) as usize, bits) {
                done += 1;
            }
            rip = registers.rip;
        }
        let mut image = self.state(base)?;
        keep_upper_stack_pointer(bits, start.gpr[RSP], &mut image.gpr[RSP]);
        Ok(Ran { image, fault })
    }

    fn fault(&self, signal: c_int, insn: &Instruction) -> io::Result<Fault> {
        // SAFETY: plain data, written by ptrace.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        self.ptrace(libc::PTRACE_GETSIGINFO, (&raw mut info).cast())?;
        // SAFETY: reading the field that the kernel fills for SIGSEGV.
        let address = unsafe { info.si_addr() } as u64;
        // arch/x86/kernel/traps.c, mm/fault.c: which exception gives which signal and code.
        const SI_KERNEL: c_int = 0x80;
        let (vector, address) = match (signal, info.si_code) {
            (libc::SIGFPE, 1) => (0, None),
            (libc::SIGFPE, _) => (if uses_x87(insn) && self.x87_exception()? { 16 } else { 19 }, None),
            (libc::SIGILL, _) => (6, None),
            // Linux tells #BR as it does #GP.
            (libc::SIGSEGV, SI_KERNEL) if insn.mnemonic() == Mnemonic::Bound => (5, None),
            (libc::SIGSEGV, SI_KERNEL) => (13, None),
            (libc::SIGSEGV, _) => (14, Some(address)),
            (libc::SIGBUS, 1) => (17, None),
            (libc::SIGBUS, _) => (12, None),
            other => return Err(io::Error::other(format!("the oracle's child got signal {other:?}"))),
        };
        Ok(Fault { vector, address })
    }

    /// Whether an unmasked x87 exception is pending.
    fn x87_exception(&self) -> io::Result<bool> {
        const ERROR_SUMMARY: u16 = 1 << 7;
        Ok(self.fp_registers()?.swd & ERROR_SUMMARY != 0)
    }

    fn fp_registers(&self) -> io::Result<libc::user_fpregs_struct> {
        // SAFETY: plain data, written by ptrace.
        let mut fp: libc::user_fpregs_struct = unsafe { std::mem::zeroed() };
        self.ptrace(libc::PTRACE_GETFPREGS, (&raw mut fp).cast())?;
        Ok(fp)
    }

    fn set_state(&self, base: u64, bits: u32, image: &Image) -> io::Result<()> {
        let mut r = self.registers;
        let g = &image.gpr;
        (r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi) =
            (g[0], g[1], g[2], g[3], g[4], g[5], g[6], g[7]);
        (r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15) =
            (g[8], g[9], g[10], g[11], g[12], g[13], g[14], g[15]);
        r.rip = base + image.rip;
        r.orig_rax = u64::MAX;
        if bits == 32 {
            // Linux's flat user segments (arch/x86/include/asm/segment.h).
            (r.cs, r.ss, r.ds, r.es) = (0x23, 0x2b, 0x2b, 0x2b);
        } else if bits == 16 {
            let data = u64::from(DATA16);
            (r.cs, r.ss, r.ds, r.es) = (CODE16.into(), data, data, data);
        }
        (r.fs_base, r.gs_base) = (0, 0);
        r.eflags = 0x202 | image.flags & COMPARED_FLAGS;
        self.ptrace(libc::PTRACE_SETREGS, (&raw mut r).cast())?;
        let mut fp = self.fp_registers()?;
        let x87 = &image.x87;
        fp.cwd = x87.control;
        fp.swd = x87.status;
        fp.ftw = x87.tags;
        fp.fop = x87.opcode;
        fp.rip = 0;
        fp.rdp = 0;
        fp.mxcsr = image.mxcsr;
        for position in 0..8 {
            // FXSAVE holds ST(0) first.
            let [low, high] = x87.registers[(x87.top() + position) & 7];
            let words = [low as u32, (low >> 32) as u32, high as u32 & 0xffff, 0];
            fp.st_space[position * 4..][..4].copy_from_slice(&words);
        }
        for (index, value) in image.xmm.iter().enumerate() {
            for word in 0..4 {
                fp.xmm_space[index * 4 + word] = (value >> (32 * word)) as u32;
            }
        }
        self.ptrace(libc::PTRACE_SETFPREGS, (&raw mut fp).cast())
    }

    fn state(&mut self, base: u64) -> io::Result<Image> {
        // SAFETY: plain data, written by ptrace.
        let mut r: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        self.ptrace(libc::PTRACE_GETREGS, (&raw mut r).cast())?;
        let fp = self.fp_registers()?;
        let mut x87 = X87 { control: fp.cwd, status: fp.swd, tags: fp.ftw, ..X87::new() };
        for position in 0..8 {
            let words = &fp.st_space[position * 4..][..4];
            let index = (x87.top() + position) & 7;
            x87.registers[index] =
                [u64::from(words[0]) | u64::from(words[1]) << 32, u64::from(words[2] & 0xffff)];
        }
        let mut xmm = [0; 16];
        for (index, value) in xmm.iter_mut().enumerate() {
            for word in 0..4 {
                *value |= u128::from(fp.xmm_space[index * 4 + word]) << (32 * word);
            }
        }
        Ok(Image {
            gpr: [
                r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12,
                r.r13, r.r14, r.r15,
            ],
            rip: r.rip.wrapping_sub(base),
            flags: r.eflags & COMPARED_FLAGS,
            xmm,
            mxcsr: fp.mxcsr,
            x87,
            data: self.window(CODE_SIZE, DATA_SIZE as usize).to_vec(),
        })
    }
}

fn instruction_at(code: &[u8], at: usize, bits: u32) -> Instruction {
    iced_x86::Decoder::new(bits, &code[at..], 0).decode()
}

/// Whether the instruction at `at` has a REP prefix before a string opcode.
fn is_repeated(code: &[u8], at: usize, bits: u32) -> bool {
    let insn = instruction_at(code, at, bits);
    (insn.has_rep_prefix() || insn.has_repne_prefix()) && insn.is_string_instruction()
}

/// The child: maps the windows where the cases expect them and stops. It never returns to our code after that.
///
/// # Safety
/// To be called in a freshly forked child only.
unsafe fn child_main(memory: c_int) -> ! {
    // SAFETY: async-signal-safe system calls; the fixed addresses are refused rather than overwritten if something
    // lies there.
    unsafe {
        // An engine's window is the parent's.
        let end = window::host_of(window::HIGH.end - 1) + 1 + window::UNUSED;
        libc::munmap(window::LOW.start as *mut c_void, (end - window::LOW.start) as usize);
        let fixed = libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE;
        let code = libc::mmap(
            CODE as *mut c_void,
            CODE_SIZE as usize,
            libc::PROT_READ | libc::PROT_EXEC,
            fixed,
            memory,
            0,
        );
        let data = libc::mmap(
            DATA as *mut c_void,
            DATA_SIZE as usize,
            libc::PROT_READ | libc::PROT_WRITE,
            fixed,
            memory,
            CODE_SIZE as i64,
        );
        if code as u64 != CODE || data as u64 != DATA {
            libc::_exit(1);
        }
        for (selector, base, limit, flags) in [
            (CODE16, CODE, 0xffff, user_desc::CODE | user_desc::USEABLE),
            (DATA16, DATA, DATA_SIZE as u32 - 1, user_desc::USEABLE),
        ] {
            let descriptor = [u32::from(selector >> 3), base as u32, limit, flags];
            let size = size_of_val(&descriptor);
            if libc::syscall(libc::SYS_modify_ldt, 1, descriptor.as_ptr(), size) != 0 {
                libc::_exit(2);
            }
        }
        if libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) < 0 {
            libc::_exit(3);
        }
        libc::raise(libc::SIGSTOP);
        libc::_exit(4)
    }
}

/// Flags of modify_ldt's `struct user_desc` (arch/x86/include/uapi/asm/ldt.h); all clear: 16-bit writable data.
mod user_desc {
    /// contents: code.
    pub const CODE: u32 = 2 << 1;
    /// useable.
    pub const USEABLE: u32 = 1 << 6;
}

impl Drop for Oracle {
    fn drop(&mut self) {
        // SAFETY: our own child and our own mapping; nothing uses either afterwards.
        unsafe {
            libc::kill(self.child, libc::SIGKILL);
            libc::waitpid(self.child, ptr::null_mut(), 0);
            libc::munmap(self.view.cast(), (CODE_SIZE + DATA_SIZE) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use x86::flags;

    #[test]
    fn the_host_adds() {
        let mut oracle = Oracle::start().unwrap();
        let mut start = Image::new();
        start.gpr[0] = u64::MAX;
        start.gpr[3] = 1;
        let ran = oracle.run(&[0x48, 0x01, 0xd8], 0x100, 64, &start, 1).unwrap();
        assert_eq!(ran.fault, None);
        assert_eq!((ran.image.gpr[0], ran.image.rip), (0, 3));
        assert_eq!(ran.image.flags, flags::CF | flags::ZF | flags::PF | flags::AF);
    }

    #[test]
    fn the_host_faults() {
        let mut oracle = Oracle::start().unwrap();
        let start = Image::new();
        let mut fault = |code: &[u8]| oracle.run(code, 0, 64, &start, 1).unwrap().fault.unwrap();
        assert_eq!(fault(&[0xf7, 0xf1]).vector, 0); // div ecx
        assert_eq!(fault(&[0x0f, 0x0b]).vector, 6); // ud2
        assert_eq!(fault(&[0xf4]).vector, 13); // hlt
        assert_eq!(fault(&[0x8a, 0x00]), Fault { vector: 14, address: Some(0) }); // mov al,[rax]
    }

    #[test]
    fn the_host_has_compatibility_mode() {
        let mut oracle = Oracle::start().unwrap();
        let mut start = Image::new();
        start.gpr[0] = 0x0f;
        let ran = oracle.run(&[0x37], 0, 32, &start, 1).unwrap(); // aaa
        assert_eq!((ran.fault, ran.image.gpr[0] & 0xffff), (None, 0x0105));
    }

    #[test]
    fn state_survives_the_round_trip() {
        let mut oracle = Oracle::start().unwrap();
        let mut start = Image::new();
        for index in 0..16 {
            start.xmm[index] = 0x0123_4567_89ab_cdef_0011_2233_4455_6677 ^ (index as u128) << 64;
            if index != x86::state::RSP {
                start.gpr[index] = 0x1111_1111_1111_1111 * index as u64;
            }
        }
        start.x87.status = 3 << 11;
        start.x87.tags = 0xff;
        for index in 0..8 {
            start.x87.registers[index] = [0x8000_0000_0000_0000 + index as u64, 0x3fff];
        }
        start.data[5] = 7;
        let ran = oracle.run(&[0x90], 0, 64, &start, 1).unwrap();
        let mut expected = start.clone();
        expected.rip = 1;
        assert_eq!(ran.image.differences(&expected, 0), Vec::<String>::new());
    }

    #[test]
    fn repeated_instructions_count_once() {
        let mut oracle = Oracle::start().unwrap();
        let mut start = Image::new();
        start.gpr[0] = 0x55;
        start.gpr[1] = 100;
        start.gpr[7] = DATA;
        let ran = oracle.run(&[0xf3, 0xaa, 0x90], 0, 64, &start, 1).unwrap();
        assert_eq!((ran.image.gpr[1], ran.image.rip), (0, 2));
        assert!(ran.image.data[..100].iter().all(|&byte| byte == 0x55));
    }
}
