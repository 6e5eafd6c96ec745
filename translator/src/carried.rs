//! Guest registers that blocks hand over in host registers, and the functions for those who have them in `CpuState`.
//!
//! What templates write keeps nine guest registers in [`HOMES`] from block to block: there it neither loads nor stores them.
//! `CpuState` has older values of them meanwhile. Each piece of code therefore has two entries. Whoever has the guest's state in
//! `CpuState` enters it at its beginning, whoever has those registers in their homes enters it [`ENTRY`] bytes behind that.
//!
//! The functions are called or jumped to by compiled code only, in the frame of [`crate::abi`]: r15 is the state, and a `ret` of the block's own would leave it.

use core::arch::naked_asm;
use core::mem::offset_of;

use x86::CpuState;

use crate::{
    abi::{ChainSlot, Leave},
    misses,
};

/// From the beginning of a piece of code to its entry for who has the registers in their homes.
pub const ENTRY: u64 = 4;

/// Guest registers, and the host registers that are their homes. What instructions imply is where they expect it, but for RAX.
pub(crate) const HOMES: [(u8, u8); 9] =
    [(0, 8), (1, 1), (2, 2), (3, 3), (4, 14), (5, 5), (6, 6), (7, 7), (12, 12)];

/// The set of those guest registers.
pub(crate) const ALL: u16 = {
    let mut all = 0;
    let mut n = 0;
    while n < HOMES.len() {
        all |= 1 << HOMES[n].0;
        n += 1;
    }
    all
};

/// Offsets in `CpuState` of the functions.
pub(crate) const STORE: usize = offset_of!(CpuState, handover);
pub(crate) const LOAD: usize = STORE + 8;
pub(crate) const EXIT: usize = STORE + 16;
pub(crate) const GUARD: usize = STORE + 24;
pub(crate) const MISSED: usize = STORE + 32;
pub(crate) const GO: usize = STORE + 40;

/// Fills in [`CpuState::handover`] and [`CpuState::misses`].
pub fn attach(state: &mut CpuState) {
    state.misses = misses::COMMON.map(|(.., function)| function as *const u8);
    let functions: [unsafe extern "C" fn(); 6] = [store, load, exit, guard, missed, go];
    state.handover = functions.map(|function| function as *const u8);
}

const GPR: usize = offset_of!(CpuState, gpr);

macro_rules! with_homes {
    ($($line:expr),*) => {
        naked_asm!(
            $($line,)*
            rax = const GPR,
            rcx = const GPR + 8,
            rdx = const GPR + 2 * 8,
            rbx = const GPR + 3 * 8,
            rsp = const GPR + 4 * 8,
            rbp = const GPR + 5 * 8,
            rsi = const GPR + 6 * 8,
            rdi = const GPR + 7 * 8,
            r12 = const GPR + 12 * 8,
        )
    };
}

/// Stores the registers from their homes. Changes none, and no flags.
#[unsafe(naked)]
unsafe extern "C" fn store() {
    with_homes!(
        "mov [r15 + {rax}], r8",
        "mov [r15 + {rcx}], rcx",
        "mov [r15 + {rdx}], rdx",
        "mov [r15 + {rbx}], rbx",
        "mov [r15 + {rsp}], r14",
        "mov [r15 + {rbp}], rbp",
        "mov [r15 + {rsi}], rsi",
        "mov [r15 + {rdi}], rdi",
        "mov [r15 + {r12}], r12",
        "ret"
    )
}

/// Loads them into their homes. Changes no others, and no flags.
#[unsafe(naked)]
unsafe extern "C" fn load() {
    with_homes!(
        "mov r8, [r15 + {rax}]",
        "mov rcx, [r15 + {rcx}]",
        "mov rdx, [r15 + {rdx}]",
        "mov rbx, [r15 + {rbx}]",
        "mov r14, [r15 + {rsp}]",
        "mov rbp, [r15 + {rbp}]",
        "mov rsi, [r15 + {rsi}]",
        "mov rdi, [r15 + {rdi}]",
        "mov r12, [r15 + {r12}]",
        "ret"
    )
}

/// Jumped to with an address in rdi: loads the registers and goes there.
#[unsafe(naked)]
unsafe extern "C" fn go() {
    naked_asm!("mov rax, rdi", "call {load}", "jmp rax", load = sym load)
}

/// Jumped to with the address of a chain slot in rax: takes the exit through that.
#[unsafe(naked)]
unsafe extern "C" fn exit() {
    naked_asm!(
        "call {store}",
        "mov rdi, rax",
        "jmp qword ptr [rdi + {code}]",
        store = sym store,
        code = const offset_of!(ChainSlot, code),
    )
}

/// Jumped to with the address of a chain slot in rax: leaves with [`Leave::Guard`].
#[unsafe(naked)]
unsafe extern "C" fn guard() {
    naked_asm!(
        "call {store}",
        "mov [r15 + {slot}], rax",
        "mov eax, {guard}",
        "ret",
        store = sym store,
        slot = const offset_of!(CpuState, scratch),
        guard = const Leave::Guard as u64,
    )
}

/// Called where the jump cache does not have the target of an indirect exit, which is in rax: leaves with [`Leave::Indirect`]. Returns if the target is
/// not canonical. Changes r9.
#[unsafe(naked)]
unsafe extern "C" fn missed() {
    naked_asm!(
        "mov r9, rax",
        "shl r9, 16",
        "sar r9, 16",
        "cmp r9, rax",
        "jne 2f",
        "add rsp, 8",
        "call {store}",
        "mov [r15 + {rip}], rax",
        "mov eax, {indirect}",
        "2: ret",
        store = sym store,
        rip = const offset_of!(CpuState, rip),
        indirect = const Leave::Indirect as u64,
    )
}

/// Alignment of what follows [`prologue`], in bytes.
pub(crate) const ALIGNMENT: usize = 16;

/// Bytes of [`prologue`].
const PROLOGUE: usize = ALIGNMENT + ENTRY as usize;

/// The beginning of code that wants the guest's state in `CpuState`: the first bytes jump over the others, and those from
/// [`ENTRY`] on store the registers.
pub(crate) fn prologue() -> [u8; PROLOGUE] {
    let mut bytes = [0x90; PROLOGUE];
    bytes[..2].copy_from_slice(&[0xeb, PROLOGUE as u8 - 2]);
    bytes[ENTRY as usize..][..4].copy_from_slice(&[0x41, 0xff, 0x57, STORE as u8]);
    bytes
}

const _: () = assert!(GO < 0x80, "all are in reach of a displacement of 8 bits");
