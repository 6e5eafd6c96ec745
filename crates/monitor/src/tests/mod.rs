//! A small machine: 4 MiB of RAM with a GDT, an IDT, TSSs and (in IA-32e mode) page tables, and a processor that runs
//! one callout instruction at a time.

mod control;
mod delivery;
mod far;
mod flags_io;
mod hostile;
mod hypercall;
mod iret;
mod legacy_delivery;
mod msr;
mod privilege;
mod segments;
mod syscall;
mod task;

use memory::{CodePages, Mmu, Ram};
use semantics::decode::decode_one;
use vcpu::Clock;
use x86::{
    CpuState, Exception, GuestPhys, Segment, Vector,
    control::{cr0, cr4, efer},
    flags,
    state::RSP,
};

use crate::{Context, Event, Result, Stop, TripleFault};

pub const GDT: u64 = 0x1000;
pub const IDT: u64 = 0x2000;
pub const TSS: u64 = 0x3000;
pub const TSS2: u64 = 0x4000;
pub const LDT: u64 = 0x5000;
pub const CODE: u64 = 0x8000;
pub const TABLES: u64 = 0x10000;
pub const KERNEL_STACK: u64 = 0x20000;
pub const IST_STACK: u64 = 0x24000;
pub const USER_STACK: u64 = 0x30000;
pub const HANDLER: u64 = 0x40000;

pub const CODE32: u16 = 0x08;
pub const DATA: u16 = 0x10;
pub const CODE64: u16 = 0x18;
pub const USER_CODE32: u16 = 0x23;
pub const USER_DATA: u16 = 0x2b;
pub const USER_CODE64: u16 = 0x33;
pub const TSS_SELECTOR: u16 = 0x38;
pub const CONFORMING32: u16 = 0x48;
pub const ABSENT_DATA: u16 = 0x50;
pub const CODE16: u16 = 0x58;
pub const CALL_GATE: u16 = 0x60;
pub const LDT_SELECTOR: u16 = 0x70;
pub const DATA16: u16 = 0x80;
pub const TSS2_SELECTOR: u16 = 0x88;
pub const TASK_GATE: u16 = 0x90;
pub const EXECUTE_ONLY: u16 = 0x98;
pub const READ_ONLY: u16 = 0xa0;
pub const CONFORMING64: u16 = 0xa8;
pub const EXPAND_DOWN: u16 = 0xb0;
pub const USER_TSS: u16 = 0xb8;
/// First selector beyond the GDT's limit.
pub const BEYOND: u16 = 0xc8;

pub struct Machine {
    pub state: Box<CpuState>,
    pub mmu: Mmu,
    pub clock: Clock,
}

impl Machine {
    /// Real mode, at 0:CODE, SS:SP = 0:0xf000.
    pub fn real() -> Self {
        let ram = Ram::new(4 << 20).expect("memory for a test");
        let code_pages = CodePages::new(&ram);
        let mut machine =
            Self { state: Box::new(CpuState::new()), mmu: Mmu::new(ram, code_pages), clock: Clock::manual() };
        machine.state.segments[1] = Segment { attributes: 0x9b, ..Segment::real(0) };
        machine.state.rip = CODE;
        machine.state.gpr[RSP] = 0xf000;
        machine.state.idtr = Segment { base: 0, limit: 0x3ff, ..Segment::default() };
        machine.build_gdt();
        machine.settle();
        machine
    }

    /// 32-bit protected mode without paging, CPL 0, flat segments, 32-bit TSS.
    pub fn protected() -> Self {
        let mut machine = Self::real();
        let state = &mut *machine.state;
        state.cr0 = cr0::PE | cr0::ET | cr0::NE;
        state.gdtr = Segment { base: GDT, limit: u32::from(BEYOND) - 1, ..Segment::default() };
        state.idtr = Segment { base: IDT, limit: 0x7ff, ..Segment::default() };
        state.tr = Segment { base: TSS, limit: 0x67, selector: TSS_SELECTOR, attributes: 0x8b };
        state.ldtr = Segment::default();
        state.gpr[RSP] = KERNEL_STACK - 0x1000;
        machine.load_flat(CODE32, DATA);
        machine.write(TSS + 4, &(KERNEL_STACK as u32).to_le_bytes());
        machine.write(TSS + 8, &DATA.to_le_bytes());
        machine.settle();
        machine
    }

    /// Virtual-8086 mode with the given IOPL: everything at base 0x10000, IP = 0x100.
    pub fn virtual_8086(iopl: u64) -> Self {
        let mut machine = Self::protected();
        let segment = Segment { attributes: 0xf3, ..Segment::real(0x1000) };
        machine.state.segments = [segment; 6];
        machine.state.rflags |= flags::VM | iopl << 12;
        machine.state.cpl = 3;
        machine.state.rip = 0x100;
        machine.state.gpr[RSP] = 0x800;
        machine.settle();
        machine
    }

    /// 64-bit mode, CPL 0, the first 4 MiB mapped one to one for everybody.
    pub fn long() -> Self {
        let mut machine = Self::protected();
        machine.write64(TABLES, (TABLES + 0x1000) | 7);
        machine.write64(TABLES + 0x1000, (TABLES + 0x2000) | 7);
        machine.write64(TABLES + 0x2000, 0x87);
        machine.write64(TABLES + 0x2008, 0x20_0087);
        let state = &mut *machine.state;
        state.cr3 = TABLES;
        state.cr4 = cr4::PAE | cr4::OSFXSR;
        state.cr0 |= cr0::PG | cr0::WP;
        state.efer = efer::LME | efer::LMA | efer::SCE | efer::NXE;
        state.idtr.limit = 0xfff;
        machine.load_flat(CODE64, DATA);
        machine.write64(TSS + 4, KERNEL_STACK);
        machine.write64(TSS + 0x24, IST_STACK);
        machine.settle();
        machine
    }

    /// Protected mode with 32-bit paging in pages of 4 KiB, one to one.
    pub fn paged() -> Self {
        let mut machine = Self::protected();
        machine.write(TABLES, &(TABLES as u32 + 0x1003).to_le_bytes());
        for page in 0..1024u32 {
            machine.write(TABLES + 0x1000 + 4 * u64::from(page), &(page << 12 | 3).to_le_bytes());
        }
        machine.state.cr3 = TABLES;
        machine.state.cr0 |= cr0::PG | cr0::WP;
        machine.settle();
        machine
    }

    /// Makes a page of [`Machine::paged`] read-only.
    pub fn protect(&mut self, address: u64) {
        let entry = (address as u32 & !0xfff) | 1;
        self.write(TABLES + 0x1000 + (address >> 12) * 4, &entry.to_le_bytes());
        self.settle();
    }

    fn build_gdt(&mut self) {
        let tss = |base: u64, kind: u64| 0x67 | base << 16 | kind << 40;
        let entries: &[(u16, u64)] = &[
            (CODE32, 0x00cf_9b00_0000_ffff),
            (DATA, 0x00cf_9300_0000_ffff),
            (CODE64, 0x00af_9b00_0000_ffff),
            (USER_CODE32, 0x00cf_fb00_0000_ffff),
            (USER_DATA, 0x00cf_f300_0000_ffff),
            (USER_CODE64, 0x00af_fb00_0000_ffff),
            (TSS_SELECTOR, tss(TSS, 0x8b)),
            (CONFORMING32, 0x00cf_9f00_0000_ffff),
            (ABSENT_DATA, 0x00cf_7300_0000_ffff),
            (CODE16, 0x0000_9b00_0000_ffff),
            (LDT_SELECTOR, 0x000f | LDT << 16 | 0x82 << 40),
            (DATA16, 0x0000_9300_0000_ffff),
            (TSS2_SELECTOR, tss(TSS2, 0x89)),
            (TASK_GATE, u64::from(TSS2_SELECTOR) << 16 | 0xe5 << 40),
            (EXECUTE_ONLY, 0x00cf_9900_0000_ffff),
            (READ_ONLY, 0x00cf_9100_0000_ffff),
            (CONFORMING64, 0x00af_9f00_0000_ffff),
            (EXPAND_DOWN, 0x00cf_9700_0000_0000),
            (USER_TSS, tss(TSS2, 0xe9)),
        ];
        for &(selector, bits) in entries {
            self.write64(GDT + u64::from(selector & !7), bits);
        }
    }

    fn load_flat(&mut self, code: u16, data: u16) {
        let cpl = code & 3;
        let segment = |machine: &Self, selector: u16| {
            Segment::from_descriptor(selector, machine.read64(GDT + u64::from(selector & !7)))
        };
        let data = segment(self, data);
        self.state.segments = [data; 6];
        self.state.segments[1] = segment(self, code);
        self.state.cpl = cpl as u8;
    }

    /// CPL 3 with the given code segment and the user data segment and stack.
    pub fn user(mut self, code: u16) -> Self {
        self.load_flat(code, USER_DATA);
        self.state.gpr[RSP] = USER_STACK;
        self.settle();
        self
    }

    /// Makes TLB and mode agree with a state that was changed by hand.
    pub fn settle(&mut self) {
        self.state.update_mode();
        self.mmu.flush_all(&mut self.state);
    }

    pub fn context(&mut self) -> Context<'_> {
        Context { state: &mut self.state, mmu: &mut self.mmu, clock: &self.clock }
    }

    /// Puts an instruction at CS:RIP and executes it.
    pub fn run(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        let insn = self.decode(bytes);
        self.mmu.mmio.clear();
        crate::execute(&mut self.context(), &insn)
    }

    pub fn decode(&self, bytes: &[u8]) -> semantics::Insn {
        decode_one(bytes, self.state.rip, self.state.mode).expect("a valid instruction")
    }

    /// Executes an instruction that must fault, and checks that it left the registers alone.
    pub fn faults(&mut self, bytes: &[u8]) -> Exception {
        let before = self.registers();
        match self.run(bytes) {
            Err(Stop::Exception(exception)) => {
                assert_eq!(self.registers(), before, "a fault must change nothing");
                exception
            }
            other => panic!("expected an exception, got {other:x?}"),
        }
    }

    /// Everything that a fault must not change.
    fn registers(&self) -> impl PartialEq + std::fmt::Debug + use<> {
        let s = &self.state;
        let control = [s.cr0, s.cr2, s.cr3, s.cr4, s.cr8, s.efer, s.xcr0];
        let tables = [s.ldtr, s.tr, s.gdtr, s.idtr];
        (s.gpr, s.rip, s.rflags(), s.segments, tables, control, (s.cpl, s.interrupt_shadow))
    }

    pub fn deliver(&mut self, event: Event) -> Result<(), TripleFault> {
        crate::deliver(&mut self.context(), event)
    }

    /// A gate of 16 bytes in IA-32e mode, of 8 otherwise. `rights`: P, DPL and type.
    pub fn set_gate(&mut self, vector: u8, selector: u16, offset: u64, rights: u64, ist: u64) {
        let low = offset & 0xffff
            | u64::from(selector) << 16
            | ist << 32
            | rights << 40
            | (offset & 0xffff_0000) << 32;
        if self.state.mode.is_long() {
            self.write64(IDT + u64::from(vector) * 16, low);
            self.write64(IDT + u64::from(vector) * 16 + 8, offset >> 32);
        } else {
            self.write64(IDT + u64::from(vector) * 8, low);
        }
    }

    pub fn read64(&self, address: u64) -> u64 {
        let mut bytes = [0; 8];
        self.mmu.ram().read(GuestPhys(address), &mut bytes).expect("within RAM");
        u64::from_le_bytes(bytes)
    }

    pub fn read32(&self, address: u64) -> u32 {
        self.read64(address) as u32
    }

    pub fn read16(&self, address: u64) -> u16 {
        self.read64(address) as u16
    }

    pub fn write(&mut self, address: u64, bytes: &[u8]) {
        self.mmu.ram().write(GuestPhys(address), bytes).expect("within RAM");
    }

    pub fn write64(&mut self, address: u64, value: u64) {
        self.write(address, &value.to_le_bytes());
    }

    /// Pushes, lowest address last, and leaves the stack pointer there.
    pub fn push_all<const N: usize>(&mut self, bytes: usize, values: [u64; N]) {
        for value in values {
            self.state.gpr[RSP] -= bytes as u64;
            let address = self.state.segments[2].base + self.state.gpr[RSP];
            self.write(address, &value.to_le_bytes()[..bytes]);
        }
    }

    pub fn rsp(&self) -> u64 {
        self.state.gpr[RSP]
    }

    pub fn selector(&self, n: usize) -> u16 {
        self.state.segments[n].selector
    }
}

/// A fault of `vector` with a selector-like error code.
pub fn fault(vector: Vector, code: u32) -> Exception {
    Exception::with_code(vector, code)
}

const GP: Vector = Vector::GeneralProtection;
