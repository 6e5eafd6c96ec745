//! Making a recent page ([`memory::tlb::Recent`]): a naked function that changes no register but the flags.

use core::arch::naked_asm;
use core::mem::offset_of;

use memory::tlb::{ENTRY_SHIFT, Entry, RECENT_MADE, Recent};
use x86::{CpuState, PAGE_MASK, PAGE_SHIFT};

use crate::abi::SlowPath;

/// Makes the recent page at `scratch[3]` bytes from the start of the TLB array that of the address in `scratch[2]`, with
/// the rights that the array has for it: none, if the array does not know it. r15 = state.
///
/// # Safety
/// Called by compiled code, with r15 = the state, whose array is valid; the place is that of a recent page.
#[unsafe(naked)]
pub unsafe extern "C" fn make() {
    naked_asm!(
        "push rax",
        "push rcx",
        "push rdx",
        "push rsi",
        "push rdi",
        "mov rax, [r15 + {address}]",
        "mov rdx, [r15 + {tlb}]",
        "mov rcx, rax",
        "shr rcx, {index_shift}",
        "and rcx, [r15 + {mask}]",
        "add rcx, rdx",
        "mov dword ptr [rdx + {made}], 1",
        "add rdx, [r15 + {place}]",
        "and rax, {page_mask}",
        "mov [rdx + {page}], rax",
        "mov edi, {limit}",
        "xor esi, esi",
        "cmp rax, [rcx + {read_tag}]",
        "cmove rsi, rdi",
        "mov [rdx + {read}], rsi",
        "mov esi, 0",
        "cmp rax, [rcx + {write_tag}]",
        "cmove rsi, rdi",
        "mov [rdx + {write}], rsi",
        "mov rsi, [rcx + {entry_addend}]",
        "mov [rdx + {addend}], rsi",
        "pop rdi",
        "pop rsi",
        "pop rdx",
        "pop rcx",
        "pop rax",
        "ret",
        made = const RECENT_MADE,
        address = const SlowPath::argument(0),
        place = const SlowPath::argument(1),
        tlb = const offset_of!(CpuState, tlb),
        mask = const offset_of!(CpuState, tlb_mask),
        index_shift = const PAGE_SHIFT - ENTRY_SHIFT,
        page_mask = const PAGE_MASK as i32,
        limit = const Recent::LIMIT,
        read_tag = const offset_of!(Entry, read),
        write_tag = const offset_of!(Entry, write),
        entry_addend = const offset_of!(Entry, addend),
        page = const offset_of!(Recent, page),
        read = const offset_of!(Recent, read),
        write = const offset_of!(Recent, write),
        addend = const offset_of!(Recent, addend),
    )
}
