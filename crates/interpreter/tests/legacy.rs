//! 16- and 32-bit code: what no 64-bit host process can run.

mod support;

use memory::Stop;
use support::{CODE, DATA, Guest};
use transvisor_interpreter::BlockExit;
use x86::{Exception, Segment, SegmentRegister, flags};

const GP: BlockExit = BlockExit::Stop(Stop::Exception(Exception::GP0));
const SS: BlockExit = BlockExit::Stop(Stop::Exception(Exception::SS0));

/// Packed decimal of 0..=99.
fn bcd(n: u64) -> u64 {
    n / 10 * 16 + n % 10
}

#[test]
fn daa_and_das_correct_every_sum_and_difference() {
    let mut g = Guest::new(32);
    for a in 0..100 {
        for b in 0..100 {
            g.state.gpr[0] = bcd(a);
            g.state.gpr[3] = bcd(b);
            g.run(&[0x00, 0xd8, 0x27]); // add al,bl; daa
            assert_eq!(g.state.gpr[0] & 0xff, bcd((a + b) % 100), "{a} + {b}");
            assert_eq!(g.state.rflags() & flags::CF, u64::from(a + b > 99), "{a} + {b}");
            g.state.gpr[0] = bcd(a);
            g.run(&[0x28, 0xd8, 0x2f]); // sub al,bl; das
            assert_eq!(g.state.gpr[0] & 0xff, bcd((100 + a - b) % 100), "{a} - {b}");
            assert_eq!(g.state.rflags() & flags::CF, u64::from(a < b), "{a} - {b}");
        }
    }
}

#[test]
fn das_borrows_from_the_low_digit_alone() {
    let mut g = Guest::new(32);
    // AL = 1 with AF: 1 - 6 borrows (the SDM's operation section, first step).
    g.state.gpr[0] = 1;
    g.state.set_rflags(flags::AF);
    g.run(&[0x2f]);
    assert_eq!(g.state.gpr[0], 0xfb);
    assert_eq!(g.state.rflags() & (flags::CF | flags::AF | flags::SF), flags::CF | flags::AF | flags::SF);
}

#[test]
fn ascii_adjustments() {
    let mut g = Guest::new(32);
    g.state.gpr[0] = 0x010f;
    g.run(&[0x37]); // aaa
    assert_eq!(g.state.gpr[0], 0x0205);
    g.state.set_rflags(0);
    g.state.gpr[0] = 0x020b;
    g.run(&[0x3f]); // aas
    assert_eq!(g.state.gpr[0], 0x0105);
    g.state.gpr[0] = 73;
    g.run(&[0xd4, 10]); // aam
    assert_eq!(g.state.gpr[0], 0x0703);
    g.run(&[0xd5, 10]); // aad
    assert_eq!(g.state.gpr[0], 73);
    assert_eq!(g.run(&[0xd4, 0]), BlockExit::Stop(Stop::Exception(Exception::DE)));
}

#[test]
fn pusha_keeps_the_old_stack_pointer_and_popa_skips_it() {
    for bits in [16, 32] {
        let mut g = Guest::new(bits);
        let top = g.state.gpr[4];
        for n in 0..8 {
            if n != 4 {
                g.state.gpr[n] = 0x1111 * (n as u64 + 1);
            }
        }
        let before = g.state.gpr;
        g.run(&[0x60]);
        let bytes = u64::from(bits / 8);
        assert_eq!(g.state.gpr[4], top - 8 * bytes);
        assert_eq!(g.read(top - 5 * bytes, 2), (top as u16).to_le_bytes());
        assert_eq!(g.read(top - bytes, 2), 0x1111u16.to_le_bytes());
        g.state.gpr = [9; 16];
        g.state.gpr[4] = top - 8 * bytes;
        g.run(&[0x61]);
        let cut = |gpr: [u64; 16]| gpr[..8].iter().map(|value| value & 0xffff).collect::<Vec<_>>();
        assert_eq!(cut(g.state.gpr), cut(before));
    }
}

#[test]
fn nested_enter_copies_frame_pointers() {
    let mut g = Guest::new(32);
    let top = g.state.gpr[4];
    g.state.gpr[5] = DATA + 0x100;
    g.write(DATA + 0xfc, &0x1234u32.to_le_bytes());
    g.run(&[0xc8, 0x20, 0, 2]); // enter 32,2
    assert_eq!(g.state.gpr[5], top - 4);
    assert_eq!(g.state.gpr[4], top - 12 - 32);
    let words: Vec<u32> =
        g.read(top - 12, 12).chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect();
    assert_eq!(words, [(top - 4) as u32, 0x1234, (DATA + 0x100) as u32]);
    g.run(&[0xc9]); // leave
    assert_eq!((g.state.gpr[4], g.state.gpr[5]), (top, DATA + 0x100));
}

#[test]
fn bound_is_signed_and_inclusive() {
    let mut g = Guest::new(32);
    g.write(DATA, &[0xfe, 0xff, 0xff, 0xff, 5, 0, 0, 0]); // -2..=5
    g.state.gpr[3] = DATA;
    for (index, inside) in [(-3i32, false), (-2, true), (0, true), (5, true), (6, false)] {
        g.state.gpr[0] = u64::from(index as u32);
        let exit = g.run(&[0x62, 0x03]); // bound eax,[ebx]
        let outside = BlockExit::Stop(Stop::Exception(Exception::BR));
        assert_eq!(exit, if inside { BlockExit::Next } else { outside }, "{index}");
    }
}

#[test]
fn pop_to_memory_addresses_with_the_new_stack_pointer() {
    let mut g = Guest::new(32);
    let top = g.state.gpr[4];
    g.write(top, &0xabcdu32.to_le_bytes());
    g.run(&[0x8f, 0x44, 0x24, 0x08]); // pop dword [esp+8]
    assert_eq!(g.read(top + 12, 4), 0xabcdu32.to_le_bytes());
    assert_eq!(g.state.gpr[4], top + 4);
}

#[test]
fn segment_pushes_store_16_bits() {
    let mut g = Guest::new(32);
    let top = g.state.gpr[4];
    g.write(top - 4, &[0xee; 4]);
    g.run(&[0x1e]); // push ds
    assert_eq!(g.read(top - 4, 4), [0x18, 0, 0xee, 0xee]);
}

#[test]
fn a_16_bit_stack_wraps_and_keeps_the_upper_half() {
    let mut g = Guest::new(32);
    g.state.segments[2] = Segment::from_descriptor(0x18, 0x0000_9300_0000_ffff);
    g.state.update_mode();
    g.state.gpr[4] = 0x5555_0000;
    g.state.gpr[0] = 0x1234_5678;
    assert_eq!(g.run(&[0x50]), BlockExit::Next); // push eax
    assert_eq!(g.state.gpr[4], 0x5555_fffc);
    assert_eq!(g.read(0xfffc, 4), 0x1234_5678u32.to_le_bytes());
}

#[test]
fn near_transfers_of_16_bits_wrap() {
    let mut g = Guest::new(16);
    g.state.gpr[3] = 0x1_4321;
    g.run(&[0xff, 0xe3]); // jmp bx
    assert_eq!(g.state.rip, 0x4321);
    g.run(&[0xe8, 0x00, 0xf0]); // call 0x1003 - 0x1000
    assert_eq!((g.state.rip, g.read(0x7ffe, 2)), (0x0003, (CODE as u16 + 3).to_le_bytes().to_vec()));
}

#[test]
fn transfers_beyond_the_code_segment_change_nothing() {
    let mut g = Guest::new(32);
    g.state.segments[1].limit = 0x1fff;
    g.state.update_mode();
    let gpr = g.state.gpr;
    g.state.set_rflags(flags::ZF);
    // jmp, call, je, jmp eax, loop (with ecx = 0: taken) to 0x4000 and beyond
    let far = (0x3000u32 - 5).to_le_bytes();
    for code in [
        [&[0xe9][..], &far].concat(),
        [&[0xe8][..], &far].concat(),
        [&[0x0f, 0x84][..], &far].concat(),
        vec![0xff, 0xe4],
        vec![0xe2, 0x7f],
    ] {
        if code[0] == 0xe2 {
            g.state.segments[1].limit = CODE as u32 + 0x10;
        }
        assert_eq!(g.run(&code), GP, "{code:02x?}");
        assert_eq!((g.state.gpr, g.state.rip), (gpr, CODE));
    }
    // Not taken: no fault.
    g.state.set_rflags(0);
    assert_eq!(g.run(&[&[0x0f, 0x84][..], &far].concat()), BlockExit::Next);
}

#[test]
fn segment_types_and_limits() {
    let mut g = Guest::new(32);
    g.state.gpr[3] = 0x1000;
    let load = [0x8b, 0x03]; // mov eax,[ebx]
    let store = [0x89, 0x03];
    let through = |g: &mut Guest, descriptor: u64, code: &[u8]| {
        g.state.segments[SegmentRegister::Ds as usize] = Segment::from_descriptor(0x20, descriptor);
        g.state.update_mode();
        g.run(code)
    };
    // Limit 0x1002 in bytes: four bytes at 0x1000 do not fit; 0x1003 is enough.
    assert_eq!(through(&mut g, 0x0040_9300_0000_1002, &load), GP);
    assert_eq!(through(&mut g, 0x0040_9300_0000_1003, &load), BlockExit::Next);
    // Read-only data, execute-only code, not present.
    assert_eq!(through(&mut g, 0x0040_9100_0000_1003, &store), GP);
    assert_eq!(through(&mut g, 0x0040_9100_0000_1003, &load), BlockExit::Next);
    assert_eq!(through(&mut g, 0x0040_9900_0000_1003, &load), GP);
    assert_eq!(through(&mut g, 0x0040_1300_0000_1003, &load), GP);
    // Expand-down: above the limit only.
    assert_eq!(through(&mut g, 0x0040_9700_0000_0fff, &load), BlockExit::Next);
    assert_eq!(through(&mut g, 0x0040_9700_0000_1000, &load), GP);
    // A base is added, and through SS it is #SS.
    g.write(DATA + 0x1000, &7u32.to_le_bytes());
    assert_eq!(through(&mut g, 0x0040_9301_0000_ffff, &load), BlockExit::Next);
    assert_eq!(g.state.gpr[0], 7);
    g.state.segments[2].limit = 0xfff;
    g.state.update_mode();
    assert_eq!(g.run(&[0x36, 0x8b, 0x03]), SS);
    // Code is readable but never writable, also where everything is flat.
    let mut g = Guest::new(32);
    assert_eq!(g.run(&[0x2e, 0x8b, 0x03]), BlockExit::Next);
    assert_eq!(g.run(&[0x2e, 0x89, 0x03]), GP);
}

#[test]
fn string_instructions_with_16_bit_addresses_wrap_and_keep_upper_halves() {
    let mut g = Guest::new(32);
    g.write(0xfff0, &[0; 16]);
    g.state.gpr[0] = 0x41;
    g.state.gpr[7] = 0x7777_fffe;
    g.state.gpr[1] = 0x8888_0008;
    assert_eq!(g.run_all(&[0x67, 0xf3, 0xaa]), BlockExit::Next); // rep stosb with di, cx
    assert_eq!((g.state.gpr[7], g.state.gpr[1]), (0x7777_0006, 0x8888_0000));
    assert_eq!(g.read(0xfffe, 2), [0x41; 2]);
    assert_eq!(g.read(0, 6), [0x41; 6]);
}

#[test]
fn string_instructions_stop_at_the_segments_end() {
    let mut g = Guest::new(16);
    g.state.gpr[7] = 0xfff8;
    g.state.gpr[1] = 20;
    // rep stosw: the fifth element would be at offset 0 again (8 bytes fit), so 20 go around.
    assert_eq!(g.run_all(&[0xf3, 0xab]), BlockExit::Next);
    assert_eq!((g.state.gpr[7], g.state.gpr[1]), (0x20, 0));
    // At an odd offset the element at 0xffff crosses the limit.
    g.state.gpr[7] = 0xfff9;
    g.state.gpr[1] = 20;
    assert_eq!(g.run_all(&[0xf3, 0xab]), GP);
    assert_eq!((g.state.gpr[7], g.state.gpr[1], g.state.rip), (0xffff, 17, CODE));
}
