//! The guest's only code of its own: takes a case from the mailbox and enters it.

use anyhow::Result;
use iced_x86::code_asm::{self as asm, CodeAssembler, ptr};

use super::layout::{DRIVER, ERASE, FRAME, FX_IMAGE, HLT, SELECTOR, STAGING, WRITE};

/// The handler of NMIs.
pub fn assemble() -> Result<Vec<u8>> {
    use asm::{al, eax, rax, rcx, rdi, rsi, rsp};
    let mut a = CodeAssembler::new(64)?;
    a.cld()?;
    // Nothing is left of the last case.
    a.mov(rdi, ptr(ERASE))?;
    a.mov(rcx, ptr(ERASE + 8))?;
    a.mov(al, i32::from(HLT as i8))?;
    a.rep().stosb()?;
    a.mov(rsi, STAGING)?;
    a.mov(rdi, ptr(WRITE))?;
    a.mov(rcx, ptr(WRITE + 8))?;
    a.rep().movsb()?;
    a.mov(rax, FX_IMAGE)?;
    a.fxrstor(ptr(rax))?;
    a.mov(eax, ptr(SELECTOR))?;
    a.mov(asm::ds, eax)?;
    a.mov(asm::es, eax)?;
    // The frame of this NMI is left where it is: nothing returns through it.
    a.mov(rsp, FRAME)?;
    use asm::{r8, r9, r10, r11, r12, r13, r14, r15, rbp, rbx, rdx};
    for register in [r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax] {
        a.pop(register)?;
    }
    a.iretq()?;
    Ok(a.assemble(DRIVER)?)
}
