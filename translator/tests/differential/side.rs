//! [`Side`]: one of the two processors of a case, and what compiled code calls, over its MMU.

use std::sync::OnceLock;

use memory::{AtomicOp, CodePages, Mmu, Ram};
use semantics::Repetition;
use transvisor_translator::{
    Thunks,
    abi::{
        FIRST_RUNTIME_HELPER, JUMP_CACHE_ENTRIES, JumpEntry, RuntimeFunctions, RuntimeHelper, SlowPath,
        SlowPathFn,
    },
};
use x86::{CpuState, GuestPhys, GuestVirt, PAGE_SIZE, Width, control, paging};

use super::common::{
    FunctionTable, abandon, clobber, function_table, pack_flags,
    random::{DATA, DATA_SIZE},
    settle_flags,
};

const RAM_SIZE: u64 = 1 << 20;

/// A processor with memory of its own.
pub struct Side {
    pub state: Box<CpuState>,
    pub mmu: Box<Mmu>,
    _table: FunctionTable,
    _jumps: Vec<JumpEntry>,
}

impl Side {
    pub fn new(state: fn() -> Box<CpuState>) -> Self {
        let ram = Ram::new(RAM_SIZE).unwrap();
        let code_pages = CodePages::new(&ram);
        let mut mmu = Box::new(Mmu::new(ram, code_pages));
        let mut table = function_table(thunks());
        table[FIRST_RUNTIME_HELPER + RuntimeHelper::Bulk as usize] = bulk as *const u8;
        let jumps = vec![JumpEntry { rip: u64::MAX, code: 0, addend: 0, mode: 0 }; JUMP_CACHE_ENTRIES];
        let mut state = state();
        if state.mode.is_64bit() {
            map(&mut state, mmu.ram());
        }
        state.helpers = table.as_ptr();
        transvisor_translator::carried::attach(&mut state);
        state.jump_cache = jumps.as_ptr().cast_mut().cast();
        state.engine = (&raw mut *mmu).cast();
        mmu.select_view(&mut state);
        Self { state, mmu, _table: table, _jumps: jumps }
    }

    pub fn data(&self) -> Vec<u8> {
        let mut bytes = vec![0; (DATA_SIZE + 0x2_0000) as usize];
        self.mmu.ram().read(GuestPhys(DATA - 0x1_0000), &mut bytes).unwrap();
        bytes
    }

    pub fn all(&self) -> Vec<u8> {
        let mut bytes = vec![0; RAM_SIZE as usize];
        self.mmu.ram().read(GuestPhys(0), &mut bytes).unwrap();
        bytes
    }

    pub fn set_all(&self, bytes: &[u8]) {
        self.mmu.ram().write(GuestPhys(0), bytes).unwrap();
    }

    pub fn set_data(&self, bytes: &[u8]) {
        self.mmu.ram().write(GuestPhys(DATA - 0x1_0000), bytes).unwrap();
    }
}

/// Where the page tables are, which are not mapped themselves.
const TABLES: u64 = 0x8_0000;

/// Everything is mapped from here on too.
pub const HIGH: u64 = 0x5555_5540_0000;

/// Turns paging on. Pages that are neighbours are so nowhere in RAM, some can't be written, and one is missing.
fn map(state: &mut CpuState, ram: &Ram) {
    let all = paging::PRESENT | paging::WRITABLE | paging::USER | paging::ACCESSED | paging::DIRTY;
    let write = |address: u64, entry: u64| ram.write(GuestPhys(address), &entry.to_le_bytes()).unwrap();
    for level in 0..3 {
        let next = (TABLES + (level + 1) * PAGE_SIZE) | all;
        write(TABLES + level * PAGE_SIZE, next);
        let index = HIGH >> (39 - 9 * level) & 511;
        write(TABLES + level * PAGE_SIZE + 8 * index, next);
    }
    for page in 0..TABLES / PAGE_SIZE {
        let rights = match page % 16 {
            _ if page == 0x1d => 0,
            9 => all & !paging::WRITABLE,
            _ => all,
        };
        write(TABLES + 3 * PAGE_SIZE + 8 * page, ((page ^ 1) * PAGE_SIZE) | rights);
    }
    state.cr3 = TABLES;
    state.cr4 |= control::cr4::PAE;
    state.efer |= control::efer::LME;
    state.cr0 |= control::cr0::PG | control::cr0::WP;
    state.update_mode();
}

fn mmu<'a>(state: *mut CpuState) -> (&'a CpuState, &'a mut Mmu) {
    clobber();
    // SAFETY: `Side::new` made `engine` point to the side's Mmu, which nothing else refers to while code runs.
    unsafe { (&*state, &mut *(*state).engine.cast::<Mmu>()) }
}

unsafe extern "C" fn bulk(s: S, repetition: u64) {
    let (_, mmu) = mmu(s);
    // SAFETY: the state is the caller's, and nobody uses it meanwhile.
    let state = unsafe { &mut *s };
    interpreter::bulk::run(state, mmu, Repetition::from_bits(repetition).unwrap());
}

/// Gives a result to compiled code.
fn done(state: *mut CpuState, result: Result<u64, memory::Stop>) -> u64 {
    let Ok(value) = result else { return 0 };
    // SAFETY: the state is the caller's.
    unsafe { (*state).scratch[0] = value };
    1
}

fn vector_done(state: *mut CpuState, result: Result<u128, memory::Stop>) -> u64 {
    let Ok(value) = result else { return 0 };
    // SAFETY: the state is the caller's.
    unsafe { (*state).scratch_vector[0] = value };
    1
}

fn width(bytes: u64) -> Width {
    Width::from_bytes(bytes as usize).unwrap()
}

type S = *mut CpuState;

unsafe extern "C" fn load<const N: u64>(s: S, address: u64, _: u64, _: u64, _: u64) -> u64 {
    let (state, mmu) = mmu(s);
    done(s, mmu.load(state, GuestVirt(address), width(N)))
}

unsafe extern "C" fn update<const N: u64>(s: S, address: u64, _: u64, _: u64, _: u64) -> u64 {
    let (state, mmu) = mmu(s);
    done(s, mmu.load_for_update(state, GuestVirt(address), width(N)))
}

unsafe extern "C" fn store<const N: u64>(s: S, address: u64, value: u64, _: u64, _: u64) -> u64 {
    let (state, mmu) = mmu(s);
    mmu.store(state, GuestVirt(address), width(N), value).is_ok().into()
}

unsafe extern "C" fn load_vector(s: S, address: u64, _: u64, _: u64, _: u64) -> u64 {
    let (state, mmu) = mmu(s);
    vector_done(s, mmu.load128(state, GuestVirt(address)))
}

unsafe extern "C" fn store_vector(s: S, address: u64, _: u64, _: u64, _: u64) -> u64 {
    let (state, mmu) = mmu(s);
    mmu.store128(state, GuestVirt(address), state.scratch_vector[0]).is_ok().into()
}

unsafe extern "C" fn atomic(s: S, address: u64, operand: u64, op: u64, bytes: u64) -> u64 {
    use AtomicOp::*;
    let op = [Add, Sub, And, Or, Xor, Exchange][op as usize];
    let (state, mmu) = mmu(s);
    done(s, mmu.atomic(state, GuestVirt(address), width(bytes), op, operand))
}

unsafe extern "C" fn compare_exchange(s: S, address: u64, expected: u64, new: u64, bytes: u64) -> u64 {
    let (state, mmu) = mmu(s);
    done(s, mmu.compare_exchange(state, GuestVirt(address), width(bytes), expected, new))
}

unsafe extern "C" fn compare_exchange_pair(s: S, address: u64, _: u64, _: u64, _: u64) -> u64 {
    let (state, mmu) = mmu(s);
    let [_, expected, new] = state.scratch_vector;
    vector_done(s, mmu.compare_exchange128(state, GuestVirt(address), expected, new))
}

unsafe extern "C" fn probe_write(s: S, address: u64, bytes: u64, _: u64, _: u64) -> u64 {
    let (state, mmu) = mmu(s);
    mmu.probe_write(state, GuestVirt(address), bytes).is_ok().into()
}

unsafe extern "C" fn fill<const WRITE: bool>(s: S, address: u64, bytes: u64, mask: u64, _: u64) -> u64 {
    let (state, mmu) = mmu(s);
    let addend = mmu.try_fill(state, GuestVirt(address), bytes, WRITE).filter(|_| address & mask == 0);
    addend.map_or(0, |addend| done(s, Ok(addend)))
}

fn thunks() -> &'static Thunks {
    static THUNKS: OnceLock<Thunks> = OnceLock::new();
    THUNKS.get_or_init(|| {
        let slow_paths: [SlowPathFn; SlowPath::ALL.len()] = [
            load::<1>,
            load::<2>,
            load::<4>,
            load::<8>,
            load_vector,
            update::<1>,
            update::<2>,
            update::<4>,
            update::<8>,
            store::<1>,
            store::<2>,
            store::<4>,
            store::<8>,
            store_vector,
            atomic,
            compare_exchange,
            compare_exchange_pair,
            probe_write,
            settle_flags,
            fill::<false>,
            fill::<true>,
            pack_flags,
        ];
        Thunks::new(&RuntimeFunctions { slow_paths, abandon }).unwrap()
    })
}
