//! Accesses by the host's own MMU: code of user processes in regions accesses guest memory in the *window* ([`memory::window`]), at a
//! constant distance from linear addresses, which is the host's GS base.
//!
//! What is to be in the window is compared with the state's limit first: a base register once, as long as it is only moved by constants
//! ([`KnownPages::check`]); other addresses each time. If it is not below that, control goes to a second version of the instruction, and if
//! the comparison would have been the last one for its register, of all that is left of the block, in which accesses are looked up in
//! the TLB. There too an access goes that the host faults at, since the window does not have its page: where from is noted beside the code
//! ([`crate::WindowAccess`]), and whoever handles the fault goes on there.
//!
//! Behind the second version of one instruction code goes on in the first one ([`Template::rejoin`]).

use core::{mem::offset_of, ops::Range};

use iced_x86::Mnemonic;
use memory::window::{HIGH, LOW, LOW_SHIFT, SHIFT};
use semantics::{Kind, Operand, table};
use x86::{CpuState, PAGE_SIZE};

use super::{
    Declined, Flow, Template,
    assembler::{Jump, Mem, Reg, Space, condition, gpr_offset, xmm_offset},
    flags::Flags,
    known::KnownPages,
    memory::{Access, Address},
    region::{Course, Known, Way},
    registers::{Registers, numbers},
};
use crate::{
    TranslateError, WindowAccess,
    abi::Leave,
    locality,
    region::{Plan, Pointer, Region, RegionBlock},
};

const WINDOW: usize = offset_of!(CpuState, window);

/// From where code comes to a second version.
#[derive(Clone, Copy)]
pub(super) enum From {
    /// From a comparison with the limit.
    Limit(Jump),
    /// From an access, at that offset, that the window does not have.
    Fault(u32),
}

/// What the current instruction needs second versions for.
#[derive(Clone, Copy)]
pub(super) struct Refused {
    from: From,
    known: Known,
    /// What follows relies on the comparison.
    relied_on: bool,
}

/// What is known behind an instruction, and where that is.
#[derive(Clone, Copy)]
pub(super) struct After {
    offset: usize,
    registers: Registers,
    flags: Flags,
    /// What the first temporary holds.
    constant: Option<u64>,
    mxcsr_loaded: bool,
    pending: i32,
}

/// The window in the region that is being written.
#[derive(Default)]
pub(super) struct Windows {
    refused: Vec<Refused>,
    /// As it was when the last access in the window was checked.
    checked: Option<Known>,
    /// By number, what second versions of single instructions go on with.
    afters: Vec<After>,
}

impl Windows {
    /// Forgets the current instruction.
    pub fn forget(&mut self) {
        self.refused.clear();
        self.checked = None;
    }
}

/// What second versions begin with.
fn known_registers(known: Known) -> Known {
    Known { known: KnownPages::default(), ..known }
}

/// The part of the window that a constant address is in, with what it accesses.
fn part_of(address: u64) -> Option<Space> {
    if (LOW.start..LOW.end - PAGE_SIZE).contains(&address) {
        Some(Space::Low)
    } else if (HIGH.start..HIGH.end - PAGE_SIZE).contains(&address) {
        Some(Space::High)
    } else {
        None
    }
}

/// Whether some processors (AMD's Zen 4) do not check the alignment of an instruction's operand, although they should (SDM Vol. 2, exceptions type 4).
fn is_lenient(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(mnemonic, Sha1msg1 | Sha1msg2 | Sha1nexte | Sha1rnds4 | Sha256msg1 | Sha256msg2 | Sha256rnds2)
}

/// Whether a quarter of a region's accesses, but for the stack's, are by pointers from memory.
fn is_strange(region: &Region, plan: &Plan) -> bool {
    let (mut all, mut strange_ones) = (0, 0);
    for (number, block) in region.blocks.iter().enumerate() {
        let mut strange = plan.strange[number];
        for insn in &block.guest.insns {
            let base = insn.memory.base;
            if insn.operands.contains(&Operand::Memory) && insn.memory_bytes != 0 && base != super::RSP {
                all += 1;
                strange_ones += u32::from(base < 16 && strange >> base & 1 != 0);
            }
            strange = locality::after(insn, strange);
        }
    }
    4 * strange_ones > all
}

impl<'a> Template<'a> {
    /// The place of an access in the window. `None`: it is to be looked up.
    pub(super) fn in_window(&mut self, address: Address, access: Access) -> Option<Mem> {
        // Locked accesses that cross cache lines are nothing to have the host do.
        let host_checks = access.bytes == 16 && !is_lenient(self.insns[self.index].mnemonic);
        if self.windows.is_none() || self.careful || access.aligned && !host_checks {
            return None;
        }
        if part_of(self.page) == Some(Space::Low) && self.is_strange(address) {
            return None;
        }
        if self.guesses.are_bad(self.insns[self.index].rip) {
            return None;
        }
        let [first, ..] = self.registers.temporaries;
        let place = match address {
            Address::Based { base, displacement } => {
                let guest = self.registers.guest_in(base)?;
                let space = match self.known.checked_in(guest) {
                    Some(space) => {
                        self.need_no_lookup();
                        space
                    }
                    None => {
                        let space = self.part_by(guest.into());
                        self.compare_limit(base, space, true);
                        self.known.check(guest, space);
                        space
                    }
                };
                self.known.forget_pages();
                Mem { space, ..Mem::new(base, displacement) }
            }
            Address::Absolute(address) => {
                let space = part_of(address)?;
                let place = match self.known.constant.map(|known| address.wrapping_sub(known) as i64) {
                    Some(distance) if i32::try_from(distance).is_ok() => {
                        self.known.forget_pages();
                        self.need_no_lookup();
                        Mem::new(first, distance as i32)
                    }
                    _ => {
                        self.known.forget_shared();
                        self.known.forget_pages();
                        self.asm.constant(first, address);
                        self.need_no_lookup();
                        self.known.constant = Some(address);
                        Mem::new(first, 0)
                    }
                };
                Mem { space, ..place }
            }
            Address::Computed { base, index, displacement, narrow: false, segment: None } => {
                let checked = base.and_then(|base| self.registers.guest_in(base));
                let checked = checked.and_then(|guest| self.known.checked_in(guest));
                let small = index.and_then(|(index, _)| self.registers.guest_in(index));
                let displacement = i32::try_from(displacement as i64).ok()?;
                if let (Some(base), Some(space)) = (base, checked)
                    && small.is_some_and(|guest| self.known.is_short(guest))
                {
                    self.known.forget_pages();
                    self.need_no_lookup();
                    Mem { base, index, displacement, space }
                } else {
                    let space = self.part_of_computed(address);
                    self.compare_computed(address, space);
                    Mem { space, ..Mem::new(first, 0) }
                }
            }
            Address::Computed { .. } => {
                let space = self.part_of_computed(address);
                self.compare_computed(address, space);
                Mem { space, ..Mem::new(first, 0) }
            }
            Address::Ready => return None,
        };
        self.note_accesses();
        let known = known_registers(self.known());
        if let Some(windows) = &mut self.windows {
            windows.checked = Some(known);
        }
        Some(place)
    }

    /// Whether an address is from memory, and may be anywhere. Programs that lie low have pointers to both parts.
    fn is_strange(&self, address: Address) -> bool {
        let is_strange = |register: Option<Reg>| {
            let guest = register.and_then(|register| self.registers.guest_in(register));
            guest.is_some_and(|guest| self.came_strange >> guest & 1 != 0)
        };
        match address {
            Address::Based { base, .. } => is_strange(Some(base)),
            Address::Computed { base, index, .. } => {
                is_strange(base) || base.is_none() && is_strange(index.map(|(index, _)| index))
            }
            Address::Absolute(_) | Address::Ready => false,
        }
    }

    /// In which part of the window the current instruction's access by a register is likely to be, or by a segment's base.
    fn part_by(&self, pointer: Pointer) -> Space {
        let low = self.course.as_ref().map_or(0, |course| course.low());
        self.corrected(if low & pointer.bit() != 0 { Space::Low } else { Space::High })
    }

    /// A guess for the current instruction, unless it was wrong too often.
    fn corrected(&self, guess: Space) -> Space {
        let is_low = (guess == Space::Low) != self.guesses.are_wrong(self.insns[self.index].rip);
        if is_low { Space::Low } else { Space::High }
    }

    fn part_of_computed(&self, address: Address) -> Space {
        let Address::Computed { base, index, displacement, segment, .. } = address else {
            return Space::High;
        };
        let guest = |register| self.registers.guest_in(register).map(Pointer::Register);
        let pointer = match (segment, base, index) {
            (Some(segment), ..) => Some(Pointer::Segment(segment)),
            (None, Some(base), _) => guest(base),
            (None, None, _) if part_of(displacement).is_some() => return self.corrected(Space::Low),
            (None, None, index) => index.and_then(|(index, _)| guest(index)),
        };
        match pointer {
            Some(pointer) => self.part_by(pointer),
            None => self.corrected(Space::High),
        }
    }

    /// Between the check of an access and itself something has become of the flags.
    pub(super) fn check_again(&mut self) {
        let known = known_registers(self.known());
        if let Some(windows) = &mut self.windows {
            windows.checked = windows.checked.map(|_| known);
        }
    }

    /// Computes an address into the first temporary, and compares it.
    fn compare_computed(&mut self, address: Address, space: Space) {
        self.known.forget_shared();
        self.known.forget_pages();
        self.keep_flags();
        self.lose_host_flags();
        let [first, ..] = self.registers.temporaries;
        self.linear(address, first);
        self.compare_limit(first, space, false);
    }

    /// Has an address that is not in that part of the window go to the second version.
    fn compare_limit(&mut self, address: Reg, space: Space, relied_on: bool) {
        self.keep_flags();
        self.lose_host_flags();
        let [first, second, _] = self.registers.temporaries;
        let spare = if address == first { second } else { first };
        self.known.forget_shared();
        self.asm.mov(spare, address);
        if space == Space::Low {
            self.asm.shift_right(spare, LOW_SHIFT as u8);
        } else {
            self.asm.shift_right(spare, SHIFT as u8);
            self.asm.compare_immediate_register(spare, 1);
        }
        let from = From::Limit(self.asm.jump_if(condition::NOT_EQUAL));
        let known = known_registers(self.known());
        if let Some(windows) = &mut self.windows {
            windows.refused.push(Refused { from, known, relied_on });
        }
        self.restore_carry();
    }

    /// Notes what accesses the window, as it was when that was checked last.
    fn note_accesses(&mut self) {
        let Some(windows) = &mut self.windows else { return };
        if let Some(known) = windows.checked.take() {
            let accesses = self.asm.windows.drain(..);
            windows.refused.extend(accesses.map(|at| Refused {
                from: From::Fault(at),
                known,
                relied_on: false,
            }));
        }
        debug_assert!(self.asm.windows.is_empty());
    }

    /// An instruction has been written: its second versions are noted.
    pub(super) fn note_windows(&mut self, flow: Flow) {
        self.note_accesses();
        let Some(windows) = &mut self.windows else { return };
        if windows.refused.is_empty() {
            return;
        }
        let number = windows.afters.len();
        if flow == Flow::Next {
            windows.afters.push(After {
                offset: self.asm.code.len(),
                registers: self.registers,
                flags: self.flags,
                constant: self.known.constant,
                mxcsr_loaded: self.mxcsr_loaded,
                pending: self.pending,
            });
        }
        let Some(course) = &mut self.course else { return };
        for Refused { from, known, relied_on } in windows.refused.drain(..) {
            let way = match flow {
                Flow::Next if !relied_on => Way::Once(course.current(), number),
                _ => Way::Careful(course.current()),
            };
            course.wait_behind(from, known, way);
        }
    }

    /// Whether a region may be made for the window.
    pub(super) fn may_use_windows(&self, region: &Region, plan: &Plan) -> bool {
        let part = region.blocks.first().and_then(|first| part_of(first.guest.rip));
        self.uses_windows
            && self.mode.cpl() == 3
            && self.instrumentation.is_none()
            && match part {
                Some(Space::Low) => !is_strange(region, plan),
                _ => part.is_some(),
            }
    }

    /// At the entry of a region that is only for the window. Gives where that is looked at.
    pub(super) fn leave_without_window(&mut self) -> Range<usize> {
        let start = self.asm.code.len();
        self.asm.compare_immediate(Mem::state(WINDOW), 0);
        self.leave_at_entry_if(condition::EQUAL, Leave::WindowOff);
        start..self.asm.code.len()
    }

    /// Has control go on behind a piece of code that is less than 128 bytes long.
    pub(super) fn skip(&mut self, piece: Range<usize>) {
        let jump = [0xeb, piece.len() as u8 - 2];
        debug_assert!(piece.len() - jump.len() < 0x80);
        self.asm.code.bytes_mut()[piece.start..][..jump.len()].copy_from_slice(&jump);
    }

    /// What follows accesses memory in the window.
    pub(super) fn begin_window(&mut self) {
        self.windows = Some(Windows::default());
    }

    /// What follows does not.
    pub(super) fn end_window(&mut self) {
        self.windows = None;
    }

    /// At the entry of a region: where the window is on its code may go on here. Flags are saved.
    pub(super) fn unless_window(&mut self) -> (Jump, Known) {
        self.asm.compare_immediate(Mem::state(WINDOW), 0);
        let off = self.asm.jump_if(condition::EQUAL);
        let known = self.known();
        self.begin_window();
        (off, known)
    }

    /// Another version of the region begins here, for when the window is off.
    pub(super) fn without_window(&mut self, (off, known): (Jump, Known)) {
        self.asm.bind(off);
        self.know(known);
        self.end_window();
        if let Some(course) = &mut self.course {
            course.begin_anew();
        }
    }

    /// Has ways on from what the window refused written next.
    pub(super) fn refused(&mut self) {
        if let Some(course) = &mut self.course {
            course.write_refused();
        }
    }

    /// A second version of the current instruction begins here.
    pub(super) fn come_from(&mut self, from: From) {
        match from {
            From::Limit(jump) => {
                self.asm.bind(jump);
                let halt = self.asm.code.len() as u32;
                self.asm.halt();
                self.note_refused(halt, true);
            }
            From::Fault(access) => self.note_refused(access, false),
        }
    }

    /// What the host faults at leads here.
    fn note_refused(&mut self, access: u32, misses: bool) {
        let (refused, rip) = (self.asm.code.len() as u32, self.insns[self.index].rip);
        self.accesses.push(WindowAccess { access, refused, rip, misses });
    }

    /// Writes the second version of the current instruction.
    pub(super) fn once(&mut self, after: usize, blocks: &'a [RegionBlock]) -> Result<(), TranslateError> {
        let insn = &self.insns[self.index];
        self.keep_flags_from(insn);
        let mark = self.mark();
        let written = match table::kind_of(insn) {
            Kind::Callout => self.callout(insn),
            _ => self.instruction(insn),
        };
        match written {
            Ok(Flow::Next) => self.complete(),
            Ok(Flow::Ended) => return Ok(()),
            Err(Declined) => {
                self.restores = false;
                self.reset(mark);
                self.leave_step(insn.rip);
                return Ok(());
            }
        }
        if !self.rejoin(after) {
            let number = self.course.as_ref().map_or(0, Course::current);
            self.block_from(&blocks[number].guest, self.index + 1)?;
        }
        Ok(())
    }

    /// Goes on behind an instruction's first version, as code is there. `false`: what it relies on can't be had here.
    pub(super) fn rejoin(&mut self, number: usize) -> bool {
        let Some(&after) = self.windows.as_ref().and_then(|windows| windows.afters.get(number)) else {
            return false;
        };
        let (here, there) = (self.flags, after.flags);
        let is_source_wanted = there.are_loose() && there.source.is_some();
        if self.registers.homes() != after.registers.homes()
            || is_source_wanted && here.source != there.source
            || self.mxcsr_loaded != after.mxcsr_loaded
            || self.pending != after.pending
        {
            return false;
        }
        for guest in numbers(self.registers.dirty & !after.registers.dirty) {
            self.asm.store(Mem::state(gpr_offset(guest)), self.registers.home(guest));
        }
        for index in numbers(self.registers.dirty_xmm & !after.registers.dirty_xmm) {
            self.asm.store_xmm(Mem::state(xmm_offset(index)), index);
        }
        for guest in numbers(after.registers.loaded & !self.registers.loaded) {
            self.asm.load(self.registers.home(guest), Mem::state(gpr_offset(guest)));
        }
        for index in numbers(after.registers.loaded_xmm & !self.registers.loaded_xmm) {
            self.asm.load_xmm(index, Mem::state(xmm_offset(index)));
        }
        self.bring_flags(there);
        if let Some(constant) = after.constant {
            self.asm.constant(self.registers.temporaries[0], constant);
        }
        self.asm.jump_back(after.offset);
        true
    }
}
