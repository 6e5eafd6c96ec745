//! x87 instructions on the host's x87 unit, one line each: operands are loaded as 80-bit values, the instruction runs
//! under the guest's control word, and the status word and the result are taken out again.
//!
//! Exceptions that the guest has not masked are not masked here either: the unit then does by itself what it must
//! (leave operands alone, wrap exponents), marks the exception pending, and FNSTSW and FNCLEX, which don't wait, take
//! it away before an instruction that would. Stack faults never get here; `x87_arithmetic` and `x87_data` find them.

use core::arch::asm;

use x86::fpu::{FCW_INIT, X87};

use crate::x87_state::{C0, C1, C2, C3, CONDITIONS};

/// What a kernel reads and writes; it knows the offsets 0, 16, 32 and 64.
#[repr(C, align(16))]
pub struct Operands {
    /// Destination (ST(0) of the kernel, ST(1) for those that pop), then the result, or the top one of two.
    pub a: [u64; 2],
    /// Source, then the lower one of two results.
    pub b: [u64; 2],
    /// Memory operand, in its format.
    pub memory: [u64; 4],
    /// Control word.
    pub control: u16,
}

impl Operands {
    /// Zeros, under the control word of `x87`.
    #[inline]
    pub fn new(x87: &X87) -> Self {
        Self { a: [0; 2], b: [0; 2], memory: [0; 4], control: x87.control }
    }

    /// The memory operand of [`Shape::Remainder`]: an environment (32-bit protected format) with everything masked and
    /// empty, TOP = 0, and the condition codes of `x87`.
    pub fn environment(x87: &X87) -> [u64; 4] {
        [u64::from(FCW_INIT) | u64::from(x87.status & CONDITIONS) << 32, 0xffff, 0, 0]
    }
}

/// Control word of the host's code, which is also what the ABI has at entry.
static HOST_CONTROL: u16 = FCW_INIT;

/// How an instruction takes its operands and where its results are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    /// ST(0) = a, ST(1) = b; result in ST(0).
    Binary,
    /// The same, after FLDENV of the memory operand: there are operands that leave C0 and C3 as they were.
    Remainder,
    /// ST(1) = a, ST(0) = b; the result replaces a when b is popped.
    Popping,
    /// ST(0) = a and memory; result in ST(0).
    Memory,
    /// ST(0) = a; result in ST(0).
    Unary,
    /// ST(0) = a; results in ST(1), where a was, and in ST(0).
    Pushing,
    /// Memory or nothing; result in ST(0).
    Load,
    /// ST(0) = a; result in memory.
    Store,
}

/// One kernel.
#[derive(Clone, Copy)]
pub struct Kernel {
    /// Runs it; gives the status word, in which only exception flags and `conditions` have meaning.
    pub run: fn(&mut Operands) -> u16,
    /// See [`Shape`].
    pub shape: Shape,
    /// The condition codes that it defines.
    pub conditions: u16,
}

macro_rules! run {
    ([$($before:literal)*] $instruction:literal [$($after:literal)*]) => {
        |operands: &mut Operands| {
            let status: u16;
            // SAFETY: the x87 stack is empty at entry (ABI) and at exit; memory is touched within `operands` and
            // HOST_CONTROL only; the control word is the host's again at the end.
            unsafe {
                asm!(
                    "fnclex",
                    $($before,)*
                    "fldcw word ptr [{p} + 64]",
                    $instruction,
                    "fnstsw ax",
                    "fnclex",
                    "fldcw word ptr [{host}]",
                    $($after,)*
                    p = in(reg) core::ptr::from_mut(operands),
                    host = in(reg) &raw const HOST_CONTROL,
                    out("ax") status,
                    out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                    out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
                    options(nostack, preserves_flags),
                );
            }
            status
        }
    };
}

macro_rules! kernel {
    (Binary $i:literal) => {
        run!(["fld tbyte ptr [{p} + 16]" "fld tbyte ptr [{p}]"] $i ["fstp tbyte ptr [{p}]" "fstp st(0)"])
    };
    (Remainder $i:literal) => {
        run!(
            ["fldenv [{p} + 32]" "fld tbyte ptr [{p} + 16]" "fld tbyte ptr [{p}]"]
            $i
            ["fstp tbyte ptr [{p}]" "fstp st(0)"]
        )
    };
    (Popping $i:literal) => {
        run!(["fld tbyte ptr [{p}]" "fld tbyte ptr [{p} + 16]"] $i ["fstp tbyte ptr [{p}]" "fstp st(0)"])
    };
    (Memory $i:literal) => { run!(["fld tbyte ptr [{p}]"] $i ["fstp tbyte ptr [{p}]"]) };
    (Unary $i:literal) => { run!(["fld tbyte ptr [{p}]"] $i ["fstp tbyte ptr [{p}]"]) };
    (Pushing $i:literal) => {
        run!(["fld tbyte ptr [{p}]"] $i ["fstp tbyte ptr [{p}]" "fstp tbyte ptr [{p} + 16]"])
    };
    (Load $i:literal) => { run!([] $i ["fstp tbyte ptr [{p}]"]) };
    (Store $i:literal) => { run!(["fld tbyte ptr [{p}]"] $i ["fstp st(0)"]) };
}

/// `Name: Shape "instruction", condition codes;`
macro_rules! natives {
    ($($name:ident: $shape:ident $instruction:literal, $conditions:expr;)*) => {
        /// The instructions that have a kernel, by operand form.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u8)]
        #[allow(missing_docs, reason = "the line of each shows its instruction")]
        pub enum Native { $($name,)* }

        /// The kernels in the order of [`Native`].
        static KERNELS: &[Kernel] = &[
            $(Kernel { run: kernel!($shape $instruction), shape: Shape::$shape, conditions: $conditions },)*
        ];
    };
}

const ALL: u16 = C0 | C1 | C2 | C3;

natives! {
    Add: Binary "fadd st(0), st(1)", C1;
    AddM32: Memory "fadd dword ptr [{p} + 32]", C1;
    AddM64: Memory "fadd qword ptr [{p} + 32]", C1;
    AddI16: Memory "fiadd word ptr [{p} + 32]", C1;
    AddI32: Memory "fiadd dword ptr [{p} + 32]", C1;
    Sub: Binary "fsub st(0), st(1)", C1;
    SubM32: Memory "fsub dword ptr [{p} + 32]", C1;
    SubM64: Memory "fsub qword ptr [{p} + 32]", C1;
    SubI16: Memory "fisub word ptr [{p} + 32]", C1;
    SubI32: Memory "fisub dword ptr [{p} + 32]", C1;
    Subr: Binary "fsubr st(0), st(1)", C1;
    SubrM32: Memory "fsubr dword ptr [{p} + 32]", C1;
    SubrM64: Memory "fsubr qword ptr [{p} + 32]", C1;
    SubrI16: Memory "fisubr word ptr [{p} + 32]", C1;
    SubrI32: Memory "fisubr dword ptr [{p} + 32]", C1;
    Mul: Binary "fmul st(0), st(1)", C1;
    MulM32: Memory "fmul dword ptr [{p} + 32]", C1;
    MulM64: Memory "fmul qword ptr [{p} + 32]", C1;
    MulI16: Memory "fimul word ptr [{p} + 32]", C1;
    MulI32: Memory "fimul dword ptr [{p} + 32]", C1;
    Div: Binary "fdiv st(0), st(1)", C1;
    DivM32: Memory "fdiv dword ptr [{p} + 32]", C1;
    DivM64: Memory "fdiv qword ptr [{p} + 32]", C1;
    DivI16: Memory "fidiv word ptr [{p} + 32]", C1;
    DivI32: Memory "fidiv dword ptr [{p} + 32]", C1;
    Divr: Binary "fdivr st(0), st(1)", C1;
    DivrM32: Memory "fdivr dword ptr [{p} + 32]", C1;
    DivrM64: Memory "fdivr qword ptr [{p} + 32]", C1;
    DivrI16: Memory "fidivr word ptr [{p} + 32]", C1;
    DivrI32: Memory "fidivr dword ptr [{p} + 32]", C1;

    Sqrt: Unary "fsqrt", C1;
    Rndint: Unary "frndint", C1;
    TwoXm1: Unary "f2xm1", C1;
    Sin: Unary "fsin", C1 | C2;
    Cos: Unary "fcos", C1 | C2;
    Scale: Binary "fscale", C1;
    Prem: Remainder "fprem", ALL;
    Prem1: Remainder "fprem1", ALL;
    Patan: Popping "fpatan", C1;
    Yl2x: Popping "fyl2x", C1;
    Yl2xp1: Popping "fyl2xp1", C1;
    Ptan: Pushing "fptan", C1 | C2;
    Sincos: Pushing "fsincos", C1 | C2;
    Xtract: Pushing "fxtract", C1;

    Com: Binary "fcom st(1)", ALL;
    ComM32: Memory "fcom dword ptr [{p} + 32]", ALL;
    ComM64: Memory "fcom qword ptr [{p} + 32]", ALL;
    ComI16: Memory "ficom word ptr [{p} + 32]", ALL;
    ComI32: Memory "ficom dword ptr [{p} + 32]", ALL;
    Ucom: Binary "fucom st(1)", ALL;
    Tst: Unary "ftst", ALL;

    LoadM32: Load "fld dword ptr [{p} + 32]", C1;
    LoadM64: Load "fld qword ptr [{p} + 32]", C1;
    LoadI16: Load "fild word ptr [{p} + 32]", C1;
    LoadI32: Load "fild dword ptr [{p} + 32]", C1;
    LoadI64: Load "fild qword ptr [{p} + 32]", C1;
    LoadBcd: Load "fbld tbyte ptr [{p} + 32]", C1;
    LoadOne: Load "fld1", C1;
    LoadL2t: Load "fldl2t", C1;
    LoadL2e: Load "fldl2e", C1;
    LoadPi: Load "fldpi", C1;
    LoadLg2: Load "fldlg2", C1;
    LoadLn2: Load "fldln2", C1;
    LoadZero: Load "fldz", C1;

    StoreM32: Store "fst dword ptr [{p} + 32]", C1;
    StoreM64: Store "fst qword ptr [{p} + 32]", C1;
    StoreI16: Store "fist word ptr [{p} + 32]", C1;
    StoreI32: Store "fist dword ptr [{p} + 32]", C1;
    StoreI64: Store "fistp qword ptr [{p} + 32]", C1;
    TruncateI16: Store "fisttp word ptr [{p} + 32]", C1;
    TruncateI32: Store "fisttp dword ptr [{p} + 32]", C1;
    TruncateI64: Store "fisttp qword ptr [{p} + 32]", C1;
    StoreBcd: Store "fbstp tbyte ptr [{p} + 32]", C1;
}

impl Native {
    /// Its kernel.
    #[inline]
    pub fn kernel(self) -> &'static Kernel {
        &KERNELS[self as usize]
    }

    /// The kernel of number `n`, as helpers get it in their immediate.
    ///
    /// # Panics
    /// If no kernel has that number; immediates come from definitions, never from a guest.
    #[inline]
    pub fn numbered(n: u8) -> &'static Kernel {
        &KERNELS[usize::from(n)]
    }
}
