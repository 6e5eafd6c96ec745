; Interrupt windows and shadows, and interrupts from PIT, local APIC and TSC deadline.
%include "system.inc"

PIT_VECTOR  equ 0x60
APIC_VECTOR equ 0x70
APIC        equ 0xfee00000

test:
    ; The PIT through the 8259, in a loop that does nothing but look: taken within a bounded number of instructions.
    mov qword [handlers + PIT_VECTOR * 8], count_pit
    mov al, 0x11
    out 0x20, al
    mov al, PIT_VECTOR
    out 0x21, al
    mov al, 4
    out 0x21, al
    mov al, 1
    out 0x21, al
    mov al, 0xfe
    out 0x21, al
    mov al, 0x34                            ; channel 0, mode 2, about 1 kHz
    out 0x43, al
    mov al, 0xa9
    out 0x40, al
    mov al, 0x04
    out 0x40, al
    sti
.spin:
    cmp dword [pit_count], 5
    jb .spin
    ; HLT wakes for each.
    mov r15d, 5
.halt:
    mov ebx, [pit_count]
    hlt
    cmp [pit_count], ebx
    je .halt
    dec r15d
    jnz .halt
    cli
    ; With IF clear none comes; with it set, the pending one does after the instruction behind STI.
    mov ebx, [pit_count]
    call wait_two_periods
    check e, [pit_count], ebx
    mov qword [handlers + PIT_VECTOR * 8], 0
    mov qword [resume], .taken
    mov [resume_stack], rsp
    sti
.shadow:
    nop
.behind:
    nop
    nop
.taken:
    cli
    mov al, 0x20
    out 0x20, al
    mov rax, .behind
    check e, qword [seen], PIT_VECTOR
    check e, [seen_rip], rax
    ; MOV SS shadows too: the interrupt comes one instruction later.
    call wait_two_periods
    mov eax, DATA
    mov qword [resume], .taken_again
    mov [resume_stack], rsp
    sti
    mov ss, eax
    nop
.behind_mov_ss:
    nop
.taken_again:
    cli
    mov al, 0x20
    out 0x20, al
    check e, qword [seen], PIT_VECTOR
    ; Interrupts are taken in ring 3, onto TSS.RSP0.
    call wait_two_periods
    mov qword [resume], .from_ring_3
    mov [resume_stack], rsp
    push USER_DATA
    push USER_STACK
    push 0x202
    push USER_CODE64
    push user_spin
    iretq
.from_ring_3:
    cli
    mov al, 0x20
    out 0x20, al
    check e, qword [seen], PIT_VECTOR
    check e, qword [seen_cs], USER_CODE64
    check e, qword [seen_rsp], USER_STACK
    mov al, 0xff
    out 0x21, al

    ; The local APIC's timer, one shot.
    mov qword [handlers + APIC_VECTOR * 8], count_apic
    mov eax, APIC
    mov dword [rax + 0xf0], 0x1ff           ; enabled
    mov dword [rax + 0x3e0], 0xb            ; divide by 1
    mov dword [rax + 0x320], APIC_VECTOR
    mov dword [rax + 0x380], 100000
    sti
.one_shot:
    cmp dword [apic_count], 1
    jb .one_shot
    cli
    check e, dword [rax + 0x390], 0
    ; A self-IPI.
    mov dword [rax + 0x300], 0x40000 | APIC_VECTOR
    sti
    nop
    nop
    cli
    check e, dword [apic_count], 2
    ; The task priority is one register, by two names.
    mov eax, APIC
    mov dword [rax + 0x80], 0x50
    mov rbx, cr8
    check e, rbx, 5
    mov ebx, 3
    mov cr8, rbx
    check e, dword [rax + 0x80], 0x30
    mov dword [rax + 0x300], 0x40000 | 0x31
    sti
    nop
    nop
    cli                                     ; a vector of class 3 waits
    mov qword [handlers + 0x31 * 8], count_apic
    xor ebx, ebx
    mov cr8, rbx
    sti
.unmasked:
    cmp dword [apic_count], 3
    jb .unmasked
    cli
    check e, dword [rax + 0x80], 0
    mov dword [apic_count], 2
    ; TSC deadline, if there is one.
    mov eax, 1
    cpuid
    bt ecx, 24
    jnc .no_deadline
    mov eax, APIC
    mov dword [rax + 0x320], 0x40000 | APIC_VECTOR
    rdtsc
    shl rdx, 32
    or rax, rdx
    add rax, 1000000
    mov r13, rax
    mov rdx, rax
    shr rdx, 32
    mov ecx, 0x6e0
    wrmsr
    sti
.deadline:
    cmp dword [apic_count], 3
    jb .deadline
    cli
    rdtsc
    shl rdx, 32
    or rax, rdx
    check ae, rax, r13
.no_deadline:
    ; A repeated string instruction is interrupted between iterations and goes on.
    mov al, 0xfe
    out 0x21, al
    mov qword [handlers + PIT_VECTOR * 8], count_pit
    mov dword [pit_count], 0
    sti
.strings:
    mov rdi, FREE
    mov ecx, 0x400000
    mov al, 0x5a
    rep stosb
    check e, rcx, 0
    check e, byte [FREE + 0x3fffff], 0x5a
    cmp dword [pit_count], 3
    jb .strings
    cli
    ret

count_pit:
    inc dword [pit_count]
    mov al, 0x20
    out 0x20, al
    ret

count_apic:
    inc dword [apic_count]
    mov eax, APIC
    mov dword [rax + 0xb0], 0
    ret

; Waits until the PIT has an interrupt pending for sure.
wait_two_periods:
.look:
    mov al, 0x0a                            ; OCW3: read IRR
    out 0x20, al
    in al, 0x20
    test al, 1
    jz .look
    ret

user_spin:
    jmp user_spin

    align 8
pit_count:      dd 0
apic_count:     dd 0
end_of_guest
