; Hardware task switches of 32-bit protected mode: by JMP, by CALL and IRET, through a task gate in the GDT and one in
; the IDT; what is saved, loaded, marked busy, linked back and refused.
%include "system.inc"

FIRST       equ 0x58                ; TSS of the task that we are
SECOND      equ 0x60
TASK_GATE   equ 0x68
ABSENT      equ 0x70
TOO_SHORT   equ 0x78                ; limit below 0x67
FLAT_IDT    equ FREE
BUSY        equ 0x8b
AVAILABLE   equ 0x89

%macro check32 3
    %assign checks checks + 1
    cmp %2, %3
    j%+1 %%good
    mov eax, checks
    jmp failed32
%%good:
%endmacro

%macro faults32 3+
    mov dword [vector32], -1
    mov [stack32], esp
    mov dword [resume32], %%after
%%at:
    %3
%%after:
    check32 e, dword [vector32], %1
    check32 e, dword [error32], %2
    check32 e, dword [eip32], %%at
%endmacro

%macro flat_gate 2
    mov eax, %2
    mov [FLAT_IDT + %1 * 8], ax
    mov word [FLAT_IDT + %1 * 8 + 2], CODE32
    shr eax, 16
    mov word [FLAT_IDT + %1 * 8 + 4], 0x8e00
    mov [FLAT_IDT + %1 * 8 + 6], ax
%endmacro

%macro tss_descriptor 2
    mov rax, %2
    shl rax, 16
    mov rbx, 0x0000890000000067
    or rax, rbx
    mov [own_gdt + %1], rax
%endmacro

test:
    lea rsi, [gdt]
    lea rdi, [own_gdt]
    mov ecx, gdt_end - gdt
    rep movsb
    tss_descriptor FIRST, first
    tss_descriptor SECOND, second
    tss_descriptor ABSENT, second
    btr qword [own_gdt + ABSENT], 47
    tss_descriptor TOO_SHORT, second
    mov word [own_gdt + TOO_SHORT], 0x66
    mov rax, 0x0000e50000000000 | (SECOND << 16)
    mov [own_gdt + TASK_GATE], rax
    mov rdi, FLAT_IDT
    xor eax, eax
    mov ecx, 256
    rep stosq
    flat_gate 10, stub10
    flat_gate 11, stub11
    flat_gate 13, stub13
    mov rax, 0x0000850000000000 | (SECOND << 16)
    mov [FLAT_IDT + 6 * 8], rax
    mov [FLAT_IDT + 12 * 8], rax
    lgdt [own_gdt_pointer]
    push CODE32
    push .compatible
    retfq
    bits 32
.compatible:
    mov eax, DATA
    mov ds, eax
    mov es, eax
    mov ss, eax
    lidt [flat_idt_pointer]
    mov eax, cr0
    and eax, 0x7fffffff
    mov cr0, eax
    jmp .protected
.protected:
    mov eax, FIRST
    ltr ax
    check32 e, byte [own_gdt + FIRST + 5], BUSY

    ; JMP: the old task is available again, the new one busy, no link, no NT. It jumps back.
    mov dword [second + 32], .jumped
    mov dword [second + 36], 2
    mov dword [second + 40], 0x1111         ; EAX
    mov dword [second + 64], 0x7777         ; ESI
    mov dword [second], 0x5a5a5a5a
    mov esi, 0x1234
    mov ebp, esp
    jmp SECOND:0
.jump_back:
    check32 e, esi, 0x1234
    check32 e, esp, ebp
    check32 e, byte [own_gdt + FIRST + 5], BUSY
    check32 e, byte [own_gdt + SECOND + 5], AVAILABLE
    check32 e, dword [second + 64], 0x7778
    check32 e, dword [second + 40], 0x1111
    str ax
    check32 e, ax, FIRST
    mov eax, cr0
    and eax, 8
    check32 e, eax, 8                       ; TS
    clts

    ; CALL: nested, with a link; IRET comes back and leaves the callee behind its IRET.
    mov dword [second + 32], .called
    mov dword [second + 36], 2
    mov edi, 0x4321
    call SECOND:0
    check32 e, edi, 0x4321
    check32 e, dword [second + 32], .called_again
    check32 e, word [second], FIRST
    check32 e, byte [own_gdt + SECOND + 5], AVAILABLE
    check32 e, byte [own_gdt + FIRST + 5], BUSY
    pushfd
    pop eax
    and eax, 0x4000
    check32 e, eax, 0
    ; Through a task gate it goes on there.
    mov dword [count], 0
    call TASK_GATE:0
    check32 e, dword [count], 100

    ; A fault through a task gate: the task finds no error code with #UD, one with #SS.
    mov dword [second + 32], .undefined_task
    mov dword [second + 56], STACK_TOP - 0x1000
    ud2
    check32 e, dword [count], 101
    check32 e, dword [eip32], .undefined_task_esp
    mov dword [second + 32], .stack_task
    mov dword [second + 56], STACK_TOP - 0x1000
    mov word [own_gdt + DATA16 + 5], 0x13
    mov eax, DATA16
.stack_fault:
    mov ss, eax
.stack_fault_behind:
    check32 e, dword [error32], DATA16
    check32 e, dword [eip32], .stack_fault

    ; Refused: a busy task, one that is absent, a TSS that is too short, IRET to what is not busy.
    faults32 13, FIRST, jmp FIRST:0
    faults32 11, ABSENT, jmp ABSENT:0
    faults32 10, TOO_SHORT, jmp TOO_SHORT:0
    mov word [first], SECOND
    pushfd
    or dword [esp], 0x4000
    popfd
    faults32 10, SECOND, iretd
    pushfd
    and dword [esp], ~0x4000
    popfd
    mov eax, 0x10
    out DEBUG_EXIT, eax
    hlt

; The second task's code.
.jumped:
    check32 e, eax, 0x1111
    check32 e, esi, 0x7777
    check32 e, esp, STACK_TOP - 0x1000
    check32 e, dword [second], 0x5a5a5a5a   ; no link
    check32 e, byte [own_gdt + FIRST + 5], AVAILABLE
    check32 e, byte [own_gdt + SECOND + 5], BUSY
    check32 e, dword [first + 32], .jump_back
    check32 e, dword [first + 64], 0x1234
    pushfd
    pop eax
    and eax, 0x4000
    check32 e, eax, 0
    mov eax, 0x1111
    inc esi
    jmp FIRST:0
.called:
    check32 e, word [second], FIRST
    check32 e, byte [own_gdt + FIRST + 5], BUSY
    pushfd
    pop eax
    and eax, 0x4000
    check32 e, eax, 0x4000
    iretd
.called_again:
    add dword [count], 100
    iretd
.undefined_task:
    inc dword [count]
    mov eax, .undefined_task_esp
    cmp esp, STACK_TOP - 0x1000
    jne .keep
    mov [eip32], eax
.keep:
    add dword [first + 32], 2               ; past UD2
    iretd
.undefined_task_esp equ 0x600d
.stack_task:
    pop dword [error32]
    mov eax, [first + 32]
    mov [eip32], eax
    mov dword [first + 32], .stack_fault_behind
    iretd

stub10:
    mov dword [vector32], 10
    jmp entered32
stub11:
    mov dword [vector32], 11
    jmp entered32
stub13:
    mov dword [vector32], 13
entered32:
    pop dword [error32]
    pop dword [eip32]
    mov esp, [stack32]
    jmp [resume32]

failed32:
    mov esp, STACK_TOP
    mov ecx, 10
    xor edi, edi
.divide:
    xor edx, edx
    div ecx
    push edx
    inc edi
    test eax, eax
    jnz .divide
    mov esi, failed_text
    mov dx, SERIAL
.text:
    lodsb
    test al, al
    jz .digit
    out dx, al
    jmp .text
.digit:
    pop eax
    add al, '0'
    out dx, al
    dec edi
    jnz .digit
    mov al, 10
    out dx, al
    mov eax, 0x20
    out DEBUG_EXIT, eax
    hlt

    bits 64
    align 8
own_gdt:        times 0x80 db 0
own_gdt_pointer:
    dw 0x7f
    dq own_gdt
flat_idt_pointer:
    dw 0x7ff
    dq FLAT_IDT
    align 128
first:          times 26 dd 0
    align 128
second:
    times 9 dd 0                            ; link, stacks, CR3, EIP (32), EFLAGS (36)
    dd 2
    dd 0, 0, 0, 0                           ; EAX (40) to EBX
    dd STACK_TOP - 0x1000                   ; ESP (56)
    dd 0, 0, 0                              ; EBP, ESI (64), EDI
    dd DATA, CODE32, DATA, DATA, 0, 0       ; ES CS SS DS FS GS
    dd 0                                    ; LDT
    dw 0, 0x68
count:      dd 0
vector32:   dd 0
error32:    dd 0
eip32:      dd 0
stack32:    dd 0
resume32:   dd 0
end_of_guest
