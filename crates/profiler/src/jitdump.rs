//! The records of a jitdump file (Linux: tools/perf/Documentation/jitdump-specification.txt), by which `perf inject --jit` knows
//! which code lay where and when: also code that was thrown away, where another lies now.

/// `JiTD`, read as a number.
const MAGIC: u32 = 0x4a69_5444;
const VERSION: u32 = 1;
const HEADER: u32 = 40;
const X86_64: u32 = 62;

/// Kinds of records.
const LOAD: u32 = 0;
const DEBUG_INFO: u32 = 2;
const CLOSE: u32 = 3;

/// A piece of code that was installed.
#[derive(Clone, Debug, Default)]
pub struct Piece<'a> {
    /// Numbers them all.
    pub index: u64,
    /// Where it lies.
    pub address: u64,
    /// When it came there, by CLOCK_MONOTONIC.
    pub at_ns: u64,
    /// What it is.
    pub code: &'a [u8],
    /// What it is called.
    pub name: String,
    /// Offsets in it from which on it is of a source file's line, `file:line`; ascending.
    pub lines: Vec<(u32, String)>,
}

/// The beginning of a file.
pub fn header(process: u32, at_ns: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [MAGIC, VERSION, HEADER, X86_64, 0, process] {
        bytes.extend(word.to_le_bytes());
    }
    for long in [at_ns, 0] {
        bytes.extend(long.to_le_bytes());
    }
    bytes
}

/// The end of a file.
pub fn close(at_ns: u64) -> Vec<u8> {
    record(CLOSE, at_ns, &[])
}

/// A piece of code; its lines come first, as they must.
pub fn piece(piece: &Piece<'_>, process: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let lines: Vec<(u64, u32, &str)> = piece
        .lines
        .iter()
        .filter_map(|(offset, line)| {
            let (file, number) = line.rsplit_once(':')?;
            Some((piece.address + u64::from(*offset), number.parse().ok()?, file))
        })
        .collect();
    if !lines.is_empty() {
        let mut body = Vec::new();
        for long in [piece.address, lines.len() as u64] {
            body.extend(long.to_le_bytes());
        }
        for (address, line, file) in lines {
            body.extend(address.to_le_bytes());
            body.extend(u64::from(line).to_le_bytes());
            body.extend(text(file));
        }
        bytes.extend(record(DEBUG_INFO, piece.at_ns, &body));
    }
    let mut body = Vec::new();
    for word in [process, process] {
        body.extend(word.to_le_bytes());
    }
    for long in [piece.address, piece.address, piece.code.len() as u64, piece.index] {
        body.extend(long.to_le_bytes());
    }
    body.extend(text(&piece.name));
    body.extend(piece.code);
    bytes.extend(record(LOAD, piece.at_ns, &body));
    bytes
}

fn text(text: &str) -> impl Iterator<Item = u8> {
    text.bytes().filter(|&byte| byte != 0).chain([0])
}

fn record(kind: u32, at_ns: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(16 + body.len());
    bytes.extend(kind.to_le_bytes());
    bytes.extend((16 + body.len() as u32).to_le_bytes());
    bytes.extend(at_ns.to_le_bytes());
    bytes.extend(body);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn long(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    /// Offsets are those of the specification.
    #[test]
    fn records_are_as_specified() {
        let head = header(7, 99);
        assert_eq!((head.len(), &head[..4]), (40, b"DTiJ".as_slice()));
        assert_eq!((word(&head, 12), word(&head, 20), long(&head, 24), long(&head, 32)), (62, 7, 99, 0));
        let of = Piece {
            index: 3,
            address: 0x1000,
            at_ns: 5,
            code: &[0x90, 0xc3],
            name: "f".into(),
            lines: vec![(0, "a.c:10".into()), (1, "no line".into()), (1, "b:c.c:11".into())],
        };
        let bytes = piece(&of, 7);
        assert_eq!((word(&bytes, 0), word(&bytes, 4), long(&bytes, 8)), (2, 16 + 16 + 16 + 4 + 16 + 6, 5));
        assert_eq!((long(&bytes, 16), long(&bytes, 24)), (0x1000, 2));
        assert_eq!((long(&bytes, 32), word(&bytes, 40), word(&bytes, 44)), (0x1000, 10, 0));
        assert_eq!(&bytes[48..52], b"a.c\0");
        assert_eq!((long(&bytes, 52), word(&bytes, 60), &bytes[68..74]), (0x1001, 11, b"b:c.c\0".as_slice()));
        let load = &bytes[74..];
        assert_eq!((word(load, 0), word(load, 4) as usize, long(load, 8)), (0, load.len(), 5));
        assert_eq!((word(load, 16), word(load, 20)), (7, 7));
        assert_eq!([24, 32, 40, 48].map(|at| long(load, at)), [0x1000, 0x1000, 2, 3]);
        assert_eq!(&load[56..], b"f\0\x90\xc3");
        assert_eq!(close(6).len(), 16);
    }
}
