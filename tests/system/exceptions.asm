; Each exception: vector, error code, where RIP points, which flags and stack it arrives with.
%include "system.inc"

test:
    ; #DE
    xor ecx, ecx
    mov eax, 5
    xor edx, edx
    faults 0, 0, div ecx
    check e, eax, 5
    mov rax, 0x8000000000000000
    mov rdx, -1
    mov rcx, -1
    faults 0, 0, idiv rcx
    ; #UD
    faults 6, 0, ud2

    ; #BP and INT n are traps: RIP points behind them.
    traps 3, int3
    traps 0x80, int 0x80
    traps 0x42, int 0x42
    ; #GP: a selector beyond the GDT, a non-canonical address, a reserved bit of CR4, an unknown MSR.
    mov eax, 0x1230
    faults 13, 0x1230, mov ds, eax
    mov rax, 0x0000800000000000
    faults 13, 0, mov rbx, [rax]
    ; #SS: a non-canonical address with a stack base.
    mov rbp, 0x0000800000000000
    faults 12, 0, mov rbx, [rbp]
    mov rax, cr4
    mov rbx, 1 << 63
    or rax, rbx
    faults 13, 0, mov cr4, rax
    mov ecx, 0x12345678
    faults 13, 0, rdmsr
    ; #NP: a segment that is not present.
    mov rax, 0x00cf13000000ffff
    mov [gdt + DATA16], rax
    mov eax, DATA16
    faults 11, DATA16, mov es, eax
    ; #NM: CR0.TS.
    mov rax, cr0
    or eax, 8
    mov cr0, rax
    faults 7, 0, fninit
    faults 7, 0, movaps xmm0, xmm1
    clts
    fninit
    ; #MF: an unmasked x87 exception, at the next waiting instruction.
    fldcw [unmasked]
    fldz
    fld1
    fdivrp st1, st0
    faults 16, 0, fwait
    fnclex
    fninit
    ; #XM
    ldmxcsr [mxcsr_unmasked]
    pxor xmm0, xmm0
    movq xmm1, [one]
    faults 19, 0, divsd xmm1, xmm0
    ldmxcsr [mxcsr_default]
    ; #GP: SSE alignment.
    faults 13, 0, movaps xmm0, [one]
    ; #PF: see paging.asm; here that CR2 and the error code of a ring-0 read are right.
    mov rax, WINDOW
    faults 14, 0, mov rbx, [rax + 0x123]
    mov rax, WINDOW + 0x123
    check e, [seen_cr2], rax
    ; #AC: only in ring 3 with CR0.AM and RFLAGS.AC.
    mov rax, cr0
    or eax, 1 << 18
    mov cr0, rax
    user misaligned
    check_seen 17, 0
    ; A fault in a handler's stack push is a double fault, on its IST stack.
    mov word [idt + 8 * 16 + 4], 0x8e01
    mov qword [resume], .after_double
    mov [resume_stack], rsp
    mov rsp, WINDOW + 0x800
    ud2
.after_double:
    check_seen 8, 0
    check be, qword [seen_frame], IST1_TOP
    check a, qword [seen_frame], IST1_TOP - 64
    ; Single-step: the trap comes after the instruction behind POPF.
    resume_at .stepped
    pushfq
    or qword [rsp], 0x100
    popfq
    nop
.behind:
    nop
    nop
.stepped:
    mov rax, .behind
    check e, qword [seen], 1
    check e, [seen_rip], rax
    mov rax, dr6
    and eax, 1 << 14
    check e, eax, 1 << 14
    ; A hardware breakpoint on execution is a fault, one on data a trap.
    mov rax, .target
    mov dr0, rax
    mov eax, 0x402
    mov dr7, rax
    resume_at .broke
    nop
.target:
    nop
.broke:
    check e, qword [seen], 1
    mov rax, .target
    check e, [seen_rip], rax
    mov rax, scratch
    mov dr0, rax
    mov eax, 0xd0402                        ; G0, write, 4 bytes
    mov dr7, rax
    resume_at .watched
    mov dword [scratch], 1
.behind_write:
    nop
.watched:
    check e, qword [seen], 1
    mov rax, .behind_write
    check e, [seen_rip], rax
    xor eax, eax
    mov dr7, rax
    ; INTO and BOUND are gone in 64-bit mode; privileged instructions fault in ring 3.
    user privileged
    check_seen 13, 0
    mov rax, privileged
    check e, [seen_rip], rax
    check e, qword [seen_cs], USER_CODE64
    ret

misaligned:
    pushfq
    or qword [rsp], 1 << 18
    popfq
    mov eax, [abs USER_STACK - 63]
    int 0x80

privileged:
    mov rax, cr0
    int 0x80

    align 4
unmasked:       dw 0x037b                   ; zero-divide unmasked
    align 4
mxcsr_unmasked: dd 0x1d80                   ; zero-divide unmasked
mxcsr_default:  dd 0x1f80
    align 16
                dq 0
one:            dq 1.0
scratch:        dq 0
end_of_guest
