; Delivery through the IDT: gates that are absent, wrong, closed or lead nowhere, with the error code of each; what adds
; up to a double fault and what does not; trap gates, IST, and the instructions that only 32-bit code has.
%include "system.inc"

ABSENT_CODE     equ 0x58
HOLE            equ 0x42            ; a vector to spoil
HOLE_ERROR      equ HOLE * 8 + 2
NON_CANONICAL   equ 0x0000800000000000
EXT             equ 1

; Word %2 of vector %1's gate := %3 (1: selector, 2: type, 0: offset). `mend` puts everything back.
%macro spoil 3
    mov word [idt + (%1) * 16 + (%2) * 2], %3
%endmacro

%macro mend 1
    mov rax, [good_gate]
    mov [idt + (%1) * 16 + 2], ax
    mov word [idt + (%1) * 16 + 4], 0x8e00
    mov dword [idt + (%1) * 16 + 8], 0
%endmacro

; Runs an instruction in 32-bit code: must end in vector %1, at RIP %%at + %2.
%macro compatible 3+
    resume_at %%after
    push CODE32
    push %%at
    retfq
    bits 32
%%at:
    %3
    bits 64
%%after:
    check e, qword [seen], %1
    mov rax, %%at + %2
    check e, qword [seen_rip], rax
%endmacro

test:
    movzx eax, word [idt + HOLE * 16 + 2]
    mov [good_gate], rax
    lea rsi, [gdt]
    lea rdi, [own_gdt]
    mov ecx, gdt_end - gdt
    rep movsb
    lgdt [own_gdt_pointer]
    mov byte [idt + 8 * 16 + 4], 1          ; #DF has a stack of its own

software:
    ; INT n: the fault is the instruction's, so EXT is clear.
    spoil HOLE, 2, 0x0e00
    faults 11, HOLE_ERROR, int HOLE
    spoil HOLE, 2, 0x8c00                   ; a call gate
    faults 13, HOLE_ERROR, int HOLE
    spoil HOLE, 2, 0x8600                   ; a 16-bit gate
    faults 13, HOLE_ERROR, int HOLE
    spoil HOLE, 2, 0x8500                   ; a task gate
    faults 13, HOLE_ERROR, int HOLE
    mend HOLE
    spoil HOLE, 1, 0
    faults 13, 0, int HOLE
    spoil HOLE, 1, DATA
    faults 13, DATA, int HOLE
    spoil HOLE, 1, CODE32                   ; handlers are 64-bit code
    faults 13, CODE32, int HOLE
    spoil HOLE, 1, ABSENT_CODE
    faults 11, ABSENT_CODE, int HOLE
    spoil HOLE, 1, 0x1230
    faults 13, 0x1230, int HOLE
    mend HOLE
    mov dword [idt + HOLE * 16 + 8], NON_CANONICAL >> 32
    faults 13, 0, int HOLE
    mend HOLE
    traps HOLE, int HOLE
    ; Beyond the IDT's limit.
    lidt [short_idt]
    faults 13, HOLE_ERROR, int HOLE
    lidt [idt_pointer]

hardware:
    ; The same for an exception: EXT is set. #UD is benign, so that what follows stands for itself.
    spoil 6, 2, 0x0e00
    faults 11, 6 * 8 + 2 + EXT, ud2
    mend 6
    spoil 6, 1, DATA
    faults 13, DATA + EXT, ud2
    spoil 6, 1, 0
    faults 13, EXT, ud2
    mend 6
    ; Contributory after contributory, or after a page fault: double. A page fault after anything but a page fault
    ; stands for itself.
    xor ecx, ecx
    spoil 0, 2, 0x0e00
    faults 8, 0, div ecx
    mend 0
    spoil 14, 2, 0x0e00
    faults 8, 0, mov eax, [abs WINDOW]
    mend 14
    spoil 13, 1, DATA
    mov eax, 0x1230
    faults 8, 0, mov ds, eax
    mend 13
    mov byte [idt + 14 * 16 + 4], 1
    mov rbp, rsp
    resume_at .page_fault_in_divide
    mov rsp, WINDOW + 0x800
    div ecx
.page_fault_in_divide:
    check e, rsp, rbp
    check_seen 14, 2
    mov rbp, rsp
    resume_at .page_fault
    mov rsp, WINDOW + 0x800
.undefined:
    ud2
.page_fault:
    check e, rsp, rbp
    check_seen 14, 2
    mov rax, .undefined
    check e, [seen_rip], rax
    mov rax, WINDOW + 0x800
    check e, [seen_rsp], rax
    mov byte [idt + 14 * 16 + 4], 0

privilege:
    ; INT3 and INT n look at the gate's DPL, ICEBP does not.
    mend 3
    user .breakpoint
    check_seen 13, 3 * 8 + 2
    spoil 3, 2, 0xee00
    user .breakpoint
    check_seen 3, 0
    user .icebp
    check_seen 1, 0
    mov rax, .icebp + 1
    check e, [seen_rip], rax
    ; A gate to ring 3's code is none for ring 0; ring 0's stack must be canonical.
    spoil HOLE, 1, USER_CODE64
    faults 13, USER_CODE64 & ~3, int HOLE
    mend HOLE
    mov byte [idt + 12 * 16 + 4], 1
    mov rax, NON_CANONICAL + 0x1000
    mov [tss + 4], rax
    user .interrupt
    check_seen 12, 0
    mov rax, .interrupt
    check e, [seen_rip], rax
    check e, qword [seen_cs], USER_CODE64
    mov qword [tss + 4], INTERRUPT_STACK
    mov byte [idt + 12 * 16 + 4], 0
    ; IST is taken from any ring.
    mov byte [idt + 0x80 * 16 + 4], 1
    user .interrupt
    check_seen 0x80, 0
    check e, qword [seen_frame], IST1_TOP - 40
    traps 0x80, int 0x80
    check e, qword [seen_frame], IST1_TOP - 40
    mov byte [idt + 0x80 * 16 + 4], 0
    user .interrupt
    check e, qword [seen_frame], INTERRUPT_STACK - 40
    jmp flags

.breakpoint:
    int3
.icebp:
    db 0xf1
.interrupt:
    int 0x80

flags:
    ; An interrupt gate clears IF, a trap gate does not; both clear TF, NT and RF, and the frame has what was.
    mov qword [handlers + HOLE * 8], note_flags
    sti
    int HOLE
    cli
    mov rax, [noted]
    and eax, 0x14300
    check e, eax, 0
    mov rax, [noted_frame]
    and eax, 0x200
    check e, eax, 0x200
    spoil HOLE, 2, 0x8f00
    pushfq
    or qword [rsp], 0x4200                  ; NT, IF
    popfq
    int HOLE
    pushfq
    pop rbx
    cli
    pushfq
    and qword [rsp], ~0x4000
    popfq
    mov rax, [noted]
    and eax, 0x14300
    check e, eax, 0x200
    mov rax, [noted_frame]
    and eax, 0x4200
    check e, eax, 0x4200
    and ebx, 0x4200
    check e, ebx, 0x4200                    ; IRETQ brought NT back
    mend HOLE
    ; A fault's frame has RF set, a trap's does not.
    faults 6, 0, ud2
    mov rax, [seen_rflags]
    bt rax, 16
    setc al
    check e, al, 1
    traps 0x80, int 0x80
    mov rax, [seen_rflags]
    bt rax, 16
    setc al
    check e, al, 0

only_32_bit:
    faults 6, 0, db 0xce                    ; INTO
    faults 6, 0, db 0x27                    ; DAA
    mov al, 0x7f
    add al, 1
    compatible 4, 1, into
    mov eax, DATA                           ; going to ring 3 made it null
    mov ds, eax
    mov dword [FREE], 5
    mov dword [FREE + 4], 10
    mov eax, 11
    compatible 5, 0, bound eax, [FREE]
    mov eax, 4
    compatible 5, 0, bound eax, [FREE]
    mov eax, 10
    resume_at .within
    push CODE32
    push .bound
    retfq
    bits 32
.bound:
    bound eax, [FREE]
    int 0x80
    bits 64
.within:
    check e, qword [seen], 0x80
    compatible 6, 0, db 0x0f, 0x01, 0xf8      ; SWAPGS
    compatible 6, 0, {db 0xf0, 0x89, 0xc0}  ; LOCK MOV
    ret

note_flags:
    pushfq
    pop qword [noted]
    mov rax, [rdi + 24]
    mov [noted_frame], rax
    and qword [rdi + 24], ~0x100
    ret

    align 8
good_gate:      dq 0
noted:          dq 0
noted_frame:    dq 0
own_gdt:
    times gdt_end - gdt db 0
    dq 0x00af1b000000ffff                   ; ABSENT_CODE
own_gdt_end:
own_gdt_pointer:
    dw own_gdt_end - own_gdt - 1
    dq own_gdt
short_idt:
    dw HOLE * 16 - 1
    dq idt
end_of_guest
