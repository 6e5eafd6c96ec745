//! What compiled code may call in a [`super::Machine`]: slow paths over its RAM, and helpers.

use std::{arch::naked_asm, sync::OnceLock};

use memory::tlb::Entry;
use semantics::{
    Insn,
    helper::{Helper, VectorOp},
};
use transvisor_translator::{
    Thunks,
    abi::{
        FIRST_HELPER, FIRST_RUNTIME_HELPER, FIRST_THUNK, Leave, RuntimeFunctions, RuntimeHelper, SlowPath,
        SlowPathFn, TABLE_LENGTH,
    },
    misses, mxcsr,
};
use x86::CpuState;

use super::{ENTRIES, FunctionTable, RAM_SIZE, RAM_START, READ_ONLY, Ram, abandon};

extern "C" fn nothing(_: *mut CpuState) -> u64 {
    0
}

/// A monitor that leaves every callout to whoever looks at the test's result.
extern "C" fn callout(state: *mut CpuState, insn: *const Insn) -> u64 {
    // SAFETY: compiled code gives its state and the instruction beside it, and uses neither meanwhile.
    let (state, insn) = unsafe { (&mut *state, &*insn) };
    state.rip = insn.rip;
    state.instructions -= 1;
    Leave::Callout as u64
}

/// What compiled code may call.
pub fn function_table(thunks: &Thunks) -> FunctionTable {
    let mut table = Box::new([core::ptr::null(); TABLE_LENGTH]);
    for (n, helper) in Helper::ALL.iter().enumerate() {
        table[FIRST_HELPER + n] = helper.function() as *const u8;
    }
    table[FIRST_RUNTIME_HELPER + RuntimeHelper::VectorOp as usize] = vector_op as *const u8;
    table[FIRST_RUNTIME_HELPER + RuntimeHelper::Divide as usize] = divide as *const u8;
    table[FIRST_RUNTIME_HELPER + RuntimeHelper::Bulk as usize] = no_bulk as *const u8;
    table[FIRST_RUNTIME_HELPER + RuntimeHelper::Callout as usize] = callout as *const u8;
    // There is one view, and time stands still.
    table[FIRST_RUNTIME_HELPER + RuntimeHelper::SelectView as usize] = nothing as *const u8;
    table[FIRST_RUNTIME_HELPER + RuntimeHelper::ReadTsc as usize] = nothing as *const u8;
    table[FIRST_RUNTIME_HELPER + RuntimeHelper::LoadMxcsr as usize] = mxcsr::load as *const u8;
    table[FIRST_RUNTIME_HELPER + RuntimeHelper::MakeRecent as usize] = misses::make as *const u8;
    table[FIRST_RUNTIME_HELPER + RuntimeHelper::FillMiss as usize] = misses::fill as *const u8;
    table[FIRST_RUNTIME_HELPER + RuntimeHelper::RecentMiss as usize] = misses::recent as *const u8;
    table[FIRST_RUNTIME_HELPER + RuntimeHelper::NearMiss as usize] = misses::near as *const u8;
    table[FIRST_RUNTIME_HELPER + RuntimeHelper::StoreMxcsr as usize] = mxcsr::store as *const u8;
    table[FIRST_THUNK..][..SlowPath::ALL.len()].copy_from_slice(thunks.addresses());
    table
}

/// The thunks, compiled once for all tests of a process.
pub fn thunks() -> &'static Thunks {
    static THUNKS: OnceLock<Thunks> = OnceLock::new();
    THUNKS.get_or_init(|| {
        let slow_paths: [SlowPathFn; SlowPath::ALL.len()] = [
            load::<1, false>,
            load::<2, false>,
            load::<4, false>,
            load::<8, false>,
            load::<16, false>,
            load::<1, true>,
            load::<2, true>,
            load::<4, true>,
            load::<8, true>,
            store::<1>,
            store::<2>,
            store::<4>,
            store::<8>,
            store::<16>,
            atomic,
            compare_exchange,
            compare_exchange_pair,
            probe_write,
            settle_flags,
            fill::<false>,
            fill::<true>,
            pack_flags,
        ];
        Thunks::new(&RuntimeFunctions { slow_paths, abandon }).expect("thunks")
    })
}

/// Changes every register that a System V function may change, so that a thunk that fails to save one is noticed.
#[unsafe(naked)]
pub extern "C" fn clobber() {
    naked_asm!(
        "mov eax, 0x5a5a5a5a",
        "mov ecx, eax",
        "mov edx, eax",
        "mov esi, eax",
        "mov edi, eax",
        "mov r8, rax",
        "mov r9, rax",
        "mov r10, rax",
        "mov r11, rax",
        "movq xmm0, rax",
        "movq xmm1, rax",
        "movq xmm2, rax",
        "movq xmm3, rax",
        "movq xmm4, rax",
        "movq xmm5, rax",
        "movq xmm6, rax",
        "movq xmm7, rax",
        "movq xmm8, rax",
        "movq xmm9, rax",
        "movq xmm10, rax",
        "movq xmm11, rax",
        "movq xmm12, rax",
        "movq xmm13, rax",
        "movq xmm14, rax",
        "movq xmm15, rax",
        "ret",
    )
}

/// RAM at an address, if all of it is there (and writable).
fn ram<'a>(state: *mut CpuState, address: u64, bytes: usize, write: bool) -> Option<&'a mut [u8]> {
    clobber();
    // SAFETY: `Machine::new` made `engine` point to its RAM, which nothing else refers to while code runs.
    let ram = unsafe { &mut *(*state).engine.cast::<Ram>() };
    ram.slow += 1;
    let end = if write { READ_ONLY } else { RAM_START + RAM_SIZE as u64 };
    let last = address.checked_add(bytes as u64)?;
    if address < RAM_START || last > end {
        return None;
    }
    let first = (address - RAM_START) as usize;
    Some(&mut ram.bytes[first..first + bytes])
}

unsafe extern "C" fn load<const N: usize, const UPDATE: bool>(
    state: *mut CpuState,
    address: u64,
    _: u64,
    _: u64,
    _: u64,
) -> u64 {
    let Some(bytes) = ram(state, address, N, UPDATE) else { return 0 };
    let mut value = [0; 16];
    value[..N].copy_from_slice(bytes);
    // SAFETY: the state is the caller's.
    let state = unsafe { &mut *state };
    if N == 16 {
        state.scratch_vector[0] = u128::from_le_bytes(value);
    } else {
        state.scratch[0] = u128::from_le_bytes(value) as u64;
    }
    1
}

unsafe extern "C" fn store<const N: usize>(
    state: *mut CpuState,
    address: u64,
    value: u64,
    _: u64,
    _: u64,
) -> u64 {
    let Some(bytes) = ram(state, address, N, true) else { return 0 };
    // SAFETY: the state is the caller's.
    let vector = unsafe { (*state).scratch_vector[0] };
    let value = if N == 16 { vector } else { value.into() };
    bytes.copy_from_slice(&value.to_le_bytes()[..N]);
    1
}

unsafe extern "C" fn atomic(state: *mut CpuState, address: u64, operand: u64, op: u64, bytes: u64) -> u64 {
    let Some(place) = ram(state, address, bytes as usize, true) else { return 0 };
    let mut old = [0; 8];
    old[..place.len()].copy_from_slice(place);
    let old = u64::from_le_bytes(old);
    let new = match op {
        0 => old.wrapping_add(operand),
        1 => old.wrapping_sub(operand),
        2 => old & operand,
        3 => old | operand,
        4 => old ^ operand,
        _ => operand,
    };
    place.copy_from_slice(&new.to_le_bytes()[..bytes as usize]);
    // SAFETY: the state is the caller's.
    unsafe { (*state).scratch[0] = old };
    1
}

unsafe extern "C" fn compare_exchange(
    state: *mut CpuState,
    address: u64,
    expected: u64,
    new: u64,
    bytes: u64,
) -> u64 {
    let Some(place) = ram(state, address, bytes as usize, true) else { return 0 };
    let mut old = [0; 8];
    old[..place.len()].copy_from_slice(place);
    let old = u64::from_le_bytes(old);
    if old == expected {
        place.copy_from_slice(&new.to_le_bytes()[..bytes as usize]);
    }
    // SAFETY: the state is the caller's.
    unsafe { (*state).scratch[0] = old };
    1
}

unsafe extern "C" fn compare_exchange_pair(
    state: *mut CpuState,
    address: u64,
    _: u64,
    _: u64,
    _: u64,
) -> u64 {
    let Some(place) = ram(state, address, 16, true) else { return 0 };
    // SAFETY: the state is the caller's.
    let state = unsafe { &mut *state };
    let old = u128::from_le_bytes((&*place).try_into().unwrap());
    if old == state.scratch_vector[1] {
        place.copy_from_slice(&state.scratch_vector[2].to_le_bytes());
    }
    state.scratch_vector[0] = old;
    1
}

unsafe extern "C" fn probe_write(state: *mut CpuState, address: u64, bytes: u64, _: u64, _: u64) -> u64 {
    ram(state, address, bytes as usize, true).is_some().into()
}

/// What [`SlowPath::FillRead`] and [`SlowPath::FillWrite`] do.
unsafe extern "C" fn fill<const WRITE: bool>(
    state: *mut CpuState,
    address: u64,
    bytes: u64,
    alignment: u64,
    _: u64,
) -> u64 {
    if address & alignment != 0 || address % 4096 + bytes > 4096 {
        return 0;
    }
    let page = address & !0xfff;
    let Some(place) = ram(state, page, 4096, WRITE) else { return 0 };
    let addend = (place.as_ptr() as u64).wrapping_sub(page);
    let write = if WRITE { page } else { memory::tlb::INVALID };
    // SAFETY: the state is the caller's, and `Machine::new` made its TLB.
    unsafe {
        let entry = (*state).tlb.cast::<Entry>().add((page >> 12) as usize % ENTRIES);
        *entry = Entry { read: page, write, execute: page, addend };
        (*state).scratch[0] = addend;
    }
    1
}

/// What [`SlowPath::PackFlags`] does.
pub unsafe extern "C" fn pack_flags(state: *mut CpuState, _: u64, _: u64, _: u64, _: u64) -> u64 {
    // SAFETY: called by a thunk, below compiled code, which has no other use of the state meanwhile.
    unsafe { (*state).pack_flags() };
    1
}

/// What [`SlowPath::SettleFlags`] does.
pub unsafe extern "C" fn settle_flags(state: *mut CpuState, _: u64, _: u64, _: u64, _: u64) -> u64 {
    // SAFETY: called by a thunk, below compiled code, which has no other use of the state meanwhile.
    unsafe { (*state).settle_flags() };
    1
}

extern "C" fn vector_op(state: &mut CpuState, op: u64, immediate: u64) -> u64 {
    let op = VectorOp::ALL[op as usize];
    let [_, a, b] = state.scratch_vector;
    let loaded = mxcsr::suspend(state);
    state.scratch_vector[0] = op.function()(state, a, b, immediate as u8);
    if loaded {
        mxcsr::resume(state);
    }
    0
}

/// Repetitions may go element by element.
extern "C" fn no_bulk(_: &mut CpuState, _: u64) {}

extern "C" fn divide(state: &mut CpuState, high: u64, low: u64, divisor: u64, signed: u64) -> u64 {
    let dividend = u128::from(high) << 64 | u128::from(low);
    if divisor == 0 {
        return 0;
    }
    let (quotient, remainder, fits) = if signed != 0 {
        let (dividend, divisor) = (dividend as i128, i128::from(divisor as i64));
        let quotient = dividend.wrapping_div(divisor);
        (quotient as u64, dividend.wrapping_rem(divisor) as u64, i64::try_from(quotient).is_ok())
    } else {
        let quotient = dividend / u128::from(divisor);
        (quotient as u64, (dividend % u128::from(divisor)) as u64, u64::try_from(quotient).is_ok())
    };
    state.scratch[0] = quotient;
    state.scratch[2] = remainder;
    fits.into()
}
