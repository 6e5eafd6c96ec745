; What exceptions in a row come to (SDM Vol. 3A table 6-5): handled one after the other, or a double fault.
%include "system.inc"

%define P_BIT 0x80

; Makes the gate of a vector not present, or present again.
%macro absent 1
    and byte [idt + (%1) * 16 + 5], ~P_BIT
%endmacro
%macro present 1
    or byte [idt + (%1) * 16 + 5], P_BIT
%endmacro

test:
    ; #DF on a stack of its own.
    mov byte [idt + 8 * 16 + 4], 1

    ; A benign exception first: the #NP of its absent gate is delivered as such. IDT bit and vector are in its error code;
    ; of an exception that the processor raised, EXT, too.
    absent 6
    faults 11, 6 * 8 + 2 + 1, ud2
    present 6
    absent 3
    faults 11, 3 * 8 + 2, int3
    present 3
    absent 0x42
    faults 11, 0x42 * 8 + 2, int 0x42
    present 0x42

    ; Contributory after contributory: #GP whose gate is absent gives #NP, which is a double fault.
    absent 13
    mov rbx, 0x0000800000000000
    resume_at .gp_np
    mov rax, [rbx]
.gp_np:
    check_seen 8, 0
    present 13
    ; #DE with an absent gate likewise.
    absent 0
    xor ecx, ecx
    resume_at .de_np
    div ecx
.de_np:
    check_seen 8, 0
    present 0

    ; A page fault after a contributory exception is handled as such: #GP whose stack is missing.
    mov byte [idt + 13 * 16 + 4], 2         ; IST2, which points into the window
    mov rax, WINDOW + 0x1000
    mov [tss + 0x2c], rax
    mov byte [idt + 14 * 16 + 4], 1
    mov rbx, 0x0000800000000000
    resume_at .gp_pf
    mov rax, [rbx]
.gp_pf:
    check_seen 14, 2
    mov rax, WINDOW + 0x1000 - 8
    check e, [seen_cr2], rax
    mov byte [idt + 13 * 16 + 4], 0

    ; A page fault in the delivery of a page fault is a double fault; CR2 is that of the second.
    mov byte [idt + 14 * 16 + 4], 2
    mov rbx, WINDOW + 0x5000
    resume_at .pf_pf
    mov rax, [rbx]
.pf_pf:
    check_seen 8, 0
    mov rax, WINDOW + 0x1000 - 8
    check e, [seen_cr2], rax
    ; And a contributory one too: the gate's code segment is none.
    mov byte [idt + 14 * 16 + 4], 0
    mov word [idt + 14 * 16 + 2], DATA
    resume_at .pf_gp
    mov rax, [rbx]
.pf_gp:
    check_seen 8, 0
    mov word [idt + 14 * 16 + 2], CODE64

    ; Gates that lead nowhere, by INT n: the code segment's selector is the error code.
    mov word [idt + 0x42 * 16 + 2], 0
    faults 13, 0, int 0x42
    mov word [idt + 0x42 * 16 + 2], DATA
    faults 13, DATA, int 0x42
    mov word [idt + 0x42 * 16 + 2], CODE32  ; not a 64-bit one
    faults 13, CODE32, int 0x42
    mov word [idt + 0x42 * 16 + 2], CODE64
    ; A handler at an address that is not canonical; a type that is no gate.
    mov dword [idt + 0x42 * 16 + 8], 0x8000
    faults 13, 0, int 0x42
    mov dword [idt + 0x42 * 16 + 8], 0
    mov byte [idt + 0x42 * 16 + 5], 0x85    ; a task gate
    faults 13, 0x42 * 8 + 2, int 0x42
    mov byte [idt + 0x42 * 16 + 5], 0x8e
    ; Beyond the IDT's limit.
    mov word [idt_pointer], 0x42 * 16 - 1
    lidt [idt_pointer]
    faults 13, 0x42 * 8 + 2, int 0x42
    faults 13, 0x80 * 8 + 2, int 0x80
    mov word [idt_pointer], 256 * 16 - 1
    lidt [idt_pointer]
    traps 0x42, int 0x42

    ; From ring 3 the gate's DPL counts, but not for exceptions.
    user .int42
    check_seen 13, 0x42 * 8 + 2
    user .undefined
    check_seen 6, 0
    check e, qword [seen_cs], USER_CODE64
    ; RSP0 that is not canonical: #SS in the delivery.
    mov rax, 0x0000900000000000
    mov [tss + 4], rax
    mov byte [idt + 12 * 16 + 4], 1
    user .undefined
    mov rax, INTERRUPT_STACK
    mov [tss + 4], rax
    check_seen 12, 1
    mov byte [idt + 12 * 16 + 4], 0
    ret

.int42:
    int 0x42
    int 0x80
.undefined:
    ud2
end_of_guest
