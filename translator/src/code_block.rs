//! [`CodeBlock`]: what a translation yields. Position-independent host code, the places in it that must be told where
//! its chain slots are, and what the slots lead to. The runtime finds a place for both and calls [`CodeBlock::link`].

use semantics::Insn;

use crate::{abi::ChainSlot, addresses::AddressField, carried, instrument::Instrumentation};

/// Host code of a guest block.
#[derive(Clone, Default, Debug)]
pub struct CodeBlock {
    /// Offset within CS of the guest block.
    pub rip: u64,
    /// Host code, entered at the first byte or [`crate::carried::ENTRY`] behind that, with zeros where relocations go. To be placed at a [place](CodeBlock::next_place) for it.
    pub code: Vec<u8>,
    /// Places in `code` that depend on where code and slots lie.
    pub relocations: Vec<Relocation>,
    /// Direct exits: the n-th leaves through chain slot n.
    pub exits: Vec<DirectExit>,
    /// Callouts for which the monitor is called: they lie behind the slots ([`CodeBlock::callouts_at`]).
    pub callouts: Vec<Insn>,
    /// Places in `code` that hold what the TLB adds in a page of the guest, which depends on where its memory is on the host.
    pub addends: Vec<AddendField>,
    /// Places in `code` that may hold addresses in the kernel's image, by which the code can be made that of the same
    /// guest code elsewhere. `None`: they are not known, and the code may hold addresses of this process too.
    pub addresses: Option<Vec<AddressField>>,
    /// Accesses in `code` to the window, in no order.
    pub window_accesses: Vec<WindowAccess>,
    /// Guest instructions that a run through the block executes (what its entry adds to `CpuState::instructions`).
    pub guest_instructions: u16,
    /// Guest bytes that the block was made from, from `rip` on.
    pub guest_bytes: u16,
    /// It counts its executions down in a 32-bit word ([`RelocationTarget::Counter`]) and leaves with
    /// [`crate::abi::Leave::Hot`] once that is below zero.
    pub counts: bool,
    /// What it counts, if it is instrumented.
    pub instrumentation: Option<Box<Instrumentation>>,
    /// CLIF and host assembly, if [`crate::Options::text`] asked for them.
    pub text: Option<Text>,
}

/// Readable forms of a translation.
#[derive(Clone, Debug, Default)]
pub struct Text {
    /// As lifted, before optimization.
    pub clif: String,
    /// Host assembly.
    pub assembly: String,
}

/// A way out of a block to a constant target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirectExit {
    /// Guest rip of the target.
    pub target: u64,
    /// Linear page of the guest block that ends in it: in a region not always the first one's.
    pub page: u64,
    /// The target lies in another linear page than that; see [`crate::abi`].
    pub guarded: bool,
    /// The jump in the code that takes it, if it does not jump through the slot.
    pub jump: Option<ExitJump>,
}

/// A jump in the code itself by which a direct exit is taken. The runtime points it at the next block when that has
/// code: unlike a jump through a slot, it touches no data and is known to the host before it is executed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExitJump {
    /// Offset of its displacement, 32 bits.
    pub displacement: u32,
    /// Offset of where it leads while it is not linked: to code that jumps through the slot.
    pub unlinked: u32,
    /// Of a guarded exit: offset of the addend that the guard compares with, 64 bits.
    pub addend: Option<u32>,
}

/// An instruction in the code that accesses the window ([`memory::window`]). If the host faults at it, nothing has been changed: it can be
/// executed again, or control can go on where the guest's instruction is abandoned. Or an HLT, at which the host always faults, where
/// control comes if the address is not in the part of the window that was guessed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WindowAccess {
    /// Offset of the instruction.
    pub access: u32,
    /// Offset of where the instruction is abandoned.
    pub refused: u32,
    /// Address of the guest's instruction.
    pub rip: u64,
    /// It is an HLT: the address is not where it was guessed to be.
    pub misses: Option<Guess>,
}

/// A guess of where an access is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Guess {
    /// In which part of the window.
    pub part: Part,
    /// The register that it is made by, above all: the base, else the index; [`semantics::MemoryOperand::NONE`] if neither is written in the instruction.
    pub by: u8,
}

/// A part of the window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// [`memory::window::LOW`].
    Low,
    /// [`memory::window::HIGH`].
    High,
}

impl Part {
    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::Low => Self::High,
            Self::High => Self::Low,
        }
    }
}

/// A place in code, 64 bits, that holds the addend of the TLB's entry for a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AddendField {
    /// Offset in the code.
    pub offset: u32,
    /// Linear address of the page.
    pub page: u64,
}

/// A place in code to be filled in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Relocation {
    /// Offset of the field in the code.
    pub offset: u32,
    /// Its form.
    pub kind: RelocationKind,
    /// What it refers to.
    pub target: RelocationTarget,
    /// Added to the target's address.
    pub addend: i64,
}

/// Form of a relocated field.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RelocationKind {
    /// 32 bits: target + addend - address of the field.
    Pc32,
    /// 64 bits: target + addend.
    Abs64,
}

/// What a relocation refers to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RelocationTarget {
    /// The chain slot of that number.
    Slot(u32),
    /// The callout of that number.
    Callout(u32),
    /// The block's counter of executions, at an address that compiled code may write, and that a 32-bit displacement reaches.
    Counter,
    /// The beginning of what instrumented code counts; likewise.
    Counters,
}

/// Code and slots were placed further apart than a 32-bit displacement reaches.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("code at {code:#x} can't reach its chain slot at {target:#x}; keep both within 2 GiB")]
pub struct OutOfReach {
    /// Address of the field.
    pub code: u64,
    /// Address that it should hold.
    pub target: u64,
}

impl CodeBlock {
    /// Alignment of the entry where registers are handed over, which other blocks use: a host cache line. With the beginning aligned instead, a
    /// block's first line held four bytes that seldom run, and four less of those that do.
    pub const ALIGNMENT: usize = 64;

    /// The first offset for code that is not before another one, which counts from an aligned address.
    pub fn next_place(offset: usize) -> Option<usize> {
        let entry = carried::ENTRY as usize;
        offset.checked_add(entry)?.checked_next_multiple_of(Self::ALIGNMENT).map(|place| place - entry)
    }

    /// Bytes that its slots and callouts take, at a multiple of 8.
    pub fn data_size(&self) -> usize {
        self.callouts_at() + self.callouts.len() * size_of::<Insn>()
    }

    /// How far behind the first slot the callouts lie.
    pub fn callouts_at(&self) -> usize {
        self.exits.len() * size_of::<ChainSlot>()
    }

    /// Fills in the relocations of `code`, a copy of [`CodeBlock::code`] that will run at address `base`; `slots` is the
    /// address of the first [`ChainSlot`], as compiled code will see it, `counter` that of the counter if the
    /// block [counts](CodeBlock::counts). What is counted for profiles is where its
    /// [instrumentation](CodeBlock::instrumentation) has them.
    pub fn link(&self, code: &mut [u8], base: u64, slots: u64, counter: u64) -> Result<(), OutOfReach> {
        let counters = self.instrumentation.as_ref().map_or(0, |all| all.counters.address());
        for relocation in &self.relocations {
            let nth = |n: u32, size: usize| u64::from(n) * size as u64;
            let target = match relocation.target {
                RelocationTarget::Slot(slot) => slots.wrapping_add(nth(slot, size_of::<ChainSlot>())),
                RelocationTarget::Callout(callout) => {
                    let first = slots.wrapping_add(self.callouts_at() as u64);
                    first.wrapping_add(nth(callout, size_of::<Insn>()))
                }
                RelocationTarget::Counter => counter,
                RelocationTarget::Counters => counters,
            };
            let value = target.wrapping_add_signed(relocation.addend);
            let offset = relocation.offset as usize;
            let field = base.wrapping_add(u64::from(relocation.offset));
            match relocation.kind {
                RelocationKind::Pc32 => {
                    let displacement = i32::try_from(value.wrapping_sub(field) as i64)
                        .map_err(|_| OutOfReach { code: field, target })?;
                    code[offset..offset + 4].copy_from_slice(&displacement.to_le_bytes());
                }
                RelocationKind::Abs64 => code[offset..offset + 8].copy_from_slice(&value.to_le_bytes()),
            }
        }
        Ok(())
    }
}
