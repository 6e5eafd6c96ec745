//! The contract between compiled code and the runtime.
//!
//! **Registers.** A block is entered with the pinned register (r15) holding the address of [`x86::CpuState`] and the
//! guest state in it; it is a function of Cranelift's `Tail` convention, `fn(slot: i64) -> i64`, the argument being the
//! address of the [`ChainSlot`] that it was entered through (or 0), which blocks ignore. The runtime's entry thunk
//! (naked assembly) saves the host's callee-saved registers, stores its stack pointer in `CpuState::host_stack`, and
//! calls the block; what comes back is a [`Leave`].
//!
//! **Carried registers.** What templates write has nine guest registers in host registers where one block goes on in another, and older values of them in
//! `CpuState` ([`crate::carried`]). Each piece of code has two entries: its beginning, with the whole state in `CpuState`, and
//! [`crate::carried::ENTRY`] behind that, with those registers handed over. The runtime, chain slots and Cranelift's code use the first, jumps that are exits and
//! the jump cache lead to the second. What templates write loads the registers at the one, what Cranelift compiles stores them at the other.
//!
//! **Entry.** A block first polls `CpuState::exit_request`: if it is not 0, it stores its own rip and leaves with
//! [`Leave::Poll`], having done nothing. One that only leads forward may do without: every cycle polls. Then it adds its number of guest instructions to `CpuState::instructions`. A
//! block of the template translator may count its executions down in between, in a 32-bit word that the runtime
//! provides; below zero it leaves with [`Leave::Hot`] in the same way. A region ([`crate::region`]) brings the count
//! up to date wherever it leaves and for every slow path: Cranelift's has it in a register, that of templates adds what is due. It polls again on each of its cycles.
//!
//! **Direct exits.** Guest state is written back (rip need not be: the slot knows it); then
//! `lea rdi, [slot]; mov rax, [rdi + code]; jmp rax`. An unlinked slot's code is the runtime's stub, which returns
//! [`Leave::Unlinked`] with the slot's address in `CpuState::scratch[0]`. A slot whose target lies in another linear
//! page than the block is *guarded*: before the jump, compiled code looks the target's page up in the TLB array for
//! instruction fetches and jumps
//! only if `execute == page of target && addend == slot.addend`; otherwise it leaves with [`Leave::Guard`], slot in
//! scratch[0]. That catches every change of mapping, permission, view and address space, because all of them
//! change the array or the entry. Code may also take an exit by a jump of its own ([`crate::ExitJump`]), which leads to
//! a jump through the slot ([`crate::carried`]) until the runtime points it at the next block; it then takes the addend from
//! its own bytes too. Same-page targets need no guard: the key of a block includes its linear page, so
//! whoever runs in the page runs it under the same mapping.
//!
//! **Indirect exits.** The jump cache at `CpuState::jump_cache` (array of
//! [`JumpEntry`], indexed by [`jump_index`]) is looked up inline: hit if rip and mode are equal and the target's page
//! passes the same guard with the entry's addend. Otherwise [`Leave::Indirect`], with the target in `CpuState::rip`.
//! Entries are canonical addresses only: a target that is not canonical is found out on a miss, and abandoned.
//!
//! **Flags.** At a block's edge the status flags may be lazy ([`x86::LazyFlags`]): compiled code that wants an incoming
//! flag looks at the kind first and has [`SlowPath::SettleFlags`] compute the words. Whoever stores words also stores
//! the kind. The runtime settles them whenever compiled code has returned to it.
//!
//! **rip.** `CpuState::rip` is stale while blocks run into each other; every way back to the runtime but `Unlinked` and
//! `Guard` (whose slot says it) stores it.
//!
//! **Memory.** Inline TLB lookup (`memory::tlb`), of the recent pages too, which compiled code has [`RuntimeHelper::MakeRecent`] make. Registers that are newer in SSA values than in
//! CpuState are stored before it. On a miss the cold path writes back flags and count, stores the instruction's rip and, in `scratch[1]`, how many of the
//! block's instructions (this one included) are not executed if it is abandoned; then it calls a thunk of the
//! `PreserveAll` convention, whose arguments (address, value) are in `scratch[2]` and those after it
//! ([`SlowPath::argument`]). (Blocks of the template translator go by [`crate::misses`], which does the same from less.) The thunk either did the access (loads: result in
//! `scratch[0]`, vectors in `scratch_vector[0]`) and returns, or it abandons the frame: `instructions -= scratch[1]`,
//! the stack pointer goes back to `host_stack`, and the entry thunk returns [`Leave::Step`]. Whatever is not plain
//! RAM with permission is abandoned (faults, MMIO, code pages): the interpreter then does that one instruction,
//! precisely. So the cold path needs no exits of its own. [`SlowPath`] lists the accesses; the thunks around the
//! runtime's functions are made by [`crate::Thunks`].
//!
//! Compiled code reads `CpuState::tlb`, `tlb_mask` and the pointers to tables once a block: nothing that a block calls may
//! change them. (`Mmu` exchanges arrays only where it is given the state by `&mut`, and grows them there.)
//!
//! **MXCSR.** Compiled code that has floating-point instructions sees to it that `CpuState::mxcsr_loaded` is set, and
//! the guest's MXCSR in the host's register; it stays there until compiled code has left, through slow paths and
//! helpers, which must do no floating-point arithmetic of their own unless they load their own MXCSR and restore
//! it ([`crate::mxcsr`]). Who entered calls [`crate::mxcsr::unload`] on every way back, an abandoned frame included, if the word is set: between
//! runs of compiled code, `CpuState::mxcsr` is the truth and the word 0. Where exceptions are unmasked (the mode says
//! it) nothing is loaded, and such instructions are helpers.
//!
//! **Declined instructions** end the block: state written back, rip stored, [`Leave::Step`]. So do callouts outside 64-bit mode and
//! where code is instrumented. Otherwise some callouts are done in place (`lift::callouts`) and end the block by a direct exit; for all
//! others [`RuntimeHelper::Callout`] is called with the decoded instruction, which lies behind the block's chain slots
//! ([`crate::CodeBlock::callouts`]). STI stores the count of instructions in
//! `CpuState::shadow_from`; whatever the runtime gets control back for, it calls `CpuState::take_shadow` first.
//!
//! **Helpers** are called through `CpuState::helpers`, a table of [`TABLE_LENGTH`] function addresses: entries
//! [`FIRST_THUNK`] + [`SlowPath`] are thunks from [`crate::Thunks`], entries [`FIRST_RUNTIME_HELPER`] +
//! [`RuntimeHelper`] and [`FIRST_HELPER`] + [`Helper`] are System V functions. A helper that raised
//! (`pending_exception != 0`) is abandoned by compiled code itself, which takes back the instruction count, writes the
//! state of the instruction's start and leaves with [`Leave::Step`]: the interpreter clears `pending_exception`, runs
//! the instruction again and raises it. General registers, XMM registers and flags are in CpuState while a
//! [`Helper`] runs, and are read anew after it.

use iced_x86::{FlowControl, Mnemonic};
use semantics::{Insn, helper::Helper};
use x86::CpuState;

/// What a block returns in rax.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum Leave {
    /// A direct exit is not linked; scratch[0] = address of its [`ChainSlot`].
    Unlinked = 0,
    /// The guard of a direct exit failed; scratch[0] = address of its [`ChainSlot`].
    Guard = 1,
    /// An indirect target was not found; rip is the target.
    Indirect = 2,
    /// Let the interpreter or monitor carry out the instruction at rip, then go on.
    Step = 3,
    /// `exit_request` was not 0; rip is where to go on.
    Poll = 4,
    /// The block's counter of executions has run out ([`crate::CodeBlock::counts`]); rip is its start, nothing is done.
    Hot = 5,
    /// The callout at the block's end was carried out, and the runtime has to see to what came of it: it raised, asks the
    /// board, or events or traps are due after it. It is not counted.
    Callout = 6,
    /// A region that is only for the window was entered while that is off ([`crate::region::Versions::Window`]); rip is its start, nothing is done.
    WindowOff = 7,
}

/// One direct exit. Lives in code memory beside the block, readable at the address that compiled code uses; the
/// runtime writes it through the writable view.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ChainSlot {
    /// Host address to jump to.
    pub code: u64,
    /// For guarded slots: TLB addend that the target was linked under.
    pub addend: u64,
    /// Guest rip of the target.
    pub target: u64,
    /// Number of the slot (runtime's business).
    pub number: u64,
}

/// One entry of the jump cache.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct JumpEntry {
    /// Guest rip.
    pub rip: u64,
    /// Host address of the block's entry for who hands registers over ([`crate::carried::ENTRY`]).
    pub code: u64,
    /// TLB addend of the page that the block lies in.
    pub addend: u64,
    /// Mode bits of the block.
    pub mode: u64,
}

/// Entries in a jump cache.
pub const JUMP_CACHE_ENTRIES: usize = 131072;

/// Index of a target in the jump cache: compiled code computes the same. A sum, so that it moves with the target ([`crate::addresses`]).
#[inline]
pub const fn jump_index(rip: u64) -> usize {
    ((rip >> 2) + (rip >> 14)) as usize & (JUMP_CACHE_ENTRIES - 1)
}

/// Where the thunks of the [`SlowPath`]s begin in the table at `CpuState::helpers`.
pub const FIRST_THUNK: usize = 0;
/// Where [`RuntimeHelper`]s begin in that table.
pub const FIRST_RUNTIME_HELPER: usize = FIRST_THUNK + SlowPath::ALL.len();
/// Where the semantics' [`Helper`]s begin in that table: last, because there are ever more of them.
pub const FIRST_HELPER: usize = FIRST_RUNTIME_HELPER + RuntimeHelper::ALL.len();
/// Number of entries in that table.
pub const TABLE_LENGTH: usize = FIRST_HELPER + Helper::ALL.len();

/// Functions of the runtime that compiled code calls, besides the semantics' helpers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum RuntimeHelper {
    /// `extern "C" fn(state, operation: u64, immediate: u64)`: the `VectorOp` of that number on `scratch_vector[1]`
    /// and `scratch_vector[2]`, result in `scratch_vector[0]`. Raises by `pending_exception`. Touches no registers and
    /// no flags but MXCSR.
    VectorOp,
    /// `extern "C" fn(state, high: u64, low: u64, divisor: u64, signed: u64) -> u64`: 128 by 64 bits. Returns 1 with
    /// the quotient in `scratch[0]` and the remainder in `scratch[2]`, or 0 where #DE is due.
    Divide,
    /// `extern "C" fn(state, repetition: u64)`: many iterations of the [`semantics::Repetition`] of that word, as far as
    /// is cheap; rSI, rDI and rCX are in CpuState before and after. Raises nothing.
    Bulk,
    /// [`crate::mxcsr::load`]. Of the `PreserveAll` convention, like thunks.
    LoadMxcsr,
    /// [`crate::mxcsr::store`], likewise.
    StoreMxcsr,
    /// `extern "C" fn(state) -> u64`: makes the TLB arrays those for the state's RFLAGS.AC. Compiled code that has called it
    /// only leaves.
    SelectView,
    /// `extern "C" fn(state) -> u64`: the guest's TSC.
    ReadTsc,
    /// `extern "C" fn(state, insn: *const Insn, traits: u64) -> u64`: carries out that callout of these [traits](callout::traits),
    /// the last instruction that the block counts. Returns 0 if the guest goes on, else the [`Leave`] to leave with. It goes on
    /// at the next instruction, in the mode and the page that the block runs in; or, if it leads elsewhere, at the state's rip
    /// in the state's mode. Compiled code that has called it only leaves.
    Callout,
    /// [`crate::misses::make`], of the `PreserveAll` convention too; its arguments are where those of thunks are.
    MakeRecent,
    /// [`crate::misses::fill`], likewise.
    FillMiss,
    /// [`crate::misses::recent`], likewise.
    RecentMiss,
    /// [`crate::misses::near`], likewise.
    NearMiss,
}

/// What is known of a callout when it is translated: bits of an argument of [`RuntimeHelper::Callout`].
pub mod callout {
    use super::{FlowControl, Insn, Mnemonic};

    /// It leads elsewhere than to the next instruction (SYSCALL, IRET, INT, far transfers): compiled code then goes on through
    /// the jump cache, in whatever mode the state has by then.
    pub const LEADS_ELSEWHERE: u64 = 1 << 0;
    /// It may read or write status flags.
    pub const TOUCHES_STATUS: u64 = 1 << 1;
    /// It may change mode, mapping or rip: all but the most frequent ones that only compute.
    pub const CHANGES_PLACE: u64 = 1 << 2;

    /// Those of an instruction.
    pub fn traits(insn: &Insn) -> u64 {
        match insn.mnemonic {
            Mnemonic::Rdmsr | Mnemonic::Cpuid | Mnemonic::In | Mnemonic::Out | Mnemonic::Xgetbv => 0,
            Mnemonic::Mov
            | Mnemonic::Wrmsr
            | Mnemonic::Invlpg
            | Mnemonic::Invpcid
            | Mnemonic::Vmcall
            | Mnemonic::Vmmcall
            | Mnemonic::Clts
            | Mnemonic::Hlt => CHANGES_PLACE,
            _ if insn.code.flow_control() != FlowControl::Next => LEADS_ELSEWHERE | TOUCHES_STATUS,
            _ => TOUCHES_STATUS | CHANGES_PLACE,
        }
    }
}

impl RuntimeHelper {
    /// All, in numeric order.
    pub const ALL: &'static [Self] = &[
        Self::VectorOp,
        Self::Divide,
        Self::Bulk,
        Self::LoadMxcsr,
        Self::StoreMxcsr,
        Self::SelectView,
        Self::ReadTsc,
        Self::Callout,
        Self::MakeRecent,
        Self::FillMiss,
        Self::RecentMiss,
        Self::NearMiss,
    ];
}

/// A memory access that the inline TLB lookup did not answer. The runtime has one function for each
/// ([`SlowPathFn`]), which either does the access on plain RAM and returns 1, or does nothing and returns 0; then the
/// frame is abandoned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum SlowPath {
    /// (address): 8 bits to `scratch[0]`, zero-extended. Like all loads and stores, across pages where they lie so.
    Load8,
    /// 16 bits.
    Load16,
    /// 32 bits.
    Load32,
    /// 64 bits.
    Load64,
    /// (address): 128 bits to `scratch_vector[0]`.
    LoadVector,
    /// (address): as a load, but only where a write is allowed.
    LoadForUpdate8,
    /// 16 bits.
    LoadForUpdate16,
    /// 32 bits.
    LoadForUpdate32,
    /// 64 bits.
    LoadForUpdate64,
    /// (address, value), value zero-extended.
    Store8,
    /// 16 bits.
    Store16,
    /// 32 bits.
    Store32,
    /// 64 bits.
    Store64,
    /// (address): 128 bits from `scratch_vector[0]`.
    StoreVector,
    /// (address, operand, operation, bytes): atomic read-modify-write, old value to `scratch[0]`. `operation` is
    /// `memory::AtomicOp as u64`, `bytes` 1, 2, 4 or 8.
    Atomic,
    /// (address, expected, new, bytes): old value to `scratch[0]`.
    CompareExchange,
    /// (address): expected in `scratch_vector[1]`, new in `scratch_vector[2]`, old value to `scratch_vector[0]`.
    /// The address is a multiple of 16.
    CompareExchangePair,
    /// (address, bytes): whether all of it can be written.
    ProbeWrite,
    /// (): no access, and never abandoned: settles the lazy flags.
    SettleFlags,
    /// (address, bytes, alignment mask): no access, but the inline lookup of a load will hit after it; the page's addend to
    /// `scratch[0]`. Abandoned where it would not: across pages, outside plain RAM, for an address that has bits of the mask.
    FillRead,
    /// The same for a store or an update.
    FillWrite,
    /// (): no access, and never abandoned: makes the flags lazy in the form [`x86::lazy_flags::Form::Packed`].
    PackFlags,
}

impl SlowPath {
    /// All, in numeric order.
    pub const ALL: &'static [Self] = &[
        Self::Load8,
        Self::Load16,
        Self::Load32,
        Self::Load64,
        Self::LoadVector,
        Self::LoadForUpdate8,
        Self::LoadForUpdate16,
        Self::LoadForUpdate32,
        Self::LoadForUpdate64,
        Self::Store8,
        Self::Store16,
        Self::Store32,
        Self::Store64,
        Self::StoreVector,
        Self::Atomic,
        Self::CompareExchange,
        Self::CompareExchangePair,
        Self::ProbeWrite,
        Self::SettleFlags,
        Self::FillRead,
        Self::FillWrite,
        Self::PackFlags,
    ];

    /// The most arguments that an access has.
    pub const MAX_ARGUMENTS: usize = 4;

    /// Offset in `CpuState` of the `n`-th argument.
    pub const fn argument(n: usize) -> usize {
        core::mem::offset_of!(CpuState, scratch) + (2 + n) * 8
    }

    /// Number of arguments that compiled code gives; the rest are 0.
    pub const fn arguments(self) -> usize {
        match self {
            Self::Store8 | Self::Store16 | Self::Store32 | Self::Store64 | Self::ProbeWrite => 2,
            Self::Atomic | Self::CompareExchange => 4,
            Self::FillRead | Self::FillWrite => 3,
            Self::SettleFlags | Self::PackFlags => 0,
            _ => 1,
        }
    }
}

/// The runtime's side of a [`SlowPath`]: 1 = done, 0 = abandon. Arguments that the access does not have are 0.
pub type SlowPathFn = unsafe extern "C" fn(state: *mut CpuState, address: u64, a: u64, b: u64, c: u64) -> u64;

/// What thunks call.
#[derive(Clone, Copy, Debug)]
pub struct RuntimeFunctions {
    /// One for each [`SlowPath`], in numeric order.
    pub slow_paths: [SlowPathFn; SlowPath::ALL.len()],
    /// Abandons the frame that called, with r15 = the state; see the module's text. Naked assembly: it does not return.
    pub abandon: unsafe extern "C" fn() -> !,
}
