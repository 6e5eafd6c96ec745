//! What guest instructions that are encoded again do to registers and flags: the list of those that can be, one row each.
//!
//! Instructions that need code of their own (stack, branches, division, bit scans) are not here but in the files
//! named after them; what is in neither place is left to the interpreter.

use iced_x86::Mnemonic;
use semantics::{Insn, Operand};
use x86::Width;

use super::assembler::condition;

/// What becomes of an operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Use {
    Read,
    Write,
    Update,
}

impl Use {
    pub fn reads(self) -> bool {
        self != Self::Write
    }

    pub fn writes(self) -> bool {
        self != Self::Read
    }
}

/// What becomes of the status flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum FlagUse {
    /// Nothing.
    None,
    /// They are read.
    Read,
    /// All of them are written (or undefined), whatever they were.
    Set,
    /// Some keep, or all do if a count is zero.
    Merge,
    /// Read and written.
    Update,
}

impl FlagUse {
    pub fn writes(self) -> bool {
        matches!(self, Self::Set | Self::Merge | Self::Update)
    }
}

/// A set of general registers.
pub(super) type Set = u16;

pub(super) const RAX: Set = 1 << 0;
pub(super) const RDX: Set = 1 << 2;
pub(super) const RCX: Set = 1 << 1;
const RBX: Set = 1 << 3;
const RSP: Set = 1 << 4;
const RBP: Set = 1 << 5;
const RSI: Set = 1 << 6;
const RDI: Set = 1 << 7;

/// A row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Effects {
    /// By operand.
    pub operands: [Use; 3],
    /// Registers besides the operands that are read.
    pub reads: Set,
    /// Registers besides the operands that are written.
    pub writes: Set,
    pub flags: FlagUse,
    /// A memory operand must be naturally aligned to be accessed here: the access is atomic.
    pub aligned: bool,
    /// What becomes of XMM0, if it is no operand.
    pub xmm0: Option<Use>,
    /// It reads and writes MXCSR.
    pub float: bool,
}

pub(super) const fn row(first: Use, flags: FlagUse) -> Effects {
    Effects {
        operands: [first, Use::Read, Use::Read],
        reads: 0,
        writes: 0,
        flags,
        aligned: false,
        xmm0: None,
        float: false,
    }
}

/// The row of an instruction, if it is one to encode again.
pub(super) fn of(insn: &Insn) -> Option<Effects> {
    use FlagUse as F;
    use Mnemonic as M;
    use Use::*;
    let mut effects = match insn.mnemonic {
        M::Mov | M::Movzx | M::Movsx | M::Movsxd | M::Movnti => row(Write, F::None),
        M::Add | M::Sub | M::And | M::Or | M::Xor | M::Neg => row(Update, F::Set),
        M::Adc | M::Sbb | M::Adcx | M::Adox => row(Update, F::Update),
        M::Cmp | M::Test => row(Read, F::Set),
        M::Inc | M::Dec => row(Update, F::Merge),
        M::Not | M::Bswap => row(Update, F::None),
        M::Shl | M::Sal | M::Shr | M::Sar => row(Update, shift_flags(insn, 1)),
        // What 16-bit ones shift in at counts above 16 is undefined, and processors differ.
        M::Shld | M::Shrd if insn.operand_width(0) == Width::Word && !has_small_count(insn) => return None,
        M::Shld | M::Shrd => row(Update, shift_flags(insn, 2)),
        M::Rol | M::Ror => row(Update, F::Merge),
        // Of other counts OF is undefined, and processors differ.
        M::Rcl | M::Rcr if insn.operand(1) == Operand::Immediate && insn.immediate & 0x1f == 1 => {
            row(Update, F::Update)
        }
        M::Bt => row(Read, F::Merge),
        M::Bts | M::Btr | M::Btc => row(Update, F::Merge),
        M::Popcnt | M::Tzcnt | M::Lzcnt => row(Write, F::Set),
        M::Andn | M::Bextr | M::Blsi | M::Blsmsk | M::Blsr | M::Bzhi => row(Write, F::Set),
        M::Movbe | M::Pdep | M::Pext | M::Rorx | M::Sarx | M::Shlx | M::Shrx => row(Write, F::None),
        M::Mulx => Effects { operands: [Write, Write, Read], reads: RDX, ..row(Write, F::None) },
        M::Mul => multiplication(insn),
        M::Imul if insn.operand_count == 1 => multiplication(insn),
        M::Imul if insn.operand_count == 2 => row(Update, F::Set),
        M::Imul => row(Write, F::Set),
        M::Xchg => Effects { operands: [Update; 3], ..row(Update, F::None) },
        M::Xadd => Effects { operands: [Update; 3], ..row(Update, F::Set) },
        M::Cmpxchg => Effects { reads: RAX, writes: RAX, ..row(Update, F::Set) },
        M::Cmpxchg8b | M::Cmpxchg16b => {
            Effects { reads: RAX | RBX | RCX | RDX, writes: RAX | RDX, ..row(Update, F::Merge) }
        }
        M::Cbw | M::Cwde | M::Cdqe => Effects { reads: RAX, writes: RAX, ..row(Read, F::None) },
        M::Cwd | M::Cdq | M::Cqo => Effects { reads: RAX | RDX, writes: RDX, ..row(Read, F::None) },
        M::Clc | M::Stc => row(Read, F::Merge),
        M::Cmc => row(Read, F::Update),
        M::Lahf => Effects { reads: RAX, writes: RAX, ..row(Read, F::Read) },
        M::Sahf => Effects { reads: RAX, ..row(Read, F::Merge) },
        M::Crc32 => row(Update, F::None),
        M::Mfence => row(Read, F::None),
        mnemonic if is_cmov(mnemonic) => row(Update, F::Read),
        mnemonic if is_setcc(mnemonic) => row(Write, F::Read),
        _ => return None,
    };
    if insn.operand(0) == Operand::Memory || insn.operand(1) == Operand::Memory {
        effects.aligned = insn.lock || matches!(insn.mnemonic, M::Xchg | M::Cmpxchg16b);
        if super::bit_string::is_one(insn) {
            return None;
        }
    }
    let plain =
        |n| matches!(insn.operand(n), Operand::None | Operand::Gpr(_) | Operand::Memory | Operand::Immediate);
    (0..4).all(plain).then_some(effects)
}

fn multiplication(insn: &Insn) -> Effects {
    let writes = if insn.operand_width(0) == Width::Byte { RAX } else { RAX | RDX };
    // A 16-bit result leaves the rest of RDX.
    let reads = if insn.operand_width(0) == Width::Word { RAX | RDX } else { RAX };
    Effects { reads, writes, ..row(Use::Read, FlagUse::Set) }
}

/// A count of zero changes no flag.
fn shift_flags(insn: &Insn, count: usize) -> FlagUse {
    let mask = if insn.operand_width(0) == Width::Qword { 63 } else { 31 };
    match insn.operand(count) {
        Operand::Immediate if insn.immediate & mask != 0 => FlagUse::Set,
        _ => FlagUse::Merge,
    }
}

/// Whether a double shift's count is known to be at most 16.
fn has_small_count(insn: &Insn) -> bool {
    insn.operand(2) == Operand::Immediate && insn.immediate & 0x1f <= 16
}

fn within(mnemonic: Mnemonic, list: &[Mnemonic]) -> bool {
    list.contains(&mnemonic)
}

fn is_cmov(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    within(
        mnemonic,
        &[
            Cmovo, Cmovno, Cmovb, Cmovae, Cmove, Cmovne, Cmovbe, Cmova, Cmovs, Cmovns, Cmovp, Cmovnp, Cmovl,
            Cmovge, Cmovle, Cmovg,
        ],
    )
}

fn is_setcc(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    within(
        mnemonic,
        &[
            Seto, Setno, Setb, Setae, Sete, Setne, Setbe, Seta, Sets, Setns, Setp, Setnp, Setl, Setge, Setle,
            Setg,
        ],
    )
}

/// The condition number of a conditional branch.
pub(super) fn branch_condition(mnemonic: Mnemonic) -> Option<u8> {
    use Mnemonic::*;
    let all = [Jo, Jno, Jb, Jae, Je, Jne, Jbe, Ja, Js, Jns, Jp, Jnp, Jl, Jge, Jle, Jg, Jrcxz, Loop];
    const _: () = assert!(condition::COUNT_ZERO == 16 && condition::COUNT_NOT_ZERO == 17);
    all.iter().position(|&branch| branch == mnemonic).map(|number| number as u8)
}

/// Instructions that do nothing here.
pub(super) fn is_nop(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    within(
        mnemonic,
        &[
            Nop,
            Pause,
            Reservednop,
            Endbr64,
            Endbr32,
            Rdsspd,
            Rdsspq,
            Cldemote,
            Prefetch,
            Prefetchw,
            Prefetchwt1,
            Prefetchnta,
            Prefetcht0,
            Prefetcht1,
            Prefetcht2,
            Prefetchit0,
            Prefetchit1,
            Lfence,
            Sfence,
        ],
    )
}

/// Whether an instruction accesses memory.
pub(super) fn accesses(insn: &Insn) -> bool {
    use Mnemonic::*;
    insn.operands.contains(&Operand::Memory) && insn.mnemonic != Lea
        || within(insn.mnemonic, &[Push, Pop, Call, Ret, Leave, Pushfq, Popfq])
        || insn.code.is_string_instruction()
}

/// Whether an instruction loads a register, and does nothing else.
pub(super) fn is_load(insn: &Insn) -> bool {
    use Mnemonic::*;
    within(insn.mnemonic, &[Mov, Movzx, Movsx, Movsxd]) && insn.operand(1) == Operand::Memory
}

/// General registers that an instruction may write.
pub(super) fn written(insn: &Insn) -> Set {
    let operand = |n: usize| match insn.operand(n) {
        Operand::Gpr(register) => 1 << register.index,
        _ => 0,
    };
    use Mnemonic as M;
    match insn.mnemonic {
        M::Push | M::Call | M::Ret | M::Pushfq | M::Popfq => RSP,
        M::Pop => RSP | operand(0),
        M::Leave => RSP | RBP,
        M::Lea | M::Bsf | M::Bsr => operand(0),
        M::Jmp | M::Nop => 0,
        M::Loop => RCX,
        mnemonic if branch_condition(mnemonic).is_some() => 0,
        _ => match of(insn) {
            Some(effects) => {
                let writes = |n: usize| if effects.operands[n].writes() { operand(n) } else { 0 };
                effects.writes | writes(0) | writes(1) | writes(2)
            }
            None => registers(insn),
        },
    }
}

/// General registers that an instruction uses without naming them, or that its encoding wants by that name.
pub(super) fn implied(insn: &Insn) -> Set {
    let operands = || insn.operands.iter().take(insn.operand_count.into());
    // AH to BH are encoded only beside registers that every processor has.
    let high = operands().any(|operand| matches!(operand, Operand::Gpr(register) if register.high))
        && !super::special::is_high_move(insn);
    let fixed = if high { registers(insn) } else { 0 };
    use Mnemonic as M;
    fixed
        | match insn.mnemonic {
            M::Mul | M::Imul if insn.operand_count == 1 => RAX | RDX,
            M::Div | M::Idiv | M::Cwd | M::Cdq | M::Cqo => RAX | RDX,
            M::Cmpxchg | M::Cbw | M::Cwde | M::Cdqe | M::Lahf | M::Sahf => RAX,
            M::Cmpxchg8b | M::Cmpxchg16b => RAX | RBX | RCX | RDX,
            M::Mulx => RDX,
            M::Pcmpistri | M::Jrcxz | M::Loop => RCX,
            M::Pcmpestri | M::Pcmpestri64 | M::Pcmpestrm | M::Pcmpestrm64 => RAX | RCX | RDX,
            // A count in CL.
            M::Shl | M::Sal | M::Shr | M::Sar | M::Shld | M::Shrd | M::Rol | M::Ror | M::Rcl | M::Rcr => {
                operands().skip(1).fold(0, |set, operand| match operand {
                    Operand::Gpr(register) => set | 1 << register.index,
                    _ => set,
                })
            }
            _ => 0,
        }
}

/// Every general register that an instruction may touch.
pub(super) fn registers(insn: &Insn) -> Set {
    // A number beyond them is of no register.
    let bit = |number: u8| Set::checked_shl(1, number.into()).unwrap_or(0);
    let named = insn.operands.iter().take(insn.operand_count.into()).fold(0, |set, operand| match operand {
        Operand::Gpr(register) => set | bit(register.index),
        Operand::Memory => set | bit(insn.memory.base) | bit(insn.memory.index),
        _ => set,
    });
    named | unnamed(insn)
}

/// Those that it uses without naming them.
fn unnamed(insn: &Insn) -> Set {
    use Mnemonic as M;
    match insn.mnemonic {
        M::Push | M::Pop | M::Call | M::Ret | M::Pushfq | M::Popfq => RSP,
        M::Leave => RSP | RBP,
        M::Mul | M::Imul | M::Div | M::Idiv | M::Cwd | M::Cdq | M::Cqo => RAX | RDX,
        M::Mulx => RDX,
        M::Jrcxz | M::Loop | M::Pcmpistri => RCX,
        M::Cmpxchg | M::Cbw | M::Cwde | M::Cdqe | M::Lahf | M::Sahf => RAX,
        M::Cmpxchg8b | M::Cmpxchg16b => RAX | RBX | RCX | RDX,
        M::Pcmpestri | M::Pcmpestri64 | M::Pcmpestrm | M::Pcmpestrm64 => RAX | RCX | RDX,
        _ if insn.code.is_string_instruction() => RAX | RCX | RSI | RDI,
        _ => 0,
    }
}
