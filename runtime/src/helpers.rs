//! Every function that compiled code may call, in one table: the semantics' helpers, the runtime's own, and the
//! slow paths of memory accesses (behind thunks that preserve all registers; [`translator::abi`] has the contract).
//!
//! The functions find the vCPU's [`Mmu`] through `CpuState::engine`, which the dispatcher sets before it enters
//! compiled code ([`crate::compiled`]).

use std::sync::OnceLock;

use memory::{AtomicOp, GuestVirt, Mmu};
use semantics::{
    Insn,
    helper::{Helper, VectorOp},
};
use translator::{
    Thunks,
    abi::{
        FIRST_HELPER, FIRST_RUNTIME_HELPER, FIRST_THUNK, RuntimeFunctions, RuntimeHelper, SlowPath,
        SlowPathFn, TABLE_LENGTH,
    },
};
use x86::{CpuState, PAGE_SIZE, Width};

use crate::{
    callouts::{self, Callouts},
    enter,
};

/// The table at `CpuState::helpers`.
pub struct HelperTable([*const u8; TABLE_LENGTH]);

// SAFETY: addresses of immutable code that is never unmapped.
unsafe impl Send for HelperTable {}
// SAFETY: as above.
unsafe impl Sync for HelperTable {}

impl HelperTable {
    /// The process's table; thunks are compiled at the first call.
    pub fn get() -> Result<&'static Self, String> {
        static TABLE: OnceLock<Result<HelperTable, String>> = OnceLock::new();
        TABLE.get_or_init(Self::build).as_ref().map_err(Clone::clone)
    }

    /// For `CpuState::helpers`.
    pub fn as_ptr(&self) -> *const *const u8 {
        self.0.as_ptr()
    }

    fn build() -> Result<Self, String> {
        let mut table = [std::ptr::null(); TABLE_LENGTH];
        for &helper in Helper::ALL {
            table[FIRST_HELPER + helper as usize] = helper.function() as *const u8;
        }
        for &helper in RuntimeHelper::ALL {
            table[FIRST_RUNTIME_HELPER + helper as usize] = match helper {
                RuntimeHelper::VectorOp => vector_op as *const u8,
                RuntimeHelper::Divide => divide as *const u8,
                RuntimeHelper::Bulk => bulk as *const u8,
                RuntimeHelper::LoadMxcsr => translator::mxcsr::load as *const u8,
                RuntimeHelper::StoreMxcsr => translator::mxcsr::store as *const u8,
                RuntimeHelper::SelectView => select_view as *const u8,
                RuntimeHelper::ReadTsc => read_tsc as *const u8,
                RuntimeHelper::Callout => callout as *const u8,
                RuntimeHelper::MakeRecent => translator::misses::make as *const u8,
                RuntimeHelper::FillMiss => translator::misses::fill as *const u8,
                RuntimeHelper::RecentMiss => translator::misses::recent as *const u8,
                RuntimeHelper::NearMiss => translator::misses::near as *const u8,
            };
        }
        let mut slow_paths = [load::<1> as SlowPathFn; SlowPath::ALL.len()];
        for &path in SlowPath::ALL {
            slow_paths[path as usize] = slow_path(path);
        }
        let functions = RuntimeFunctions { slow_paths, abandon: enter::abandon };
        let thunks = Thunks::new(&functions).map_err(|error| error.to_string())?;
        table[FIRST_THUNK..][..SlowPath::ALL.len()].copy_from_slice(thunks.addresses());
        Ok(Self(table))
    }
}

/// The function behind each slow path.
fn slow_path(path: SlowPath) -> SlowPathFn {
    match path {
        SlowPath::Load8 => load::<1>,
        SlowPath::Load16 => load::<2>,
        SlowPath::Load32 => load::<4>,
        SlowPath::Load64 => load::<8>,
        SlowPath::LoadVector => load_vector,
        SlowPath::LoadForUpdate8 => load_for_update::<1>,
        SlowPath::LoadForUpdate16 => load_for_update::<2>,
        SlowPath::LoadForUpdate32 => load_for_update::<4>,
        SlowPath::LoadForUpdate64 => load_for_update::<8>,
        SlowPath::Store8 => store::<1>,
        SlowPath::Store16 => store::<2>,
        SlowPath::Store32 => store::<4>,
        SlowPath::Store64 => store::<8>,
        SlowPath::StoreVector => store_vector,
        SlowPath::Atomic => atomic,
        SlowPath::CompareExchange => compare_exchange,
        SlowPath::CompareExchangePair => compare_exchange_pair,
        SlowPath::ProbeWrite => probe_write,
        SlowPath::SettleFlags => settle_flags,
        SlowPath::FillRead => fill::<false>,
        SlowPath::FillWrite => fill::<true>,
        SlowPath::PackFlags => pack_flags,
    }
}

/// The state and its MMU, of a vCPU that is in compiled code.
///
/// # Safety
/// `state` is the state that compiled code runs on, and `engine` in it is its MMU; nobody else uses either until the
/// caller returns.
unsafe fn vcpu<'a>(state: *mut CpuState) -> (&'a mut CpuState, &'a mut Mmu) {
    // SAFETY: the caller's promise; the MMU is no part of the state.
    unsafe {
        let mmu = (*state).engine.cast::<Mmu>();
        (&mut *state, &mut *mmu)
    }
}

const fn width<const BYTES: usize>() -> Width {
    match BYTES {
        1 => Width::Byte,
        2 => Width::Word,
        4 => Width::Dword,
        _ => Width::Qword,
    }
}

/// Gives the value of a plain load to compiled code, or abandons its frame for the fault that it raised.
fn loaded(state: &mut CpuState, mmu: &mut Mmu, value: Option<u64>) -> u64 {
    if value.is_none() {
        abandon(state, mmu);
    }
    answer(state, value)
}

/// Says why a frame is about to be abandoned, if that is a page fault.
#[cold]
fn abandon(state: &mut CpuState, mmu: &mut Mmu) {
    state.abandoned = mmu.take_fault();
}

/// Gives a value that may not be there to compiled code.
fn answer(state: &mut CpuState, value: Option<u64>) -> u64 {
    match value {
        Some(value) => {
            state.scratch[0] = value;
            1
        }
        None => 0,
    }
}

unsafe extern "C" fn load<const BYTES: usize>(
    state: *mut CpuState,
    address: u64,
    _: u64,
    _: u64,
    _: u64,
) -> u64 {
    // SAFETY: called by a thunk, below compiled code.
    let (state, mmu) = unsafe { vcpu(state) };
    let value = mmu.try_load(state, GuestVirt(address), width::<BYTES>());
    loaded(state, mmu, value)
}

unsafe extern "C" fn load_for_update<const BYTES: usize>(
    state: *mut CpuState,
    address: u64,
    _: u64,
    _: u64,
    _: u64,
) -> u64 {
    // SAFETY: called by a thunk, below compiled code.
    let (state, mmu) = unsafe { vcpu(state) };
    let value = mmu.try_load_for_update(state, GuestVirt(address), width::<BYTES>());
    loaded(state, mmu, value)
}

unsafe extern "C" fn store<const BYTES: usize>(
    state: *mut CpuState,
    address: u64,
    value: u64,
    _: u64,
    _: u64,
) -> u64 {
    // SAFETY: called by a thunk, below compiled code.
    let (state, mmu) = unsafe { vcpu(state) };
    let done = mmu.try_store(state, GuestVirt(address), width::<BYTES>(), value);
    if !done {
        abandon(state, mmu);
    }
    done.into()
}

unsafe extern "C" fn load_vector(state: *mut CpuState, address: u64, _: u64, _: u64, _: u64) -> u64 {
    // SAFETY: called by a thunk, below compiled code.
    let (state, mmu) = unsafe { vcpu(state) };
    match mmu.try_load128(state, GuestVirt(address)) {
        Some(value) => {
            state.scratch_vector[0] = value;
            1
        }
        None => 0,
    }
}

unsafe extern "C" fn store_vector(state: *mut CpuState, address: u64, _: u64, _: u64, _: u64) -> u64 {
    // SAFETY: called by a thunk, below compiled code.
    let (state, mmu) = unsafe { vcpu(state) };
    u64::from(mmu.try_store128(state, GuestVirt(address), state.scratch_vector[0]))
}

/// Whether an atomic access is to RAM that may be written and holds no code: only then compiled code may do it, since
/// the others have effects (a question to the board, the end of a block) that need the interpreter.
fn is_plain(state: &CpuState, mmu: &mut Mmu, address: u64, width: Width) -> bool {
    mmu.try_load_for_update(state, GuestVirt(address), width).is_some()
}

unsafe extern "C" fn atomic(state: *mut CpuState, address: u64, operand: u64, op: u64, bytes: u64) -> u64 {
    const OPERATIONS: [AtomicOp; 6] =
        [AtomicOp::Add, AtomicOp::Sub, AtomicOp::And, AtomicOp::Or, AtomicOp::Xor, AtomicOp::Exchange];
    // SAFETY: called by a thunk, below compiled code.
    let (state, mmu) = unsafe { vcpu(state) };
    let operation = OPERATIONS.into_iter().find(|&operation| operation as u64 == op);
    let (Some(width), Some(operation)) = (Width::from_bytes(bytes as usize), operation) else { return 0 };
    if !is_plain(state, mmu, address, width) {
        return 0;
    }
    let old = mmu.atomic(state, GuestVirt(address), width, operation, operand).ok();
    answer(state, old)
}

unsafe extern "C" fn compare_exchange(
    state: *mut CpuState,
    address: u64,
    expected: u64,
    new: u64,
    bytes: u64,
) -> u64 {
    // SAFETY: called by a thunk, below compiled code.
    let (state, mmu) = unsafe { vcpu(state) };
    let Some(width) = Width::from_bytes(bytes as usize) else { return 0 };
    if !is_plain(state, mmu, address, width) {
        return 0;
    }
    let old = mmu.compare_exchange(state, GuestVirt(address), width, expected, new).ok();
    answer(state, old)
}

unsafe extern "C" fn compare_exchange_pair(
    state: *mut CpuState,
    address: u64,
    _: u64,
    _: u64,
    _: u64,
) -> u64 {
    // SAFETY: called by a thunk, below compiled code.
    let (state, mmu) = unsafe { vcpu(state) };
    // An aligned pair lies in one page.
    if address & 15 != 0 || !is_plain(state, mmu, address, Width::Qword) {
        return 0;
    }
    let [_, expected, new] = state.scratch_vector;
    match mmu.compare_exchange128(state, GuestVirt(address), expected, new) {
        Ok(old) => {
            state.scratch_vector[0] = old;
            1
        }
        Err(_) => 0,
    }
}

unsafe extern "C" fn probe_write(state: *mut CpuState, address: u64, bytes: u64, _: u64, _: u64) -> u64 {
    // SAFETY: called by a thunk, below compiled code.
    let (state, mmu) = unsafe { vcpu(state) };
    let last = address.wrapping_add(bytes.saturating_sub(1));
    let mut at = address;
    loop {
        if !is_plain(state, mmu, at, Width::Byte) {
            return 0;
        }
        if GuestVirt(at).page() == GuestVirt(last).page() {
            return 1;
        }
        at = GuestVirt(at).page().offset(PAGE_SIZE).0;
    }
}

unsafe extern "C" fn settle_flags(state: *mut CpuState, _: u64, _: u64, _: u64, _: u64) -> u64 {
    // SAFETY: called by a thunk, below compiled code, which has no other use of the state meanwhile.
    unsafe { (*state).settle_flags() };
    1
}

unsafe extern "C" fn pack_flags(state: *mut CpuState, _: u64, _: u64, _: u64, _: u64) -> u64 {
    // SAFETY: called by a thunk, below compiled code, which has no other use of the state meanwhile.
    unsafe { (*state).pack_flags() };
    1
}

unsafe extern "C" fn fill<const WRITE: bool>(
    state: *mut CpuState,
    address: u64,
    bytes: u64,
    alignment: u64,
    _: u64,
) -> u64 {
    // SAFETY: called by a thunk, below compiled code.
    let (state, mmu) = unsafe { vcpu(state) };
    if address & alignment != 0 {
        return 0;
    }
    let addend = mmu.try_fill(state, GuestVirt(address), bytes, WRITE);
    if addend.is_none() {
        abandon(state, mmu);
    }
    answer(state, addend)
}

unsafe extern "C" fn vector_op(state: *mut CpuState, operation: u64, immediate: u64) {
    // SAFETY: called by compiled code, which has no other use of the state meanwhile.
    let state = unsafe { &mut *state };
    let [_, a, b] = state.scratch_vector;
    // Floating-point operations load MXCSR themselves, and leave the host's behind.
    let loaded = translator::mxcsr::suspend(state);
    match VectorOp::ALL.get(operation as usize) {
        Some(operation) => {
            state.scratch_vector[0] = operation.function()(state, a, b, immediate as u8);
        }
        // The translator takes the number from the same table; the interpreter would find the right one.
        None => {
            semantics::helper::raise(state, x86::Vector::InvalidOpcode);
        }
    }
    if loaded {
        translator::mxcsr::resume(state);
    }
}

unsafe extern "C" fn bulk(state: *mut CpuState, repetition: u64) {
    // SAFETY: called by compiled code, which has no other use of the state meanwhile.
    let (state, mmu) = unsafe { vcpu(state) };
    // What the translator did not make is no repetition: then the instruction goes on element by element.
    if let Some(repetition) = semantics::Repetition::from_bits(repetition) {
        interpreter::bulk::run(state, mmu, repetition);
    }
}

unsafe extern "C" fn select_view(state: *mut CpuState) -> u64 {
    // SAFETY: called by compiled code, which has no other use of the state meanwhile.
    let (state, mmu) = unsafe { vcpu(state) };
    mmu.select_view(state);
    0
}

unsafe extern "C" fn read_tsc(state: *mut CpuState) -> u64 {
    // SAFETY: called by compiled code; the engine has set `clock` to its own.
    let (state, clock) = unsafe { (&*state, &*(*state).clock.cast::<vcpu::Clock>()) };
    monitor::tsc(state, clock)
}

unsafe extern "C" fn callout(state: *mut CpuState, insn: *const Insn, traits: u64) -> u64 {
    // SAFETY: called by compiled code, which has no other use of the state meanwhile; the engine has set `clock` and `callouts`
    // to its own, which nobody else uses until compiled code has left.
    let (clock, callouts) =
        unsafe { (&*(*state).clock.cast::<vcpu::Clock>(), &mut *(*state).callouts.cast::<Callouts>()) };
    // SAFETY: as above.
    let (state, mmu) = unsafe { vcpu(state) };
    // SAFETY: it lies beside the code that calls, written when that was installed.
    callouts::call(state, mmu, clock, callouts, unsafe { &*insn }, traits)
}

unsafe extern "C" fn divide(state: *mut CpuState, high: u64, low: u64, divisor: u64, signed: u64) -> u64 {
    // SAFETY: called by compiled code, which has no other use of the state meanwhile.
    let state = unsafe { &mut *state };
    let dividend = u128::from(high) << 64 | u128::from(low);
    let result = if signed == 0 {
        divide_unsigned(dividend, divisor)
    } else {
        divide_signed(dividend as i128, divisor as i64)
    };
    match result {
        Some((quotient, remainder)) => {
            state.scratch[0] = quotient;
            state.scratch[2] = remainder;
            1
        }
        None => 0,
    }
}

fn divide_unsigned(dividend: u128, divisor: u64) -> Option<(u64, u64)> {
    let divisor = u128::from(divisor);
    let quotient = u64::try_from(dividend.checked_div(divisor)?).ok()?;
    Some((quotient, (dividend % divisor) as u64))
}

fn divide_signed(dividend: i128, divisor: i64) -> Option<(u64, u64)> {
    let divisor = i128::from(divisor);
    let quotient = i64::try_from(dividend.checked_div(divisor)?).ok()?;
    Some((quotient as u64, dividend.wrapping_rem(divisor) as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_of_the_table_is_filled() {
        let table = HelperTable::get().unwrap();
        assert!(table.0.iter().all(|entry| !entry.is_null()));
    }

    #[test]
    fn wide_division() {
        assert_eq!(divide_unsigned(1 << 64, 2), Some((1 << 63, 0)));
        assert_eq!(divide_unsigned(1 << 64, 1), None);
        assert_eq!(divide_unsigned(5, 0), None);
        assert_eq!(divide_signed(-7, 2), Some((-3i64 as u64, -1i64 as u64)));
        assert_eq!(divide_signed(i128::MIN, -1), None);
        assert_eq!(divide_signed(i128::from(i64::MIN), -1), None);
        assert_eq!(divide_signed(i128::from(i64::MIN), 1), Some((i64::MIN as u64, 0)));
    }
}
