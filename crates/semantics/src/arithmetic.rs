//! Binary arithmetic (SDM Vol. 1 5.1.2).

use memory::AtomicOp;
use x86::{Exception, Width};

use crate::{Flag, Insn, Machine, Operand, Register, operand};

const RAX: u8 = 0;
const RDX: u8 = 2;
const AH: Register = Register { index: RAX, width: Width::Byte, high: true };

/// Destination := compute(destination), then flags(old destination, result). `atomic` is the same as a locked
/// read-modify-write of memory.
#[inline(always)]
pub(crate) fn update<M: Machine>(
    m: &mut M,
    i: &Insn,
    atomic: (AtomicOp, M::Int),
    compute: impl FnOnce(&mut M, Width, M::Int) -> M::Int,
    flags: impl FnOnce(&mut M, Width, M::Int, M::Int),
) -> Result<(), M::Stop> {
    let width = i.operand_width(0);
    if i.lock && i.operand(0) == Operand::Memory {
        let address = operand::address(m, i, width.bytes() as u16, true)?;
        let a = m.atomic(atomic.0, width, address, atomic.1)?;
        let result = compute(m, width, a);
        flags(m, width, a, result);
        return Ok(());
    }
    let (place, a) = operand::read_place(m, i, 0)?;
    let result = compute(m, width, a);
    operand::write_place(m, place, width, result)?;
    flags(m, width, a, result);
    Ok(())
}

/// ADD.
#[inline(always)]
pub fn add<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let b = operand::read_as(m, i, 1, i.operand_width(0))?;
    update(
        m,
        i,
        (AtomicOp::Add, b),
        |m, width, a| m.add(width, a, b),
        |m, width, a, result| m.set_add_flags(width, a, b, None, result),
    )
}

/// SUB.
#[inline(always)]
pub fn sub<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let b = operand::read_as(m, i, 1, i.operand_width(0))?;
    update(
        m,
        i,
        (AtomicOp::Sub, b),
        |m, width, a| m.sub(width, a, b),
        |m, width, a, result| m.set_sub_flags(width, a, b, None, result),
    )
}

/// ADC.
pub fn adc<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let width = i.operand_width(0);
    let b = operand::read_as(m, i, 1, width)?;
    let carry = m.flag(Flag::Carry);
    let carry_value = m.bool_to_int(width, carry);
    let addend = m.add(width, b, carry_value);
    update(
        m,
        i,
        (AtomicOp::Add, addend),
        |m, width, a| m.add(width, a, addend),
        |m, width, a, result| m.set_add_flags(width, a, b, Some(carry), result),
    )
}

/// ADCX: adds with CF and changes no other flag.
pub fn adcx<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    add_with(m, i, Flag::Carry)
}

/// ADOX: the same with OF in the place of CF.
pub fn adox<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    add_with(m, i, Flag::Overflow)
}

fn add_with<M: Machine>(m: &mut M, i: &Insn, flag: Flag) -> Result<(), M::Stop> {
    let width = i.operand_width(0);
    let b = operand::read(m, i, 1)?;
    let a = operand::read(m, i, 0)?;
    let carry = m.flag(flag);
    let (sum, carry) = if width == Width::Qword {
        m.add_with_carry(a, b, carry)
    } else {
        let (a, b) = (m.resize(width, Width::Qword, a), m.resize(width, Width::Qword, b));
        let carry = m.bool_to_int(Width::Qword, carry);
        let sum = m.add(Width::Qword, a, b);
        let sum = m.add(Width::Qword, sum, carry);
        (m.resize(Width::Qword, width, sum), m.bit(Width::Qword, sum, width.bits()))
    };
    operand::write(m, i, 0, sum)?;
    m.set_flag(flag, carry);
    Ok(())
}

/// SBB.
pub fn sbb<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let width = i.operand_width(0);
    let b = operand::read_as(m, i, 1, width)?;
    let borrow = m.flag(Flag::Carry);
    let borrow_value = m.bool_to_int(width, borrow);
    let subtrahend = m.add(width, b, borrow_value);
    update(
        m,
        i,
        (AtomicOp::Sub, subtrahend),
        |m, width, a| m.sub(width, a, subtrahend),
        |m, width, a, result| m.set_sub_flags(width, a, b, Some(borrow), result),
    )
}

/// CMP.
#[inline(always)]
pub fn cmp<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let width = i.operand_width(0);
    let a = operand::read(m, i, 0)?;
    let b = operand::read_as(m, i, 1, width)?;
    let result = m.sub(width, a, b);
    m.set_sub_flags(width, a, b, None, result);
    Ok(())
}

/// INC: CF keeps.
#[inline(always)]
pub fn inc<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let one = m.constant(i.operand_width(0), 1);
    update(
        m,
        i,
        (AtomicOp::Add, one),
        |m, width, a| m.add(width, a, one),
        |m, width, a, result| m.set_increment_flags(width, a, one, result),
    )
}

/// DEC: CF keeps.
#[inline(always)]
pub fn dec<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let one = m.constant(i.operand_width(0), 1);
    update(
        m,
        i,
        (AtomicOp::Sub, one),
        |m, width, a| m.sub(width, a, one),
        |m, width, a, result| m.set_decrement_flags(width, a, one, result),
    )
}

/// NEG. No atomic operation negates: the locked form compares and exchanges, and starts again if it lost the race.
#[inline(always)]
pub fn neg<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let width = i.operand_width(0);
    let zero = m.constant(width, 0);
    let (place, a) = operand::read_place(m, i, 0)?;
    let result = m.sub(width, zero, a);
    if let (operand::Place::Memory(address), true) = (place, i.lock) {
        let seen = m.compare_exchange(width, address, a, result)?;
        m.set_sub_flags(width, zero, a, None, result);
        let won = m.equal(width, seen, a);
        let lost = m.bool_not(won);
        return m.branch(lost, i.rip);
    }
    operand::write_place(m, place, width, result)?;
    m.set_sub_flags(width, zero, a, None, result);
    Ok(())
}

/// MUL: rDX:rAX := rAX * source; CF = OF = the high half is not zero. SF, ZF and PF are undefined: here from the low
/// half, and AF clear.
pub fn mul<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let width = i.operand_width(0);
    let b = operand::read(m, i, 0)?;
    let a = m.gpr(Register::new(RAX, width));
    let (low, high) = wide_product(m, width, false, a, b);
    write_wide(m, width, low, high);
    let zero = m.constant(width, 0);
    let fits = m.equal(width, high, zero);
    set_product_flags(m, width, low, fits);
    Ok(())
}

/// IMUL with one, two or three operands; CF = OF = the signed result does not fit the destination.
#[inline(always)]
pub fn imul<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let width = i.operand_width(0);
    if i.operand(1) == Operand::None {
        let b = operand::read(m, i, 0)?;
        let a = m.gpr(Register::new(RAX, width));
        let (low, high) = wide_product(m, width, true, a, b);
        write_wide(m, width, low, high);
        let fits = is_sign_extension(m, width, low, high);
        set_product_flags(m, width, low, fits);
        return Ok(());
    }
    // IMUL r, r/m multiplies the destination; IMUL r, r/m, imm the source by the immediate.
    let second = if i.operand(2) == Operand::None { 0 } else { 2 };
    let a = operand::read(m, i, 1)?;
    let b = operand::read_as(m, i, second, width)?;
    let (low, fits) = match width {
        Width::Qword => {
            let low = m.multiply(width, a, b);
            let high = m.multiply_high(width, true, a, b);
            (low, is_sign_extension(m, width, low, high))
        }
        _ => {
            let a = m.resize_signed(width, Width::Qword, a);
            let b = m.resize_signed(width, Width::Qword, b);
            let product = m.multiply(Width::Qword, a, b);
            let low = m.resize(Width::Qword, width, product);
            let extended = m.resize_signed(width, Width::Qword, low);
            (low, m.equal(Width::Qword, extended, product))
        }
    };
    operand::write(m, i, 0, low)?;
    set_product_flags(m, width, low, fits);
    Ok(())
}

/// Low and high half of a product.
fn wide_product<M: Machine>(m: &mut M, width: Width, signed: bool, a: M::Int, b: M::Int) -> (M::Int, M::Int) {
    if width == Width::Qword {
        return m.multiply_wide(signed, a, b);
    }
    let (a, b) = if signed {
        (m.resize_signed(width, Width::Qword, a), m.resize_signed(width, Width::Qword, b))
    } else {
        (m.resize(width, Width::Qword, a), m.resize(width, Width::Qword, b))
    };
    let product = m.multiply(Width::Qword, a, b);
    let bits = m.constant(Width::Qword, u64::from(width.bits()));
    let shifted = m.shift_right(Width::Qword, product, bits);
    (m.resize(Width::Qword, width, product), m.resize(Width::Qword, width, shifted))
}

/// Writes AX (bytes) or rDX:rAX.
fn write_wide<M: Machine>(m: &mut M, width: Width, low: M::Int, high: M::Int) {
    m.set_gpr(Register::new(RAX, width), low);
    let upper = if width == Width::Byte { AH } else { Register::new(RDX, width) };
    m.set_gpr(upper, high);
}

fn is_sign_extension<M: Machine>(m: &mut M, width: Width, low: M::Int, high: M::Int) -> M::Bool {
    let last = m.constant(width, u64::from(width.bits() - 1));
    let sign = m.shift_right_signed(width, low, last);
    m.equal(width, high, sign)
}

fn set_product_flags<M: Machine>(m: &mut M, width: Width, low: M::Int, fits: M::Bool) {
    m.set_logic_flags(width, low);
    let overflow = m.bool_not(fits);
    m.set_flag(Flag::Carry, overflow);
    m.set_flag(Flag::Overflow, overflow);
}

/// DIV. The status flags are undefined: here they keep.
pub fn div<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    divide(m, i, false)
}

/// IDIV.
pub fn idiv<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    divide(m, i, true)
}

fn divide<M: Machine>(m: &mut M, i: &Insn, signed: bool) -> Result<(), M::Stop> {
    let width = i.operand_width(0);
    let divisor = operand::read(m, i, 0)?;
    let upper = if width == Width::Byte { AH } else { Register::new(RDX, width) };
    let high = m.gpr(upper);
    let low = m.gpr(Register::new(RAX, width));
    let (quotient, remainder) = m.divide(width, signed, high, low, divisor)?;
    write_wide(m, width, quotient, remainder);
    Ok(())
}

/// BOUND (not in 64-bit mode): #BR unless lower <= index <= upper, signed.
/// As on Intel's processors, the upper bound is not read for an index below the lower one.
pub fn bound<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let width = i.operand_width(0);
    let bytes = width.bytes();
    let index = operand::read(m, i, 0)?;
    let address = operand::address(m, i, bytes as u16 * 2, false)?;
    let lower = m.load(width, address)?;
    let below = m.less(width, index, lower);
    m.raise_if(below, Exception::BR)?;
    let step = m.constant(Width::Qword, bytes);
    let second = m.add(Width::Qword, address, step);
    let upper = m.load(width, second)?;
    let above = m.less(width, upper, index);
    m.raise_if(above, Exception::BR)
}
