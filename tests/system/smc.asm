; Self-modifying and cross-modifying code: what is written is what runs next, without any serializing instruction
; between (SDM Vol. 3A 11.6: the linear addresses are the same).
%include "system.inc"

test:
    ; A routine in another page, changed between calls; often enough that it is compiled in between.
    mov r15d, 300
.again:
    call other_page
    check e, eax, 1
    mov dword [other_page + 1], 2           ; its immediate
    call other_page
    check e, eax, 2
    mov dword [other_page + 1], 1
    dec r15d
    jnz .again

    ; The very next instruction, in the same block.
    mov r15d, 300
.same_block:
    mov byte [.patched + 1], 7
    xor eax, eax
.patched:
    mov al, 5
    check e, al, 7
    mov byte [.patched + 1], 5
    dec r15d
    jnz .same_block

    ; A loop that rewrites its own body: add turns into sub and back.
    xor ebx, ebx
    mov ecx, 1000
.loop:
    xor byte [.operation + 1], 0x28         ; add ebx,imm8 (83 c3) <-> sub ebx,imm8 (83 eb)
.operation:
    add ebx, 3
    loop .loop
    check e, ebx, 0                         ; as often one as the other

    ; Data beside code: writes to the same page that hit no instruction change nothing.
    mov r15d, 2000
.beside:
    inc qword [beside_data]
    call beside_code
    dec r15d
    jnz .beside
    check e, qword [beside_data], 2000
    check e, qword [beside_count], 2000

    ; Code that an instruction crossing a page boundary belongs to: its second half is changed.
    mov r15d, 300
.crossing:
    call crossing_code
    check e, eax, 0x11223344
    mov byte [crossing_end], 0x55
    call crossing_code
    check e, eax, 0x55223344
    mov byte [crossing_end], 0x11
    dec r15d
    jnz .crossing

    ; A write through another linear address of the same physical page.
    mov rax, other_page
    and rax, -4096
    or eax, 3
    mov [TABLE_WINDOW + 5 * 8], rax
    mov rax, WINDOW + 5 * 4096
    invlpg [rax]
    mov r15d, 300
.alias:
    call other_page
    check e, eax, 1
    mov rax, other_page
    and eax, 0xfff
    mov rbx, WINDOW + 5 * 4096 + 1
    mov byte [rax + rbx], 9
    call other_page
    check e, eax, 9
    mov byte [other_page + 1], 1
    dec r15d
    jnz .alias

    ; A string instruction that overwrites code.
    mov r15d, 100
.string:
    lea rsi, [replacement]
    lea rdi, [other_page]
    mov ecx, 6
    rep movsb
    call other_page
    check e, eax, 0x77
    lea rsi, [original]
    lea rdi, [other_page]
    mov ecx, 6
    rep movsb
    call other_page
    check e, eax, 1
    dec r15d
    jnz .string
    ret

original:
    mov eax, 1
    ret
replacement:
    mov eax, 0x77
    ret

    align 4096
other_page:
    mov eax, 1
    ret

    align 4096
beside_code:
    inc qword [beside_count]
    ret
beside_data:    dq 0
    align 4096
beside_count:   dq 0

    align 4096
    times 4096 - 3 db 0x90
crossing_code:                              ; the last bytes of a page and the first of the next
    mov eax, 0x11223344                     ; b8 44 33 | 22 11
crossing_end equ $ - 1
    ret
end_of_guest
