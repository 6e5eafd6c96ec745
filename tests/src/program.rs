//! A random program: a few instructions and what they leave undefined; and how the smallest failing case is made of
//! one on which two runs differ.

use iced_x86::{
    Code, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register, RflagsBits,
};
use x86::flags;

use crate::{
    fuzz,
    image::{CODE, DATA, DATA_SIZE, Image, Ran},
    ins,
    random::Random,
    tolerance,
};

/// Runs a program: what happens natively, and how an engine differs.
pub type Compare<'a> = dyn FnMut(&Program, &Image) -> (Ran, Vec<String>) + 'a;

/// Instructions that follow each other.
#[derive(Clone, Debug)]
pub struct Program {
    /// 64, 32 or 16.
    pub bits: u32,
    /// Each with its bytes.
    pub insns: Vec<(Instruction, Vec<u8>)>,
}

impl Program {
    /// A random one that begins with the given encoding. `None` if its flags would depend on undefined ones, or a
    /// branch is not its last instruction.
    pub fn random(
        random: &mut Random,
        encodings: &[Code],
        bits: u32,
        length: usize,
        first: Code,
    ) -> Option<Self> {
        let mut program = Self { bits, insns: Vec::new() };
        let mut undefined = 0;
        for position in 0..length {
            let code = if position == 0 { first } else { random.pick(encodings) };
            if position > 0 && fuzz::is_delicate(code) {
                return None;
            }
            let (insn, bytes) = fuzz::instruction(random, code, bits)?;
            // The generator puts every instruction at address 0: only of the last one does a branch's target make sense.
            if insn.flow_control() != FlowControl::Next && position + 1 != length {
                return None;
            }
            // Processors don't agree whether it enters MMX state when its operand is in memory.
            let entry = insn.code() == Code::Cvtpi2ps_xmm_mmm64 && insn.op1_kind() == OpKind::Memory;
            if entry && position + 1 != length {
                return None;
            }
            if flag_bits(insn.rflags_read()) & undefined != 0 {
                return None;
            }
            undefined = undefined_after(undefined, &insn);
            program.insns.push((insn, bytes));
        }
        Some(program)
    }

    /// The bytes of all.
    pub fn code(&self) -> Vec<u8> {
        self.insns.iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect()
    }

    /// The instructions alone.
    pub fn instructions(&self) -> Vec<Instruction> {
        self.insns.iter().map(|(insn, _)| *insn).collect()
    }

    /// Flags that are undefined when the program has run as far as `ran` did.
    pub fn undefined(&self, ran: &Ran) -> u64 {
        let mut undefined = 0;
        let mut at = 0;
        for (insn, bytes) in &self.insns {
            if ran.fault.is_some() && at == ran.image.rip {
                // Whether a REP instruction that faults half-way has set flags depends on how it was interrupted.
                let repeats = insn.has_rep_prefix() || insn.has_repne_prefix();
                return if repeats { flags::STATUS } else { undefined };
            }
            undefined = undefined_after(undefined, insn);
            at += bytes.len() as u64;
        }
        undefined
    }

    /// Differences of two runs that matter.
    pub fn differences(&self, got: &Ran, native: &Ran) -> Vec<String> {
        let mut got = got.clone();
        if let Some(insn) = self.faulting(native) {
            tolerance::tolerate(insn, self.bits, &mut got, native);
        }
        if native.image.rip != got.image.rip
            && self.faulting(&got).is_some_and(tolerance::traps_before_storing)
        {
            // Where the result traps, Intel's do not fault. More than one such instruction is not worth following.
            if native.image.x87.status & tolerance::ERROR_SUMMARY != 0 && self.insns.len() > 1 {
                return Vec::new();
            }
            tolerance::tolerate_vendor(&self.insns[0].0, self.bits, &mut got, native);
        }
        if native.image.mxcsr & tolerance::AMD_MISALIGNED != 0 {
            return Vec::new();
        }
        if self.insns.iter().any(|(insn, _)| insn.mnemonic() == Mnemonic::Cvtpi2ps) {
            // Whether it enters MMX state when its operand is in memory is not the same everywhere.
            (got.image.x87.status, got.image.x87.tags) = (native.image.x87.status, native.image.x87.tags);
        }
        got.differences(native, self.undefined(native))
    }

    /// The instruction that faulted.
    fn faulting(&self, ran: &Ran) -> Option<&Instruction> {
        ran.fault?;
        let mut at = 0;
        self.insns.iter().find_map(|(insn, bytes)| {
            let here = at == ran.image.rip;
            at += bytes.len() as u64;
            here.then_some(insn)
        })
    }

    fn slice(&self, range: std::ops::Range<usize>) -> Self {
        Self { bits: self.bits, insns: self.insns[range].to_vec() }
    }

    /// The smallest part of the program, and state, on which `run` still finds differences, as text for an `.ins`
    /// file. `run` gives what happens natively, and the differences.
    pub fn smallest(&self, start: &Image, run: &mut Compare<'_>) -> (Mnemonic, String) {
        let mut before = start.clone();
        for length in 1..=self.insns.len() {
            let prefix = self.slice(0..length);
            let (native, differences) = run(&prefix, start);
            if differences.is_empty() {
                before = Image { rip: 0, ..native.image };
                continue;
            }
            let mnemonic = prefix.insns[length - 1].0.mnemonic();
            let last = self.slice(length - 1..length);
            let reduced = relevant(&before, &last.insns[0].0, self.bits);
            for image in [&reduced, &before] {
                let (native, differences) = run(&last, image);
                if !differences.is_empty() {
                    return (mnemonic, last.describe(image, &native, &differences));
                }
            }
            return (mnemonic, prefix.describe(start, &native, &differences));
        }
        let (native, differences) = run(self, start);
        let differences = if differences.is_empty() { vec!["not again".to_owned()] } else { differences };
        (self.insns[0].0.mnemonic(), self.describe(start, &native, &differences))
    }

    fn describe(&self, start: &Image, native: &Ran, differences: &[String]) -> String {
        let mut case = self.case(start, native);
        if case.len() > 4000 {
            case.truncate(4000);
            case.push_str(" …");
        }
        format!("{case}\n  but:\n    {}", differences.join("\n    "))
    }

    /// As it would stand in an `.ins` file.
    pub fn case(&self, start: &Image, native: &Ran) -> String {
        let code = self.code();
        let (text, _) = ins::disassemble(&code, self.bits);
        let bytes: Vec<String> = code.iter().map(|byte| format!("{byte:02x}")).collect();
        let bits = if self.bits == 64 { String::new() } else { format!("bits {}\n", self.bits) };
        format!("{bits}{} ; {text}\n{}", bytes.join(" "), self.line(start, native))
    }

    /// The line of inputs and outputs.
    pub fn line(&self, start: &Image, native: &Ran) -> String {
        let inputs = ins::assignments(&Image::of(self.bits), start, 0);
        let outputs = ins::outputs(start, self.code().len() as u64, native, self.undefined(native));
        format!("    {} => {outputs}", inputs.join(" ")).replace("     =>", "    =>").trim_end().to_owned()
    }
}

/// The flags that are undefined after an instruction, if those were before it.
fn undefined_after(before: u64, insn: &Instruction) -> u64 {
    before & !defines(insn) | ins::undefined_flags(insn)
}

fn flag_bits(rflags: u32) -> u64 {
    [
        (RflagsBits::CF, flags::CF),
        (RflagsBits::PF, flags::PF),
        (RflagsBits::AF, flags::AF),
        (RflagsBits::ZF, flags::ZF),
        (RflagsBits::SF, flags::SF),
        (RflagsBits::OF, flags::OF),
    ]
    .into_iter()
    .filter(|(theirs, _)| rflags & theirs != 0)
    .fold(0, |sum, (_, ours)| sum | ours)
}

/// Flags that the instruction surely sets (a shift by CL may leave them as they were).
fn defines(insn: &Instruction) -> u64 {
    use Mnemonic as M;
    let maybe = matches!(
        insn.mnemonic(),
        M::Shl | M::Shr | M::Sar | M::Sal | M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shld | M::Shrd
    ) || insn.has_rep_prefix()
        || insn.has_repne_prefix();
    if maybe { 0 } else { flag_bits(insn.rflags_written() | insn.rflags_cleared() | insn.rflags_set()) }
}

/// The part of a state that one instruction can depend on: registers that it names, memory that it reaches, and flags.
/// The rest is as in [`Image::new`].
pub fn relevant(start: &Image, insn: &Instruction, bits: u32) -> Image {
    let mut image = Image::of(bits);
    let mut information = InstructionInfoFactory::new();
    let information = information.info(insn);
    let read = flag_bits(insn.rflags_read());
    image.flags = start.flags & (read | flags::DF);
    let writes_mxcsr = insn.cpuid_features().iter().any(|feature| format!("{feature:?}").contains("SSE"));
    if uses_x87(insn) {
        let x87 = &start.x87;
        (image.x87.control, image.x87.status, image.x87.tags) = (x87.control, x87.status, x87.tags);
    }
    for register in information.used_registers() {
        let name = register.register();
        if name.is_gpr() {
            image.gpr[number(name)] = start.gpr[number(name)];
        } else if name.is_xmm() {
            let index = name as usize - Register::XMM0 as usize;
            image.xmm[index] = start.xmm[index];
        } else if name.is_mm() {
            let index = name as usize - Register::MM0 as usize;
            image.x87.registers[index] = start.x87.registers[index];
        } else if name.is_st() {
            let index = (start.x87.top() + name as usize - Register::ST0 as usize) & 7;
            image.x87.registers[index] = start.x87.registers[index];
        }
    }
    if writes_mxcsr {
        image.mxcsr = start.mxcsr;
    }
    let value = |register: Register, _: usize, _: usize| {
        if register.is_segment_register() {
            return Some(match (bits, register) {
                (16, Register::CS) => CODE,
                (16, _) => DATA,
                _ => 0,
            });
        }
        let instruction_pointer = register.full_register() == Register::RIP;
        let value = if instruction_pointer { 0 } else { start.gpr[number(register)] };
        Some(match register.size() {
            1 if matches!(register, Register::AH | Register::CH | Register::DH | Register::BH) => {
                value >> 8 & 0xff
            }
            1 => value & 0xff,
            2 => value & 0xffff,
            4 => value & 0xffff_ffff,
            _ => value,
        })
    };
    for memory in information.used_memory() {
        let Some(address) = memory.virtual_address(0, value) else { continue };
        let size = memory.memory_size().size().max(1) as u64;
        let (down, up) = reach(insn, start, size);
        let within = |address: u64| (address.clamp(DATA, DATA + DATA_SIZE) - DATA) as usize;
        let range = within(address.saturating_sub(down))..within(address.saturating_add(size + up));
        if memory.access() != OpAccess::Write {
            image.data[range.clone()].copy_from_slice(&start.data[range]);
        }
    }
    image
}

/// How many bytes before and after its memory operand an instruction may reach.
fn reach(insn: &Instruction, start: &Image, size: u64) -> (u64, u64) {
    if insn.is_string_instruction() && (insn.has_rep_prefix() || insn.has_repne_prefix()) {
        let more = size * start.gpr[1].clamp(1, 80);
        return if start.flags & flags::DF != 0 { (more, 0) } else { (0, more) };
    }
    if is_bit_string(insn) && insn.op1_kind() == OpKind::Register {
        let index = start.gpr[number(insn.op1_register())] as i64;
        let index = match size {
            2 => i64::from(index as i16),
            4 => i64::from(index as i32),
            _ => index,
        };
        let bytes = index.unsigned_abs() / 8 + size;
        return if index < 0 { (bytes, 0) } else { (0, bytes) };
    }
    if insn.mnemonic() == Mnemonic::Enter { (8 * u64::from(insn.immediate8_2nd() & 31), 0) } else { (0, 0) }
}

/// The encoding number of a general register or part of one.
fn number(register: Register) -> usize {
    register.full_register() as usize - Register::RAX as usize
}

fn is_bit_string(insn: &Instruction) -> bool {
    matches!(insn.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc)
        && insn.op0_kind() == OpKind::Memory
}

/// Whether the instruction reads or writes x87 or MMX state: by its operands, or by its name.
pub fn uses_x87(insn: &Instruction) -> bool {
    let is_shared = |register: Register| register.is_mm() || register.is_st();
    format!("{:?}", insn.mnemonic()).starts_with('F')
        || matches!(insn.mnemonic(), Mnemonic::Emms | Mnemonic::Wait)
        || (0..insn.op_count())
            .any(|operand| insn.op_kind(operand) == OpKind::Register && is_shared(insn.op_register(operand)))
}
