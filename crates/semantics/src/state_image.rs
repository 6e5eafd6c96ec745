//! FXSAVE, FXRSTOR, XSAVE, XSAVEOPT and XRSTOR (SDM Vol. 1 10.5 and ch. 13), in the standard format, for x87 and SSE
//! state. XSAVEC and XSAVES are not announced.
//!
//! Restores load the whole image before they change anything, so that they are restartable; saves change no register,
//! so that they are anyway.

use core::mem::offset_of;

use x86::{
    CpuState, Exception, Width, control,
    fpu::{self, X87},
};

use crate::{Insn, Machine, Register, helper::Helper, operand, sse_data, x87_state};

/// Byte offsets in the image, and its sizes (SDM Vol. 1 table 10-2, 13.4).
mod image {
    pub const INSTRUCTION_POINTER: u64 = 8;
    pub const DATA_POINTER: u64 = 16;
    pub const MXCSR: u64 = 24;
    pub const ST: u64 = 32;
    pub const XMM: u64 = 160;
    pub const XSTATE_BV: u64 = 512;
    pub const XCOMP_BV: u64 = 520;
    /// Qword of the header that must be zero, like XCOMP_BV, in the standard format.
    pub const HEADER_ZERO: u64 = 528;
    pub const FXSAVE_BYTES: u16 = 512;
    pub const XSAVE_BYTES: u16 = 576;
}

/// How the x87 pointers are laid out: 64-bit offsets (REX.W), or 32-bit offset and selector.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pointers {
    Offset64,
    SelectorOffset32,
}

/// Number of XMM registers in the image.
fn xmm_count<M: Machine>(m: &M) -> u8 {
    if m.mode().is_64bit() { 16 } else { 8 }
}

/// `base + offset`.
fn at<M: Machine>(m: &mut M, base: M::Int, offset: u64) -> M::Int {
    let offset = m.constant(Width::Qword, offset);
    m.add(Width::Qword, base, offset)
}

fn load<M: Machine>(m: &mut M, width: Width, base: M::Int, offset: u64) -> Result<M::Int, M::Stop> {
    let address = at(m, base, offset);
    m.load(width, address)
}

fn store<M: Machine>(
    m: &mut M,
    width: Width,
    base: M::Int,
    offset: u64,
    value: M::Int,
) -> Result<(), M::Stop> {
    let address = at(m, base, offset);
    m.store(width, address, value)
}

/// The image's linear address; #GP(0) unless it is a multiple of `alignment`.
fn aligned_address<M: Machine>(
    m: &mut M,
    i: &Insn,
    bytes: u16,
    alignment: u64,
    write: bool,
) -> Result<M::Int, M::Stop> {
    let address = operand::address(m, i, bytes, write)?;
    let low = m.constant(Width::Qword, alignment - 1);
    let low = m.and(Width::Qword, address, low);
    raise_unless_zero(m, low)?;
    Ok(address)
}

/// #GP(0) unless the value (64 bits) is zero.
fn raise_unless_zero<M: Machine>(m: &mut M, value: M::Int) -> Result<(), M::Stop> {
    let zero = m.constant(Width::Qword, 0);
    let valid = m.equal(Width::Qword, value, zero);
    let invalid = m.bool_not(valid);
    m.raise_if(invalid, Exception::GP0)
}

/// Bytes 0..24 and 32..160.
fn save_x87<M: Machine>(m: &mut M, base: M::Int, pointers: Pointers) -> Result<(), M::Stop> {
    let none = m.constant(Width::Qword, 0);
    let words = m.call(Helper::X87ControlWords, 0, none, none)?;
    store(m, Width::Qword, base, 0, words)?;
    for (offset, pointer, selector) in [
        (
            image::INSTRUCTION_POINTER,
            offset_of!(X87, instruction_pointer),
            offset_of!(X87, instruction_selector),
        ),
        (image::DATA_POINTER, offset_of!(X87, data_pointer), offset_of!(X87, data_selector)),
    ] {
        if pointers == Pointers::Offset64 {
            let value = m.state(x87_state::field(pointer), Width::Qword);
            store(m, Width::Qword, base, offset, value)?;
        } else {
            let value = m.state(x87_state::field(pointer), Width::Dword);
            store(m, Width::Dword, base, offset, value)?;
            let value = m.state(x87_state::field(selector), Width::Word);
            let value = m.resize(Width::Word, Width::Dword, value);
            store(m, Width::Dword, base, offset + 4, value)?;
        }
    }
    for half in 0..16 {
        let value = m.call(Helper::X87Register, half, none, none)?;
        store(m, Width::Qword, base, image::ST + half * 8, value)?;
    }
    Ok(())
}

/// Bytes 24..32.
fn save_mxcsr<M: Machine>(m: &mut M, base: M::Int) -> Result<(), M::Stop> {
    let mxcsr = m.mxcsr();
    store(m, Width::Dword, base, image::MXCSR, mxcsr)?;
    let mask = m.constant(Width::Dword, u64::from(fpu::MXCSR_MASK));
    store(m, Width::Dword, base, image::MXCSR + 4, mask)
}

/// Bytes 160..416 (288 outside 64-bit mode).
fn save_xmm<M: Machine>(m: &mut M, base: M::Int) -> Result<(), M::Stop> {
    for index in 0..xmm_count(m) {
        let value = m.xmm(index);
        let address = at(m, base, image::XMM + u64::from(index) * 16);
        m.store_vector(address, value, false)?;
    }
    Ok(())
}

/// The image as loaded, before any of it is taken over.
struct Loaded<M: Machine> {
    words: M::Int,
    /// (offset, selector or nothing) of the instruction and of the data pointer.
    pointers: [(M::Int, Option<M::Int>); 2],
    mxcsr: M::Int,
    st: [(M::Int, M::Int); 8],
    xmm: [M::Vector; 16],
}

fn load_image<M: Machine>(m: &mut M, base: M::Int, pointers: Pointers) -> Result<Loaded<M>, M::Stop> {
    let words = load(m, Width::Qword, base, 0)?;
    let pointer = |m: &mut M, offset| {
        Ok(if pointers == Pointers::Offset64 {
            (load(m, Width::Qword, base, offset)?, None)
        } else {
            let value = load(m, Width::Dword, base, offset)?;
            let selector = load(m, Width::Word, base, offset + 4)?;
            (m.resize(Width::Dword, Width::Qword, value), Some(selector))
        })
    };
    let pointers = [pointer(m, image::INSTRUCTION_POINTER)?, pointer(m, image::DATA_POINTER)?];
    let mxcsr = load(m, Width::Dword, base, image::MXCSR)?;
    let mut st = [(words, words); 8];
    for (offset, register) in (image::ST..).step_by(16).zip(&mut st) {
        let low = load(m, Width::Qword, base, offset)?;
        let high = load(m, Width::Word, base, offset + 8)?;
        *register = (low, m.resize(Width::Word, Width::Qword, high));
    }
    let mut xmm = [m.xmm(0); 16];
    for index in 0..xmm_count(m) {
        let address = at(m, base, image::XMM + u64::from(index) * 16);
        xmm[usize::from(index)] = m.load_vector(address, false)?;
    }
    Ok(Loaded { words, pointers, mxcsr, st, xmm })
}

fn restore_x87<M: Machine>(m: &mut M, loaded: &Loaded<M>) -> Result<(), M::Stop> {
    let none = m.constant(Width::Qword, 0);
    m.call(Helper::X87SetControlWords, 0, loaded.words, none)?;
    for ((pointer, selector), (offset, selector_offset)) in loaded.pointers.iter().zip([
        (offset_of!(X87, instruction_pointer), offset_of!(X87, instruction_selector)),
        (offset_of!(X87, data_pointer), offset_of!(X87, data_selector)),
    ]) {
        m.set_state(x87_state::field(offset), Width::Qword, *pointer);
        let selector = match selector {
            Some(selector) => *selector,
            None => m.constant(Width::Word, 0),
        };
        m.set_state(x87_state::field(selector_offset), Width::Word, selector);
    }
    for (index, (low, high)) in (0..).zip(loaded.st) {
        m.call(Helper::X87SetRegister, index, low, high)?;
    }
    Ok(())
}

fn restore_xmm<M: Machine>(m: &mut M, loaded: &Loaded<M>) {
    for index in 0..xmm_count(m) {
        m.set_xmm(index, loaded.xmm[usize::from(index)]);
    }
}

fn save_fx<M: Machine>(m: &mut M, i: &Insn, pointers: Pointers) -> Result<(), M::Stop> {
    x87_state::check(m, false)?;
    let base = aligned_address(m, i, image::FXSAVE_BYTES, 16, true)?;
    save_x87(m, base, pointers)?;
    save_mxcsr(m, base)?;
    save_xmm(m, base)
}

fn restore_fx<M: Machine>(m: &mut M, i: &Insn, pointers: Pointers) -> Result<(), M::Stop> {
    x87_state::check(m, false)?;
    let base = aligned_address(m, i, image::FXSAVE_BYTES, 16, false)?;
    let loaded = load_image(m, base, pointers)?;
    sse_data::set_mxcsr(m, loaded.mxcsr)?;
    restore_x87(m, &loaded)?;
    restore_xmm(m, &loaded);
    Ok(())
}

/// FXSAVE.
pub fn fxsave<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    save_fx(m, i, Pointers::SelectorOffset32)
}

/// FXSAVE64.
pub fn fxsave64<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    save_fx(m, i, Pointers::Offset64)
}

/// FXRSTOR.
pub fn fxrstor<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    restore_fx(m, i, Pointers::SelectorOffset32)
}

/// FXRSTOR64.
pub fn fxrstor64<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    restore_fx(m, i, Pointers::Offset64)
}

/// #UD if CR4.OSXSAVE is clear, #NM if CR0.TS is set.
fn check_xsave<M: Machine>(m: &mut M) -> Result<(), M::Stop> {
    let cr4 = m.state(offset_of!(CpuState, cr4), Width::Qword);
    let enabled = m.bit(Width::Qword, cr4, control::cr4::OSXSAVE.trailing_zeros());
    let disabled = m.bool_not(enabled);
    m.raise_if(disabled, Exception::UD)?;
    if m.mode().x87_traps() {
        let cr0 = m.state(offset_of!(CpuState, cr0), Width::Qword);
        let task_switched = m.bit(Width::Qword, cr0, control::cr0::TS.trailing_zeros());
        m.raise_if(task_switched, Exception::NM)?;
    }
    Ok(())
}

/// The requested-feature bitmap: XCR0 & EDX:EAX.
fn requested<M: Machine>(m: &mut M) -> M::Int {
    const RAX: u8 = 0;
    const RDX: u8 = 2;
    let eax = m.gpr(Register::new(RAX, Width::Dword));
    let eax = m.resize(Width::Dword, Width::Qword, eax);
    let edx = m.gpr(Register::new(RDX, Width::Dword));
    let edx = m.resize(Width::Dword, Width::Qword, edx);
    let shift = m.constant(Width::Qword, 32);
    let high = m.shift_left(Width::Qword, edx, shift);
    let mask = m.or(Width::Qword, high, eax);
    let xcr0 = m.state(offset_of!(CpuState, xcr0), Width::Qword);
    m.and(Width::Qword, mask, xcr0)
}

/// Whether the bitmap has a component of `mask`.
fn has<M: Machine>(m: &mut M, bitmap: M::Int, mask: u64) -> M::Bool {
    let mask = m.constant(Width::Qword, mask);
    let bits = m.and(Width::Qword, bitmap, mask);
    let zero = m.constant(Width::Qword, 0);
    let none = m.equal(Width::Qword, bits, zero);
    m.bool_not(none)
}

/// Stores the requested components (`optimized`: those of them that are in use) and updates XSTATE_BV. SSE state
/// counts as in use always, x87 state if it is not in its initial configuration.
fn save_x<M: Machine>(m: &mut M, i: &Insn, pointers: Pointers, optimized: bool) -> Result<(), M::Stop> {
    use control::xcr0::{AVX, SSE, X87};
    check_xsave(m)?;
    let base = aligned_address(m, i, image::XSAVE_BYTES, 64, true)?;
    let requested = requested(m);
    let header = at(m, base, image::XSTATE_BV);
    let old = m.load_for_update(Width::Qword, header)?;

    let none = m.constant(Width::Qword, 0);
    let x87_in_use = m.call(Helper::X87InUse, 0, none, none)?;
    let always = m.constant(Width::Qword, !X87);
    let in_use = m.or(Width::Qword, x87_in_use, always);
    let saved = m.and(Width::Qword, requested, in_use);

    let with_x87 = has(m, if optimized { saved } else { requested }, X87);
    m.when(with_x87, |m| save_x87(m, base, pointers))?;
    let with_mxcsr = has(m, requested, SSE | AVX);
    m.when(with_mxcsr, |m| save_mxcsr(m, base))?;
    let with_sse = has(m, requested, SSE);
    m.when(with_sse, |m| save_xmm(m, base))?;

    let others = m.not(Width::Qword, requested);
    let kept = m.and(Width::Qword, old, others);
    let present = m.or(Width::Qword, kept, saved);
    m.store(Width::Qword, header, present)
}

fn restore_x<M: Machine>(m: &mut M, i: &Insn, pointers: Pointers) -> Result<(), M::Stop> {
    use control::xcr0::{AVX, SSE, X87};
    check_xsave(m)?;
    let base = aligned_address(m, i, image::XSAVE_BYTES, 64, false)?;
    let requested = requested(m);

    let present = load(m, Width::Qword, base, image::XSTATE_BV)?;
    let xcr0 = m.state(offset_of!(CpuState, xcr0), Width::Qword);
    let disabled = m.not(Width::Qword, xcr0);
    let foreign = m.and(Width::Qword, present, disabled);
    raise_unless_zero(m, foreign)?;
    for offset in [image::XCOMP_BV, image::HEADER_ZERO] {
        let must_be_zero = load(m, Width::Qword, base, offset)?;
        raise_unless_zero(m, must_be_zero)?;
    }

    let loaded = load_image(m, base, pointers)?;
    let with_mxcsr = has(m, requested, SSE | AVX);
    m.when(with_mxcsr, |m| sse_data::set_mxcsr(m, loaded.mxcsr))?;

    let restored = m.and(Width::Qword, requested, present);
    let absent = m.not(Width::Qword, present);
    let reset = m.and(Width::Qword, requested, absent);
    let restore = has(m, restored, X87);
    m.when(restore, |m| restore_x87(m, &loaded))?;
    let initialize = has(m, reset, X87);
    m.when(initialize, |m| {
        let none = m.constant(Width::Qword, 0);
        m.call(Helper::X87Reset, 0, none, none).map(|_| ())
    })?;
    let restore = has(m, restored, SSE);
    m.when(restore, |m| {
        restore_xmm(m, &loaded);
        Ok(())
    })?;
    let initialize = has(m, reset, SSE);
    m.when(initialize, |m| {
        let zero = m.constant(Width::Qword, 0);
        let zero = m.vector(zero, zero);
        for index in 0..xmm_count(m) {
            m.set_xmm(index, zero);
        }
        Ok(())
    })
}

/// XSAVE.
pub fn xsave<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    save_x(m, i, Pointers::SelectorOffset32, false)
}

/// XSAVE64.
pub fn xsave64<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    save_x(m, i, Pointers::Offset64, false)
}

/// XSAVEOPT.
pub fn xsaveopt<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    save_x(m, i, Pointers::SelectorOffset32, true)
}

/// XSAVEOPT64.
pub fn xsaveopt64<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    save_x(m, i, Pointers::Offset64, true)
}

/// XRSTOR.
pub fn xrstor<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    restore_x(m, i, Pointers::SelectorOffset32)
}

/// XRSTOR64.
pub fn xrstor64<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    restore_x(m, i, Pointers::Offset64)
}
