//! Known pages: after an access by a base register, two host registers have the page that it was in, so accesses near it by the same
//! register, also where that was moved by a constant, are only compared with that page, or not even that.
//!
//! Accesses by RSP have a pair of registers of their own where guest registers leave one; all others share the first two temporaries.
//!
//! In regions an access looks ahead: where several others follow ([`Run`]), it is checked that all of them are in the page, and they are not
//! looked up at all, so that flags live on in the host's through them. If they are not, control goes to a second version of what is left of
//! the block ([`Template::later_careful`]), in which each is checked by itself, and which is written behind the region.

use iced_x86::Mnemonic;
use memory::tlb::Recent;
use x86::{PAGE_MASK, PAGE_SIZE, state};

use super::{
    Template,
    accesses::{By, Keeps, access_by, keeps, stack_step, step},
    assembler::{Jump, Mem, Reg, condition},
    cold::ColdKind,
    effects::{self, Set},
    memory::{ADDEND, Access, Address},
};
use crate::{Part, locality::page_of};

const RSP: u8 = state::RSP as u8;

/// How far from it another access by RSP is compared with a known page: less than what [`FAR`] adds.
const NEAR_ON_STACK: u32 = 1 << 20;

/// The same of other registers: what they point to is not likely to go beyond the page within that.
const NEAR: u32 = 256;

/// A distance from which no near access comes into the page.
pub(super) const FAR: u64 = 1 << 24;

/// By how much registers may be moved before they are looked at again: far less than what lies unused above that.
const FARTHEST: u32 = 1 << 28;

/// A page that an access was in. The second register of the pair has its addend.
#[derive(Clone, Copy)]
struct KnownPage {
    /// The guest register that the access was by.
    base: u8,
    /// From that as it now is to where the access was.
    displacement: i32,
    /// From it to what is known to be in the page, and to the end of that.
    inside: (i32, i32),
    /// The page can be written too.
    write: bool,
    /// That holds on all ways that lead here.
    certainly: bool,
    first: First,
}

/// Accesses by one register, of which none needs a lookup if the first one has looked for all of them.
#[derive(Clone, Copy)]
struct Run {
    /// From the register as it is at the first one to their lowest byte, and to the end of the highest.
    range: (i32, i32),
    writes: bool,
    /// How many follow the first.
    others: u32,
    /// The carry flag goes through it.
    carries: bool,
}

impl Run {
    /// No longer than this, in bytes: most are within a page then.
    const LONGEST: i32 = 512;

    /// Whether a second version of what is left of the block pays.
    fn pays(&self) -> bool {
        self.others >= if self.carries { 1 } else { 3 }
    }
}

/// What the first register of the pair has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum First {
    /// The page.
    Page,
    /// How far the access was from its start.
    Distance,
}

/// By pair of registers: the first two temporaries, and RSP's own.
#[derive(Clone, Copy, Default)]
pub(super) struct KnownPages {
    pairs: [Option<KnownPage>; 2],
    /// The page of a constant address that the first two temporaries are about, and whether it can be written.
    absolute: Option<(u64, bool)>,
    /// Registers that were found to point into the window, those of them that point into its low part, and by how much all of them together
    /// have been moved since.
    checked: Set,
    low: Set,
    moved: u32,
    /// Registers whose upper halves are zero.
    short: Set,
    /// A constant address that is in the first temporary.
    pub constant: Option<u64>,
}

const SHARED: usize = 0;
const STACK: usize = 1;

impl KnownPages {
    /// The first two temporaries are used for something else.
    pub fn forget_shared(&mut self) {
        (self.pairs[SHARED], self.absolute, self.constant) = (None, None, None);
    }

    /// No page is known any more.
    pub fn forget_pages(&mut self) {
        (self.pairs, self.absolute) = ([None; 2], None);
    }

    /// A register was found to point into that part of the window.
    pub fn check(&mut self, base: u8, part: Part) {
        self.checked |= 1 << base;
        self.low = self.low & !(1 << base) | Set::from(part == Part::Low) << base;
    }

    /// Into which part a register points, but for constants that it was moved by, if it was found to.
    pub fn checked_in(&self, base: u8) -> Option<Part> {
        let part = if self.low >> base & 1 != 0 { Part::Low } else { Part::High };
        (self.checked >> base & 1 != 0).then_some(part)
    }

    /// Whether a register's upper half is known to be zero.
    pub fn is_short(&self, register: u8) -> bool {
        self.short >> register & 1 != 0
    }

    /// So it is.
    pub fn shorten(&mut self, register: u8) {
        self.short |= 1 << register;
    }

    /// The page of a constant address was looked up.
    pub fn know_absolute(&mut self, address: u64, write: bool) {
        self.forget_shared();
        self.absolute = Some((address & PAGE_MASK, write));
    }

    /// Whether the page of a constant address is known to allow the access. It does not cross the page's end.
    pub fn has_absolute(&self, address: u64, access: Access) -> bool {
        let last = address.wrapping_add(u64::from(access.bytes) - 1);
        let known = self.absolute.is_some_and(|(page, write)| {
            page == address & PAGE_MASK && page == last & PAGE_MASK && (write || !access.write)
        });
        known && (!access.aligned || address.is_multiple_of(access.bytes.into()))
    }

    /// A guest register changes, or loses its home.
    pub fn forget(&mut self, base: u8) {
        for known in &mut self.pairs {
            *known = known.filter(|known| known.base != base);
        }
        self.checked &= !(1 << base);
    }

    /// A guest register is moved by a constant.
    pub fn moved(&mut self, base: u8, by: i32) {
        self.short &= !(1 << base);
        if self.checked >> base & 1 != 0 {
            self.moved = self.moved.saturating_add(by.unsigned_abs());
            if self.moved > FARTHEST {
                (self.checked, self.moved) = (0, 0);
            }
        }
        for known in &mut self.pairs {
            *known = known.and_then(|page| match page.base == base {
                true => Some(KnownPage {
                    displacement: page.displacement.checked_sub(by)?,
                    inside: (page.inside.0.checked_sub(by)?, page.inside.1.checked_sub(by)?),
                    ..page
                }),
                false => Some(page),
            });
        }
    }
}

impl Template<'_> {
    /// The number of the pair for accesses by a guest register, and the pair.
    fn pair(&self, base: u8) -> (usize, [Reg; 2]) {
        let [first, second, _] = self.registers.temporaries;
        match self.registers.stack_pair {
            Some(pair) if base == RSP => (STACK, pair),
            _ => (SHARED, [first, second]),
        }
    }

    /// Looks an access by a guest register up, `place`, in the page that is known or in a recent one. `Err` has the registers for a lookup in
    /// the TLB array: there is no such page.
    pub(super) fn lookup_near(
        &mut self,
        base: u8,
        displacement: i32,
        access: Access,
    ) -> Result<Mem, [Reg; 2]> {
        let (number, pair) = self.pair(base);
        let [_, second] = pair;
        let home = self.registers.home(base);
        let place = Mem::indexed(home, second, displacement);
        let known =
            self.known.pairs[number].filter(|page| page.base == base && (page.write || !access.write));
        let bytes = i32::from(access.bytes);
        let is_inside = |page: &KnownPage| {
            page.inside.0 <= displacement && displacement.saturating_add(bytes) <= page.inside.1
        };
        if !access.aligned
            && let Some(page) = known.filter(is_inside)
            && (page.certainly || !access.write)
        {
            self.need_no_lookup();
            return Ok(place);
        }
        let limit = if base == RSP { NEAR_ON_STACK } else { NEAR };
        let near = known.and_then(|page| {
            let delta = displacement.checked_sub(page.displacement)?;
            (delta.unsigned_abs() <= limit && !access.aligned).then_some((page, delta))
        });
        let recent = match base {
            RSP => Some(page_of(RSP)),
            _ => self.recent,
        };
        let recent = recent.filter(|_| u64::from(access.bytes) <= Recent::BYTES && !access.aligned);
        let run = self.run(base, displacement, access);
        let (from, write) = match (near, recent) {
            (Some((page, delta)), _) if run.is_none() => {
                self.keep_flags();
                self.lose_host_flags();
                (self.compare_near(page, delta, home, displacement, pair, access.bytes), page.write)
            }
            (_, Some(recent)) => {
                self.keep_flags();
                self.lose_host_flags();
                let address = Address::Based { base: home, displacement };
                let write = access.write || run.is_some_and(|run| run.writes);
                (self.compare_recent(recent, address, Access { write, ..access }, pair), write)
            }
            _ => return Err(pair),
        };
        let forgets = write && !access.write;
        let kind = ColdKind::Near { base: home, displacement, access, pair, recent, forgets };
        let resume = self.asm.code.len();
        self.note(from, resume, kind);
        match run {
            Some(run) => {
                self.compare_run(run, base, displacement, First::Distance, pair);
                self.restore_carry();
            }
            None => {
                self.restore_carry();
                self.know_page(base, displacement, access, write, First::Distance);
            }
        }
        Ok(place)
    }

    /// The current access is known to be allowed: flags live on.
    pub(super) fn need_no_lookup(&mut self) {
        if self.restores {
            self.keep_flags();
            self.lose_host_flags();
            self.restore_carry();
        }
    }

    /// An access by a guest register was found in the TLB array: the first register of its pair has the page, the second its entry. Loads the
    /// page's addend there.
    pub(super) fn know_looked_up(&mut self, base: u8, displacement: i32, access: Access) {
        let (_, pair) = self.pair(base);
        let [first, second] = pair;
        match self.run(base, displacement, access) {
            Some(run) => {
                if run.writes && !access.write {
                    self.asm.compare(first, Mem::new(second, Access::write(access.bytes).tag()));
                    let from = self.asm.jump_if(condition::NOT_EQUAL);
                    self.later_careful(from);
                }
                self.asm.load(second, Mem::new(second, ADDEND));
                self.compare_run(run, base, displacement, First::Page, pair);
                self.restore_carry();
            }
            None => {
                self.restore_carry();
                self.asm.load(second, Mem::new(second, ADDEND));
                self.know_page(base, displacement, access, access.write, First::Page);
            }
        }
    }

    /// The run that an access of the current instruction begins, if that pays.
    fn run(&self, base: u8, displacement: i32, access: Access) -> Option<Run> {
        if self.course.is_none() || self.careful || self.instrumentation.is_some() || access.aligned {
            return None;
        }
        let end = displacement.checked_add(access.bytes.into())?;
        let mut run = Run { range: (displacement, end), writes: access.write, others: 0, carries: false };
        let has_own_pair = self.pair(base).0 == STACK;
        let others_have = self.registers.stack_pair.is_some();
        let mut moved = 0_i32;
        for (n, insn) in self.insns[self.index..].iter().enumerate() {
            match keeps(insn) {
                Keeps::Both => {}
                Keeps::Stack if has_own_pair => {}
                _ => break,
            }
            if n != 0 && effects::accesses(insn) {
                match access_by(insn, base) {
                    By::It { displacement, bytes, write } => {
                        let Some(start) = displacement.checked_add(moved) else { break };
                        let Some(end) = start.checked_add(bytes.into()) else { break };
                        let range = (run.range.0.min(start), run.range.1.max(end));
                        if range.1.saturating_sub(range.0) > Run::LONGEST {
                            break;
                        }
                        run = Run { range, writes: run.writes || write, others: run.others + 1, ..run };
                    }
                    By::Stack if others_have => {}
                    By::Other if has_own_pair => {}
                    By::Stack | By::Other | By::Several => break,
                }
            }
            run.carries |=
                matches!(insn.mnemonic, Mnemonic::Adc | Mnemonic::Sbb | Mnemonic::Adcx | Mnemonic::Adox);
            match stack_step(insn).filter(|_| base == RSP).or_else(|| step(insn)) {
                Some(by) if effects::written(insn) >> base & 1 != 0 => {
                    let Some(all) = moved.checked_add(by) else { break };
                    moved = all;
                }
                _ if effects::written(insn) >> base & 1 != 0 => break,
                _ => {}
            }
        }
        run.pays().then_some(run)
    }

    /// Checks that a run is in the page of its first access.
    fn compare_run(&mut self, run: Run, base: u8, displacement: i32, has: First, [first, _]: [Reg; 2]) {
        let (start, end) = run.range;
        match has {
            First::Distance if start == displacement => {}
            First::Distance => self.asm.lea(first, Mem::new(first, start - displacement)),
            First::Page => {
                self.asm.negate(first);
                self.asm.lea(first, Mem::indexed(self.registers.home(base), first, start));
            }
        }
        self.asm.compare_immediate_register32(first, PAGE_SIZE as i32 - (end - start) + 1);
        let from = self.asm.jump_if(condition::ABOVE_OR_EQUAL);
        self.later_careful(from);
        let (number, _) = self.pair(base);
        if number == SHARED {
            self.known.forget_shared();
        }
        let page = KnownPage {
            base,
            displacement: start,
            inside: run.range,
            write: run.writes,
            certainly: run.writes,
            first: First::Distance,
        };
        self.known.pairs[number] = Some(page);
    }

    /// Compares an access with a known page.
    fn compare_near(
        &mut self,
        page: KnownPage,
        delta: i32,
        home: Reg,
        displacement: i32,
        [first, _]: [Reg; 2],
        bytes: u8,
    ) -> Jump {
        match page.first {
            First::Distance if delta == 0 => {}
            First::Distance => self.asm.lea(first, Mem::new(first, delta)),
            First::Page => {
                self.asm.negate(first);
                self.asm.lea(first, Mem::indexed(home, first, displacement));
            }
        }
        let limit = PAGE_SIZE as i32 - i32::from(bytes) + 1;
        self.asm.compare_immediate_register32(first, limit);
        self.asm.jump_if(condition::ABOVE_OR_EQUAL)
    }

    fn know_page(&mut self, base: u8, displacement: i32, access: Access, write: bool, first: First) {
        let (number, _) = self.pair(base);
        if number == SHARED {
            self.known.forget_shared();
        }
        let inside = (displacement, displacement.saturating_add(access.bytes.into()));
        let certainly = access.write;
        self.known.pairs[number] = Some(KnownPage { base, displacement, inside, write, certainly, first });
    }

    /// An instruction is about to be written: forgets what its template has another use for. The same behind it, since its own access
    /// may have looked a page up before.
    pub(super) fn keep_known(&mut self, keeps: Keeps) {
        match keeps {
            Keeps::Both => {}
            Keeps::Stack => self.known.forget_shared(),
            Keeps::Neither => self.known = KnownPages::default(),
        }
    }
}
