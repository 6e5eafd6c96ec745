//! Layouts of a kernel's structures, from the kernel itself: BTF (Documentation/bpf/btf.rst), which kernels with
//! CONFIG_DEBUG_INFO_BTF have in their read-only data between `__start_BTF` and `__stop_BTF`.
//!
//! Only structures are wanted, and the bytes are the guest's: one pass finds where each type begins, all else is looked up on
//! demand with every index checked and every chain bounded.

const MAGIC: u16 = 0xeb9f;
const HEADER: usize = 24;
/// `struct btf_type` without what follows it by kind.
const TYPE: usize = 12;
const MEMBER: usize = 12;
/// Unnamed structures in structures, and typedefs of typedefs.
const DEPTH: usize = 16;
/// Members that are looked at for one: unnamed structures of unnamed structures could be countless.
const MOST_MEMBERS: u32 = 1 << 20;

const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;

/// The types of a kernel.
pub struct Btf {
    types: Vec<u8>,
    strings: Vec<u8>,
    /// Where each type begins; numbers count from 1.
    starts: Vec<u32>,
}

/// A member of a structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Bytes from the structure's beginning.
    pub offset: u64,
    kind: u32,
}

struct Type {
    name: u32,
    kind: u32,
    /// Members, or the like.
    count: usize,
    /// Offsets have sizes of bit fields in them.
    flag: bool,
    /// Size, or another type.
    size: u32,
    /// Where what follows begins.
    rest: usize,
}

impl Btf {
    /// From its bytes.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| word(bytes, at);
        if bytes.len() < HEADER || u16::from_le_bytes([bytes[0], bytes[1]]) != MAGIC || bytes[2] != 1 {
            return None;
        }
        let header = word(4)? as usize;
        let part = |offset: u32, length: u32| {
            let start = header.checked_add(offset as usize)?;
            bytes.get(start..start.checked_add(length as usize)?)
        };
        let types = part(word(8)?, word(12)?)?.to_vec();
        let strings = part(word(16)?, word(20)?)?.to_vec();
        let mut btf = Self { types, strings, starts: Vec::new() };
        let mut at = 0;
        while at < btf.types.len() {
            let of = btf.type_at(at)?;
            let more = match of.kind {
                1 | 14 | 17 => 4,
                ARRAY => 12,
                STRUCT | UNION | 15 | 19 => 12 * of.count,
                6 | 13 => 8 * of.count,
                2 | 7..=12 | 16 | 18 => 0,
                _ => return None,
            };
            btf.starts.push(u32::try_from(at).ok()?);
            at += TYPE + more;
        }
        (at == btf.types.len()).then_some(btf)
    }

    fn type_at(&self, at: usize) -> Option<Type> {
        let (name, info, size) =
            (word(&self.types, at)?, word(&self.types, at + 4)?, word(&self.types, at + 8)?);
        let (count, kind) = ((info & 0xffff) as usize, info >> 24 & 0x1f);
        Some(Type { name, kind, count, flag: info >> 31 != 0, size, rest: at + TYPE })
    }

    fn numbered(&self, number: u32) -> Option<Type> {
        let at = *self.starts.get((number as usize).checked_sub(1)?)?;
        self.type_at(at as usize)
    }

    fn is_named(&self, name: u32, text: &str) -> bool {
        let rest = self.strings.get(name as usize..).unwrap_or_default();
        rest.strip_prefix(text.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
    }

    /// The type without typedefs and qualifiers.
    fn plain(&self, mut number: u32) -> Option<Type> {
        for _ in 0..DEPTH {
            let of = self.numbered(number)?;
            match of.kind {
                8..=11 | 18 => number = of.size,
                _ => return Some(of),
            }
        }
        None
    }

    fn structures(&self, name: &str) -> impl Iterator<Item = Type> {
        self.starts
            .iter()
            .filter_map(|&at| self.type_at(at as usize))
            .filter(move |of| matches!(of.kind, STRUCT | UNION) && self.is_named(of.name, name))
    }

    /// A member of a structure, or of a structure in it: `a.b`. Members of unnamed ones count as the outer's.
    pub fn field(&self, structure: &str, path: &str) -> Option<Field> {
        let mut budget = MOST_MEMBERS;
        // Several may have one name.
        self.structures(structure).find_map(|of| {
            let mut parts = path.split('.');
            let mut field = self.member(&of, parts.next()?, 0, &mut budget)?;
            for part in parts {
                let inner = self.member(&self.plain(field.kind)?, part, 0, &mut budget)?;
                field = Field { offset: field.offset.checked_add(inner.offset)?, kind: inner.kind };
            }
            Some(field)
        })
    }

    /// Only its offset.
    pub fn offset(&self, structure: &str, path: &str) -> Option<u64> {
        Some(self.field(structure, path)?.offset)
    }

    /// Bytes of a structure.
    pub fn size(&self, structure: &str) -> Option<u64> {
        Some(self.structures(structure).next()?.size.into())
    }

    /// Elements of a member that is an array.
    pub fn elements(&self, field: Field) -> Option<u64> {
        let of = self.plain(field.kind)?;
        (of.kind == ARRAY).then(|| word(&self.types, of.rest + 8))?.map(u64::from)
    }

    fn member(&self, of: &Type, name: &str, depth: usize, budget: &mut u32) -> Option<Field> {
        if !matches!(of.kind, STRUCT | UNION) || depth > DEPTH {
            return None;
        }
        (0..of.count).find_map(|n| {
            *budget = budget.checked_sub(1)?;
            let at = of.rest + MEMBER * n;
            let (member, kind, bits) =
                (word(&self.types, at)?, word(&self.types, at + 4)?, word(&self.types, at + 8)?);
            let bits = if of.flag { bits & 0xff_ffff } else { bits };
            let offset = u64::from(bits / 8);
            if self.is_named(member, name) {
                return Some(Field { offset, kind });
            }
            if !self.is_named(member, "") {
                return None;
            }
            let inner = self.member(&self.plain(kind)?, name, depth + 1, budget)?;
            Some(Field { offset: offset + inner.offset, kind: inner.kind })
        })
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}
