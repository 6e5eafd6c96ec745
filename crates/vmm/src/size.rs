//! Sizes as users write them.

use std::{fmt, str::FromStr};

/// A number of bytes, written as `536870912`, `524288K`, `512M`, `1G` (powers of 1024; `KiB`, `MiB`, `GiB` too).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let shift = match unit.to_ascii_lowercase().trim_end_matches("ib").trim_end_matches('b') {
            "" => 0,
            "k" => 10,
            "m" => 20,
            "g" => 30,
            "t" => 40,
            _ => return Err(format!("`{text}` is no size; write for example 512M or 2G")),
        };
        number
            .parse::<u64>()
            .ok()
            .and_then(|n| n.checked_mul(1 << shift))
            .map(Self)
            .ok_or_else(|| format!("`{text}` is no size; write for example 512M or 2G"))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 >= 1 << shift {
                let whole = self.0 as f64 / f64::from(1u32 << shift);
                return if self.0.is_multiple_of(1 << shift) {
                    write!(f, "{whole:.0} {unit}")
                } else {
                    write!(f, "{whole:.1} {unit}")
                };
            }
        }
        write!(f, "{} bytes", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        for (text, bytes) in [
            ("4096", 4096),
            ("64k", 64 << 10),
            ("512M", 512 << 20),
            ("512MiB", 512 << 20),
            ("2g", 2 << 30),
            ("1GB", 1 << 30),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "M", "-1", "1.5G", "12X", "99999999999999999999", "99999999999T", "0x10"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn shown_as_read() {
        assert_eq!(Size(512 << 20).to_string(), "512 MiB");
        assert_eq!(Size((1 << 30) + (512 << 20)).to_string(), "1.5 GiB");
        assert_eq!(Size(12).to_string(), "12 bytes");
    }
}
