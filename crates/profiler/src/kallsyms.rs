//! The symbol table of a Linux kernel, found in its memory.
//!
//! A kernel with CONFIG_KALLSYMS has its own symbols in its read-only data (scripts/kallsyms.c makes it): names as
//! sequences of tokens, a table of the 256 tokens, offsets relative to a base. The token table gives itself away: digits and
//! letters stand for themselves in it, so `0\01\02\0…9\0` is there, and the index after it must agree. All else lies around it,
//! in an order that depends on the version:
//!
//! - up to 6.3: offsets, relative base, number of symbols, names, markers, \[sequence,\] token table, token index
//! - since 6.4: number of symbols, names, markers, token table, token index, offsets, relative base
//!
//! Each begins at a multiple of 8. Every step is checked, so what merely looks like a table is passed over. With KASLR the
//! kernel has relocated the base itself. Modules have tables of their own ([`crate::guest`]).

use crate::symbols::Symbols;

/// Guest-physical memory.
pub trait GuestMemory {
    /// Bytes of it, from address 0 on; holes read as refused.
    fn size(&self) -> u64;
    /// Reads; false if there is no such memory.
    fn read(&self, address: u64, bytes: &mut [u8]) -> bool;
}

const TOKENS: usize = 256;
const DIGITS: &[u8; 20] = b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\0";
/// Symbols between two markers.
const STRIDE: usize = 256;
/// No table is larger, and no kernel has more symbols.
const MOST_BYTES: usize = 16 << 20;
const MOST_SYMBOLS: usize = 1 << 20;
/// What is searched at a time, and how far pieces overlap.
const CHUNK: usize = 1 << 20;
const OVERLAP: usize = 64;

/// Searches all memory.
pub fn find(memory: &dyn GuestMemory) -> Option<Symbols> {
    let mut found = None;
    search(memory, DIGITS, |at| {
        found = table_around(memory, at);
        found.is_some()
    });
    let (entries, per_cpu) = found?;
    let mut symbols = Symbols::new(entries, "kallsyms in guest memory".into());
    symbols.per_cpu = per_cpu;
    Some(symbols)
}

/// The kernel's banner: `Linux version 6.1.0…`.
pub fn find_banner(memory: &dyn GuestMemory) -> Option<String> {
    let mut banner = None;
    search(memory, BANNER, |at| {
        let mut bytes = [0; 512];
        if memory.read(at, &mut bytes) {
            banner = find_banner_in(&bytes);
        }
        banner.is_some()
    });
    banner
}

const BANNER: &[u8] = b"Linux version ";

/// The same in some bytes.
pub fn find_banner_in(bytes: &[u8]) -> Option<String> {
    bytes.windows(BANNER.len()).enumerate().filter(|(_, window)| *window == BANNER).find_map(|(at, _)| {
        let rest = &bytes[at..];
        let line = &rest[..rest.iter().take(500).position(|&byte| byte == b'\n')?];
        let digit = line.get(BANNER.len()).is_some_and(u8::is_ascii_digit);
        // A format string is no banner, nor is the text as a compressed kernel has it, in pieces.
        let is_plain = line.iter().all(|byte| (b' '..=b'~').contains(byte)) && !line.contains(&b'%');
        // Linux 6 has one without the number of the build too.
        let is_numbered = line.windows(2).any(|pair| pair[0] == b'#' && pair[1].is_ascii_digit());
        (digit && is_plain && is_numbered).then(|| String::from_utf8_lossy(line).into_owned())
    })
}

/// Calls `found` with every place of a pattern, of up to 64 bytes, until that says it is satisfied.
pub(crate) fn search(memory: &dyn GuestMemory, pattern: &[u8], mut found: impl FnMut(u64) -> bool) {
    let finder = memchr::memmem::Finder::new(pattern);
    let mut buffer = vec![0; CHUNK + OVERLAP];
    let mut at = 0;
    while at < memory.size() {
        let length = buffer.len().min((memory.size() - at) as usize);
        let bytes = &mut buffer[..length];
        if memory.read(at, bytes) {
            // Those that begin in the overlap are found again.
            if finder.find_iter(bytes).any(|place| place < CHUNK && found(at + place as u64)) {
                return;
            }
        }
        at += CHUNK as u64;
    }
}

/// The part of memory around a token table.
struct Around {
    bytes: Vec<u8>,
}

impl Around {
    fn word(&self, at: usize) -> Option<u32> {
        Some(u32::from_le_bytes(self.bytes.get(at..at + 4)?.try_into().ok()?))
    }

    fn long(&self, at: usize) -> Option<u64> {
        Some(u64::from_le_bytes(self.bytes.get(at..at + 8)?.try_into().ok()?))
    }
}

const fn align(at: usize) -> usize {
    at.next_multiple_of(8)
}

type Entries = Vec<(u64, String)>;

/// Symbols by address, and those of data that each processor has.
fn table_around(memory: &dyn GuestMemory, digits: u64) -> Option<(Entries, Entries)> {
    // A multiple of 8, so that alignment is the same inside.
    let first = digits.saturating_sub(MOST_BYTES as u64 / 2) & !7;
    let length = (MOST_BYTES as u64).min(memory.size() - first) as usize;
    let mut around = Around { bytes: vec![0; length] };
    if !memory.read(first, &mut around.bytes) {
        return None;
    }
    let digits = (digits - first) as usize;
    let (table, tokens, index) = tokens(&around, digits)?;
    let after = index + 2 * TOKENS;
    let (markers, count) = markers(&around, table)?;
    let (number, names) = names(&around, markers, count)?;
    let symbols = read_names(&around, names, number, &tokens)?;
    let addresses = addresses_before(&around, names - 8, number)
        .or_else(|| addresses_at(&around, align(after), number))?;
    let entries = addresses.into_iter().zip(symbols);
    // Per-CPU symbols are offsets, and no code.
    let (entries, per_cpu): (Entries, Entries) = entries.partition(|(address, _)| address >> 63 == 1);
    (entries.len() * 2 > number).then_some((entries, per_cpu))
}

/// Start of the token table, the tokens, and the start of their index.
fn tokens(around: &Around, digits: usize) -> Option<(usize, Vec<Vec<u8>>, usize)> {
    // Back over the tokens below `0`: each ends with a zero.
    let mut table = digits;
    for _ in 0..usize::from(b'0') {
        let before = around.bytes.get(..table.checked_sub(1)?)?;
        table = before.iter().rposition(|&byte| byte == 0)? + 1;
        if digits - table > 4096 {
            return None;
        }
    }
    // Unused tokens are empty: the table begins at an 8-byte boundary, and the index says where its strings are.
    let (mut at, mut tokens, mut offsets) = (table, Vec::new(), Vec::new());
    for _ in 0..TOKENS {
        let length = around.bytes.get(at..)?.iter().take(64).position(|&byte| byte == 0)?;
        tokens.push(around.bytes[at..at + length].to_vec());
        offsets.push(at - table);
        at += length + 1;
    }
    let index = align(at);
    let agrees = offsets.iter().enumerate().all(|(n, &offset)| {
        around
            .bytes
            .get(index + 2 * n..index + 2 * n + 2)
            .is_some_and(|word| usize::from(u16::from_le_bytes([word[0], word[1]])) == offset)
    });
    (table.is_multiple_of(8) && agrees).then_some((table, tokens, index))
}

/// Start and number of the markers before `end`: ascending words of which the first is 0. In between may lie the
/// sequence by names (6.2, 6.3), three bytes for each symbol.
fn markers(around: &Around, end: usize) -> Option<(usize, usize)> {
    let direct = markers_before(around, end);
    direct.or_else(|| {
        // Symbols are some 100,000 to 300,000: the sequence's length is found by trying where markers could end.
        let nearest = end.checked_sub(30_000)?;
        let furthest = end.saturating_sub(3 * MOST_SYMBOLS);
        (furthest..=nearest).rev().filter(|at| at % 8 == 0).find_map(|at| {
            let found = markers_before(around, at)?;
            let symbols = (end - at) / 3;
            (found.1 > 64 && symbols.div_ceil(STRIDE).abs_diff(found.1) <= 1).then_some(found)
        })
    })
}

fn markers_before(around: &Around, end: usize) -> Option<(usize, usize)> {
    let mut at = end.checked_sub(4)?;
    if around.word(at)? == 0 {
        // Padding.
        at = at.checked_sub(4)?;
    }
    let mut last = around.word(at)?;
    let mut count = 1;
    while last != 0 {
        at = at.checked_sub(4)?;
        let before = around.word(at)?;
        // A name takes two bytes at least, and few take more than a hundred.
        let grows = last.checked_sub(before)?;
        if !(2 * STRIDE as u32..=512 * STRIDE as u32).contains(&grows) {
            return None;
        }
        last = before;
        count += 1;
    }
    (at.is_multiple_of(8) && count > 1).then_some((at, count))
}

/// Number of symbols and start of their names, which end where the markers begin.
fn names(around: &Around, markers: usize, count: usize) -> Option<(usize, usize)> {
    let last = around.word(markers + 4 * (count - 1))? as usize;
    let nearest = align(markers.checked_sub(last + 2)?);
    let furthest = markers.saturating_sub(last + STRIDE * 512);
    (furthest..=nearest).rev().filter(|at| at % 8 == 0).find_map(|names| {
        let number = around.word(names.checked_sub(8)?)? as usize;
        let fits = number.div_ceil(STRIDE) == count && number <= MOST_SYMBOLS;
        (fits && markers_agree(around, names, number, markers)).then_some((number, names))
    })
}

/// Length of a name's tokens and of what says so: one byte, or two if the first is above 127.
fn name_length(around: &Around, at: usize) -> Option<(usize, usize)> {
    let first = usize::from(*around.bytes.get(at)?);
    if first & 0x80 == 0 {
        return Some((first, 1));
    }
    let second = usize::from(*around.bytes.get(at + 1)?);
    Some((first & 0x7f | second << 7, 2))
}

fn markers_agree(around: &Around, names: usize, number: usize, markers: usize) -> bool {
    let mut at = names;
    for n in 0..number {
        if n % STRIDE == 0 && around.word(markers + n / STRIDE * 4) != Some((at - names) as u32) {
            return false;
        }
        match name_length(around, at) {
            Some((length, prefix)) if length > 0 => at += length + prefix,
            _ => return false,
        }
    }
    align(at) == markers
}

/// Names without the letter that tells their type.
fn read_names(around: &Around, names: usize, number: usize, tokens: &[Vec<u8>]) -> Option<Vec<String>> {
    let mut at = names;
    let mut all = Vec::with_capacity(number);
    for _ in 0..number {
        let (length, prefix) = name_length(around, at)?;
        let coded = around.bytes.get(at + prefix..at + prefix + length)?;
        let bytes: Vec<u8> =
            coded.iter().flat_map(|&token| tokens[usize::from(token)].iter().copied()).collect();
        all.push(String::from_utf8_lossy(bytes.get(1..)?).into_owned());
        at += prefix + length;
    }
    Some(all)
}

/// Up to 6.3: the relative base lies before the number of symbols, which is at `end`, and the offsets before it.
fn addresses_before(around: &Around, end: usize, number: usize) -> Option<Vec<u64>> {
    let base = end.checked_sub(8)?;
    let offsets = base.checked_sub(align(4 * number))?;
    addresses(around, offsets, around.long(base)?, number)
}

/// Since 6.4: offsets, then the base.
fn addresses_at(around: &Around, offsets: usize, number: usize) -> Option<Vec<u64>> {
    let base = around.long(align(offsets + 4 * number))?;
    addresses(around, offsets, base, number)
}

/// With per-CPU symbols absolute, other offsets are negative: `base - 1 - offset`; without (6.15), all count from the base.
fn addresses(around: &Around, offsets: usize, base: u64, number: usize) -> Option<Vec<u64>> {
    if base >> 63 == 0 {
        return None;
    }
    let offsets: Option<Vec<i32>> = (0..number).map(|n| Some(around.word(offsets + 4 * n)? as i32)).collect();
    let offsets = offsets?;
    let negative = offsets.iter().filter(|&&offset| offset < 0).count();
    let address = |offset: i32| match (negative > 0, offset < 0) {
        (true, true) => base.wrapping_add((-1 - i64::from(offset)) as u64),
        (true, false) => offset as u64,
        (false, _) => base.wrapping_add(u64::from(offset as u32)),
    };
    let addresses: Vec<u64> = offsets.into_iter().map(address).collect();
    // The table is sorted.
    let ascending = addresses.windows(2).filter(|pair| pair[0] <= pair[1]).count();
    (ascending + 8 >= number).then_some(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bytes(Vec<u8>);

    impl GuestMemory for Bytes {
        fn size(&self) -> u64 {
            self.0.len() as u64
        }

        fn read(&self, address: u64, bytes: &mut [u8]) -> bool {
            let from = address as usize;
            let Some(part) = self.0.get(from..from + bytes.len()) else { return false };
            bytes.copy_from_slice(part);
            true
        }
    }

    const BASE: u64 = 0xffff_ffff_9a00_0000;

    /// A table such as scripts/kallsyms.c makes it, of symbols `T fN` every 16 bytes, tokens being themselves but for
    /// 0x80, which is `fun_`.
    fn memory(number: usize, new_order: bool, at: usize) -> Bytes {
        let mut names = Vec::new();
        let mut markers: Vec<u32> = Vec::new();
        for n in 0..number {
            if n % STRIDE == 0 {
                markers.push(names.len() as u32);
            }
            let mut name = b"T\x80".to_vec();
            name.extend(n.to_string().bytes());
            if n == 300 {
                name.extend([b'x'; 200]);
                names.extend([name.len() as u8 & 0x7f | 0x80, (name.len() >> 7) as u8]);
            } else {
                names.push(name.len() as u8);
            }
            names.extend(name);
        }
        let (mut table, mut index) = (Vec::new(), Vec::new());
        for token in 0..=255u8 {
            index.extend((table.len() as u16).to_le_bytes());
            match token {
                0x80 => table.extend(b"fun_"),
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' => table.push(token),
                _ => {}
            }
            table.push(0);
        }
        let offsets: Vec<u8> = (0..number).flat_map(|n| (-1 - 16 * n as i32).to_le_bytes()).collect();
        let markers: Vec<u8> = markers.into_iter().flat_map(u32::to_le_bytes).collect();
        let base = BASE.to_le_bytes().to_vec();
        let count = (number as u32).to_le_bytes().to_vec();
        let parts = if new_order {
            vec![count, names, markers, table, index, offsets, base]
        } else {
            vec![offsets, base, count, names, markers, table, index]
        };
        let mut bytes = vec![0x55; at];
        for part in parts {
            bytes.extend(part);
            bytes.resize(align(bytes.len()), 0);
        }
        bytes.extend(vec![0xaa; 3 * CHUNK - bytes.len() % CHUNK]);
        Bytes(bytes)
    }

    #[test]
    fn a_table_is_found_wherever_it_lies() {
        for (new_order, at) in [(false, 0x1000), (true, 0x1000), (false, CHUNK - 3000), (true, CHUNK - 4096)]
        {
            let symbols = find(&memory(1000, new_order, at)).expect("a table");
            assert_eq!(symbols.len(), 1000);
            assert_eq!(symbols.find(BASE + 16 * 777 + 3), Some(("fun_777", 3)));
            let long = symbols.find(BASE + 16 * 300).unwrap().0;
            assert_eq!(long.len(), "fun_300".len() + 200);
        }
    }

    #[test]
    fn what_is_damaged_is_no_table() {
        let good = memory(1000, false, 0x1000);
        let at = good.0.windows(DIGITS.len()).position(|window| window == DIGITS).unwrap();
        for (place, what) in [(at + 300, "tokens"), (at - 49 - 8, "markers")] {
            let mut bad = Bytes(good.0.clone());
            bad.0[place] ^= 0x40;
            bad.0[place + 1] ^= 0x21;
            assert!(find(&bad).is_none(), "{what}");
        }
        assert!(find(&Bytes(vec![0; CHUNK])).is_none());
    }

    #[test]
    fn banners() {
        let text = b"..Linux version %s (%s)\nLinux version 6.1.0-56-cloud-amd64 (debian) # SMP\n..Linux version 6.1.0-56-cloud-amd64 (debian) #1 SMP\nmore";
        assert_eq!(
            find_banner_in(text).as_deref(),
            Some("Linux version 6.1.0-56-cloud-amd64 (debian) #1 SMP")
        );
        assert_eq!(find_banner_in(b"Linux version 6"), None, "cut off");
        let packed = b"Linux version 6.1.0-56 (debian@\"\x12s. \xf0) #1\n";
        let memory = Bytes([packed, [0; 100].as_slice(), text, &[0; 600]].concat());
        assert_eq!(find_banner(&memory), find_banner_in(text), "the whole one");
    }
}
