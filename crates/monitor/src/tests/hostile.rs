//! A hostile guest: random tables, registers and callout instructions in every mode. Nothing may panic, an exception
//! must leave the registers alone, and what the processor ends up in must be a state that it can be in.

use super::*;
use semantics::{Kind, table};

/// Rounds; each is one machine and up to [`STEPS`] instructions.
const ROUNDS: u64 = 3000;
const STEPS: usize = 12;

/// First bytes of the callouts (after prefixes); a random ModRM and immediate follow.
const OPCODES: &[&[u8]] = &[
    &[0x07],
    &[0x17],
    &[0x1f],
    &[0x63],
    &[0x6c],
    &[0x6d],
    &[0x6e],
    &[0x6f],
    &[0x8e],
    &[0x9a],
    &[0x9c],
    &[0x9d],
    &[0xc4],
    &[0xc5],
    &[0xca],
    &[0xcb],
    &[0xcc],
    &[0xcd],
    &[0xce],
    &[0xcf],
    &[0xe4],
    &[0xe5],
    &[0xe6],
    &[0xe7],
    &[0xea],
    &[0xec],
    &[0xed],
    &[0xee],
    &[0xef],
    &[0xf1],
    &[0xf4],
    &[0xfa],
    &[0xfb],
    &[0xff],
    &[0x0f, 0x00],
    &[0x0f, 0x01],
    &[0x0f, 0x01, 0xc1],
    &[0x0f, 0x01, 0xd9],
    &[0x0f, 0x02],
    &[0x0f, 0x03],
    &[0x0f, 0x05],
    &[0x0f, 0x06],
    &[0x0f, 0x07],
    &[0x0f, 0x08],
    &[0x0f, 0x09],
    &[0x0f, 0x20],
    &[0x0f, 0x21],
    &[0x0f, 0x22],
    &[0x0f, 0x23],
    &[0x0f, 0x30],
    &[0x0f, 0x31],
    &[0x0f, 0x32],
    &[0x0f, 0x33],
    &[0x0f, 0x34],
    &[0x0f, 0x35],
    &[0x0f, 0xa1],
    &[0x0f, 0xa2],
    &[0x0f, 0xa9],
    &[0x0f, 0xb2],
    &[0x0f, 0xb4],
    &[0x0f, 0xb5],
    &[0x0f, 0xc7],
    &[0x66, 0x0f, 0x38, 0x82],
];

/// Selectors that lead somewhere, and some that don't.
const SELECTORS: &[u16] = &[
    0,
    3,
    CODE32,
    DATA,
    CODE64,
    USER_CODE32,
    USER_DATA,
    USER_CODE64,
    TSS_SELECTOR,
    CONFORMING32,
    ABSENT_DATA,
    CODE16,
    CALL_GATE,
    CALL_GATE | 3,
    LDT_SELECTOR,
    DATA16,
    TSS2_SELECTOR,
    TASK_GATE | 3,
    EXECUTE_ONLY,
    READ_ONLY,
    CONFORMING64,
    EXPAND_DOWN,
    USER_TSS | 3,
    BEYOND,
    0xffff,
    4,
    0x0c,
];

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.next().is_multiple_of(n)
    }

    /// An address in RAM, a selector, a flags image, or anything.
    fn value(&mut self) -> u64 {
        match self.below(6) {
            0 => u64::from(self.pick(SELECTORS)),
            1 => CODE + (self.next() & 0xfff),
            2 => self.next() & 0x3f_ffff,
            3 => self.next() & 0x3f_7fd7,
            4 => u64::MAX - (self.next() & 0xf_ffff),
            _ => self.next(),
        }
    }
}

fn machine(random: &mut Random) -> Machine {
    let mut m = match random.below(8) {
        0 => Machine::real(),
        1 => Machine::virtual_8086(random.next() & 3),
        2 => Machine::protected(),
        3 => Machine::protected().user(USER_CODE32),
        4 => Machine::long().user(USER_CODE32),
        5 => Machine::long().user(USER_CODE64),
        _ => Machine::long(),
    };
    m.write64(GDT + u64::from(CALL_GATE), HANDLER & 0xffff | u64::from(CODE32) << 16 | 0xec02 << 32);
    for _ in 0..random.below(6) {
        let descriptor = random.next();
        m.write64(GDT + 8 * random.below(25) as u64, descriptor);
    }
    for vector in 0..40 {
        let rights = random.pick(&[0x8e, 0x8f, 0xee, 0x85, 0x86, 0xe7, 0x0e]);
        let selector = random.pick(SELECTORS);
        let ist = random.next() & 1;
        m.set_gate(vector, selector, HANDLER, rights, ist);
    }
    for offset in (4..0x68).step_by(4) {
        let value = random.value() as u32;
        m.write(TSS2 + offset, &value.to_le_bytes());
    }
    let state = &mut *m.state;
    for n in [0, 1, 2, 3, 5, 6, 7, 8, 11] {
        state.gpr[n] = random.value();
    }
    if random.one_in(3) {
        state.gpr[0] = x86::hypercall::own::BASE + random.next() % 16;
        state.gpr[1] = 1 << random.below(4);
    }
    state.rflags |= random.next() & (flags::IF | flags::DF | flags::NT | flags::AC | flags::IOPL);
    state.msrs.star = random.next();
    state.msrs.sysenter_cs = random.value();
    if random.one_in(3) {
        state.cr4 |= cr4::SMAP | cr4::UMIP;
    }
    for n in 0..8 {
        let address = m.state.segments[2].base + (m.rsp() & 0xf_ffff) + 4 * n;
        let value = random.value();
        m.write64(address, value);
    }
    m.settle();
    m
}

fn instruction(random: &mut Random, m: &Machine) -> Option<semantics::Insn> {
    let mut bytes = Vec::new();
    if random.one_in(4) {
        bytes.push(random.pick(&[0x66, 0x67, 0xf3, 0x2e, 0x36, 0x64]));
    }
    if m.state.mode.is_64bit() && random.one_in(3) {
        bytes.push(0x48);
    }
    bytes.extend(random.pick(OPCODES));
    bytes.extend(random.next().to_le_bytes());
    bytes.extend(random.next().to_le_bytes());
    if random.one_in(3) {
        // A far pointer that leads somewhere.
        let at = bytes.len() - 16 + 4;
        bytes[at..at + 2].copy_from_slice(&random.pick(SELECTORS).to_le_bytes());
    }
    bytes.truncate(15);
    let insn = decode_one(&bytes, m.state.rip, m.state.mode).ok()?;
    (table::kind_of(&insn) == Kind::Callout).then_some(insn)
}

/// What holds of every state between instructions.
fn check(m: &Machine) {
    let s = &m.state;
    assert_eq!(s.mode, x86::Mode::of(s), "the mode is up to date");
    assert_ne!(s.cr0 & (cr0::PE | cr0::PG), cr0::PG, "no paging without protection");
    assert_eq!(s.efer & efer::LMA != 0, s.efer & efer::LME != 0 && s.cr0 & cr0::PG != 0);
    assert_eq!(s.rflags & flags::FIXED_ONE, flags::FIXED_ONE);
    assert_eq!(s.rflags & flags::STATUS, 0);
    let protected = s.cr0 & cr0::PE != 0;
    assert!(protected || s.cpl == 0);
    if s.rflags & flags::VM != 0 {
        assert!(protected && s.cpl == 3 && s.efer & efer::LMA == 0);
    } else if protected && s.gdtr.base == GDT && m.state.segments[1].selector & !3 != 0 {
        assert_eq!(s.segments[1].selector as u8 & 3, s.cpl, "CPL is CS's RPL");
    }
    assert!(!s.mode.is_64bit() || memory::GuestVirt(s.rip).is_canonical());
}

#[test]
fn nothing_panics_and_faults_change_nothing() {
    let mut completed = 0;
    let mut faulted = 0;
    for seed in 0..ROUNDS {
        let mut random = Random(seed);
        let mut m = machine(&mut random);
        for step in 0..STEPS {
            let Some(insn) = instruction(&mut random, &m) else { continue };
            let before = m.registers();
            let task = m.state.tr.selector;
            let result = crate::execute(&mut m.context(), &insn);
            let place = format!("seed {seed} step {step} {insn:x?}");
            match result {
                Ok(()) => completed += 1,
                Err(Stop::Board) => {
                    m.mmu.mmio.answer(random.next());
                    assert_eq!(m.registers(), before, "{place}");
                    continue;
                }
                Err(Stop::Exit(vcpu::Exit::Halt)) => m.state.halted = false,
                Err(Stop::Exit(exit)) => {
                    let answer = vcpu::Answer::Value(random.next());
                    assert_eq!(m.registers(), before, "{place}");
                    let _ = crate::complete(&mut m.context(), &insn, exit, answer);
                }
                Err(Stop::Exception(exception)) => {
                    faulted += 1;
                    if m.state.tr.selector == task {
                        assert_eq!(m.registers(), before, "{place}");
                    }
                    if m.deliver(Event::Exception(exception)).is_err() {
                        break;
                    }
                }
            }
            m.mmu.mmio.clear();
            check(&m);
            if random.one_in(4) {
                let event = random.pick(&[Event::Nmi, Event::Interrupt(0x21), Event::Interrupt(0xff)]);
                if m.deliver(event).is_err() {
                    break;
                }
                check(&m);
            }
        }
    }
    // The generator does what it is for.
    assert!(completed > ROUNDS && faulted > ROUNDS, "{completed} completed, {faulted} faulted");
}
