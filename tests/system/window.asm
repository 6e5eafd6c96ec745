; Code and data of a user process where hot code accesses memory by the host's own MMU: what the guest changes about its pages must be seen at
; once, and every fault must come as from the TLB.
;
; All is done so often that regions are made, with the window and without it, and that pages come into the window.
%include "system.inc"

USER            equ 0x555555550000      ; `user_code`, in ring 3
PAGES           equ 0x555555560000      ; sixteen pages, and a missing one
TABLES          equ FREE + 0x100000     ; PDPT, directory and table for them; then those of another address space
SECOND          equ TABLES + 0x10000
FRAMES          equ FREE + 0x40000
TABLE           equ TABLES + 0x2000
TABLE_B         equ SECOND + 0x4000
TOP             equ PAGES + 15 * 4096 + 0x800
ROUNDS          equ 60

%define P 1
%define W 2
%define U 4
%define A 0x20
%define D 0x40

; The frame that holds number %1.
%define frame(n) (FRAMES + ((n) ^ 5) * 4096)
%define entry(table, n) table + ((PAGES >> 12) % 512 + (n)) * 8
%define user_at(label) (USER + (label - user_code))

; Runs what is at an address in ring 3 until INT 0x80 or a fault.
%macro run_at 1
    resume_at %%after
    push USER_DATA
    mov r15, TOP
    push r15
    push 0x3002
    push USER_CODE64
    mov r15, %1
    push r15
    iretq
%%after:
%endmacro

; A routine of `user_code` where a process has it, or where this file lies, which is low.
%macro run 1
    run_at user_at(%1)
%endmacro
%macro run_low 1
    run_at %1
%endmacro

; A routine of `user_code`; it must fault with vector %2 and error code %3 at its label %4.
%macro run_faults 4
    run %1
    check_seen %2, %3
    mov r15, user_at(%4)
    check e, [seen_rip], r15
%endmacro

; Page %2 becomes the frame with number %3, with bits %4, in a table.
%macro map 4
    mov qword [entry(%1, %2)], frame(%3) | P | U | (%4)
    mov r15, PAGES + (%2) * 4096
    invlpg [r15]
%endmacro

test:
    mov qword [PML4 + ((USER >> 39) % 512) * 8], TABLES | 7
    mov qword [TABLES + ((USER >> 30) % 512) * 8], (TABLES + 0x1000) | 7
    mov qword [TABLES + 0x1000 + ((USER >> 21) % 512) * 8], TABLE | 7
    mov rax, user_code
    or eax, 7
    mov [TABLE + ((USER >> 12) % 512) * 8], rax
    xor ebx, ebx
.page:
    mov eax, ebx
    xor eax, 5
    shl eax, 12
    add eax, FRAMES
    mov edi, eax
    or eax, 7
    mov [entry(TABLE, 0) + rbx * 8], rax
    lea rax, [rbx + 100]
    mov ecx, 512
    rep stosq                               ; each frame is full of its number plus 100
    inc ebx
    cmp ebx, 16
    jb .page
    ; Another address space, with the pages the other way round.
    mov rsi, PML4
    mov rdi, SECOND
    mov ecx, 512
    rep movsq
    mov qword [SECOND + ((USER >> 39) % 512) * 8], (SECOND + 0x2000) | 7
    mov qword [SECOND + 0x2000 + ((USER >> 30) % 512) * 8], (SECOND + 0x3000) | 7
    mov qword [SECOND + 0x3000 + ((USER >> 21) % 512) * 8], TABLE_B | 7
    mov rsi, TABLE
    mov rdi, TABLE_B
    mov ecx, 512
    rep movsq
    mov qword [entry(TABLE_B, 0)], frame(7) | 7
    mov qword [entry(TABLE_B, 7)], frame(0) | 7

    mov qword [frame(13) + 6 * 8], 7
    mov r14d, ROUNDS
.rounds:
    ; The sum over pages, forwards and backwards, and by an index.
    mov rdi, PAGES
    mov ecx, 8
    mov edx, 4096
    run sum
    check_seen 0x80, 0
    check e, rax, 100 + 101 + 102 + 103 + 104 + 105 + 106 + 107
    mov rdi, PAGES + 7 * 4096 + 0xff8
    mov ecx, 8
    mov rdx, -4096
    run sum
    check e, rax, 100 + 101 + 102 + 103 + 104 + 105 + 106 + 107
    mov rdi, PAGES
    mov ecx, 8 * 512
    run sum_indexed
    check e, rax, 512 * (100 + 101 + 102 + 103 + 104 + 105 + 106 + 107)
    run calls
    check e, rax, 55
    mov r15, PAGES + 13 * 4096
    invlpg [r15]
    run constant
    check e, rax, 20 * (113 + 7 + 113)

    ; Stores, seen in RAM.
    mov rdi, PAGES + 8 * 4096
    mov ecx, 512
    mov rsi, r14
    run fill
    check e, [frame(8)], r14
    check e, [frame(8) + 0xff8], r14

    ; A page that becomes another one.
    map TABLE, 3, 4, W
    mov rdi, PAGES
    mov ecx, 8
    mov edx, 4096
    run sum
    check e, rax, 100 + 101 + 102 + 104 + 104 + 105 + 106 + 107
    map TABLE, 3, 3, W
    mov rdi, PAGES
    mov ecx, 8
    mov edx, 4096
    run sum
    check e, rax, 100 + 101 + 102 + 103 + 104 + 105 + 106 + 107

    ; A page that goes: the fault is precise.
    mov qword [entry(TABLE, 5)], 0
    mov r15, PAGES + 5 * 4096
    invlpg [r15]
    mov rdi, PAGES
    mov ecx, 8
    mov edx, 4096
    run_faults sum, 14, 4, sum.load
    check e, rcx, 3
    check e, rax, 100 + 101 + 102 + 103 + 104
    mov r15, PAGES + 5 * 4096
    check e, rdi, r15
    check e, [seen_cr2], r15
    ; An access across its beginning.
    mov rdi, PAGES + 5 * 4096 - 4
    mov ecx, 1
    run_faults sum, 14, 4, sum.load
    mov r15, PAGES + 5 * 4096
    check e, [seen_cr2], r15
    map TABLE, 5, 5, W
    mov rdi, PAGES + 5 * 4096 - 4
    mov ecx, 1
    run sum
    mov r15, 105 << 32
    check e, rax, r15

    ; A page that can't be written any more, and flags that a fault finds.
    map TABLE, 8, 8, 0
    mov rdi, PAGES + 8 * 4096
    mov ecx, 512
    mov esi, 1
    run_faults fill, 14, 7, fill.store
    check e, [frame(8)], r14
    mov rdi, PAGES + 8 * 4096
    mov ecx, 512
    run_faults increment, 14, 7, increment.store
    check e, [frame(8)], r14
    mov eax, [seen_rflags]
    and eax, 0x8d5
    check e, eax, 0x85                      ; of the comparison before it: SF, PF, CF
    map TABLE, 8, 8, W
    mov rdi, PAGES + 8 * 4096
    mov ecx, 512
    mov esi, 1
    run fill
    check e, qword [frame(8)], 1
    ; The dirty flag is set again.
    and qword [entry(TABLE, 8)], ~(A | D)
    mov r15, PAGES + 8 * 4096
    invlpg [r15]
    mov rdi, PAGES + 8 * 4096
    mov ecx, 1
    mov edx, 0
    run sum
    mov rax, [entry(TABLE, 8)]
    and eax, A | D
    check e, eax, A
    mov rdi, PAGES + 8 * 4096
    mov ecx, 512
    mov rsi, r14
    run fill
    mov rax, [entry(TABLE, 8)]
    and eax, A | D
    check e, eax, A | D

    ; Another address space and back.
    mov rax, SECOND
    mov cr3, rax
    mov rdi, PAGES
    mov ecx, 1
    mov edx, 4096
    run sum
    check e, rax, 107
    mov rdi, PAGES + 7 * 4096
    mov ecx, 1
    run sum
    check e, rax, 100
    mov rax, PML4
    mov cr3, rax
    mov rdi, PAGES
    mov ecx, 1
    run sum
    check e, rax, 100

    ; Where no window is: low memory; the kernel's; addresses that are none.
    mov rdi, low_data
    mov ecx, 1
    run sum
    check e, rax, 0x77
    mov rdi, low_data
    mov ecx, 4
    mov edx, 8
    run_low sum
    check_seen 0x80, 0
    check e, rax, 4 * 0x77
    mov rdi, PAGES
    mov ecx, 8
    mov edx, 4096
    run_low sum
    check e, rax, 100 + 101 + 102 + 103 + 104 + 105 + 106 + 107
    run_low calls
    check e, rax, 55
    mov rdi, FREE
    mov ecx, 1
    run_low sum
    check_seen 14, 5
    check e, qword [seen_rip], sum.load
    mov rdi, FREE
    mov ecx, 1
    run_faults sum, 14, 5, sum.load
    mov rdi, 0xffff800000000000
    mov ecx, 1
    run_faults sum, 14, 4, sum.load
    mov rdi, 1 << 47
    mov ecx, 1
    run_faults sum, 13, 0, sum.load
    mov rdi, PAGES + (1 << 46)              ; as far from the window's pages as the host's own
    mov ecx, 1
    run_faults sum, 13, 0, sum.load
    mov rdi, PAGES + (1 << 47)
    mov ecx, 1
    mov esi, 1
    run_faults fill, 13, 0, fill.store
    ; A register in the window, an index that leads out of it.
    mov rdi, PAGES
    mov rcx, 1 << 43
    run_faults sum_indexed, 13, 0, sum_indexed.load
    mov rdi, PAGES + 8
    run_faults aligned, 13, 0, aligned.load

    ; A data page that becomes code, which changes.
    mov rdi, PAGES + 9 * 4096
    mov ecx, 512
    mov rsi, r14
    run fill
    mov r13d, 3
.code:
    mov rdi, PAGES + 9 * 4096
    mov eax, r13d
    run write_code
    check_seen 0x80, 0
    check e, eax, r13d
    dec r13d
    jnz .code

    dec r14d
    jnz .rounds
    ret

    align 8
low_data:       times 4 dq 0x77

    align 4096
user_code:
sum:
    xor eax, eax
.load:
    add rax, [rdi]
    add rdi, rdx
    dec ecx
    jnz .load
    int 0x80

; Over rcx words, the last one first.
sum_indexed:
    xor eax, eax
.load:
    add rax, [rdi + rcx * 8 - 8]
    dec rcx
    jnz .load
    int 0x80

fill:
.store:
    mov [rdi], rsi
    add rdi, 8
    dec ecx
    jnz .store
    int 0x80

increment:
.next:
    cmp ecx, 4096
.store:
    inc qword [rdi]
    lea rdi, [rdi + 8]
    dec ecx
    jnz .next
    int 0x80

; The sum of 1 to 10, by recursion.
calls:
    mov ebx, 10
    xor eax, eax
    call .add
    int 0x80
.add:
    push rbx
    add eax, ebx
    dec ebx
    jz .done
    call .add
.done:
    pop rbx
    ret

; Words of page 13, by RIP.
%define word_of(n) rel user_code + (PAGES - USER) + 13 * 4096 + (n) * 8
constant:
    xor eax, eax
    mov ecx, 20
.next:
    add rax, [word_of(5)]
    add rax, [word_of(6)]
    add rax, [word_of(100)]
    dec ecx
    jnz .next
    int 0x80

aligned:
    mov ecx, 5
    sub rdi, 8
.warm:
    movaps xmm0, [rdi]
    dec ecx
    jnz .warm
    add rdi, 8
.load:
    movaps xmm0, [rdi]
    int 0x80

; Writes code that gives eax to the page at rdi, and calls it, ten times.
write_code:
    mov ecx, 10
.next:
    mov byte [rdi], 0xb8
    mov [rdi + 1], eax
    mov byte [rdi + 5], 0xc3
    xor eax, eax
    call rdi
    dec ecx
    jnz .next
    int 0x80

    align 4096
end_of_guest
