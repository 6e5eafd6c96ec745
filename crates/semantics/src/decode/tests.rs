use iced_x86::{Code, Mnemonic};
use x86::{CpuState, Segment, SegmentRegister, Width, control};

use super::*;
use crate::{MemoryOperand, Operand, Register, Repeat};

const RIP: u64 = 0xffff_ffff_8100_0000;

/// The mode of code with that many bits, flat in 32.
fn mode(bits: u32) -> Mode {
    let mut state = CpuState::new();
    if bits != 16 {
        state.cr0 |= control::cr0::PE;
        state.segments = [Segment::from_descriptor(0x18, 0x00cf_9300_0000_ffff); 6];
        state.segments[1] = Segment::from_descriptor(0x10, 0x00cf_9b00_0000_ffff);
    }
    if bits == 64 {
        state.efer |= control::efer::LMA;
        state.segments[1] = Segment::from_descriptor(0x10, 0x00af_9b00_0000_ffff);
    }
    state.update_mode();
    assert_eq!(state.mode.code_bits(), bits);
    state.mode
}

fn one(bits: u32, bytes: &[u8]) -> Insn {
    let rip = if bits == 64 { RIP } else { 0x7000 };
    let insn = decode_one(bytes, rip, mode(bits)).unwrap_or_else(|error| panic!("{bytes:02x?}: {error}"));
    assert_eq!(insn.length as usize, bytes.len(), "{bytes:02x?}");
    insn
}

fn error(bytes: &[u8]) -> DecodeError {
    decode_one(bytes, RIP, mode(64)).unwrap_err()
}

#[test]
fn instructions_of_processors_that_are_not_announced() {
    // vaddps xmm0,xmm0,xmm0; kmovw k0,k0; femms; vmxon [rax]; extrq xmm0,0,0
    for bytes in [
        &[0xc5, 0xf8, 0x58, 0xc0][..],
        &[0xc5, 0xf8, 0x90, 0xc0],
        &[0x0f, 0x0e],
        &[0xf3, 0x0f, 0xc7, 0x30],
        &[0x66, 0x0f, 0x78, 0xc0, 0, 0],
        // xbegin; AMD's bextr eax,eax,0
        &[0xc7, 0xf8, 0, 0, 0, 0],
        &[0x8f, 0xea, 0x78, 0x10, 0xc0, 0, 0, 0, 0],
    ] {
        assert_eq!(error(bytes), DecodeError::Invalid, "{bytes:02x?}");
    }
    // ENDBR64, RDSSPQ and BNDMK do nothing.
    for bytes in [&[0xf3, 0x0f, 0x1e, 0xfa][..], &[0xf3, 0x48, 0x0f, 0x1e, 0xc8], &[0xf3, 0x0f, 0x1b, 0x00]] {
        let insn = one(64, bytes);
        assert_eq!(table::kind_of(&insn), Kind::Lifted, "{:?}", insn.mnemonic);
        assert!(!ends_block(&insn));
    }
}

#[test]
fn what_older_processors_take_for_a_bit_scan() {
    let expected = |feature, counts, scans| if native::is_offered(feature) { counts } else { scans };
    let trailing = expected(CpuidFeature::BMI1, Mnemonic::Tzcnt, Mnemonic::Bsf);
    let leading = expected(CpuidFeature::LZCNT, Mnemonic::Lzcnt, Mnemonic::Bsr);
    assert_eq!(one(64, &[0xf3, 0x0f, 0xbc, 0xc1]).mnemonic, trailing);
    assert_eq!(one(64, &[0xf3, 0x0f, 0xbd, 0xc1]).mnemonic, leading);
    assert_eq!(one(64, &[0xf2, 0x0f, 0xbc, 0xc1]).mnemonic, Mnemonic::Bsf);
    assert_eq!(error(&[0xf0, 0xf3, 0x0f, 0xbc, 0x01]), DecodeError::Invalid);
}

/// andn eax,ecx,[rdx]
const ANDN: [u8; 5] = [0xc4, 0xe2, 0x70, 0xf2, 0x02];

#[test]
fn vex_encodings_of_general_registers_take_no_other_prefix() {
    if !native::is_offered(CpuidFeature::BMI1) {
        assert_eq!(error(&ANDN), DecodeError::Invalid);
        return;
    }
    let prefixed = |prefix: u8| {
        let mut bytes = vec![prefix];
        bytes.extend(ANDN);
        bytes
    };
    assert_eq!(one(64, &ANDN).mnemonic, Mnemonic::Andn);
    assert_eq!(one(64, &prefixed(0x67)).memory.width, Width::Dword);
    assert_eq!(one(64, &prefixed(0x64)).memory.segment, SegmentRegister::Fs);
    for prefix in [0xf0, 0x66, 0xf2, 0xf3, 0x40, 0x48] {
        assert_eq!(error(&prefixed(prefix)), DecodeError::Invalid, "{prefix:02x}");
    }
    // VEX.L is set; rorx with a register in VEX.vvvv.
    assert_eq!(error(&[0xc4, 0xe2, 0x74, 0xf2, 0x02]), DecodeError::Invalid);
    assert_eq!(error(&[0xc4, 0xe3, 0x73, 0xf0, 0xc1, 1]), DecodeError::Invalid);
}

#[test]
fn vex_is_of_protected_mode() {
    let offered = native::is_offered(CpuidFeature::BMI1);
    let mut state = CpuState::new();
    assert_eq!(decode_one(&ANDN, 0, state.mode).unwrap_err(), DecodeError::Invalid, "real mode");
    state.cr0 |= control::cr0::PE;
    state.set_rflags(x86::flags::VM);
    state.update_mode();
    assert!(state.mode.is_virtual_8086());
    assert_eq!(decode_one(&ANDN, 0, state.mode).unwrap_err(), DecodeError::Invalid, "virtual-8086 mode");
    state.set_rflags(0);
    state.update_mode();
    assert_eq!((state.mode.code_bits(), state.mode.is_protected()), (16, true));
    assert_eq!(decode_one(&ANDN, 0, state.mode).is_ok(), offered, "16-bit protected mode");
    // VEX.W counts in 64-bit mode only.
    let andn64 = [0xc4, 0xe2, 0xf0, 0xf2, 0x02];
    for (bits, width) in [(32, Width::Dword), (64, Width::Qword)].into_iter().filter(|_| offered) {
        let insn = one(bits, &andn64);
        assert_eq!([insn.width, insn.operand_width(0), insn.operand_width(2)], [width; 3]);
    }
}

#[test]
fn lock_is_for_read_modify_writes_of_memory() {
    assert!(one(64, &[0xf0, 0x48, 0x01, 0x03]).lock);
    // lock add eax,eax; lock mov [rax],eax; lock cmp [rax],eax
    for bytes in [&[0xf0, 0x01, 0xc0][..], &[0xf0, 0x89, 0x00], &[0xf0, 0x39, 0x00]] {
        assert_eq!(error(bytes), DecodeError::Invalid, "{bytes:02x?}");
    }
}

#[test]
fn pause_with_rex_b_is_pause() {
    assert_eq!(one(64, &[0xf3, 0x90]).mnemonic, Mnemonic::Pause);
    // As on Intel's processors (measured on Cascade Lake); to AMD's it is XCHG R8D, EAX.
    assert_eq!(one(64, &[0xf3, 0x41, 0x90]).mnemonic, Mnemonic::Pause);
    assert_eq!(one(64, &[0xf3, 0x48, 0x90]).mnemonic, Mnemonic::Pause);
}

#[test]
fn lengths() {
    // add eax, imm32 with its last byte missing
    assert_eq!(error(&[0x05, 0, 0, 0]), DecodeError::Truncated);
    assert_eq!(error(&[]), DecodeError::Truncated);
    assert_eq!(error(&[0x66; 15]), DecodeError::TooLong);
    assert_eq!(error(&[0x66; 14]), DecodeError::Truncated);
    // 14 prefixes and NOP make 15 bytes; one more is too many.
    let mut bytes = vec![0x66; 14];
    bytes.push(0x90);
    assert_eq!(one(64, &bytes).length, 15);
    bytes.insert(0, 0x66);
    assert_eq!(error(&bytes), DecodeError::TooLong);
    // An invalid opcode stays invalid however much follows.
    assert_eq!(error(&[0x06; 16]), DecodeError::Invalid);
}

#[test]
fn registers_by_encoding() {
    let high = |index| Operand::Gpr(Register { index, width: Width::Byte, high: true });
    let low = |index| Operand::Gpr(Register::new(index, Width::Byte));
    // mov ah,bh; mov spl,r15b; mov r9w,ax
    assert_eq!(one(64, &[0x88, 0xfc]).operands[..2], [high(0), high(3)]);
    assert_eq!(one(64, &[0x44, 0x88, 0xfc]).operands[..2], [low(4), low(15)]);
    let insn = one(64, &[0x66, 0x41, 0x89, 0xc1]);
    assert_eq!(
        insn.operands[..2],
        [Operand::Gpr(Register::new(9, Width::Word)), Operand::Gpr(Register::new(0, Width::Word))]
    );
    assert_eq!((insn.width, insn.operand_count), (Width::Word, 2));
}

#[test]
fn addresses() {
    // mov rax,[rbp+r12*4-8]: stack segment
    let memory = one(64, &[0x4a, 0x8b, 0x44, 0xa5, 0xf8]).memory;
    assert_eq!((memory.base, memory.index, memory.scale), (5, 12, 2));
    assert_eq!(memory.displacement, 8u64.wrapping_neg());
    assert_eq!((memory.segment, memory.width), (SegmentRegister::Ss, Width::Qword));
    // mov eax,[rip+0x10]: absolute; with 67, cut to 32 bits
    let memory = one(64, &[0x8b, 0x05, 0x10, 0, 0, 0]).memory;
    assert_eq!((memory.base, memory.displacement), (MemoryOperand::NONE, RIP + 0x16));
    let memory = one(64, &[0x67, 0x8b, 0x05, 0x10, 0, 0, 0]).memory;
    assert_eq!((memory.width, memory.displacement), (Width::Dword, (RIP + 0x17) & 0xffff_ffff));
    // Segment overrides: DS is ignored in 64-bit mode, GS is not.
    assert_eq!(one(64, &[0x3e, 0x8b, 0x45, 0]).memory.segment, SegmentRegister::Ss);
    assert_eq!(one(64, &[0x65, 0x8b, 0x45, 0]).memory.segment, SegmentRegister::Gs);
    // mov al,moffs64; mov eax,[disp32]; 16 bits: mov ax,[bx+si+4], mov ax,[0x1234]
    let insn = one(64, &[0xa0, 8, 7, 6, 5, 4, 3, 2, 1]);
    assert_eq!((insn.memory.displacement, insn.memory.width), (0x0102_0304_0506_0708, Width::Qword));
    let memory = one(64, &[0x8b, 0x04, 0x25, 0, 0, 0, 0x80]).memory;
    assert_eq!((memory.displacement, memory.base), (0xffff_ffff_8000_0000, MemoryOperand::NONE));
    let memory = one(16, &[0x8b, 0x40, 4]).memory;
    assert_eq!((memory.base, memory.index, memory.width), (3, 6, Width::Word));
    assert_eq!(one(16, &[0xa1, 0x34, 0x12]).memory.width, Width::Word);
    assert_eq!(one(32, &[0x67, 0xa1, 0x34, 0x12]).memory.width, Width::Word);
    // xlatb: the definition adds AL.
    let memory = one(64, &[0xd7]).memory;
    assert_eq!((memory.base, memory.index), (3, MemoryOperand::NONE));
}

#[test]
fn sizes_of_instructions_without_explicit_operands() {
    let width = |bits, bytes: &[u8]| one(bits, bytes).width;
    assert_eq!(width(64, &[0x50]), Width::Qword); // push rax
    assert_eq!(width(64, &[0x66, 0x50]), Width::Word);
    assert_eq!(width(32, &[0x6a, 0xff]), Width::Dword); // push -1
    assert_eq!(one(32, &[0x6a, 0xff]).immediate as u32, u32::MAX);
    assert_eq!(width(64, &[0xc3]), Width::Qword); // ret
    assert_eq!(width(32, &[0xc9]), Width::Dword); // leave
    assert_eq!(width(64, &[0xee]), Width::Byte); // out dx,al
    assert_eq!(width(64, &[0x66, 0xef]), Width::Word); // out dx,ax
    assert_eq!(width(32, &[0x6e]), Width::Byte); // outsb
    assert_eq!(one(64, &[0x67, 0xe2, 0xfe]).address_width, Width::Dword); // loop with ecx
    assert_eq!(one(64, &[0xe3, 0xfe]).address_width, Width::Qword); // jrcxz
}

#[test]
fn string_instructions() {
    // rep gs movsq
    let insn = one(64, &[0xf3, 0x65, 0x48, 0xa5]);
    assert_eq!((insn.repeat, insn.width, insn.address_width), (Repeat::Equal, Width::Qword, Width::Qword));
    assert_eq!((insn.memory.segment, insn.memory.base), (SegmentRegister::Gs, 6));
    // repne scasb with 16-bit addresses
    let insn = one(32, &[0xf2, 0x67, 0xae]);
    assert_eq!((insn.repeat, insn.width, insn.address_width), (Repeat::NotEqual, Width::Byte, Width::Word));
    assert_eq!((insn.memory.segment, insn.memory.base), (SegmentRegister::Es, 7));
    // F3 before anything else is no repetition.
    assert_eq!(one(64, &[0xf3, 0xc3]).repeat, Repeat::None);
}

#[test]
fn branch_targets_are_cut_to_the_operand_size() {
    let insn = one(16, &[0xeb, 0xfe]);
    assert_eq!((insn.operands[0], insn.immediate), (Operand::Near, 0x7000));
    // jmp near -0x8000 from 0x7000 in 16-bit code wraps.
    assert_eq!(one(16, &[0xe9, 0, 0x80]).immediate, 0xf003);
    assert_eq!(one(64, &[0x74, 0x10]).immediate, RIP + 0x12);
    let insn = one(32, &[0xea, 1, 0, 0, 0, 8, 0]);
    assert_eq!((insn.operands[0], insn.immediate, insn.immediate2), (Operand::Far, 1, 8));
}

#[test]
fn forms_that_the_monitor_does() {
    // mov cr3,rax; mov rax,dr7; mov ds,eax; pop fs; jmp far [rax]; iretq; int 0x80; cli
    for bytes in [
        &[0x0f, 0x22, 0xd8][..],
        &[0x0f, 0x21, 0xf8],
        &[0x8e, 0xd8],
        &[0x0f, 0xa1],
        &[0xff, 0x28],
        &[0x48, 0xcf],
        &[0xcd, 0x80],
        &[0xfa],
    ] {
        let insn = one(64, bytes);
        assert_eq!(table::kind_of(&insn), Kind::Callout, "{bytes:02x?}");
        assert!(ends_block(&insn));
    }
    // mov eax,ds; push fs; jmp [rax] are not.
    for bytes in [&[0x8c, 0xd8][..], &[0x0f, 0xa0], &[0xff, 0x20]] {
        assert_eq!(table::kind_of(&one(64, bytes)), Kind::Lifted, "{bytes:02x?}");
    }
}

#[test]
fn blocks() {
    let end = |bytes: &[u8]| {
        let block = decode_block(bytes, RIP, mode(64));
        (block.insns.len(), block.length(), block.end)
    };
    // nop; ret; nop
    assert_eq!(end(&[0x90, 0xc3, 0x90]), (2, 2, BlockEnd::Terminal));
    // rep movsb; cpuid
    assert_eq!(end(&[0xf3, 0xa4, 0x0f, 0xa2, 0x90]), (2, 4, BlockEnd::Terminal));
    assert_eq!(end(&[0x90, 0x90]), (2, 2, BlockEnd::Length));
    assert_eq!(end(&[0x90, 0x05, 0]), (1, 1, BlockEnd::PageEnd));
    assert_eq!(end(&[0x05, 0]), (0, 0, BlockEnd::PageEnd));
    assert_eq!(end(&[0x90, 0x06, 0]), (1, 1, BlockEnd::Invalid));
    assert_eq!(end(&[0x90, 0x0f, 0x0b]), (2, 3, BlockEnd::Terminal)); // ud2
    assert_eq!(end(&[0x90; 100]), (MAX_BLOCK, MAX_BLOCK as u64, BlockEnd::Length));
}

#[test]
fn every_encoding_of_the_table_has_operands_that_lower() {
    // A row whose instructions can't be lowered would be #UD without anyone noticing: no encoding of a table mnemonic
    // needs more than four operands.
    for code in Code::values() {
        if matches!(code.op_code().encoding(), EncodingKind::Legacy | EncodingKind::VEX)
            && table::kind(code.mnemonic()) != Kind::Undefined
        {
            assert!(code.op_code().op_count() <= 4, "{code:?}");
        }
    }
}

#[test]
fn extended_blocks_go_on_behind_one_forward_branch() {
    let extended = |bytes: &[u8], goes_on: bool| {
        let block = decode_extended(bytes, RIP, mode(64), |rip| {
            assert!(rip > RIP);
            goes_on
        });
        (block.insns.len(), block.length(), block.end)
    };
    // nop; jz +2; nop; jnz +2; nop; ret
    let two = [0x90, 0x74, 2, 0x90, 0x75, 2, 0x90, 0xc3];
    assert_eq!(extended(&two, true), (4, 6, BlockEnd::Terminal), "up to the second one");
    assert_eq!(extended(&two, false), (2, 3, BlockEnd::Terminal));
    assert_eq!(decode_block(&two, RIP, mode(64)).length(), 3);
    // nop; jz -3; nop; ret, and the same with LOOP, and with JMP forwards
    for ends in [[0x90, 0x74, 0xfd, 0x90, 0xc3], [0x90, 0xe2, 2, 0x90, 0xc3], [0x90, 0xeb, 2, 0x90, 0xc3]] {
        assert_eq!(extended(&ends, true), (2, 3, BlockEnd::Terminal), "{ends:02x?}");
    }
    // What can't follow: nothing, a part of an instruction, none. Then one before it.
    for (rest, end) in [
        (&[][..], BlockEnd::Length),
        (&[0x48, 0x8b], BlockEnd::PageEnd),
        (&[0x06, 0x90, 0x90, 0x90], BlockEnd::Invalid),
    ] {
        let bytes = [&two[..3], rest].concat();
        assert_eq!(extended(&bytes, true), (2, 3, BlockEnd::Terminal), "{bytes:02x?}");
        let bytes = [&two[..4], rest].concat();
        assert_eq!(extended(&bytes, true), (3, 4, end), "{bytes:02x?}");
    }
    // What was cut where it ended is decoded alike.
    assert_eq!(extended(&two[..6], true).1, 6);
}
