//! Crossing between Rust and compiled code: the only hand-written assembly of the engine (slow-path thunks are
//! Cranelift's, see [`translator::Thunks`]).
//!
//! Compiled blocks use Cranelift's `Tail` convention, which saves no register but the stack and frame pointers, and
//! keep the guest's state in r15. [`enter`] saves what the host's convention (System V) wants kept, stores its stack
//! pointer in `CpuState::host_stack` and calls a block. Blocks jump to each other in the same stack frame, so whichever runs last
//! returns to [`enter`]; and whoever is deeper in the stack (a slow-path thunk) can give the frame up by [`abandon`].

use core::arch::naked_asm;
use core::mem::offset_of;

use translator::abi::Leave;
use x86::CpuState;

/// Runs compiled code at `code` until it leaves; gives the [`Leave`] as a number.
///
/// # Safety
/// `state` is a complete, pinned guest state whose tables (`tlb`, `jump_cache`, `helpers`, `engine`) are valid and
/// not borrowed; `code` is an installed block for the state's rip and mode.
#[unsafe(naked)]
pub unsafe extern "C" fn enter(state: *mut CpuState, code: u64) -> u64 {
    // On entry rsp is 8 below a 16-byte boundary; six pushes and 8 bytes more bring it onto one, as a call wants.
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "sub rsp, 8",
        "mov r15, rdi",
        "mov [r15 + {host_stack}], rsp",
        "xor edi, edi", // entered through no slot
        "call rsi",
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
        unload_mxcsr = sym translator::mxcsr::unload,
    )
}

/// Has the processor see code that was written through another address than it is run at (SDM Vol. 3A 9.1.3): IRET
/// serializes, and costs less than other instructions that do, which hypervisors trap.
#[unsafe(naked)]
pub extern "C" fn serialize() {
    naked_asm!(
        "mov rdx, rsp",
        "mov eax, ss",
        "push rax",
        "push rdx",
        "pushfq",
        "mov eax, cs",
        "push rax",
        "lea rax, [rip + 2f]",
        "push rax",
        "iretq",
        "2: ret",
    )
}

/// Called or jumped to with r15 = state, never to return: gives up the frame of the running block, takes back the instructions it counted but
/// did not do (`scratch[1]`), and makes [`enter`] return [`Leave::Step`].
///
/// # Safety
/// Only compiled code and its thunks go here, from below a live [`enter`] frame, with no Rust frame in between.
#[unsafe(naked)]
pub unsafe extern "C" fn abandon() -> ! {
    naked_asm!(
        "mov rax, [r15 + {undone}]",
        "sub [r15 + {instructions}], rax",
        // Where `enter` called: its return address is still there, because blocks use its place for nothing else.
        "mov rsp, [r15 + {host_stack}]",
        "sub rsp, 8",
        "mov eax, {step}",
        "ret",
        undone = const offset_of!(CpuState, scratch) + 8,
        instructions = const offset_of!(CpuState, instructions),
        host_stack = const offset_of!(CpuState, host_stack),
        step = const Leave::Step as u64,
    )
}

/// What an unlinked chain slot points to: returns [`Leave::Unlinked`] with the slot (in rdi) in `scratch[0]`.
///
/// # Safety
/// Only compiled code jumps here, in place of a block.
#[unsafe(naked)]
pub unsafe extern "C" fn unlinked() {
    naked_asm!(
        "mov [r15 + {slot}], rdi",
        "mov eax, {leave}",
        "ret",
        slot = const offset_of!(CpuState, scratch),
        leave = const Leave::Unlinked as u64,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::code_memory::CodeMemory;

    fn run(code: &[u8], prepare: impl FnOnce(&mut CpuState)) -> (u64, Box<CpuState>) {
        let mut memory = CodeMemory::new(64 << 10).unwrap();
        let (address, _) = memory.allocate(code.len(), 0).unwrap();
        memory.bytes(address, code.len()).copy_from_slice(code);
        let mut state = Box::new(CpuState::new());
        prepare(&mut state);
        // SAFETY: the code is hand-made, touches only the state, and leaves as blocks do.
        let leave = unsafe { enter(&raw mut *state, address) };
        (leave, state)
    }

    #[test]
    fn a_block_that_clobbers_every_register_returns() {
        // Zeroes rbx, rbp, r12-r14; mov eax, 4; ret.
        let code = [
            0x31, 0xdb, 0x31, 0xed, 0x45, 0x31, 0xe4, 0x45, 0x31, 0xed, 0x45, 0x31, 0xf6, 0xb8, 4, 0, 0, 0,
            0xc3,
        ];
        let kept = std::hint::black_box([1u64, 2, 3, 4, 5]);
        let (leave, _) = run(&code, |_| ());
        assert_eq!((leave, std::hint::black_box(kept)), (Leave::Poll as u64, [1, 2, 3, 4, 5]));
    }

    #[test]
    fn an_abandoned_frame_takes_its_instructions_back() {
        // sub rsp, 0x100; mov rax, [r15+scratch2]; jmp rax: as a thunk below a block would.
        let at = offset_of!(CpuState, scratch) as u32 + 16;
        let mut code = vec![0x48, 0x81, 0xec, 0, 1, 0, 0, 0x49, 0x8b, 0x87];
        code.extend(at.to_le_bytes());
        code.extend([0xff, 0xe0]);
        let (leave, state) = run(&code, |state| {
            state.instructions = 100;
            state.scratch[1] = 7;
            state.scratch[2] = abandon as *const () as u64;
        });
        assert_eq!((leave, state.instructions), (Leave::Step as u64, 93));
    }

    #[test]
    fn the_unlinked_stub_names_its_slot() {
        // mov edi, 0x1234; mov rax, [r15+scratch2]; jmp rax
        let at = offset_of!(CpuState, scratch) as u32 + 16;
        let mut code = vec![0xbf, 0x34, 0x12, 0, 0, 0x49, 0x8b, 0x87];
        code.extend(at.to_le_bytes());
        code.extend([0xff, 0xe0]);
        let (leave, state) = run(&code, |state| state.scratch[2] = unlinked as *const () as u64);
        assert_eq!((leave, state.scratch[0]), (Leave::Unlinked as u64, 0x1234));
    }
}
