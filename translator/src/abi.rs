//! The contract between compiled code and the runtime.
//!
//! **Registers.** A block is entered with the pinned register (r15) holding the address of [`x86::CpuState`] and the
//! guest state in it; it is a function of Cranelift's `Tail` convention, `fn(slot: i64) -> i64`, the argument being the
//! address of the [`ChainSlot`] that it was entered through (or 0), which blocks ignore. The runtime's entry thunk
//! (naked assembly) saves the host's callee-saved registers, stores its stack pointer in `CpuState::host_stack`, and
//! calls the block; what comes back is a [`Leave`].
//!
//! **Entry.** A block first polls `CpuState::exit_request`: if it is not 0, it stores its own rip and leaves with
//! [`Leave::Poll`], having done nothing. Then it adds its number of guest instructions to `CpuState::instructions`.
//!
//! **Direct exits.** Guest state is written back (rip need not be: the slot knows it); then
//! `lea rdi, [slot]; mov rax, [rdi + code]; jmp rax`. An unlinked slot's code is the runtime's stub, which returns
//! [`Leave::Unlinked`] with the slot's address in `CpuState::scratch[0]`. A slot whose target lies in another linear
//! page than the block is *guarded*: before the jump, compiled code looks the target's page up in the TLB and jumps
//! only if `execute == page of target && addend == slot.addend`; otherwise it leaves with [`Leave::Guard`], slot in
//! scratch[0]. That catches every change of mapping, permission, view and address space, because all of them
//! change the array or the entry. Same-page targets need no guard: the key of a block includes its linear page, so
//! whoever runs in the page runs it under the same mapping.
//!
//! **Indirect exits.** `CpuState::rip` is written; the jump cache at `CpuState::jump_cache` (array of
//! [`JumpEntry`], indexed by [`jump_index`]) is looked up inline: hit if rip and mode are equal and the target's page
//! passes the same guard with the entry's addend. Otherwise [`Leave::Indirect`].
//!
//! **Memory.** Inline TLB lookup (`memory::tlb`). On a miss the cold path writes back all guest state that is
//! newer in SSA values than in CpuState, stores the instruction's rip and, in `scratch[1]`, how many of the
//! block's instructions (this one included) are not executed if it is abandoned; then it calls a thunk of the
//! `PreserveAll` convention with the address (and value). The thunk either did the access (loads: result in
//! `scratch[0]`, vectors in `scratch_vector[0]`) and returns, or it abandons the frame: `instructions -= scratch[1]`,
//! the stack pointer goes back to `host_stack`, and the entry thunk returns [`Leave::Step`]. Whatever is not plain
//! RAM with permission is abandoned (faults, MMIO, code pages): the interpreter then does that one instruction,
//! precisely. So the cold path needs no exits of its own.
//!
//! **Declined instructions and callouts** end the block: state written back, rip stored, [`Leave::Step`].
//!
//! **Helpers** are called through `CpuState::helpers` (System V): entries `Helper as usize`, and after them
//! [`FIRST_RUNTIME_HELPER`] + [`RuntimeHelper`]. A helper that raised (`pending_exception != 0`) is abandoned like a
//! memory access: the interpreter runs the instruction again and raises it.

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
    /// Number of the block that the slot belongs to (runtime's business).
    pub owner: u64,
}

/// One entry of the jump cache.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct JumpEntry {
    /// Guest rip.
    pub rip: u64,
    /// Host address of the block.
    pub code: u64,
    /// TLB addend of the page that the block lies in.
    pub addend: u64,
    /// Mode bits of the block.
    pub mode: u64,
}

/// Entries in a jump cache.
pub const JUMP_CACHE_ENTRIES: usize = 4096;

/// Index of a target in the jump cache: compiled code computes the same.
#[inline]
pub const fn jump_index(rip: u64) -> usize {
    ((rip >> 2) ^ (rip >> 14)) as usize & (JUMP_CACHE_ENTRIES - 1)
}

/// Functions of the runtime that compiled code calls, besides the semantics' helpers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
#[allow(missing_docs, reason = "the names say it: what is done, and on how many bits")]
pub enum RuntimeHelper {
    VectorOp,
    Atomic,
    CompareExchange,
    CompareExchangePair,
    ProbeWrite,
    Divide,
}
