; Chained blocks must never outlive the mapping that they were chained under: code at one linear address is replaced
; by remapping, after the callers have run often enough to be compiled and linked.
%include "system.inc"

%macro map 2
    mov rax, (%2) | 3
    mov [TABLE_WINDOW + (%1) * 8], rax
%endmacro

FIRST   equ FREE
SECOND  equ FREE + 0x1000
TARGET  equ WINDOW + 7 * 4096

test:
    ; Two versions of a routine, in two physical pages.
    lea rsi, [version_one]
    mov rdi, FIRST
    mov ecx, 16
    rep movsb
    lea rsi, [version_two]
    mov rdi, SECOND
    mov ecx, 16
    rep movsb
    map 7, FIRST
    mov rbx, TARGET
    invlpg [rbx]

    ; By INVLPG: direct call, indirect call, and a return into the page.
    mov r15d, 300
.invlpg:
    call call_target
    check e, eax, 1
    call [target_pointer]
    check e, eax, 1
    map 7, SECOND
    mov rbx, TARGET
    invlpg [rbx]
    call call_target
    check e, eax, 2
    call [target_pointer]
    check e, eax, 2
    map 7, FIRST
    mov rbx, TARGET
    invlpg [rbx]
    dec r15d
    jnz .invlpg

    ; By MOV CR3: a second address space in which the page is the other one.
    mov rsi, PML4
    mov rdi, FREE + 0x10000
    mov ecx, 4096 * 5 / 8                   ; PML4, PDPT, DIRECTORY, TABLE_LOW, TABLE_WINDOW
    rep movsq
    mov qword [FREE + 0x10000], (FREE + 0x11000) | 7
    mov qword [FREE + 0x11000], (FREE + 0x12000) | 7
    mov qword [FREE + 0x12000], (FREE + 0x13000) | 7
    mov qword [FREE + 0x12000 + 511 * 8], (FREE + 0x14000) | 7
    mov qword [FREE + 0x14000 + 7 * 8], SECOND | 3
    mov r12, PML4
    mov r13, FREE + 0x10000
    mov r15d, 500
.cr3:
    call call_target
    check e, eax, 1
    mov cr3, r13
    call call_target
    check e, eax, 2
    call [target_pointer]
    check e, eax, 2
    mov cr3, r12
    call [target_pointer]
    check e, eax, 1
    dec r15d
    jnz .cr3

    ; The page becomes no-execute, then absent, under a chained caller.
    mov rax, FIRST | 3 | (1 << 63)
    mov [TABLE_WINDOW + 7 * 8], rax
    mov rbx, TARGET
    invlpg [rbx]
    mov r14, rsp
    resume_at .no_execute
    call call_target
.no_execute:
    mov rsp, r14
    check_seen 14, 0x11
    mov qword [TABLE_WINDOW + 7 * 8], 0
    invlpg [rbx]
    resume_at .absent
    call call_target
.absent:
    mov rsp, r14
    check_seen 14, 0x10
    mov rax, TARGET
    check e, [seen_cr2], rax
    check e, [seen_rip], rax

    ; A chained loop leaves ring 3 by its own page's protection: see that privilege is part of what a block is.
    map 7, FIRST
    invlpg [rbx]
    user user_calls_supervisor_page
    check_seen 14, 0x15
    ret

user_calls_supervisor_page:
    mov rbx, TARGET
    call rbx
    int 0x80

    align 4096
call_target:
    mov rbx, TARGET
    jmp TARGET

    align 16
version_one:
    mov eax, 1
    ret
    align 16
version_two:
    mov eax, 2
    ret
    align 16
target_pointer: dq TARGET
end_of_guest
