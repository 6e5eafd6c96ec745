; Descriptors: what loading a segment register, LDTR, TR or CS checks and with which error code it faults; LAR, LSL,
; VERR, VERW; and segment limits and types in 32-bit code.
%include "system.inc"

READ_ONLY       equ 0x58
ABSENT          equ 0x60
EXECUTE_ONLY    equ 0x68
CONFORMING      equ 0x70
LIMITED         equ 0x78            ; base FREE, limit 0xfff
EXPAND_DOWN     equ 0x80            ; base FREE, offsets 0x1000 to 0xffffffff
EXPAND_DOWN_16  equ 0x88            ; base FREE, offsets 0x1000 to 0xffff
LDT_SELECTOR    equ 0x90
SECOND_TSS      equ 0xa0
CALL_GATE       equ 0xb0
ABSENT_TSS      equ 0xc0
LIMITED_CODE    equ 0xd0            ; base LOAD, 32-bit
NO_TYPE         equ 0xd8
LONG_AND_32     equ 0xe0            ; code with L and D
ABSENT_CODE     equ 0xe8
USER_ONLY_CODE  equ 0xf0
BEYOND          equ 0xf8
LDT             equ 4               ; table indicator

; Loads a segment register: must fault.
%macro load_faults 4
    mov eax, %2
    faults %3, %4, mov %1, eax
%endmacro

; Loads a segment register: must not.
%macro loads 2
    mov eax, %2
    mov %1, eax
    mov ebx, %1
    check e, ebx, %2
%endmacro

; Runs an instruction in 32-bit code; it must fault.
%macro compatible_faults 3+
    resume_at %%after
    push CODE32
    push %%at
    retfq
    bits 32
%%at:
    %3
    bits 64
%%after:
    check_seen %1, %2
    mov rax, %%at
    check e, qword [seen_rip], rax
%endmacro

; The same, and it must not.
%macro compatible 1+
    push CODE32
    push %%at
    retfq
    bits 32
%%at:
    %1
    jmp CODE64:%%after
    bits 64
%%after:
%endmacro

; A far return to selector %1 must fault.
%macro return_faults 3
    push %1
    push test
    faults %2, %3, retfq
    add rsp, 16
%endmacro

; Ring 3 asks LAR, VERR, VERW of a selector: ZFs in r8b, r9b, r10b.
%macro ask_in_ring_3 1
    mov r11d, %1
    user ask
    check_seen 0x80, 0
%endmacro

test:
    lea rsi, [gdt]
    lea rdi, [own_gdt]
    mov ecx, gdt_end - gdt
    rep movsb
    mov rax, tss
    mov rdx, rax
    shl rdx, 16
    mov rbx, 0x0000890000000067
    or rdx, rbx
    mov [own_gdt + SECOND_TSS], rdx
    mov rdx, 0x0000090000000067
    mov [own_gdt + ABSENT_TSS], rdx
    mov rdx, ldt
    shl rdx, 16
    mov rbx, 0x000082000000000f
    or rdx, rbx
    mov [own_gdt + LDT_SELECTOR], rdx
    lgdt [own_gdt_pointer]

data_segments:
    xor eax, eax
    lldt ax
    loads ds, READ_ONLY
    mov rax, [own_gdt + READ_ONLY]
    bt rax, 40                              ; accessed
    setc al
    check e, al, 1
    loads es, CONFORMING
    loads es, CONFORMING | 3                ; its DPL does not matter
    loads fs, LIMITED
    loads gs, USER_DATA
    loads ds, 0
    loads ds, 3
    load_faults ds, EXECUTE_ONLY, 13, EXECUTE_ONLY
    load_faults ds, ABSENT, 11, ABSENT
    load_faults gs, ABSENT, 11, ABSENT
    load_faults ds, DATA | 3, 13, DATA      ; RPL above DPL
    load_faults ds, TSS_SELECTOR, 13, TSS_SELECTOR
    load_faults ds, BEYOND, 13, BEYOND
    load_faults ds, 0xfff8 | 3, 13, 0xfff8
    load_faults ds, 8 | LDT, 13, 8 | LDT    ; no LDT
    mov ebx, ds
    check e, ebx, 3                         ; a fault leaves the register
    loads ss, LIMITED
    loads ss, 0                             ; null is a stack in ring 0 of 64-bit mode
    mov eax, DATA
    mov ss, eax
    load_faults ss, 3, 13, 0
    load_faults ss, READ_ONLY, 13, READ_ONLY
    load_faults ss, ABSENT, 12, ABSENT
    load_faults ss, CODE32, 13, CODE32
    load_faults ss, USER_DATA, 13, USER_DATA & ~3
    load_faults ss, DATA | 1, 13, DATA
    load_faults ss, BEYOND, 13, BEYOND
    faults 6, 0, db 0x8e, 0xc8              ; MOV CS
    ; LFS and POP check alike, and leave the other register and the stack pointer alone.
    mov dword [FREE], 1
    mov word [FREE + 4], ABSENT
    mov rbx, FREE
    mov ecx, 7
    faults 11, ABSENT, lfs ecx, [rbx]
    check e, ecx, 7
    push ABSENT
    mov rbp, rsp
    faults 11, ABSENT, pop fs
    check e, rsp, rbp
    pop rax

ldt_and_tr:
    mov eax, LDT_SELECTOR
    lldt ax
    sldt ebx
    check e, ebx, LDT_SELECTOR
    loads ds, 8 | LDT
    load_faults es, 16 | LDT, 13, 16 | LDT
    load_faults es, 0 | LDT, 11, 0 | LDT    ; the LDT's entry 0 counts; it is not present
    mov eax, TSS_SELECTOR
    faults 13, TSS_SELECTOR, lldt ax
    mov eax, 8 | LDT
    faults 13, 8 | LDT, lldt ax
    mov eax, BEYOND
    faults 13, BEYOND, lldt ax
    btr qword [own_gdt + LDT_SELECTOR], 47
    mov eax, LDT_SELECTOR
    faults 11, LDT_SELECTOR, lldt ax
    xor eax, eax
    lldt ax
    load_faults es, 8 | LDT, 13, 8 | LDT
    str eax
    check e, eax, TSS_SELECTOR
    faults 13, TSS_SELECTOR, ltr ax         ; busy
    xor eax, eax
    faults 13, 0, ltr ax
    mov eax, DATA
    faults 13, DATA, ltr ax
    mov eax, ABSENT_TSS
    faults 11, ABSENT_TSS, ltr ax
    mov eax, SECOND_TSS
    ltr ax
    check e, byte [own_gdt + SECOND_TSS + 5], 0x8b
    mov byte [own_gdt + TSS_SELECTOR + 5], 0x89
    mov eax, TSS_SELECTOR
    ltr ax

code_segments:
    return_faults 0, 13, 0
    return_faults DATA, 13, DATA
    return_faults BEYOND, 13, BEYOND
    return_faults LONG_AND_32, 13, LONG_AND_32
    return_faults ABSENT_CODE, 11, ABSENT_CODE
    return_faults USER_ONLY_CODE, 13, USER_ONLY_CODE     ; DPL 3, RPL 0
    return_faults TSS_SELECTOR, 13, TSS_SELECTOR
    mov word [pointer + 4], 0
    faults 13, 0, jmp far dword [pointer]
    mov word [pointer + 4], USER_CODE64
    faults 13, USER_CODE64 & ~3, jmp far dword [pointer]
    mov word [pointer + 4], ABSENT_CODE
    faults 11, ABSENT_CODE, call far dword [pointer]
    mov word [pointer + 4], TSS_SELECTOR
    faults 13, TSS_SELECTOR, jmp far dword [pointer]     ; no task switches in long mode
    ; IRETQ: NT, and a bad stack segment for ring 3.
    pushfq
    or qword [rsp], 0x4000
    popfq
    faults 13, 0, iretq
    pushfq
    and qword [rsp], ~0x4000
    popfq
    push DATA
    push USER_STACK
    push 2
    push USER_CODE64
    push test
    faults 13, DATA, iretq
    add rsp, 40
    push 0
    push USER_STACK
    push 2
    push USER_CODE32                        ; null is no stack in ring 3's 32-bit code
    push test
    faults 13, 0, iretq
    add rsp, 40

looks:
    mov ecx, CODE64
    lar eax, ecx
    setz bl
    check e, bl, 1
    and eax, 0xf0ff00
    check e, eax, 0xa09b00
    mov ecx, CALL_GATE
    lar eax, ecx
    setz bl
    check e, bl, 1
    mov edx, 0x1234
    lsl edx, ecx
    setz bl
    check e, bl, 0
    check e, edx, 0x1234                    ; left alone
    mov ecx, NO_TYPE
    lar eax, ecx
    setz bl
    check e, bl, 0
    xor ecx, ecx
    lar eax, ecx
    setz bl
    check e, bl, 0
    mov ecx, BEYOND
    lar eax, ecx
    setz bl
    check e, bl, 0
    mov ecx, DATA
    lsl eax, ecx
    setz bl
    check e, bl, 1
    check e, eax, 0xffffffff
    mov ecx, LIMITED
    lsl eax, ecx
    check e, eax, 0xfff
    mov ecx, TSS_SELECTOR
    lsl eax, ecx
    check e, eax, tss_end - tss - 1
    mov ecx, EXECUTE_ONLY
    verr cx
    setz bl
    check e, bl, 0
    mov ecx, READ_ONLY
    verr cx
    setz bl
    check e, bl, 1
    verw cx
    setz bl
    check e, bl, 0
    mov ecx, DATA
    verw cx
    setz bl
    check e, bl, 1
    ask_in_ring_3 DATA
    check e, r8b, 0
    check e, r9b, 0
    check e, r10b, 0
    ask_in_ring_3 USER_DATA
    check e, r8b, 1
    check e, r9b, 1
    check e, r10b, 1
    ask_in_ring_3 CONFORMING
    check e, r8b, 1
    check e, r9b, 1
    check e, r10b, 0

limits:
    mov dword [FREE + 0xffc], 0x11111111
    mov dword [FREE + 0x1000], 0x22222222
    mov dword [FREE + 0xfffc], 0x33333333
    mov dword [FREE - 4], 0x44444444
    mov eax, LIMITED
    mov ds, eax
    compatible mov ebx, [0xffc]
    check e, ebx, 0x11111111
    compatible_faults 13, 0, mov ebx, [0xffd]
    compatible_faults 13, 0, mov [0x1000], al
    compatible_faults 13, 0, add dword [0xfffffffc], 1
    mov esi, 0xffe
    mov edi, FREE
    mov ecx, 4
    mov eax, DATA
    mov es, eax
    ; A string instruction stops where the limit is.
    compatible_faults 13, 0, rep movsb
    check e, ecx, 2
    check e, esi, 0x1000
    check e, edi, FREE + 2
    mov eax, LIMITED
    mov ss, eax
    mov ebp, 0xffd
    compatible_faults 12, 0, mov ebx, [ebp]
    mov eax, LIMITED
    mov ss, eax
    compatible_faults 12, 0, push eax       ; the stack pointer is far beyond
    mov eax, EXPAND_DOWN
    mov ds, eax
    compatible mov ebx, [0x1000]
    check e, ebx, 0x22222222
    compatible mov ebx, [0xfffffffc]
    check e, ebx, 0x44444444
    compatible_faults 13, 0, mov bl, [0xfff]
    compatible_faults 13, 0, mov ebx, [0xffd]
    mov eax, EXPAND_DOWN_16
    mov ds, eax
    compatible mov ebx, [0xfffc]
    check e, ebx, 0x33333333
    compatible_faults 13, 0, mov ebx, [0xfffd]
    compatible_faults 13, 0, mov ebx, [0x10000]
    ; Types: read-only, null, code.
    mov eax, READ_ONLY
    mov ds, eax
    compatible mov ebx, [LOAD]
    check e, ebx, 0x464c457f
    compatible_faults 13, 0, mov [LOAD], ebx
    compatible_faults 13, 0, lock add [LOAD], ebx
    compatible_faults 13, 0, mov [cs:LOAD], ebx
    xor eax, eax
    mov ds, eax
    compatible_faults 13, 0, mov ebx, [LOAD]
    compatible_faults 13, 0, mov [LOAD], ebx
    mov eax, DATA
    mov ds, eax
    compatible mov ebx, [ds:LOAD]
    check e, ebx, 0x464c457f

code_limits:
    ; A near jump beyond the limit faults itself; running on beyond it faults there.
    mov word [own_gdt + LIMITED_CODE], .limit - LOAD - 1
    resume_at .jumped
    push LIMITED_CODE
    push .jump - LOAD
    retfq
    bits 32
.jump:
    jmp near .limit + 64
    bits 64
.jumped:
    check_seen 13, 0
    mov eax, .jump - LOAD
    check e, [seen_rip], rax
    check e, qword [seen_cs], LIMITED_CODE
    resume_at .ran
    push LIMITED_CODE
    push .run - LOAD
    retfq
.ran:
    check_seen 13, 0
    mov eax, .straddles - LOAD
    check e, [seen_rip], rax
    check e, ebx, 0x5a5a
    ; A far transfer beyond it faults with no error code.
    push LIMITED_CODE
    push .limit - LOAD
    faults 13, 0, retfq
    add rsp, 16
    ret
    bits 32
.run:
    mov ebx, 0x5a5a
.straddles:
    mov ebx, 0                              ; its last byte is beyond
.limit equ $ - 1
    bits 64

ask:
    lar eax, r11d
    setz r8b
    verr r11w
    setz r9b
    verw r11w
    setz r10b
    int 0x80

    align 8
pointer:    dd test
            dw 0, 0
ldt:
    dq 0x00cf13000000ffff                   ; not present
    dq 0x00cf93000000ffff
own_gdt:
    times gdt_end - gdt db 0
    dq 0x00cf90000000ffff                   ; READ_ONLY
    dq 0x00cf13000000ffff                   ; ABSENT
    dq 0x00cf99000000ffff                   ; EXECUTE_ONLY
    dq 0x00cf9f000000ffff                   ; CONFORMING
    dq 0x0040934000000fff                   ; LIMITED
    dq 0x0040974000000fff                   ; EXPAND_DOWN
    dq 0x0000974000000fff                   ; EXPAND_DOWN_16
    dq 0, 0                                 ; LDT
    dq 0, 0                                 ; SECOND_TSS
    dq 0x0000ec0000100000, 0                ; CALL_GATE
    dq 0, 0                                 ; ABSENT_TSS
    dq 0x00409b1000000000                   ; LIMITED_CODE
    dq 0x00cf80000000ffff                   ; NO_TYPE
    dq 0x00ef9b000000ffff                   ; LONG_AND_32
    dq 0x00af1b000000ffff                   ; ABSENT_CODE
    dq 0x00affb000000ffff                   ; USER_ONLY_CODE
own_gdt_end:
own_gdt_pointer:
    dw own_gdt_end - own_gdt - 1
    dq own_gdt
end_of_guest
