//! Integer arithmetic of a width on zero-extended u64s, where it is more than one operation.

use x86::Width;

/// High half of the product.
#[inline]
pub(crate) fn multiply_high(width: Width, signed: bool, a: u64, b: u64) -> u64 {
    let product = if signed {
        (i128::from(width.sign_extend(a) as i64) * i128::from(width.sign_extend(b) as i64)) as u128
    } else {
        u128::from(a) * u128::from(b)
    };
    width.truncate((product >> width.bits()) as u64)
}

/// Rotates left; count is taken modulo the width's bits.
#[inline]
pub(crate) fn rotate_left(width: Width, a: u64, count: u32) -> u64 {
    match width {
        Width::Byte => u64::from((a as u8).rotate_left(count)),
        Width::Word => u64::from((a as u16).rotate_left(count)),
        Width::Dword => u64::from((a as u32).rotate_left(count)),
        Width::Qword => a.rotate_left(count),
    }
}

/// Bit position of a vector's element.
#[inline(always)]
pub(crate) fn lane_shift(width: Width, index: u8) -> u32 {
    (u32::from(index) * width.bits()) & 127
}

/// (high:low) / divisor: quotient and remainder, unless the divisor is zero or the quotient does not fit.
#[inline]
pub(crate) fn divide(width: Width, signed: bool, high: u64, low: u64, divisor: u64) -> Option<(u64, u64)> {
    if width != Width::Qword {
        let dividend = high << width.bits() | low;
        return if signed {
            divide_signed(width, dividend, divisor)
        } else {
            divide_unsigned(width, dividend, divisor)
        };
    }
    match signed {
        // Most dividends are extended from one half, and the host's 64-bit division is much faster than 128 bits.
        true if high == (low as i64 >> 63) as u64 => divide_signed(width, low, divisor),
        true => divide_signed_wide(high, low, divisor),
        false if high == 0 => divide_unsigned(width, low, divisor),
        false => divide_unsigned_wide(high, low, divisor),
    }
}

fn divide_unsigned(width: Width, dividend: u64, divisor: u64) -> Option<(u64, u64)> {
    let quotient = dividend.checked_div(divisor)?;
    (quotient <= width.mask()).then(|| (quotient, dividend % divisor))
}

/// The dividend has twice the width, or 64 bits.
fn divide_signed(width: Width, dividend: u64, divisor: u64) -> Option<(u64, u64)> {
    let unused = 64 - (2 * width.bits()).min(64);
    let dividend = (dividend << unused) as i64 >> unused;
    let divisor = width.sign_extend(divisor) as i64;
    let quotient = dividend.checked_div(divisor)?;
    let fits = width.sign_extend(quotient as u64) as i64 == quotient;
    fits.then(|| (width.truncate(quotient as u64), width.truncate((dividend % divisor) as u64)))
}

fn divide_unsigned_wide(high: u64, low: u64, divisor: u64) -> Option<(u64, u64)> {
    if high >= divisor {
        return None;
    }
    let dividend = u128::from(high) << 64 | u128::from(low);
    let divisor = u128::from(divisor);
    Some(((dividend / divisor) as u64, (dividend % divisor) as u64))
}

fn divide_signed_wide(high: u64, low: u64, divisor: u64) -> Option<(u64, u64)> {
    let dividend = (u128::from(high) << 64 | u128::from(low)) as i128;
    let divisor = i128::from(divisor as i64);
    let quotient = i64::try_from(dividend.checked_div(divisor)?).ok()?;
    Some((quotient as u64, (dividend % divisor) as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotients_at_the_edge() {
        // -2^31 fits, 2^31 does not; 8 bits likewise.
        let minimum = 0x8000_0000;
        assert_eq!(divide(Width::Dword, true, 0xffff_ffff, minimum, 1), Some((minimum, 0)));
        assert_eq!(divide(Width::Dword, true, 0xffff_ffff, minimum, 0xffff_ffff), None);
        assert_eq!(divide(Width::Byte, true, 0xff, 0x80, 1), Some((0x80, 0)));
        assert_eq!(divide(Width::Byte, false, 1, 0, 1), None);
        assert_eq!(divide(Width::Qword, true, u64::MAX, 1 << 63, u64::MAX), None);
        assert_eq!(divide(Width::Qword, true, 1 << 63, 0, u64::MAX), None);
        assert_eq!(divide(Width::Qword, false, 1, 0, 2), Some((1 << 63, 0)));
        assert_eq!(divide(Width::Qword, false, 2, 0, 2), None);
        assert_eq!(divide(Width::Word, true, 0xffff, 0xfff9, 2), Some((0xfffd, 0xffff)));
    }
}
