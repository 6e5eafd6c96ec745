//! What compiled code calls where a lookup misses: naked functions that change no register but the flags.
//!
//! [`make`] makes a recent page ([`memory::tlb::Recent`]). Templates call the others, which take what they need to know packed into
//! one word ([`Miss`]), because most of what templates write are cold paths. Most of them have their temporaries in the same registers:
//! for those there is what else they have in common ([`COMMON`]).

use core::arch::naked_asm;
use core::mem::offset_of;

use memory::tlb::{ENTRY_SHIFT, Entry, RECENT_MADE, Recent, recent_offset};
use x86::{CpuState, PAGE_MASK, PAGE_SHIFT};

use crate::abi::{FIRST_THUNK, RuntimeHelper, SlowPath};

const RESULT: usize = offset_of!(CpuState, scratch);
/// Where the packed [`Miss`] is, and then the number of instructions that are not done.
const UNCOUNTED: usize = RESULT + 8;
const ADDRESS: usize = SlowPath::argument(0);
const BYTES: usize = SlowPath::argument(1);
const ALIGNMENT: usize = SlowPath::argument(2);

/// What an access that missed is, besides its address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Miss {
    pub bytes: u8,
    pub write: bool,
    /// Must be a multiple of `bytes`.
    pub aligned: bool,
    /// Instructions that are counted but not done if it is abandoned; below zero: done but not counted.
    pub uncounted: i8,
    /// From an address that is known where it is noted to the instruction.
    pub distance: u16,
}

const ALIGNED: u32 = 1 << 7;
const UNCOUNTED_SHIFT: u32 = 8;
const DISTANCE_SHIFT: u32 = 16;
const WRITE: u32 = 1 << 31;
const DISTANCE_BITS: u32 = 0x7fff;

impl Miss {
    /// The most that `distance` can be.
    pub const MOST_DISTANCE: u64 = DISTANCE_BITS as u64;

    /// In a word: bytes 7 bits, aligned 1, uncounted 8, distance 15, write 1.
    pub fn packed(self) -> u32 {
        debug_assert!(self.bytes < 0x80 && u32::from(self.distance) <= DISTANCE_BITS);
        let flag = |set: bool, bit: u32| if set { bit } else { 0 };
        u32::from(self.bytes)
            | flag(self.aligned, ALIGNED)
            | u32::from(self.uncounted.cast_unsigned()) << UNCOUNTED_SHIFT
            | u32::from(self.distance) << DISTANCE_SHIFT
            | flag(self.write, WRITE)
    }
}

/// A function of [`COMMON`]. Only compiled code jumps there, called, with r15 = the state, and gets control back where it called.
type Common = unsafe extern "C" fn();

/// What is called, the recent page that it makes, and the host registers that have the access' address, of which the offset in its page is
/// left where a page is asked for, and what the instruction's distance is counted from: for these, the function to jump to instead. The
/// packed [`Miss`] is in `scratch[1]`. In [`CpuState::misses`].
pub(crate) const COMMON: [(RuntimeHelper, usize, [u8; 2], Common); 6] = [
    (RuntimeHelper::FillMiss, 0, [9, 10], fill_by_9),
    (RuntimeHelper::FillMiss, 0, [11, 13], fill_by_11),
    (RuntimeHelper::RecentMiss, 0, [9, 10], recent_by_9),
    (RuntimeHelper::RecentMiss, 0, [11, 13], recent_by_11),
    (RuntimeHelper::NearMiss, 0, [9, 10], near_by_9),
    (RuntimeHelper::NearMiss, 0, [11, 13], near_by_11),
];

/// Where a function of [`COMMON`] is found in the state, if there is one.
pub(crate) fn common(helper: RuntimeHelper, page: usize, registers: [u8; 2]) -> Option<usize> {
    let number = COMMON.iter().position(|common| (common.0, common.1, common.2) == (helper, page, registers));
    number.map(|number| offset_of!(CpuState, misses) + 8 * number)
}

macro_rules! common {
    ($name:ident, $called:ident, $address:literal, $rip:literal $(, $and_then:literal)?) => {
        #[unsafe(naked)]
        unsafe extern "C" fn $name() {
            naked_asm!(
                concat!("mov [r15 + {address}], ", $address),
                concat!("mov [r15 + {rip}], ", $rip),
                "mov qword ptr [r15 + {place}], {page}",
                "call {called}",
                $($and_then,)?
                "ret",
                address = const ADDRESS,
                rip = const offset_of!(CpuState, rip),
                place = const SlowPath::argument(1),
                page = const recent_offset(0),
                called = sym $called,
            )
        }
    };
}

common!(fill_by_9, fill, "r9", "r10");
common!(fill_by_11, fill, "r11", "r13");
common!(recent_by_9, recent, "r9", "r10", "and r9d, 0xfff");
common!(recent_by_11, recent, "r11", "r13", "and r11d, 0xfff");
common!(near_by_9, near, "r9", "r10", "and r9d, 0xfff");
common!(near_by_11, near, "r11", "r13", "and r11d, 0xfff");

const _: () = assert!(!PAGE_MASK == 0xfff);

/// An access of a template's block missed the TLB array: has it filled ([`SlowPath::FillRead`], [`SlowPath::FillWrite`]). The
/// address is in `scratch[2]`, the packed [`Miss`] in `scratch[1]`, what its distance is counted from in `CpuState::rip`. r15 = state.
///
/// # Safety
/// Called by compiled code, with r15 = the state.
#[unsafe(naked)]
pub unsafe extern "C" fn fill() {
    naked_asm!(
        "push rcx",
        "push rax",
        "mov eax, [r15 + {packed}]",
        "mov ecx, eax",
        "shr ecx, {distance_shift}",
        "and ecx, {distance_bits}",
        "add [r15 + {rip}], rcx",
        "movsx ecx, ah",
        "movsxd rcx, ecx",
        "mov [r15 + {packed}], rcx",
        "mov ecx, eax",
        "and ecx, {aligned} - 1",
        "mov [r15 + {bytes}], rcx",
        "dec ecx",
        "test al, {aligned}",
        "jnz 2f",
        "xor ecx, ecx",
        "2: mov [r15 + {alignment}], rcx",
        "mov rcx, [r15 + {helpers}]",
        "test eax, eax",
        "js 3f",
        "mov rax, [rcx + {fill_read}]",
        "jmp 4f",
        "3: mov rax, [rcx + {fill_write}]",
        // The thunk returns to who called.
        "4: mov rcx, [rsp + 8]",
        "mov [rsp + 8], rax",
        "pop rax",
        "ret",
        packed = const UNCOUNTED,
        rip = const offset_of!(CpuState, rip),
        bytes = const BYTES,
        alignment = const ALIGNMENT,
        helpers = const offset_of!(CpuState, helpers),
        aligned = const ALIGNED,
        distance_shift = const DISTANCE_SHIFT,
        distance_bits = const DISTANCE_BITS,
        fill_read = const 8 * (FIRST_THUNK + SlowPath::FillRead as usize),
        fill_write = const 8 * (FIRST_THUNK + SlowPath::FillWrite as usize),
    )
}

/// An access of a template's block missed its recent page, which lies `scratch[3]` bytes from the start of the TLB array: makes
/// that, if the array has the page for the access, or goes on as [`fill`] does. Gives the page's addend in `scratch[0]`.
///
/// # Safety
/// As for [`fill`].
#[unsafe(naked)]
pub unsafe extern "C" fn recent() {
    naked_asm!(
        "push rax",
        "push rcx",
        "call {make}",
        "mov rcx, [r15 + {tlb}]",
        "add rcx, [r15 + {place}]",
        "mov rax, [r15 + {address}]",
        "sub rax, [rcx + {page}]",
        "cmp dword ptr [r15 + {packed}], 0",
        "js 3f",
        "cmp rax, [rcx + {read}]",
        "jae 2f",
        "4: mov rax, [rcx + {addend}]",
        "mov [r15 + {result}], rax",
        "pop rcx",
        "pop rax",
        "ret",
        "3: cmp rax, [rcx + {write}]",
        "jb 4b",
        // A miss, or an access at the page's end.
        "2: pop rcx",
        "pop rax",
        "jmp {fill}",
        place = const SlowPath::argument(1),
        make = sym make,
        fill = sym fill,
        tlb = const offset_of!(CpuState, tlb),
        address = const ADDRESS,
        packed = const UNCOUNTED,
        result = const RESULT,
        page = const offset_of!(Recent, page),
        read = const offset_of!(Recent, read),
        write = const offset_of!(Recent, write),
        addend = const offset_of!(Recent, addend),
    )
}

/// An access of a template's block is not in the page that another one was in: looks it up in the TLB array, or goes on as [`fill`] does. Gives its
/// page's addend in `scratch[0]`.
///
/// # Safety
/// As for [`fill`].
#[unsafe(naked)]
pub unsafe extern "C" fn near() {
    naked_asm!(
        "push rax",
        "push rcx",
        "push rdx",
        "mov rax, [r15 + {address}]",
        "mov rcx, rax",
        "shr rcx, {index_shift}",
        "and rcx, [r15 + {mask}]",
        "add rcx, [r15 + {tlb}]",
        "mov edx, [r15 + {packed}]",
        "and edx, {aligned} - 1",
        // The last byte's page.
        "lea rax, [rax + rdx - 1]",
        "and rax, {page_mask}",
        "lea rdx, [rcx + {read_tag}]",
        "cmp dword ptr [r15 + {packed}], 0",
        "jns 2f",
        "lea rdx, [rcx + {write_tag}]",
        "2: cmp rax, [rdx]",
        "jne 3f",
        "mov rax, [rcx + {entry_addend}]",
        "mov [r15 + {result}], rax",
        "pop rdx",
        "pop rcx",
        "pop rax",
        "ret",
        "3: pop rdx",
        "pop rcx",
        "pop rax",
        "jmp {fill}",
        address = const ADDRESS,
        index_shift = const PAGE_SHIFT - ENTRY_SHIFT,
        mask = const offset_of!(CpuState, tlb_mask),
        tlb = const offset_of!(CpuState, tlb),
        packed = const UNCOUNTED,
        aligned = const ALIGNED,
        page_mask = const PAGE_MASK as i32,
        read_tag = const offset_of!(Entry, read),
        write_tag = const offset_of!(Entry, write),
        entry_addend = const offset_of!(Entry, addend),
        result = const RESULT,
        fill = sym fill,
    )
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_packed_miss_keep_apart() {
        let all = Miss { bytes: 0x7f, write: true, aligned: true, uncounted: -1, distance: 0x7fff };
        assert_eq!(all.packed(), u32::MAX);
        let one = Miss { bytes: 8, write: false, aligned: false, uncounted: 3, distance: 0x21 };
        assert_eq!(one.packed(), 0x0021_0308);
    }
}
