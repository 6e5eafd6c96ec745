//! Guest memory: the inline TLB lookup, its slow paths, and atomics.
//!
//! One comparison serves for permission, page and crossing: the tag is compared with the page of the access's *last*
//! byte, in the entry of its *first* byte's page. If the two pages differ, so do their entries (arrays have more than
//! one), and the entry can't hold the other's tag.
//!
//! Accesses through a register that seems to lead to the same page again and again ([`crate::locality`]) are looked up in its recent
//! page first: the comparison with its limits says the same, and the access does not wait for the address.
//!
//! Accesses near one that was looked up in the array (the same base, or the same base and scaled index, and another displacement)
//! are compared with the entry that it found, before the array is asked again.

use core::mem::offset_of;

use cranelift_codegen::ir::{
    Block, InstBuilder, InstructionData, Opcode, Type, Value, condcodes::IntCC, types,
};
use memory::tlb::{ENTRY_SHIFT, Entry, Recent, recent_offset};
use x86::{CpuState, PAGE_MASK, PAGE_SHIFT, Width};

use super::{Lifter, emit::int_type};
use crate::{
    abi::{RuntimeHelper, SlowPath},
    instrument::Event,
};

pub(super) const SCRATCH: usize = offset_of!(CpuState, scratch);
pub(super) const SCRATCH_VECTOR: usize = offset_of!(CpuState, scratch_vector);

/// What an access needs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

impl Access {
    const fn tag(self) -> usize {
        match self {
            Self::Read => offset_of!(Entry, read),
            Self::Write => offset_of!(Entry, write),
        }
    }
}

/// A place that the current instruction loaded for an update: the store that follows needs no lookup of its own.
#[derive(Clone, Copy)]
pub(super) struct Update {
    address: Value,
    width: Width,
    /// Host address, or 0 if the load went the slow way.
    host: Value,
}

/// The entry that an access looked up: a valid translation of the page in its tag, whether the access hit or not.
/// Translations stay valid while compiled code runs, so it serves other accesses near it.
#[derive(Clone, Copy)]
pub(super) struct Found {
    access: Access,
    /// Of the access's first byte.
    address: Address,
    tag: Value,
    addend: Value,
}

/// A base and a constant distance from it.
#[derive(Clone, Copy)]
struct Address {
    /// `None`: 0.
    base: Option<Value>,
    distance: i64,
}

/// How far from the access that looked it up an entry serves. Less than the smallest array's entries cover, so that the
/// page of the first access is the only one there that the entry can be about.
const NEAR: i64 = 2048;

impl Found {
    /// From the first byte of what was looked up to that of another access, if it is near.
    fn distance_to(self, place: Address) -> Option<i64> {
        let distance = place.distance.wrapping_sub(self.address.distance);
        let near = (-NEAR..=NEAR).contains(&distance);
        (near && place.base == self.address.base).then_some(distance)
    }

    /// The byte, from its first one, that is in the entry's page only if all of an access are: the last one if it begins behind
    /// the byte that was looked up, the first one if it ends before that.
    fn probe(self, place: Address, bytes: i64) -> Option<i64> {
        let distance = self.distance_to(place)?;
        if distance >= 0 { Some(bytes - 1) } else { (distance + bytes <= 1).then_some(0) }
    }
}

impl Lifter<'_> {
    /// The offset of an address'' entry in an endless TLB array.
    pub(super) fn tlb_index(&mut self, address: Value) -> Value {
        if let Some(address) = self.constant_of(address) {
            return self.word(address >> (PAGE_SHIFT - ENTRY_SHIFT));
        }
        self.b.ins().ushr_imm_u(address, i64::from(PAGE_SHIFT - ENTRY_SHIFT))
    }

    /// The entry at an offset in an endless array: masked to the array's size.
    pub(super) fn tlb_entry(&mut self, index: Value) -> Value {
        // Loaded at each use: as operands of the two instructions they cost less than registers that they occupy.
        let mask = self.state_load(types::I64, offset_of!(CpuState, tlb_mask));
        let offset = self.b.ins().band(index, mask);
        let base = self.state_load(types::I64, offset_of!(CpuState, tlb));
        self.b.ins().iadd(offset, base)
    }

    /// Looks an access up; branches to a new cold block on a miss, and goes on in a new block with the host address.
    /// `aligned`: an address that is no multiple of `bytes` misses.
    fn lookup(&mut self, address: Value, bytes: u16, access: Access, aligned: bool) -> (Value, Block) {
        self.store_early();
        let aligned = aligned || self.mode.checks_alignment() && bytes <= 8;
        let place = self.address_of(address);
        let known = self.file.found.into_iter().flatten().find_map(|found| {
            let reads_writable = access == Access::Read && found.access == Access::Write;
            let serves = found.access == access || reads_writable;
            let probe = if aligned { Some(0) } else { found.probe(place, i64::from(bytes)) };
            let near = found.distance_to(place).is_some();
            probe.filter(|_| serves && near).map(|probe| (found, probe))
        });
        match known {
            Some((found, probe)) => self.near_lookup(address, bytes, access, aligned, found, probe),
            None => {
                let cold = self.b.create_block();
                self.b.set_cold_block(cold);
                let serves = !aligned && u64::from(bytes) <= Recent::BYTES;
                if let Some(number) = self.insn.recent.filter(|_| serves) {
                    return (self.recent_lookup(address, access, number, cold), cold);
                }
                let (host, tag, addend) = self.far_lookup(address, bytes, access, aligned, cold);
                self.file.found = [Some(Found { access, address: place, tag, addend }), self.file.found[0]];
                (host, cold)
            }
        }
    }

    /// Base and distance of an address.
    fn address_of(&self, address: Value) -> Address {
        if let Some(constant) = self.constant_of(address) {
            return Address { base: None, distance: constant as i64 };
        }
        let (mut base, mut distance) = (address, 0_i64);
        while let Some(inst) = self.b.func.dfg.value_def(base).inst()
            && let InstructionData::Binary { opcode: Opcode::Iadd, args: [inner, by] } =
                self.b.func.dfg.insts[inst]
            && let Some(by) = self.constant_of(by)
        {
            base = inner;
            distance = distance.wrapping_add(by as i64);
        }
        Address { base: Some(base), distance }
    }

    /// Looks an access up in an entry that was found before; in the array, off the straight path, if that is of another page.
    /// `probe`: from the access's first byte to the one whose page decides.
    fn near_lookup(
        &mut self,
        address: Value,
        bytes: u16,
        access: Access,
        aligned: bool,
        found: Found,
        probe: i64,
    ) -> (Value, Block) {
        let probed = if probe == 0 { address } else { self.displaced(address, probe) };
        let mask = if aligned { PAGE_MASK | u64::from(bytes - 1) } else { PAGE_MASK };
        let page = self.b.ins().band_imm_s(probed, mask as i64);
        let misses = self.b.ins().icmp(IntCC::NotEqual, page, found.tag);
        let again = self.b.create_block();
        let same = self.b.create_block();
        let hit = self.b.create_block();
        let cold = self.b.create_block();
        self.b.set_cold_block(again);
        self.b.set_cold_block(cold);
        let host = self.b.append_block_param(hit, types::I64);
        self.b.ins().brif(misses, again, &[], same, &[]);

        self.b.switch_to_block(again);
        let (far, _, _) = self.far_lookup(address, bytes, access, aligned, cold);
        if let Some(block) = self.b.current_block() {
            self.b.set_cold_block(block);
        }
        self.b.ins().jump(hit, &[far.into()]);

        self.b.switch_to_block(same);
        let near = self.b.ins().iadd(address, found.addend);
        self.b.ins().jump(hit, &[near.into()]);
        self.b.switch_to_block(hit);
        (host, cold)
    }

    /// Looks an access up in a recent page, which off the straight path is made that of the access.
    fn recent_lookup(&mut self, address: Value, access: Access, number: usize, cold: Block) -> Value {
        let [again, same, hit] = [(); 3].map(|()| self.b.create_block());
        self.b.set_cold_block(again);
        let host = self.b.append_block_param(hit, types::I64);
        let (misses, addend) = self.recent_misses(address, access, number);
        self.b.ins().brif(misses, again, &[], same, &[]);

        self.b.switch_to_block(again);
        self.state_store(address, SlowPath::argument(0));
        let place = self.word(i64::from(recent_offset(number)) as u64);
        self.state_store(place, SlowPath::argument(1));
        self.call_preserving(RuntimeHelper::MakeRecent);
        let (misses, made) = self.recent_misses(address, access, number);
        let found = self.b.create_block();
        self.b.set_cold_block(found);
        self.b.ins().brif(misses, cold, &[], found, &[]);
        self.b.switch_to_block(found);
        let far = self.b.ins().iadd(address, made);
        self.b.ins().jump(hit, &[far.into()]);

        self.b.switch_to_block(same);
        let near = self.b.ins().iadd(address, addend);
        self.b.ins().jump(hit, &[near.into()]);
        self.b.switch_to_block(hit);
        host
    }

    /// Whether an access misses a recent page, and the page's addend.
    fn recent_misses(&mut self, address: Value, access: Access, number: usize) -> (Value, Value) {
        let limit = match access {
            Access::Read => offset_of!(Recent, read),
            Access::Write => offset_of!(Recent, write),
        };
        let at = recent_offset(number);
        let table = self.state_load(types::I64, offset_of!(CpuState, tlb));
        let load = |l: &mut Self, field: usize| {
            l.b.ins().load(types::I64, l.fields.tables, table, at + field as i32)
        };
        let addend = load(self, offset_of!(Recent, addend));
        let page = load(self, offset_of!(Recent, page));
        let distance = self.b.ins().isub(address, page);
        let limit = load(self, limit);
        let misses = self.b.ins().icmp(IntCC::UnsignedGreaterThanOrEqual, distance, limit);
        (misses, addend)
    }

    /// Looks an access up in the TLB array. Gives the host address, and tag and addend of the entry.
    fn far_lookup(
        &mut self,
        address: Value,
        bytes: u16,
        access: Access,
        aligned: bool,
        cold: Block,
    ) -> (Value, Value, Value) {
        let index = self.tlb_index(address);
        let entry = self.tlb_entry(index);
        let tag = self.table_load(entry, access.tag());
        let addend = self.table_load(entry, offset_of!(Entry, addend));
        let page = if aligned {
            self.b.ins().band_imm_s(address, (PAGE_MASK | u64::from(bytes - 1)) as i64)
        } else if bytes == 1 {
            self.b.ins().band_imm_s(address, PAGE_MASK as i64)
        } else {
            let last = self.displaced(address, i64::from(bytes) - 1);
            self.b.ins().band_imm_s(last, PAGE_MASK as i64)
        };
        let misses = self.b.ins().icmp(IntCC::NotEqual, page, tag);
        let hit = self.b.create_block();
        self.b.ins().brif(misses, cold, &[], hit, &[]);
        self.b.switch_to_block(hit);
        let host = self.b.ins().iadd(address, addend);
        (host, tag, addend)
    }

    /// Goes to the cold block and does the access the slow way; what the thunk needs is in `CpuState` then.
    fn slow(&mut self, cold: Block, path: SlowPath, arguments: &[Value]) {
        self.b.switch_to_block(cold);
        self.call_slow(path, arguments);
    }

    fn call_slow(&mut self, path: SlowPath, arguments: &[Value]) {
        let start = self.start;
        self.write_back(&start);
        self.store_rip(self.insn.rip);
        let uncounted = self.word(self.uncounted().into());
        self.state_store(uncounted, SCRATCH + 8);
        // The thunk does not come back from an access that is abandoned.
        self.count_event(Event::Undone, i64::from(self.uncounted()));
        self.call_thunk(path, arguments);
        self.count_event(Event::Undone, -i64::from(self.uncounted()));
    }

    /// Ends the fast path (the current block) and the slow path with a value each, and goes on where they meet.
    fn meet(&mut self, ty: Type, fast: Value, slow: impl FnOnce(&mut Self) -> Value) -> Value {
        let met = self.b.create_block();
        let value = self.b.append_block_param(met, ty);
        self.b.ins().jump(met, &[fast.into()]);
        let slow = slow(self);
        self.b.ins().jump(met, &[slow.into()]);
        self.b.switch_to_block(met);
        value
    }

    /// Loads from guest memory. Both paths zero-extend, which costs nothing and often saves it later.
    pub(super) fn load_guest(&mut self, width: Width, address: Value) -> Value {
        let (host, cold) = self.lookup(address, width.bytes() as u16, Access::Read, false);
        let guest = self.fields.guest;
        let fast = match width {
            Width::Byte => self.b.ins().uload8(types::I64, guest, host, 0),
            Width::Word => self.b.ins().uload16(types::I64, guest, host, 0),
            Width::Dword => self.b.ins().uload32(guest, host, 0),
            Width::Qword => self.b.ins().load(types::I64, guest, host, 0),
        };
        let wide = self.meet(types::I64, fast, |l| {
            l.slow(cold, path(SlowPath::Load8, width), &[address]);
            l.state_load(types::I64, SCRATCH)
        });
        let value = self.reduce(width, wide);
        self.extended.push((value, wide));
        value
    }

    /// Loads from where a store will follow.
    pub(super) fn load_guest_for_update(&mut self, width: Width, address: Value) -> Value {
        let ty = int_type(width);
        let (fast_host, cold) = self.lookup(address, width.bytes() as u16, Access::Write, false);
        let fast = self.b.ins().load(ty, self.fields.guest, fast_host, 0);

        let met = self.b.create_block();
        let value = self.b.append_block_param(met, ty);
        let host = self.b.append_block_param(met, types::I64);
        self.b.ins().jump(met, &[fast.into(), fast_host.into()]);
        self.slow(cold, path(SlowPath::LoadForUpdate8, width), &[address]);
        let slow = self.state_load(ty, SCRATCH);
        let no_host = self.word(0);
        self.b.ins().jump(met, &[slow.into(), no_host.into()]);
        self.b.switch_to_block(met);
        self.update = Some(Update { address, width, host });
        value
    }

    /// Stores to guest memory.
    pub(super) fn store_guest(&mut self, width: Width, address: Value, value: Value) {
        let low = self.low_element(value);
        let known = self.update.filter(|u| u.address == address && u.width == width);
        let (host, cold) = match known {
            Some(update) => {
                let cold = self.b.create_block();
                let hit = self.b.create_block();
                self.b.set_cold_block(cold);
                self.b.ins().brif(update.host, hit, &[], cold, &[]);
                self.b.switch_to_block(hit);
                (update.host, cold)
            }
            None => self.lookup(address, width.bytes() as u16, Access::Write, false),
        };
        self.b.ins().store(self.fields.guest, low.unwrap_or(value), host, 0);
        let met = self.b.create_block();
        self.b.ins().jump(met, &[]);
        self.b.switch_to_block(cold);
        let wide = match low {
            Some(low) => low,
            None => self.extend(value),
        };
        self.call_slow(path(SlowPath::Store8, width), &[address, wide]);
        self.b.ins().jump(met, &[]);
        self.b.switch_to_block(met);
    }

    /// Loads 16 bytes.
    pub(super) fn load_guest_vector(&mut self, address: Value, aligned: bool) -> Value {
        let (host, cold) = self.lookup(address, 16, Access::Read, aligned);
        let fast = self.b.ins().load(types::I8X16, self.fields.guest, host, 0);
        self.meet(types::I8X16, fast, |l| {
            l.b.switch_to_block(cold);
            l.abandon_misaligned(address, aligned);
            l.call_slow(SlowPath::LoadVector, &[address]);
            l.state_load(types::I8X16, SCRATCH_VECTOR)
        })
    }

    /// Loads 32 or 64 bits into the low element of a vector that is zero elsewhere.
    pub(super) fn load_guest_low(&mut self, width: Width, address: Value) -> Value {
        let (scalar, vector) =
            if width == Width::Dword { (types::F32, types::F32X4) } else { (types::F64, types::F64X2) };
        let (host, cold) = self.lookup(address, width.bytes() as u16, Access::Read, false);
        let fast = self.b.ins().load(scalar, self.fields.guest, host, 0);
        let fast = self.b.ins().scalar_to_vector(vector, fast);
        let value = self.meet(vector, fast, |l| {
            l.slow(cold, path(SlowPath::Load8, width), &[address]);
            let slow = l.state_load(scalar, SCRATCH);
            l.b.ins().scalar_to_vector(vector, slow)
        });
        self.cast(types::I8X16, value)
    }

    /// Stores 16 bytes.
    pub(super) fn store_guest_vector(&mut self, address: Value, value: Value, aligned: bool) {
        let (host, cold) = self.lookup(address, 16, Access::Write, aligned);
        self.b.ins().store(self.fields.guest, value, host, 0);
        let met = self.b.create_block();
        self.b.ins().jump(met, &[]);
        self.b.switch_to_block(cold);
        self.abandon_misaligned(address, aligned);
        self.state_store(value, SCRATCH_VECTOR);
        self.call_slow(SlowPath::StoreVector, &[address]);
        self.b.ins().jump(met, &[]);
        self.b.switch_to_block(met);
    }

    /// In a cold path: an operand that must be aligned and is not raises #GP(0), which the interpreter does.
    fn abandon_misaligned(&mut self, address: Value, aligned: bool) {
        if aligned {
            let misaligned = self.b.ins().band_imm_u(address, 15);
            self.abandon_if(misaligned);
            if let Some(rest) = self.b.current_block() {
                self.b.set_cold_block(rest);
            }
        }
    }

    /// An atomic operation: `fast` on the host address, or a slow path that leaves the old value in scratch[0].
    /// Operands that cross their natural alignment go the slow way.
    pub(super) fn atomic_guest(
        &mut self,
        width: Width,
        address: Value,
        path: SlowPath,
        operands: [Value; 2],
        fast: impl FnOnce(&mut Self, Value) -> Value,
    ) -> Value {
        let ty = int_type(width);
        let (host, cold) = self.lookup(address, width.bytes() as u16, Access::Write, true);
        let old = fast(self, host);
        self.meet(ty, old, |l| {
            l.b.switch_to_block(cold);
            let bytes = l.word(width.bytes());
            let [first, second] = operands.map(|operand| l.extend(operand));
            l.call_slow(path, &[address, first, second, bytes]);
            l.state_load(ty, SCRATCH)
        })
    }

    /// CMPXCHG16B on aligned memory.
    pub(super) fn compare_exchange_guest_pair(
        &mut self,
        address: Value,
        expected: (Value, Value),
        new: (Value, Value),
    ) -> (Value, Value) {
        let cold_only = self.b.create_block();
        if !self.host.cmpxchg16b {
            self.b.ins().jump(cold_only, &[]);
            self.b.switch_to_block(cold_only);
            return self.slow_pair(address, expected, new);
        }
        let (host, cold) = self.lookup(address, 16, Access::Write, true);
        let wide_expected = self.b.ins().iconcat(expected.0, expected.1);
        let wide_new = self.b.ins().iconcat(new.0, new.1);
        let old = self.b.ins().atomic_cas(self.fields.guest, host, wide_expected, wide_new);
        let (low, high) = self.b.ins().isplit(old);
        let met = self.b.create_block();
        let old_low = self.b.append_block_param(met, types::I64);
        let old_high = self.b.append_block_param(met, types::I64);
        self.b.ins().jump(met, &[low.into(), high.into()]);
        self.b.switch_to_block(cold);
        self.b.ins().jump(cold_only, &[]);
        self.b.switch_to_block(cold_only);
        self.b.set_cold_block(cold_only);
        let (low, high) = self.slow_pair(address, expected, new);
        self.b.ins().jump(met, &[low.into(), high.into()]);
        self.b.switch_to_block(met);
        (old_low, old_high)
    }

    fn slow_pair(&mut self, address: Value, expected: (Value, Value), new: (Value, Value)) -> (Value, Value) {
        let places = [expected.0, expected.1, new.0, new.1];
        for (n, value) in places.into_iter().enumerate() {
            self.state_store(value, SCRATCH_VECTOR + 16 + 8 * n);
        }
        self.call_slow(SlowPath::CompareExchangePair, &[address]);
        let low = self.state_load(types::I64, SCRATCH_VECTOR);
        let high = self.state_load(types::I64, SCRATCH_VECTOR + 8);
        (low, high)
    }

    /// Checks that memory can be written.
    pub(super) fn probe_guest_write(&mut self, address: Value, bytes: u16) {
        let (_, cold) = self.lookup(address, bytes.max(1), Access::Write, false);
        let met = self.b.create_block();
        self.b.ins().jump(met, &[]);
        self.b.switch_to_block(cold);
        let length = self.word(bytes.into());
        self.call_slow(SlowPath::ProbeWrite, &[address, length]);
        self.b.ins().jump(met, &[]);
        self.b.switch_to_block(met);
    }
}

/// The slow path for a width, given the one for bytes.
fn path(for_byte: SlowPath, width: Width) -> SlowPath {
    SlowPath::ALL[for_byte as usize + width.bytes().trailing_zeros() as usize]
}
