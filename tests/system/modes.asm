; Every mode and the ways between them: 64-bit and compatibility mode in rings 0 and 3, SYSCALL, SYSENTER, call gates;
; then out of long mode to protected 32-bit (unpaged, PAE and 32-bit paging), 16-bit, real and virtual-8086 mode, and
; back. In each mode, what an interrupt or a fault saves.
%include "system.inc"

APIC        equ 0xfee00000
APIC_VECTOR equ 0x70
LOW         equ 0x8000              ; where the 16-bit code is copied to; its real-mode segment is LOW / 16
FLAT_IDT    equ FREE                ; the IDT of protected mode
PAE_PDPT    equ FREE + 0x1000
DIRECTORY32 equ FREE + 0x2000       ; 4 MiB pages, for paging without PAE
GATE        equ 0x58 | 3            ; in our own GDT
TSS32       equ 0x68
CLOSED_GATE equ 0x70 | 3            ; a gate with DPL 0
ABSENT_GATE equ 0x80 | 3

%define LOW_OFFSET(label) (label - low_code)

; `check` for 32-bit code.
%macro check32 3
    %assign checks checks + 1
    cmp %2, %3
    j%+1 %%good
    mov eax, checks
    jmp failed32
%%good:
%endmacro

; Goes on at %1 after the next exception in protected mode.
%macro resume32_at 1
    mov dword [frame32], -1
    mov [stack32], esp
    mov dword [resume32], %1
%endmacro

%macro wrmsr32 2
    mov ecx, %1
    mov eax, (%2) & 0xffffffff
    mov edx, (%2) >> 32
    wrmsr
%endmacro

test:
    xor eax, eax
    cpuid
    xor eax, eax
    cmp ebx, "Genu"
    sete [intel]
    ; Our own GDT: the frame's, with gates and a 32-bit TSS behind it.
    lea rsi, [gdt]
    lea rdi, [own_gdt]
    mov ecx, gdt_end - gdt
    rep movsb
    lgdt [own_gdt_pointer]

compatibility:
    ; By far return, in by 64-bit operands and out by a far jump.
    mov rbp, rsp
    push CODE32
    push .far_return
    retfq
    bits 32
.far_return:
    xor eax, eax
    db 0x40                                 ; INC EAX here, a REX prefix in 64-bit mode
    nop
    jmp CODE64:.long
    bits 64
.long:
    check e, eax, 1
    check e, rsp, rbp
    ; By IRETQ, and an INT there: the frame is a 64-bit one, aligned to 16 bytes.
    resume_at .after_int
    sub rsp, 8
    mov rbx, rsp
    push DATA
    push rbx
    push 0x2
    push CODE32
    push .iretq
    iretq
    bits 32
.iretq:
    int 0x80
    bits 64
.after_int:
    check_seen 0x80, 0
    check e, qword [seen_cs], CODE32
    mov rax, .iretq + 2
    check e, [seen_rip], rax
    check e, [seen_rsp], rbx
    and rbx, ~15
    sub rbx, 40
    check e, [seen_frame], rbx
    ; A fault there.
    resume_at .after_fault
    push CODE32
    push .fault
    retfq
    bits 32
.fault:
    ud2
    bits 64
.after_fault:
    check_seen 6, 0
    check e, qword [seen_cs], CODE32
    mov rax, .fault
    check e, [seen_rip], rax
    ; A handler returns to compatibility mode; a far call from there to 64-bit code and back; an interrupt.
    mov qword [handlers + 0x81 * 8], handled
    mov qword [handlers + APIC_VECTOR * 8], handled_apic
    mov rbp, rsp
    call far dword [.there]                 ; pushes four bytes each
    jmp .returned
    align 8
.there:
    dd .called
    dw CODE32
    align 16
    bits 32
.called:
    mov ebx, [esp]
    mov ecx, [esp + 4]
    int 0x81
    call CODE64:.routine
    mov eax, APIC
    mov dword [eax + 0xf0], 0x1ff
    mov dword [eax + 0x300], 0x40000 | APIC_VECTOR
    sti
    nop
    nop
    cli
    retf
    bits 64
.routine:
    mov rdx, [rsp]
    add dword [count], 100
    retf
.returned:
    check e, rsp, rbp
    check e, ecx, CODE64
    mov eax, .there
    sub eax, ebx
    check be, eax, 16
    check e, dword [count], 111
    ; A far call of 64-bit operands pushes eight bytes each.
    cmp byte [intel], 0
    je .no_far_call
    mov rbp, rsp
    call far qword [.there64]
    jmp .far_called
    align 8
.there64:
    dq .called64
    dw CODE64
.called64:
    mov ecx, 1
    mov rax, rbp
    sub rax, rsp
    mov rdx, [rsp + 8]
    retfq
.far_called:
    check e, eax, 16
    check e, edx, CODE64
    check e, rsp, rbp
.no_far_call:

ring_3:
    ; On the way out, data segments that ring 3 may not have become null.
    mov eax, DATA
    mov ds, eax
    mov es, eax
    mov eax, USER_DATA
    mov fs, eax
    user .segments
    check_seen 0x80, 0
    check e, r8, 0
    check e, r9, 0
    check e, r10, USER_DATA
    check e, qword [seen_cs], USER_CODE64
    check e, qword [seen_rsp], USER_STACK
    check e, qword [seen_frame], INTERRUPT_STACK - 40
    check e, qword [seen_ss], USER_DATA
    ; 32-bit code in ring 3: INT, and a privileged instruction.
    mov eax, USER_DATA
    mov ds, eax
    mov es, eax
    user_as .compatible, USER_CODE32
    check_seen 0x80, 0
    check e, qword [seen_cs], USER_CODE32
    check e, qword [seen_rsp], USER_STACK - 4
    check e, dword [abs USER_STACK - 4], 0x1234567
    check e, qword [seen_ss], USER_DATA
    user_as .privileged, USER_CODE32
    check_seen 13, 0
    mov rax, .privileged
    check e, [seen_rip], rax
    ; A far return to an outer ring takes the stack too.
    resume_at .far
    push USER_DATA
    push USER_STACK - 64
    push USER_CODE64
    push .stop
    retfq
.far:
    check_seen 0x80, 0
    check e, qword [seen_cs], USER_CODE64
    check e, qword [seen_rsp], USER_STACK - 64
    ; Ring 3 changes its own mode by far jumps.
    user .change
    check_seen 0x80, 0
    check e, qword [seen_cs], USER_CODE64
    check e, eax, 1
    ; A gate with DPL 0 is not for INT in ring 3.
    user .closed
    check_seen 13, 0x81 * 8 + 2
    jmp gates

.segments:
    mov r8d, ds
    mov r9d, es
    mov r10d, fs
.stop:
    int 0x80
    bits 32
.compatible:
    push 0x1234567
    int 0x80
.privileged:
    hlt
    bits 64
.change:
    push USER_CODE32
    push .changed
    retfq
    bits 32
.changed:
    xor eax, eax
    db 0x40
    nop
    jmp USER_CODE64:.changed_back
    bits 64
.changed_back:
    int 0x80
.closed:
    int 0x81

gates:
    ; A call gate to ring 0, from 64-bit and from 32-bit code: 64-bit pushes on TSS.RSP0, SS null.
    mov rax, .inner
    mov [own_gdt + 0x58], ax
    mov word [own_gdt + 0x58 + 2], CODE64
    mov word [own_gdt + 0x58 + 4], 0xec00
    shr rax, 16
    mov [own_gdt + 0x58 + 6], eax
    mov rax, [own_gdt + 0x58]
    btr rax, 45
    btr rax, 46
    mov [own_gdt + 0x70], rax
    mov rax, [own_gdt + 0x58]
    btr rax, 47
    mov [own_gdt + 0x80], rax
    user .outer
    check_seen 0x80, 0
    check e, qword [seen_rsp], USER_STACK
    check e, r8, 0
    check e, r9, INTERRUPT_STACK - 32
    check e, r10, CODE64
    mov rax, .outer_behind
    check e, [kept_frame], rax
    check e, qword [kept_frame + 8], USER_CODE64
    check e, qword [kept_frame + 16], USER_STACK
    check e, qword [kept_frame + 24], USER_DATA
    user_as .outer32, USER_CODE32
    check_seen 0x80, 0
    check e, qword [seen_rsp], USER_STACK
    mov rax, .outer32_behind
    check e, [kept_frame], rax
    check e, qword [kept_frame + 8], USER_CODE32
    ; Its protection.
    user .outer_closed
    check_seen 13, CLOSED_GATE & ~3
    user .outer_absent
    check_seen 11, ABSENT_GATE & ~3
    jmp fast_calls

.inner:
    mov r8d, ss
    mov r9, rsp
    mov r10d, cs
    ; The next interrupt overwrites the frame.
    mov rsi, rsp
    lea rdi, [kept_frame]
    mov ecx, 4
    rep movsq
    retfq
.outer:
    call far dword [.gate]
.outer_behind:
    jmp .keep
.outer_closed:
    call far dword [.closed_gate]
.outer_absent:
    call far dword [.absent_gate]
.keep:
    int 0x80
    bits 32
.outer32:
    call GATE:0
.outer32_behind:
    int 0x80
    bits 64
    align 8
.gate:
    dd 0
    dw GATE
.closed_gate:
    dd 0
    dw CLOSED_GATE
.absent_gate:
    dd 0
    dw ABSENT_GATE

fast_calls:
    wrmsr32 0xc0000081, ((USER_CODE32 << 48) | (CODE64 << 32))
    mov rax, .syscall
    mov rdx, rax
    shr rdx, 32
    mov ecx, 0xc0000082
    wrmsr
    wrmsr32 0xc0000084, 0x4c1               ; FMASK: DF, SF, ZF, CF
    user .calls
    check_seen 0x80, 0
    check e, r12, CODE64
    check e, r13, DATA
    check e, r14, USER_STACK - 8
    mov rax, .behind_syscall
    check e, r15, rax                       ; RCX
    and r8d, 0xfff
    check e, r8d, 0x4c7                    ; R11: CF, PF, ZF, SF, DF as they were
    and r9d, 0xfff
    check e, r9d, 6                         ; RFLAGS inside: the mask is gone
    check e, qword [seen_cs], USER_CODE64
    check e, qword [seen_rsp], USER_STACK - 8
    check e, qword [seen_ss], USER_DATA
    mov rax, [seen_rflags]
    and eax, 0x4d5
    check e, eax, 0x4c5
    ; SYSRET to 32-bit code.
    cld
    mov qword [.exit], 1
    user .calls
    check_seen 0x80, 0
    check e, qword [seen_cs], USER_CODE32
    check e, qword [seen_ss], USER_DATA
    cld
    user .sysret
    check_seen 13, 0
    ; SYSCALL is not there without EFER.SCE; in compatibility mode an Intel processor does not have it.
    mov ecx, 0xc0000080
    rdmsr
    and eax, ~1
    wrmsr
    user .calls
    check_seen 6, 0
    cld
    mov ecx, 0xc0000080
    rdmsr
    or eax, 1
    wrmsr
    cmp byte [intel], 0
    je .no_sysenter
    user_as .syscall32, USER_CODE32
    check_seen 6, 0
    ; SYSRET to a non-canonical address faults before it leaves ring 0.
    mov rcx, 0x0000800000000000
    mov r11d, 2
    faults 13, 0, o64 sysret
    check e, qword [seen_cs], CODE64

    ; SYSENTER, with no code segment and with one.
    wrmsr32 0x174, 0
    wrmsr32 0x175, 0x60000
    mov rax, .sysenter
    mov rdx, rax
    shr rdx, 32
    mov ecx, 0x176
    wrmsr
    user .enters
    check_seen 13, 0
    mov rax, .enters
    check e, [seen_rip], rax
    wrmsr32 0x174, CODE64
    mov qword [.exit], 0
    user .enters
    check_seen 0x80, 0
    check e, r12, CODE64
    check e, r13, DATA
    check e, r14, 0x60000
    check e, qword [seen_cs], USER_CODE64
    check e, qword [seen_rsp], USER_STACK - 128
    check e, qword [seen_ss], CODE64 + 40 | 3     ; whatever the GDT has there
    mov rax, .entered
    add rax, 2
    check e, [seen_rip], rax
    mov qword [.exit], 1
    user_as .enters32, USER_CODE32
    check_seen 0x80, 0
    check e, r14, 0x60000
    check e, qword [seen_cs], USER_CODE32
    check e, qword [seen_rsp], USER_STACK - 128
    check e, qword [seen_ss], USER_DATA
    user .sysexit
    check_seen 13, 0
.no_sysenter:
    jmp leave_long_mode

.calls:
    push 0x4c7
    popfq
    push 0
    syscall
.behind_syscall:
    int 0x80
.syscall:
    mov r12d, cs
    mov r13d, ss
    mov r14, rsp
    mov r15, rcx
    mov r8, r11
    mov rsp, 0x60000
    pushfq
    pop r9
    mov rsp, r14
    cmp qword [.exit], 0
    jne .sysret32
    o64 sysret
.sysret32:
    mov ecx, .behind_sysret32
    sysret
    bits 32
.behind_sysret32:
    int 0x80
.syscall32:
    syscall
    int 0x80
.enters32:
    sysenter
    bits 64
.sysret:
    o64 sysret
.sysexit:
    sysexit
.enters:
    sysenter
.sysenter:
    mov r12d, cs
    mov r13d, ss
    mov r14, rsp
    mov rdx, .entered
    mov rcx, USER_STACK - 128
    cmp qword [.exit], 0
    jne .sysexit32
    o64 sysexit
.sysexit32:
    sysexit
.entered:
    int 0x80
    align 8
.exit:
    dq 0

leave_long_mode:
    ; The 16-bit code goes below 1 MiB, tables of protected mode where there is room.
    lea rsi, [low_code]
    mov rdi, LOW
    mov ecx, low_code_end - low_code
    rep movsb
    mov rax, tss32
    shl rax, 16
    mov rbx, 0x0000890000000067
    or rax, rbx
    mov [own_gdt + TSS32], rax
    mov rdi, FLAT_IDT
    xor eax, eax
    mov ecx, 0x4000 / 8
    rep stosq
%macro flat_gate 3
    mov dword [FLAT_IDT + %1 * 8], (CODE32 << 16)
    mov eax, %2
    mov [FLAT_IDT + %1 * 8], ax
    mov ax, %3
    mov [FLAT_IDT + %1 * 8 + 4], eax
%endmacro
    flat_gate 6, stub32_6, 0x8e00
    flat_gate 13, stub32_13, 0x8e00
    flat_gate 0x21, stub32_21, 0xee00
    flat_gate APIC_VECTOR, stub32_apic, 0x8e00
    mov qword [PAE_PDPT], DIRECTORY | 1
    xor eax, eax
    mov ecx, 128
    mov rdi, DIRECTORY32
.directory:
    lea edx, [rax + 0x87]
    mov [rdi], edx
    add eax, 0x400000
    add rdi, 4
    loop .directory
    mov [long_stack], rsp
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
    jmp CODE32:protected

; Protected mode without paging.
protected:
    mov ecx, 0xc0000080
    rdmsr
    and eax, 0x500
    check32 e, eax, 0x100                   ; LMA went with CR0.PG, LME stays
    rdmsr
    and eax, ~0x100
    wrmsr
    resume32_at .after_int
    int 0x21
.int_behind:
.after_int:
    check32 e, dword [frame32], 0x21
    check32 e, dword [frame32 + 8], .int_behind
    check32 e, dword [frame32 + 12], CODE32
    check32 e, dword [frame32_at], STACK_TOP - 8 - 20
    resume32_at .after_fault
.fault:
    mov eax, 0x1230
    mov fs, eax
.after_fault:
    check32 e, dword [frame32], 13
    check32 e, dword [frame32 + 4], 0x1230
    check32 e, dword [frame32 + 8], .fault + 5
    resume32_at .after_apic
    mov eax, APIC
    mov dword [eax + 0x300], 0x40000 | APIC_VECTOR
    sti
    nop
    nop
.after_apic:
    cli
    check32 e, dword [frame32], APIC_VECTOR
    mov eax, APIC
    mov dword [eax + 0xb0], 0
    ; The linear address space is 4 GiB, and wraps.
    mov eax, 0xfff00000
    mov ebx, [eax + 0x200000]
    check32 e, ebx, 0x464c457f              ; the ELF magic at 0x100000
    ; 32-bit paging with 4 MiB pages.
    mov eax, cr4
    and eax, ~0x20
    or eax, 0x10
    mov cr4, eax
    mov eax, DIRECTORY32
    mov cr3, eax
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    jmp .paged
.paged:
    check32 e, dword [LOAD], 0x464c457f
    test dword [DIRECTORY32], 0x20
    setnz al
    check32 e, al, 1                        ; accessed
    mov eax, cr0
    and eax, 0x7fffffff
    mov cr0, eax
    ; PAE paging.
    mov eax, cr4
    or eax, 0x20
    mov cr4, eax
    mov eax, PAE_PDPT
    mov cr3, eax
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    jmp .pae
.pae:
    check32 e, dword [LOAD], 0x464c457f
    ; EFER.LME cannot change under paging.
    resume32_at .after_lme
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x100
.lme:
    wrmsr
.after_lme:
    check32 e, dword [frame32], 13
    check32 e, dword [frame32 + 8], .lme

; Virtual-8086 mode, under PAE paging.
virtual_8086:
    mov eax, TSS32
    ltr ax
%macro virtual 2
    resume32_at %%back
    push dword 0x4444                       ; GS
    push dword 0x3333                       ; FS
    push dword 0x2222                       ; DS
    push dword 0x1111                       ; ES
    push dword 0x900                        ; SS
    push dword 0x800                        ; ESP
    push dword 0x20002 | (%1 << 12)
    push dword LOW / 16
    push dword LOW_OFFSET(%2)
    iretd
%%back:
    check32 e, dword [frame32 + 12], LOW / 16
    mov eax, [frame32 + 16]
    and eax, 0x23002
    check32 e, eax, 0x20002 | (%1 << 12)
%endmacro
    virtual 3, v86_int
    check32 e, dword [frame32], 0x21
    check32 e, dword [frame32 + 8], LOW_OFFSET(v86_int_behind)
    check32 e, dword [frame32 + 20], 0x7fe  ; ESP
    check32 e, dword [frame32 + 24], 0x900
    check32 e, dword [frame32 + 28], 0x1111
    check32 e, dword [frame32 + 32], 0x2222
    check32 e, dword [frame32 + 36], 0x3333
    check32 e, dword [frame32 + 40], 0x4444
    check32 e, dword [frame32_at], INTERRUPT_STACK - 36 - 8
    check32 e, dword [segments32], 0        ; DS and GS in the handler
    check32 e, dword [segments32 + 4], 0
    check32 e, word [0x9000 + 0x7fe], 0x5678
    ; With IOPL below 3 INT, and always HLT, is for the monitor to look at.
    virtual 0, v86_int
    check32 e, dword [frame32], 13
    check32 e, dword [frame32 + 4], 0
    check32 e, dword [frame32 + 8], LOW_OFFSET(v86_int_behind) - 2
    virtual 0, v86_cli
    check32 e, dword [frame32], 13
    check32 e, dword [frame32 + 8], LOW_OFFSET(v86_cli)
    virtual 3, v86_hlt
    check32 e, dword [frame32], 13
    check32 e, dword [frame32 + 4], 0
    check32 e, dword [frame32 + 8], LOW_OFFSET(v86_hlt)
    virtual 3, v86_limit
    check32 e, dword [frame32], 13
    check32 e, dword [frame32 + 8], LOW_OFFSET(v86_limit)
    ; LMSW-free instructions of protected mode do not exist there.
    virtual 3, v86_lar
    check32 e, dword [frame32], 6
    check32 e, dword [frame32 + 8], LOW_OFFSET(v86_lar)

    mov eax, cr0
    and eax, 0x7fffffff
    mov cr0, eax
    jmp CODE16:LOW + LOW_OFFSET(protected_16)

back_in_protected:
    mov eax, DATA
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov esp, STACK_TOP - 0x100
    lidt [flat_idt_pointer]
    %define low_data(label) (LOW + LOW_OFFSET(label))
    check32 e, dword [low_data(size_16)], 0x1234
    check32 e, word [low_data(int_ip)], LOW_OFFSET(real.int_behind)
    check32 e, word [low_data(int_cs)], LOW / 16
    check32 e, word [low_data(int_sp)], 0x1000 - 6
    check32 e, word [low_data(divide_ip)], LOW_OFFSET(real.divide)
    check32 e, word [low_data(limit_ip)], LOW_OFFSET(real.limit)
    check32 e, word [low_data(limit_sp)], 0x1000 - 6
    check32 e, word [low_data(flags)], 1
    check32 e, dword [low_data(unreal)], 0x464c457f
    check32 e, dword [low_data(far_pushed)], (LOW / 16 << 16) | LOW_OFFSET(real.far_behind)

    ; Back to long mode.
    mov eax, PML4
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    jmp CODE64:.long
    bits 64
.long:
    mov rsp, [long_stack]
    lidt [idt_pointer]
    mov byte [own_gdt + TSS_SELECTOR + 5], 0x89
    mov eax, TSS_SELECTOR
    ltr ax
    mov ecx, 0xc0000080
    rdmsr
    and eax, 0x500
    check e, eax, 0x500
    user ring_3.segments
    check_seen 0x80, 0
    ret

handled:
    inc dword [count]
    ret
handled_apic:
    add dword [count], 10
    mov eax, APIC
    mov dword [rax + 0xb0], 0
    ret

    bits 32
; Protected mode's handlers: the frame is noted, execution goes on at [resume32].
stub32_6:
    push 0
    push 6
    jmp entered32
stub32_13:
    push 13
    jmp entered32
stub32_21:
    push 0
    push 0x21
    jmp entered32
stub32_apic:
    push 0
    push APIC_VECTOR
entered32:
    mov eax, ds
    mov ebx, DATA
    mov ds, ebx
    mov [segments32], eax
    mov eax, gs
    mov [segments32 + 4], eax
    mov es, ebx
    mov [frame32_at], esp
    mov esi, esp
    mov edi, frame32
    mov ecx, 11
    rep movsd
    mov esp, [stack32]
    jmp [resume32]

; Prints the number of the failed check (in eax) and ends.
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

; What runs below 1 MiB.
    bits 16
    align 16
low_code:
protected_16:
    xor eax, eax
    db 0xb8, 0x34, 0x12                     ; MOV AX, imm16; in 32-bit code it would take two bytes more
    db 0x90, 0x90
    mov dx, DATA
    mov ds, dx
    mov [dword LOW + LOW_OFFSET(size_16)], eax
    mov fs, dx                              ; keeps its limit of 4 GiB in real mode
    mov dx, DATA16
    mov ds, dx
    mov ss, dx
    mov es, dx
    mov eax, cr0
    and al, 0xfe
    mov cr0, eax
    jmp LOW / 16:LOW_OFFSET(real)
real:
    mov ax, LOW / 16
    mov ds, ax
    mov ss, ax
    mov sp, 0x1000
    lidt [LOW_OFFSET(real_idt)]
    xor ax, ax
    mov es, ax
    mov word [es:0x21 * 4], LOW_OFFSET(real_int)
    mov word [es:0x21 * 4 + 2], LOW / 16
    mov word [es:0], LOW_OFFSET(real_divide)
    mov word [es:2], LOW / 16
    mov word [es:13 * 4], LOW_OFFSET(real_limit)
    mov word [es:13 * 4 + 2], LOW / 16
    stc
    int 0x21
.int_behind:
    pushf
    pop ax
    and ax, 1
    mov [LOW_OFFSET(flags)], ax             ; IRET brought CF back
    xor cx, cx
.divide:
    div cx
.divided:
.limit:
    mov eax, [0xfffe]                       ; no error code in real mode
.limited:
    call LOW / 16:LOW_OFFSET(real_far)
.far_behind:
    mov ebx, LOAD
    mov eax, [fs:ebx]
    mov [LOW_OFFSET(unreal)], eax
    mov eax, cr0
    or al, 1
    mov cr0, eax
    jmp dword CODE32:back_in_protected

real_int:
    mov bp, sp
    mov [LOW_OFFSET(int_sp)], sp
    mov ax, [bp]
    mov [LOW_OFFSET(int_ip)], ax
    mov ax, [bp + 2]
    mov [LOW_OFFSET(int_cs)], ax
    clc
    iret
real_divide:
    mov bp, sp
    mov ax, [bp]
    mov [LOW_OFFSET(divide_ip)], ax
    mov word [bp], LOW_OFFSET(real.divided)
    iret
real_limit:
    mov bp, sp
    mov [LOW_OFFSET(limit_sp)], sp
    mov ax, [bp]
    mov [LOW_OFFSET(limit_ip)], ax
    mov word [bp], LOW_OFFSET(real.limited)
    iret
real_far:
    mov bp, sp
    mov eax, [bp]
    mov [LOW_OFFSET(far_pushed)], eax
    retf

v86_int:
    push word 0x5678
    int 0x21
v86_int_behind:
v86_cli:
    cli
v86_hlt:
    hlt
v86_limit:
    mov [0xffff], ax
v86_lar:
    lar ax, bx

    align 4
size_16:    dd 0
unreal:     dd 0
far_pushed: dd 0
int_ip:     dw 0
int_cs:     dw 0
int_sp:     dw 0
divide_ip:  dw 0
limit_ip:   dw 0
limit_sp:   dw 0
flags:      dw 0
real_idt:
    dw 0x3ff
    dd 0
low_code_end:

    bits 64
    align 8
own_gdt:        times 0x90 db 0
own_gdt_pointer:
    dw 0x8f
    dq own_gdt
flat_idt_pointer:
    dw 0x7ff
    dq FLAT_IDT
    align 4
tss32:
    dd 0, INTERRUPT_STACK, DATA
    times 22 dd 0
    dw 0, 0x68
intel:      db 0
    align 8
count:      dd 0
frame32:    times 11 dd 0
frame32_at: dd 0
segments32: dd 0, 0
stack32:    dd 0
resume32:   dd 0
    align 8
kept_frame: dq 0, 0, 0, 0
long_stack: dq 0
end_of_guest
