//! The status flags in source form ([`x86::Flags`]): what instructions leave there, and what conditions read.

use semantics::{ConditionCode, Flag};
use x86::{Flags, Width, flags};

/// The bits of a value of that width moved to the top of 64.
#[inline(always)]
fn to_top(width: Width, value: u64) -> u64 {
    value << (64 - width.bits())
}

/// After `result = a + b + carry`.
#[inline(always)]
pub(crate) fn after_add(width: Width, a: u64, b: u64, carry: Option<bool>, result: u64) -> Flags {
    let carries = match carry {
        None => result < a,
        Some(carry) => result < a || (carry && result == a),
    };
    Flags {
        carry: u64::from(carries),
        zero: result,
        sign: to_top(width, result),
        parity: result,
        adjust: a ^ b ^ result,
        overflow: to_top(width, (a ^ result) & (b ^ result)),
    }
}

/// After `result = a - b - borrow`.
#[inline(always)]
pub(crate) fn after_sub(width: Width, a: u64, b: u64, borrow: Option<bool>, result: u64) -> Flags {
    let borrows = match borrow {
        None => a < b,
        Some(borrow) => a < b || (borrow && a == b),
    };
    Flags {
        carry: u64::from(borrows),
        zero: result,
        sign: to_top(width, result),
        parity: result,
        adjust: a ^ b ^ result,
        overflow: to_top(width, (a ^ b) & (a ^ result)),
    }
}

/// After AND, OR, XOR, TEST.
#[inline(always)]
pub(crate) fn after_logic(width: Width, result: u64) -> Flags {
    Flags { zero: result, sign: to_top(width, result), parity: result, ..Flags::default() }
}

/// ZF, SF and PF.
#[inline(always)]
pub(crate) fn set_result(flags: &mut Flags, width: Width, result: u64) {
    flags.zero = result;
    flags.sign = to_top(width, result);
    flags.parity = result;
}

/// PF.
#[inline]
fn parity(flags: &Flags) -> bool {
    (flags.parity as u8).count_ones() & 1 == 0
}

/// One flag.
#[inline(always)]
pub(crate) fn read(from: &Flags, flag: Flag) -> bool {
    match flag {
        Flag::Carry => from.carry != 0,
        Flag::Parity => parity(from),
        Flag::Adjust => from.adjust & flags::AF != 0,
        Flag::Zero => from.zero == 0,
        Flag::Sign => (from.sign as i64) < 0,
        Flag::Overflow => (from.overflow as i64) < 0,
    }
}

/// Sets one flag.
#[inline(always)]
pub(crate) fn write(to: &mut Flags, flag: Flag, value: bool) {
    match flag {
        Flag::Carry => to.carry = u64::from(value),
        Flag::Parity => to.parity = u64::from(!value),
        Flag::Adjust => to.adjust = if value { flags::AF } else { 0 },
        Flag::Zero => to.zero = u64::from(!value),
        Flag::Sign => to.sign = u64::from(value) << 63,
        Flag::Overflow => to.overflow = u64::from(value) << 63,
    }
}

/// A condition code.
#[inline(always)]
pub(crate) fn condition(flags: &Flags, code: ConditionCode) -> bool {
    let below_or_equal = || (flags.carry != 0) | (flags.zero == 0);
    let less = || ((flags.sign ^ flags.overflow) as i64) < 0;
    match code {
        ConditionCode::O => (flags.overflow as i64) < 0,
        ConditionCode::No => (flags.overflow as i64) >= 0,
        ConditionCode::B => flags.carry != 0,
        ConditionCode::Ae => flags.carry == 0,
        ConditionCode::E => flags.zero == 0,
        ConditionCode::Ne => flags.zero != 0,
        ConditionCode::Be => below_or_equal(),
        ConditionCode::A => !below_or_equal(),
        ConditionCode::S => (flags.sign as i64) < 0,
        ConditionCode::Ns => (flags.sign as i64) >= 0,
        ConditionCode::P => parity(flags),
        ConditionCode::Np => !parity(flags),
        ConditionCode::L => less(),
        ConditionCode::Ge => !less(),
        ConditionCode::Le => (flags.zero == 0) | less(),
        ConditionCode::G => !((flags.zero == 0) | less()),
    }
}
