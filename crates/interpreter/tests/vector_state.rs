//! Vector and x87 state by hand, against the SDM: when instructions trap, what a trap leaves alone, and the image
//! formats of modes that the host does not run.

mod support;

use memory::{GuestPhys, MmioAccess, Stop};
use support::{CODE, DATA, Guest};
use transvisor_interpreter::BlockExit;
use x86::{Exception, control, fpu::X87};

const FNOP: [u8; 2] = [0xd9, 0xd0];
const FWAIT: [u8; 1] = [0x9b];
const FNSTSW_AX: [u8; 2] = [0xdf, 0xe0];
const XORPS: [u8; 3] = [0x0f, 0x57, 0xc0];
const PXOR_MM: [u8; 3] = [0x0f, 0xef, 0xc0];

const ONE: [u64; 2] = [1 << 63, 0x3fff];

/// A guest whose CR0 and CR4 have those bits set or cleared.
fn guest(bits: u32, cr0: u64, cr4: u64) -> Guest {
    let mut g = Guest::new(bits);
    g.state.cr0 |= cr0;
    g.state.cr4 ^= cr4;
    g.state.update_mode();
    g
}

fn raised(exception: Exception) -> BlockExit {
    BlockExit::Stop(Stop::Exception(exception))
}

/// Pushes values, the last to ST(0).
fn push(g: &mut Guest, values: &[[u64; 2]]) {
    for value in values {
        let top = (g.state.x87.top() + 7) & 7;
        g.state.x87.status = g.state.x87.status & !0x3800 | (top as u16) << 11;
        g.state.x87.registers[top] = *value;
        g.state.x87.tags |= 1 << top;
    }
}

#[test]
fn control_registers_decide_who_traps_and_how() {
    use control::{cr0, cr4};
    let cases: [(u64, u64, [Option<Exception>; 4]); 6] = [
        // x87, FWAIT, MMX, SSE
        (0, 0, [None, None, None, None]),
        (cr0::TS, 0, [Some(Exception::NM), None, Some(Exception::NM), Some(Exception::NM)]),
        (cr0::TS | cr0::MP, 0, [Some(Exception::NM); 4]),
        (cr0::EM, 0, [Some(Exception::NM), None, Some(Exception::UD), Some(Exception::UD)]),
        (cr0::EM | cr0::TS, 0, [Some(Exception::NM), None, Some(Exception::UD), Some(Exception::UD)]),
        (0, cr4::OSFXSR, [None, None, None, Some(Exception::UD)]),
    ];
    for (cr0, cr4, expected) in cases {
        let instructions: [&[u8]; 4] = [&FNOP, &FWAIT, &PXOR_MM, &XORPS];
        for (instruction, expected) in instructions.iter().zip(expected) {
            let mut g = guest(64, cr0, cr4);
            let exit = g.run(instruction);
            assert_eq!(
                exit,
                expected.map_or(BlockExit::Next, raised),
                "{instruction:x?} cr0 {cr0:x} cr4 {cr4:x}"
            );
        }
    }
}

#[test]
fn an_unmasked_exception_waits_for_the_next_waiting_instruction() {
    for (instruction, waits) in [
        (&FNOP[..], true),
        (&FWAIT[..], true),
        (&PXOR_MM[..], true),
        (&FNSTSW_AX[..], false),
        (&XORPS[..], false),
    ] {
        let mut g = Guest::new(64);
        g.state.x87.control = 0x37b; // division by zero
        push(&mut g, &[[0, 0], ONE]);
        // fdiv st0, st1
        assert_eq!(g.run(&[0xd8, 0xf1]), BlockExit::Next);
        assert_eq!(g.state.x87.registers[g.state.x87.top()], ONE, "operands stay");
        assert_eq!(g.state.x87.status & 0x80ff, 0x8084);
        let exit = g.run(instruction);
        assert_eq!(exit, if waits { raised(Exception::MF) } else { BlockExit::Next }, "{instruction:x?}");
        // fnclex
        assert_eq!(g.run(&[0xdb, 0xe2]), BlockExit::Next);
        assert_eq!(g.run(instruction), BlockExit::Next);
    }
}

#[test]
fn a_store_that_faults_does_not_pop() {
    let mut g = Guest::new(16);
    push(&mut g, &[ONE]);
    let before = g.state.x87;
    g.state.gpr[3] = 0xfffe;
    // fstp dword [bx]
    assert_eq!(g.run(&[0xd9, 0x1f]), raised(Exception::GP0));
    assert_eq!(g.state.x87, before);
    // fstp tbyte [bx]
    assert_eq!(g.run(&[0xdb, 0x3f]), raised(Exception::GP0));
    assert_eq!(g.state.x87, before);
}

#[test]
fn simd_exceptions_leave_the_destination() {
    for (cr4, exception) in [(control::cr4::OSXMMEXCPT, Exception::XM), (0, Exception::UD)] {
        let mut g = guest(64, 0, cr4);
        g.state.mxcsr = 0x1f80 & !(1 << 9);
        g.state.xmm[0] = 1.0_f64.to_bits().into();
        // divsd xmm0, xmm1
        assert_eq!(g.run(&[0xf2, 0x0f, 0x5e, 0xc1]), raised(exception));
        assert_eq!(g.state.xmm[0], u128::from(1.0_f64.to_bits()));
        assert_eq!(g.state.mxcsr & 0x3f, 4);
        assert_eq!(g.state.pending_exception, 0);
    }
}

#[test]
fn alignment_of_vectors_and_images() {
    let cases: [(&[u8], u64); 7] = [
        (&[0x0f, 0x28, 0x07], 16),       // movaps xmm0, [rdi]
        (&[0x0f, 0x10, 0x07], 1),        // movups xmm0, [rdi]
        (&[0x66, 0x0f, 0xef, 0x07], 16), // pxor xmm0, [rdi]
        (&[0xf2, 0x0f, 0x58, 0x07], 1),  // addsd xmm0, [rdi]
        (&[0x0f, 0x6f, 0x07], 1),        // movq mm0, [rdi]
        (&[0x48, 0x0f, 0xae, 0x07], 16), // fxsave64 [rdi]
        (&[0x48, 0x0f, 0xae, 0x27], 64), // xsave64 [rdi]
    ];
    for (instruction, alignment) in cases {
        for shift in 0..7 {
            let mut g = guest(64, 0, control::cr4::OSXSAVE);
            g.state.gpr[7] = DATA + (1 << shift);
            let expected = if 1 << shift < alignment { raised(Exception::GP0) } else { BlockExit::Next };
            assert_eq!(g.run(instruction), expected, "{instruction:x?} at {:x}", g.state.gpr[7]);
        }
    }
}

#[test]
fn reserved_mxcsr_bits_fault() {
    let mut g = Guest::new(64);
    g.state.gpr[7] = DATA;
    g.write(DATA, &0x1_1f80_u32.to_le_bytes());
    // ldmxcsr [rdi]
    assert_eq!(g.run(&[0x0f, 0xae, 0x17]), raised(Exception::GP0));
    assert_eq!(g.state.mxcsr, 0x1f80);
}

#[test]
fn xsave_is_for_those_who_enabled_it() {
    let mut g = Guest::new(64);
    g.state.gpr[7] = DATA;
    // xsave64, xrstor64 [rdi]
    for instruction in [[0x48, 0x0f, 0xae, 0x27], [0x48, 0x0f, 0xae, 0x2f]] {
        assert_eq!(g.run(&instruction), raised(Exception::UD));
    }
}

/// A guest with x87 and SSE enabled in XCR0, and an image of zeros but MXCSR at RDI.
fn guest_with_image() -> Guest {
    let mut g = guest(64, 0, control::cr4::OSXSAVE);
    g.state.xcr0 = 3;
    g.state.gpr[7] = DATA;
    g.state.gpr[0] = 3;
    g.write(DATA, &[0; 576]);
    g.write(DATA + 24, &0x1f80_u32.to_le_bytes());
    g
}

#[test]
fn xrstor_checks_the_header_before_it_changes_anything() {
    // XSTATE_BV with a component that XCR0 has not, XCOMP_BV, the next qword, MXCSR.
    for (offset, value) in [(512, 4), (519, 0x80), (520, 1), (527, 0x80), (528, 1), (535, 1), (26, 1)] {
        let mut g = guest_with_image();
        g.write(DATA + offset, &[value]);
        g.state.xmm[3] = 7;
        g.state.x87.control = 0x27f;
        assert_eq!(g.run(&[0x48, 0x0f, 0xae, 0x2f]), raised(Exception::GP0), "byte {offset}");
        assert_eq!((g.state.xmm[3], g.state.x87.control), (7, 0x27f));
    }
    let mut g = guest_with_image();
    // The rest of the header is not looked at.
    g.write(DATA + 536, &[0xff; 40]);
    assert_eq!(g.run(&[0x48, 0x0f, 0xae, 0x2f]), BlockExit::Next);
}

#[test]
fn xrstor_initializes_what_the_image_has_not() {
    let mut g = guest_with_image();
    push(&mut g, &[ONE]);
    g.state.xmm[15] = 9;
    g.state.mxcsr = 0x9f80;
    assert_eq!(g.run(&[0x48, 0x0f, 0xae, 0x2f]), BlockExit::Next);
    assert_eq!((g.state.x87, g.state.xmm[15], g.state.mxcsr), (X87::new(), 0, 0x1f80));

    // Only what EDX:EAX asks for.
    let mut g = guest_with_image();
    g.state.gpr[0] = 1;
    g.state.xmm[15] = 9;
    g.state.mxcsr = 0x9f80;
    assert_eq!(g.run(&[0x48, 0x0f, 0xae, 0x2f]), BlockExit::Next);
    assert_eq!((g.state.xmm[15], g.state.mxcsr), (9, 0x9f80));
}

#[test]
fn xsaveopt_leaves_out_initial_state_and_says_so() {
    let mut g = guest_with_image();
    g.write(DATA, &[0xee; 24]);
    g.write(DATA + 512, &[0xff]);
    // xsaveopt64 [rdi]
    assert_eq!(g.run(&[0x48, 0x0f, 0xae, 0x37]), BlockExit::Next);
    assert_eq!(g.read(DATA, 24), [0xee; 24], "x87 is not written");
    assert_eq!(g.read(DATA + 512, 1), [0xfe], "components 0 and 1 were asked for, 1 is in use");
    // xsave64 writes it, and says the same.
    assert_eq!(g.run(&[0x48, 0x0f, 0xae, 0x27]), BlockExit::Next);
    assert_eq!(g.read(DATA, 2), 0x37f_u16.to_le_bytes());
    assert_eq!(g.read(DATA + 512, 1), [0xfe]);
    push(&mut g, &[ONE]);
    assert_eq!(g.run(&[0x48, 0x0f, 0xae, 0x37]), BlockExit::Next);
    assert_eq!(g.read(DATA + 512, 1), [0xff]);
    assert_eq!(g.read(DATA + 32, 16), [ONE[0].to_le_bytes(), ONE[1].to_le_bytes()].concat());
}

#[test]
fn fxsave_outside_64_bit_mode_has_eight_registers_and_selectors() {
    let mut g = Guest::new(32);
    g.write(DATA, &[0xee; 512]);
    g.state.gpr[7] = DATA;
    g.state.xmm = core::array::from_fn(|n| n as u128 + 1);
    g.state.x87.instruction_pointer = 0x1122_3344;
    g.state.x87.instruction_selector = 0x23;
    g.state.x87.data_pointer = 0x5566_7788;
    g.state.x87.data_selector = 0x2b;
    // fxsave [edi]
    assert_eq!(g.run(&[0x0f, 0xae, 0x07]), BlockExit::Next);
    assert_eq!(
        g.read(DATA + 8, 16),
        [0x44, 0x33, 0x22, 0x11, 0x23, 0, 0, 0, 0x88, 0x77, 0x66, 0x55, 0x2b, 0, 0, 0]
    );
    assert_eq!(g.read(DATA + 160 + 7 * 16, 16), 8_u128.to_le_bytes());
    assert_eq!(g.read(DATA + 288, 224), [0xee; 224]);
    // fxrstor [edi] leaves the others.
    g.state.xmm = [77; 16];
    assert_eq!(g.run(&[0x0f, 0xae, 0x0f]), BlockExit::Next);
    assert_eq!((g.state.xmm[7], g.state.xmm[8]), (8, 77));
    assert_eq!(g.state.x87.data_selector, 0x2b);
}

#[test]
fn environments_of_every_format() {
    let x87 = X87 {
        control: 0x340,
        status: 0x3801,
        tags: 0x80,
        opcode: 0x5a5,
        instruction_pointer: 0x12_3456,
        instruction_selector: 0x23,
        data_pointer: 0x9_8765,
        data_selector: 0x2b,
        ..X87::new()
    };
    let protected32: Vec<u8> =
        [0xffff_0340_u32, 0xffff_3801, 0xffff_7fff, 0x12_3456, 0x5a5_0023, 0x9_8765, 0xffff_002b]
            .iter()
            .flat_map(|field| field.to_le_bytes())
            .collect();
    let real32: Vec<u8> =
        [0xffff_0340_u32, 0xffff_3801, 0xffff_7fff, 0xffff_3456, 0x0001_25a5, 0xffff_8765, 0x0000_9000]
            .iter()
            .flat_map(|field| field.to_le_bytes())
            .collect();
    let protected16: Vec<u8> = [0x340_u16, 0x3801, 0x7fff, 0x3456, 0x23, 0x8765, 0x2b]
        .iter()
        .flat_map(|field| field.to_le_bytes())
        .collect();
    let real16: Vec<u8> = [0x340_u16, 0x3801, 0x7fff, 0x3456, 0x25a5, 0x8765, 0x9000]
        .iter()
        .flat_map(|field| field.to_le_bytes())
        .collect();
    let cases = [
        // fnstenv and fldenv [edi], with and without operand-size prefix; [bx] in real mode
        (32, &[0xd9, 0x37][..], &[0xd9, 0x27][..], protected32),
        (32, &[0x66, 0xd9, 0x37], &[0x66, 0xd9, 0x27], protected16),
        (16, &[0xd9, 0x37], &[0xd9, 0x27], real16),
        (16, &[0x66, 0xd9, 0x37], &[0x66, 0xd9, 0x27], real32),
    ];
    for (bits, store, load, expected) in cases {
        let mut g = Guest::new(bits);
        let at = if bits == 16 { 0x4000 } else { DATA };
        (g.state.gpr[3], g.state.gpr[7]) = (at, at);
        g.state.x87 = x87;
        // 7 = 111 in bits 13..11: TOP is 7, R7 holds zero; the exception is unmasked, though not yet summarized.
        assert_eq!(g.run(store), BlockExit::Next);
        assert_eq!(g.read(at, expected.len()), expected, "{bits} bits, {store:x?}");
        assert_eq!(g.state.x87.control, 0x37f, "FNSTENV masks everything");
        g.state.x87 = X87::new();
        assert_eq!(g.run(load), BlockExit::Next);
        let loaded = g.state.x87;
        assert_eq!(
            (loaded.control, loaded.status, loaded.tags),
            (0x340, 0xb881, 0x80),
            "{bits} bits, {load:x?}"
        );
        let low = if expected.len() == 14 { 0xffff } else { 0xffff_ffff };
        if bits == 32 {
            assert_eq!(loaded.instruction_pointer, 0x12_3456 & low);
            assert_eq!((loaded.instruction_selector, loaded.data_selector), (0x23, 0x2b));
        } else {
            // Four more bits in the 16-bit format.
            assert_eq!(loaded.instruction_pointer, 0x12_3456 & if low == 0xffff { 0xf_ffff } else { low });
            assert_eq!((loaded.data_pointer, loaded.opcode), (0x9_8765, 0x5a5));
        }
    }
}

#[test]
fn fnsave_then_frstor_is_the_same_state() {
    for (bits, prefix) in [(64, &[][..]), (32, &[][..]), (32, &[0x66][..]), (16, &[][..]), (16, &[0x66][..])]
    {
        let mut g = Guest::new(bits);
        let at = if bits == 16 { 0x4000 } else { DATA };
        (g.state.gpr[3], g.state.gpr[7]) = (at, at);
        push(&mut g, &[ONE, [3 << 62, 0x4000], [0, 0], [u64::MAX, 0xfffe]]);
        g.state.x87.status |= 0x4122;
        g.state.x87.control = 0xf7f;
        let before = g.state.x87;
        assert_eq!(g.run(&[prefix, &[0xdd, 0x37]].concat()), BlockExit::Next);
        assert_eq!((g.state.x87.tags, g.state.x87.status, g.state.x87.control), (0, 0, 0x37f));
        g.state.x87 = X87::new();
        assert_eq!(g.run(&[prefix, &[0xdd, 0x27]].concat()), BlockExit::Next);
        assert_eq!(g.state.x87, before, "{bits} bits, prefix {prefix:x?}");
    }
}

#[test]
fn the_instruction_pointer_is_recorded() {
    let mut g = Guest::new(64);
    g.state.gpr[7] = DATA;
    // nop; fld1; fstp qword [rdi + 8]; fnstenv [rdi]
    assert_eq!(g.run(&[0x90, 0xd9, 0xe8, 0xdd, 0x5f, 0x08, 0xd9, 0x37]), BlockExit::Next);
    assert_eq!(g.read(DATA + 12, 4), (CODE as u32 + 3).to_le_bytes());
    assert_eq!(g.read(DATA + 20, 4), (DATA as u32 + 8).to_le_bytes());
}

#[test]
fn masked_moves_touch_only_pages_that_get_a_byte() {
    let mut g = Guest::new(16);
    g.state.gpr[7] = 0xfff8;
    g.state.xmm[0] = u128::from_le_bytes(core::array::from_fn(|n| n as u8 + 1));
    // Bytes 0 and 7, then also byte 8, which would lie beyond the limit.
    g.state.xmm[1] = 0x80 | 0x80 << 56;
    g.write(0xfff8, &[0; 8]);
    // maskmovdqu xmm0, xmm1
    assert_eq!(g.run(&[0x66, 0x0f, 0xf7, 0xc1]), BlockExit::Next);
    assert_eq!(g.read(0xfff8, 8), [1, 0, 0, 0, 0, 0, 0, 8]);
}

#[test]
fn a_store_to_a_device_pops_once() {
    let mut g = Guest::new(64);
    push(&mut g, &[ONE]);
    let before = g.state.x87;
    g.state.gpr[7] = 0xfee0_0000;
    // fstp qword [rdi]
    let store = [0xdd, 0x1f];
    assert_eq!(g.run(&store), BlockExit::Stop(Stop::Board));
    assert_eq!(g.state.x87, before);
    let written = MmioAccess::Write { address: GuestPhys(0xfee0_0000), size: 8, value: 1.0_f64.to_bits() };
    assert_eq!(g.mmu.mmio.pending(), Some(written));
    g.mmu.mmio.answer(0);
    assert_eq!(g.run(&store), BlockExit::Next);
    assert_eq!(g.state.x87.tags, 0);
}
