//! Accesses by the host's own MMU: code of user processes in regions accesses guest memory in the *window* ([`memory::window`]), at a
//! constant distance from linear addresses, which is the host's GS base.
//!
//! What is to be in the window is compared with the state's limit first: a base register once, as long as it is only moved by constants
//! ([`KnownPages::check`]); other addresses each time. If it is not below that, or the host faults at the access, since the window does not
//! have its page and can't have it now, the instruction is abandoned: the interpreter does it. Where from is noted beside the code
//! ([`crate::WindowAccess`]), and whoever handles the fault decides.

use core::{mem::offset_of, ops::Range};

use iced_x86::Mnemonic;
use memory::window::{HIGH, LOW, LOW_SHIFT, SHIFT};
use semantics::{MemoryOperand, Operand};
use x86::{CpuState, PAGE_SIZE};

use super::{
    Template,
    assembler::{Jump, Mem, Reg, Space, condition},
    cold::{Cold, ColdKind},
    flags::Flags,
    memory::{Access, Address},
    region::Known,
};
use crate::{
    Guess, Part, WindowAccess,
    abi::Leave,
    locality,
    region::{Plan, Pointer, Region},
};

const WINDOW: usize = offset_of!(CpuState, window);

/// The window in the region that is being written.
#[derive(Default)]
pub(super) struct Windows {
    /// As it was when the last access in the window was checked.
    checked: Option<Known>,
    /// The flags before the carry alone was computed for what follows the current instruction.
    flags: Option<Flags>,
}

impl Windows {
    /// Forgets the current instruction.
    pub fn forget(&mut self) {
        *self = Self::default();
    }
}

/// The part of the window that a constant address is in, with what it accesses.
fn part_of(address: u64) -> Option<Part> {
    if (LOW.start..LOW.end - PAGE_SIZE).contains(&address) {
        Some(Part::Low)
    } else if (HIGH.start..HIGH.end - PAGE_SIZE).contains(&address) {
        Some(Part::High)
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
        if part_of(self.page) == Some(Part::Low) && self.is_strange(address) {
            return None;
        }
        if self.guesses.are_bad(self.insns[self.index].rip) {
            return None;
        }
        let [first, ..] = self.registers.temporaries;
        let place = match address {
            Address::Based { base, displacement } => {
                let guest = self.registers.guest_in(base)?;
                let part = match self.known.checked_in(guest) {
                    Some(part) => {
                        self.need_no_lookup();
                        part
                    }
                    None => {
                        let part = self.part_by(guest.into());
                        self.compare_limit(base, part);
                        self.known.check(guest, part);
                        part
                    }
                };
                self.known.forget_pages();
                Mem { space: Space::Guest(part), ..Mem::new(base, displacement) }
            }
            Address::Absolute(address) => {
                let part = part_of(address)?;
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
                Mem { space: Space::Guest(part), ..place }
            }
            Address::Computed { base, index, displacement, narrow: false, segment: None } => {
                let checked = base.and_then(|base| self.registers.guest_in(base));
                let checked = checked.and_then(|guest| self.known.checked_in(guest));
                let small = index.and_then(|(index, _)| self.registers.guest_in(index));
                let displacement = i32::try_from(displacement as i64).ok()?;
                if let (Some(base), Some(part)) = (base, checked)
                    && small.is_some_and(|guest| self.known.is_short(guest))
                {
                    self.known.forget_pages();
                    self.need_no_lookup();
                    Mem { base, index, displacement, space: Space::Guest(part) }
                } else {
                    let part = self.part_of_computed(address);
                    self.compare_computed(address, part);
                    Mem { space: Space::Guest(part), ..Mem::new(first, 0) }
                }
            }
            Address::Computed { .. } => {
                let part = self.part_of_computed(address);
                self.compare_computed(address, part);
                Mem { space: Space::Guest(part), ..Mem::new(first, 0) }
            }
            Address::Ready => return None,
        };
        self.note_checked();
        self.check();
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
    fn part_by(&self, pointer: Pointer) -> Part {
        let low = self.course.as_ref().map_or(0, |course| course.low());
        self.corrected(if low & pointer.bit() != 0 { Part::Low } else { Part::High })
    }

    /// A guess for the current instruction, unless it is known better.
    fn corrected(&self, guess: Part) -> Part {
        self.guesses.part(self.insns[self.index].rip).unwrap_or(guess)
    }

    fn part_of_computed(&self, address: Address) -> Part {
        let Address::Computed { base, index, displacement, segment, .. } = address else {
            return Part::High;
        };
        let guest = |register| self.registers.guest_in(register).map(Pointer::Register);
        let pointer = match (segment, base, index) {
            (Some(segment), ..) => Some(Pointer::Segment(segment)),
            (None, Some(base), _) => guest(base),
            (None, None, _) if part_of(displacement).is_some() => return self.corrected(Part::Low),
            (None, None, index) => index.and_then(|(index, _)| guest(index)),
        };
        match pointer {
            Some(pointer) => self.part_by(pointer),
            None => self.corrected(Part::High),
        }
    }

    /// Between the check of an access and itself something has become of the flags.
    pub(super) fn check_again(&mut self) {
        if self.windows.as_ref().is_some_and(|windows| windows.checked.is_some()) {
            self.check();
        }
    }

    /// If the host faults at the next access, the state is as it is here.
    fn check(&mut self) {
        let known = self.known();
        if let Some(windows) = &mut self.windows {
            windows.checked = Some(Known { flags: windows.flags.unwrap_or(known.flags), ..known });
        }
    }

    /// From here on the host's flags have nothing of the guest's but the carry.
    pub(super) fn note_flags(&mut self) {
        if let Some(windows) = &mut self.windows {
            windows.flags = Some(self.flags);
        }
    }

    /// Computes an address into the first temporary, and compares it.
    fn compare_computed(&mut self, address: Address, part: Part) {
        self.known.forget_shared();
        self.known.forget_pages();
        self.keep_flags();
        self.lose_host_flags();
        let [first, ..] = self.registers.temporaries;
        self.linear(address, first);
        self.compare_limit(first, part);
    }

    /// Abandons the instruction if an address is not in that part of the window.
    fn compare_limit(&mut self, address: Reg, part: Part) {
        self.keep_flags();
        self.lose_host_flags();
        let [first, second, _] = self.registers.temporaries;
        let spare = if address == first { second } else { first };
        self.known.forget_shared();
        self.asm.mov(spare, address);
        if part == Part::Low {
            self.asm.shift_right(spare, LOW_SHIFT as u8);
        } else {
            self.asm.shift_right(spare, SHIFT as u8);
            self.asm.compare_immediate_register(spare, 1);
        }
        let outside = self.asm.jump_if(condition::NOT_EQUAL);
        self.note(outside, 0, ColdKind::Outside(part));
        self.restore_carry();
    }

    /// An instruction has been written.
    pub(super) fn note_accesses(&mut self) {
        self.note_checked();
        if let Some(windows) = &mut self.windows {
            windows.forget();
        }
    }

    /// Notes what accesses the window, as it was when that was checked last.
    fn note_checked(&mut self) {
        let checked = self.windows.as_mut().and_then(|windows| windows.checked.take());
        if let Some(Known { registers, flags, pending, at: (block, index), .. }) = checked {
            let cold = |at| {
                let kind = ColdKind::Fault(at);
                Cold { from: None, resume: 0, block, index, registers, flags, pending, kind }
            };
            self.cold.extend(self.asm.windows.drain(..).map(cold));
        }
        debug_assert!(self.asm.windows.is_empty());
    }

    /// Whether anything accesses the window.
    pub(super) fn has_accesses(&self) -> bool {
        self.cold.iter().any(|cold| matches!(cold.kind, ColdKind::Fault(_)))
    }

    /// Whether a region may be made for the window.
    pub(super) fn may_use_windows(&self, region: &Region, plan: &Plan) -> bool {
        let part = region.blocks.first().and_then(|first| part_of(first.guest.rip));
        self.uses_windows
            && self.mode.cpl() == 3
            && self.instrumentation.is_none()
            && match part {
                Some(Part::Low) => !is_strange(region, plan),
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

    /// Has control go on behind a check that is not needed, since nothing is accessed in the window; it is less than 128 bytes long.
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

    /// At the entry of a region: where the window is on its code may go on here. Gives where that is looked at, and the way on if it is
    /// not. Flags are saved.
    pub(super) fn unless_window(&mut self) -> (Range<usize>, (Jump, Known)) {
        let start = self.asm.code.len();
        self.asm.compare_immediate(Mem::state(WINDOW), 0);
        let off = self.asm.jump_if(condition::EQUAL);
        let known = self.known();
        self.begin_window();
        (start..self.asm.code.len(), (off, known))
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

    /// What the host faults at is noted, with where that leads.
    pub(super) fn note_refused(&mut self, access: u32, refused: u32, guess: Option<Part>) {
        let insn = &self.insns[self.index];
        let MemoryOperand { base, index, .. } = insn.memory;
        let by = if base == MemoryOperand::NONE { index } else { base };
        let misses = guess.map(|part| Guess { part, by });
        self.accesses.push(WindowAccess { access, refused, rip: insn.rip, misses });
    }
}
