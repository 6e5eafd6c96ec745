//! Records are what they were made of, also elsewhere; and nothing that is in a file can do harm by its structure.

mod files;

use semantics::decode::{self, GuestBlock};
use translator::{
    CodeBlock, TemplateTranslator,
    addresses::SLIDE,
    region::{Region, RegionBlock, Versions},
};
use x86::{CpuState, Mode, PAGE_SIZE, control, segment::attribute};

use super::{
    Guest,
    bytes::checksum,
    record::{self, Record},
};

/// Where guest code lies: in the kernel's image.
const PLACE: u64 = 0xffff_ffff_8123_4560;

/// An address of the image, as 32 bits.
const SYMBOL: u32 = 0x8256_7891;

fn mode64() -> Mode {
    state64().mode
}

fn state64() -> CpuState {
    let mut state = CpuState::new();
    state.cr0 |= control::cr0::PE | control::cr0::PG;
    state.efer |= control::efer::LMA | control::efer::LME;
    state.segments[1].attributes |= attribute::LONG;
    state.update_mode();
    state
}

/// A part of an instruction.
#[derive(Clone, Copy)]
enum Part<'a> {
    Bytes(&'a [u8]),
    /// An address in the image.
    Symbol(u32),
    /// The distance from the end of this word, plus so much, to something that does not move.
    Fixed(u64, u8),
}

use Part::{Bytes, Fixed, Symbol};

/// Instructions of a kernel; what moves in them is said.
fn instructions() -> Vec<Vec<Part<'static>>> {
    vec![
        vec![Bytes(&[0x48, 0xc7, 0xc7]), Symbol(SYMBOL)], // mov rdi, symbol
        vec![Bytes(&[0x48, 0x81, 0xff]), Symbol(SYMBOL)], // cmp rdi, symbol
        vec![Bytes(&[0x68]), Symbol(SYMBOL)],             // push symbol
        vec![Bytes(&[0x48, 0xb8]), Symbol(SYMBOL), Bytes(&[0xff; 4])], // movabs rax, symbol
        vec![Bytes(&[0x48, 0x8b, 0x04, 0x25]), Symbol(SYMBOL)], // mov rax, [symbol]
        vec![Bytes(&[0x48, 0x8b, 0x04, 0xc5]), Symbol(SYMBOL)], // mov rax, [rax*8 + symbol]
        vec![Bytes(&[0x8b, 0x87]), Symbol(SYMBOL)],       // mov eax, [rdi + symbol]
        vec![Bytes(&[0x48, 0x8d, 0x04, 0xc5]), Symbol(SYMBOL)], // lea rax, [rax*8 + symbol]
        vec![Bytes(&[0xc7, 0x04, 0x25]), Symbol(SYMBOL), Bytes(&[5, 0, 0, 0])], // mov [symbol], 5
        vec![Bytes(&[0x48, 0x8b, 0x05, 0x78, 0x56, 0x34, 0x00])], // mov rax, [rip + …]: moves along
        vec![Bytes(&[0x48, 0x8d, 0x3d, 0x78, 0x56, 0x34, 0x00])], // lea rdi, [rip + …]
        vec![Bytes(&[0x83, 0x3d, 0x78, 0x56, 0x34, 0x00, 0x07])], // cmp dword [rip + …], 7
        vec![Bytes(&[0x65, 0x48, 0x8b, 0x05]), Fixed(0x1_fb80, 0)], // mov rax, gs:[per-CPU]
        vec![Bytes(&[0x65, 0x83, 0x2d]), Fixed(0x1_fb80, 1), Bytes(&[1])], // sub dword gs:[per-CPU], 1
        vec![Bytes(&[0x69, 0xc7, 0xb9, 0x79, 0x37, 0x9e])], // imul eax, edi, 0x9e3779b9: a constant
        vec![Bytes(&[0x48, 0x0f, 0xba, 0xe0, 0x05])],     // bt rax, 5
        vec![Bytes(&[0x55])],                             // push rbp
        vec![Bytes(&[0x48, 0x8b, 0x44, 0x24, 0x10])],     // mov rax, [rsp + 0x10]
        vec![Bytes(&[0xf3, 0x48, 0xab])],                 // rep stosq
        vec![Bytes(&[0xf0, 0x48, 0x0f, 0xb1, 0x0f])],     // lock cmpxchg [rdi], rcx
        vec![Bytes(&[0x0f, 0x10, 0x07])],                 // movups xmm0, [rdi]
    ]
}

/// Ends of blocks.
fn ends() -> Vec<Vec<Part<'static>>> {
    vec![
        vec![Bytes(&[0xe8, 0x00, 0x10, 0x02, 0x00])], // call, in the image
        vec![Bytes(&[0xe8]), Fixed(0xffff_ffff_c012_3450, 0)], // call a module
        vec![Bytes(&[0x74, 0x10])],                   // jz
        vec![Bytes(&[0x0f, 0x84, 0x00, 0x10, 0x00, 0x00])], // jz, far away
        vec![Bytes(&[0xeb, 0x80])],                   // jmp
        vec![Bytes(&[0xff, 0xd0])],                   // call rax
        vec![Bytes(&[0xff, 0x15, 0x00, 0x10, 0x00, 0x00])], // call [rip + …]
        vec![Bytes(&[0xff, 0x24, 0xc5]), Symbol(SYMBOL)], // jmp [rax*8 + symbol]
        vec![Bytes(&[0xc3])],                         // ret
        vec![Bytes(&[0xfb])],                         // sti
        vec![Bytes(&[0x0f, 0x32])],                   // rdmsr
        vec![Bytes(&[0xf4])],                         // hlt
        vec![Bytes(&[0x9d])],                         // popfq
        vec![Bytes(&[0x0f, 0x01, 0xf8])],             // swapgs
        vec![Bytes(&[0x0f, 0x05])],                   // syscall
        vec![],                                       // the page's end
    ]
}

/// Bytes of instructions at `rip`, which the image has been moved to by `by`.
fn encode(parts: &[Part<'_>], rip: u64, by: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for &part in parts {
        match part {
            Bytes(more) => bytes.extend_from_slice(more),
            Symbol(address) => bytes.extend_from_slice(&address.wrapping_add(by as u32).to_le_bytes()),
            Fixed(target, beyond) => {
                let next = rip.wrapping_add(bytes.len() as u64 + 4 + u64::from(beyond));
                bytes.extend_from_slice(&(target.wrapping_sub(next) as u32).to_le_bytes());
            }
        }
    }
    bytes
}

fn decode(bytes: &[u8], rip: u64) -> GuestBlock {
    let block = decode::decode_block(bytes, rip, mode64());
    assert_eq!(block.length(), bytes.len() as u64, "{bytes:02x?} is one block");
    block
}

/// All that installing code looks at.
fn facts(code: &CodeBlock) -> String {
    format!(
        "{:02x?}\n{:?}\n{:?}\n{:?}\n{:?}\n{} {} {} {}",
        code.code,
        code.exits,
        code.relocations,
        code.callouts,
        code.addends,
        code.rip,
        code.guest_instructions,
        code.guest_bytes,
        code.counts
    )
}

fn record_of(block: &GuestBlock, bytes: &[u8], second: Option<u64>) -> Option<(Vec<u8>, String)> {
    let mut templates = TemplateTranslator::counting();
    let code = templates.translate(block, second).ok()?;
    let mut record = Vec::new();
    let guest = Guest { block, bytes, end: block.end, crosses: second.is_some() };
    assert!(record::write(&mut record, &[guest], code, 0));
    Some((record, facts(code)))
}

/// The facts of what a record gives for `bytes` at `rip`.
fn load(record: &[u8], rip: u64, bytes: &[u8], addend: u64) -> Option<String> {
    let record = Record::parse(record, 0)?;
    let moved = record.matches(rip, bytes)?;
    let mut code = CodeBlock::default();
    (record.is_sound() && record.load(&mut code, bytes, moved, |_| Some(addend)).is_some())
        .then(|| facts(&code))
}

fn blocks() -> Vec<Vec<Part<'static>>> {
    let mut blocks = Vec::new();
    for first in instructions() {
        for end in ends() {
            blocks.push([first.as_slice(), &end].concat());
        }
    }
    blocks.extend(ends().into_iter().filter(|end| !end.is_empty()));
    let all: Vec<Part<'static>> = instructions().into_iter().flatten().collect();
    blocks.push([all.as_slice(), &ends()[0]].concat());
    blocks
}

#[test]
fn a_record_gives_what_was_translated_wherever_the_image_lies() {
    let mut moved = 0;
    for parts in blocks() {
        let bytes = encode(&parts, PLACE, 0);
        let block = decode(&bytes, PLACE);
        let Some((record, facts)) = record_of(&block, &bytes, None) else { continue };
        assert_eq!(load(&record, PLACE, &bytes, 0), Some(facts), "{bytes:02x?}");
        for slides in [1_u64, 33, (-7_i64) as u64, 0x60] {
            let by = slides.wrapping_mul(SLIDE);
            let rip = PLACE.wrapping_add(by);
            let there = encode(&parts, rip, by);
            let (_, expected) = record_of(&decode(&there, rip), &there, None).expect("as before");
            match load(&record, rip, &there, 0) {
                Some(facts) => {
                    assert_eq!(facts, expected, "{bytes:02x?} moved by {by:#x}");
                    moved += 1;
                }
                // There are limits to how much may move.
                None => assert!(bytes.len() > 40, "{bytes:02x?} is not found at {rip:#x}"),
            }
        }
    }
    assert!(moved > 1000, "{moved}");
}

/// Blocks of a region, each with where it is from the head and its bytes, if the image has been moved by `by`: a loop with a branch out of it, and a call
/// of a function in another page.
fn region_parts(one: &[Part<'_>], other: &[Part<'_>], by: u64) -> Vec<(u64, Vec<u8>)> {
    const FUNCTION: u64 = 0x5010;
    let head = PLACE.wrapping_add(by);
    let mut parts = Vec::new();
    let mut at = 0;
    let mut add = |at: u64, instructions: &[Part<'_>], end: &dyn Fn(u64) -> Vec<u8>| {
        let mut bytes = encode(instructions, head + at, by);
        bytes.extend(end(at + bytes.len() as u64));
        let next = at + bytes.len() as u64;
        parts.push((at, bytes));
        next
    };
    let relative = |opcode: &[u8], from: u64, to: u64| {
        let next = from + opcode.len() as u64 + 4;
        [opcode, &(to.wrapping_sub(next) as u32).to_le_bytes()].concat()
    };
    at = add(at, one, &|end| relative(&[0xe8], end, FUNCTION));
    at = add(at, other, &|end| relative(&[0x0f, 0x85], end, 0));
    add(at, &[], &|_| vec![0xc3]);
    add(FUNCTION, one, &|_| vec![0xc3]);
    parts
}

fn record_of_region(parts: &[(u64, Vec<u8>)], by: u64, addend: u64) -> Option<(Vec<u8>, String)> {
    let place = PLACE.wrapping_add(by);
    let block =
        |(at, bytes): &(u64, Vec<u8>)| RegionBlock::new(decode(bytes, place + at), bytes, addend, None, None);
    let region = Region { blocks: parts.iter().map(block).collect(), low: 0 };
    let mut templates = TemplateTranslator::counting();
    let code = templates.translate_region(&region, Versions::Both).ok()?;
    let guests: Vec<Guest<'_>> = region
        .blocks
        .iter()
        .zip(parts)
        .map(|(block, (_, bytes))| Guest { block: &block.guest, bytes, end: block.guest.end, crosses: false })
        .collect();
    let mut record = Vec::new();
    assert!(record::write(&mut record, &guests, code, 0));
    assert!(!code.addends.is_empty(), "there is a guard");
    Some((record, facts(code)))
}

#[test]
fn a_region_s_record_gives_what_was_translated_wherever_the_image_lies() {
    const ADDENDS: [u64; 2] = [0x1111_2222_3333_4444, 0x5555_6666_7777_8888];
    let (mut moved, mut kept_in_place) = (0, 0);
    let all = instructions();
    for (one, other) in all.iter().zip(all.iter().cycle().skip(5)) {
        let parts = region_parts(one, other, 0);
        let Some((record, _)) = record_of_region(&parts, 0, ADDENDS[0]) else { continue };
        for by in [0, SLIDE, 33 * SLIDE, 7_u64.wrapping_neg().wrapping_mul(SLIDE)] {
            let there = region_parts(one, other, by);
            let (_, expected) = record_of_region(&there, by, ADDENDS[1]).expect("as before");
            let bytes: Vec<u8> = there.iter().flat_map(|(_, bytes)| bytes).copied().collect();
            match load(&record, PLACE.wrapping_add(by), &bytes, ADDENDS[1]) {
                Some(facts) => {
                    assert_eq!(facts, expected, "{bytes:02x?} moved by {by:#x}");
                    moved += usize::from(by != 0);
                }
                None => kept_in_place += 1,
            }
        }
    }
    assert!(moved >= 50 && kept_in_place <= 6, "{moved}, {kept_in_place}");
}

#[test]
fn other_bytes_are_other_code() {
    let mut as_if = 0;
    for parts in blocks().into_iter().step_by(7) {
        let bytes = encode(&parts, PLACE, 0);
        let Some((record, _)) = record_of(&decode(&bytes, PLACE), &bytes, None) else { continue };
        let rip = PLACE + SLIDE;
        let there = encode(&parts, rip, SLIDE);
        for (rip, bytes) in [(PLACE, bytes), (rip, there)] {
            for bit in 0..8 * bytes.len() {
                let mut other = bytes.clone();
                other[bit / 8] ^= 1 << (bit % 8);
                // Unless a word is then as if it had moved, or had not: then it is the code of that.
                if let Some(found) = load(&record, rip, &other, 0) {
                    let (_, expected) = record_of(&decode(&other, rip), &other, None).unwrap();
                    assert_eq!(found, expected, "{bytes:02x?}, bit {bit}");
                    as_if += 1;
                }
            }
            assert_eq!(load(&record, rip, &bytes[1..], 0), None);
            assert_eq!(load(&record, rip + 0x1000, &bytes, 0), None, "moved by a page");
        }
    }
    assert!(as_if < 20, "{as_if}");
}

#[test]
fn an_address_that_has_not_moved_is_a_constant() {
    let bytes = encode(&[Bytes(&[0x48, 0xc7, 0xc7]), Symbol(SYMBOL), Bytes(&[0xc3])], PLACE, 0);
    let (record, _) = record_of(&decode(&bytes, PLACE), &bytes, None).unwrap();
    let rip = PLACE + 5 * SLIDE;
    let (_, expected) = record_of(&decode(&bytes, rip), &bytes, None).unwrap();
    assert_eq!(load(&record, rip, &bytes, 0), Some(expected));
}

#[test]
fn user_code_stays_where_it_is() {
    let place = 0x40_1230;
    let bytes = encode(&[Bytes(&[0x48, 0x8b, 0x05, 0x78, 0x56, 0x34, 0x00, 0xc3])], place, 0);
    let (record, facts) = record_of(&decode(&bytes, place), &bytes, None).unwrap();
    assert_eq!(load(&record, place, &bytes, 0), Some(facts));
    assert_eq!(load(&record, place + SLIDE, &bytes, 0), None);
    assert_eq!(load(&record, PLACE, &bytes, 0), None);
}

#[test]
fn the_addend_of_the_second_page_is_that_of_the_run() {
    let rip = (PLACE | (PAGE_SIZE - 1)) - 1;
    let bytes = [0x48, 0x89, 0xf8];
    let block = GuestBlock {
        rip,
        mode: mode64(),
        insns: vec![decode::decode_one(&bytes, rip, mode64()).unwrap()],
        end: decode::BlockEnd::Length,
    };
    let (record, _) = record_of(&block, &bytes, Some(0x1111_2222_3333_4444)).unwrap();
    let (_, expected) = record_of(&block, &bytes, Some(0x5555_6666_7777_8888)).unwrap();
    assert_eq!(load(&record, rip, &bytes, 0x5555_6666_7777_8888), Some(expected));
}

#[test]
fn damage_is_noticed_and_nonsense_does_no_harm() {
    let parts = [instructions()[0].as_slice(), &instructions()[12], &ends()[10]].concat();
    let bytes = encode(&parts, PLACE, 0);
    let (record, _) = record_of(&decode(&bytes, PLACE), &bytes, None).unwrap();
    let rip = PLACE + SLIDE;
    let there = encode(&parts, rip, SLIDE);
    for at in 0..record.len() {
        for value in [0, 1, 0x7f, 0xff, record[at] ^ 0x10] {
            let mut damaged = record.clone();
            damaged[at] = value;
            if value != record[at] {
                assert_eq!(load(&damaged, PLACE, &bytes, 0), None, "byte {at}");
            }
            // The same with a checksum that is right: whatever comes out of it lies within it.
            let sum = checksum(&damaged[8..]);
            damaged[..8].copy_from_slice(&sum.to_le_bytes());
            for (rip, bytes) in [(PLACE, &bytes), (rip, &there)] {
                let Some(record) = Record::parse(&damaged, 0) else { continue };
                let Some(moved) = record.matches(rip, bytes) else { continue };
                let mut code = CodeBlock::default();
                if record.load(&mut code, bytes, moved, |_| Some(0)).is_some() {
                    let mut linked = code.code.clone();
                    code.link(&mut linked, 0x10_0000, 0x20_0000, 0x30_0000).unwrap();
                    for jump in code.exits.iter().filter_map(|exit| exit.jump) {
                        assert!(jump.displacement as usize + 4 <= linked.len());
                        assert!((jump.unlinked as usize) < linked.len());
                    }
                }
            }
        }
        assert_eq!(load(&record[..at], PLACE, &bytes, 0), None, "cut off at {at}");
    }
}
