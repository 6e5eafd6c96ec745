; Paging: permissions, error codes, accessed and dirty bits, large pages, INVLPG, global pages.
%include "system.inc"

%define P 1
%define W 2
%define U 4
%define A 0x20
%define D 0x40
%define PS 0x80
%define G 0x100
%define NX (1 << 63)

; Maps page %1 of the window to FREE + %1 pages, with bits %2.
%macro map 2
    mov rax, (FREE + (%1) * 4096) | (%2)
    mov [TABLE_WINDOW + (%1) * 8], rax
    mov rax, WINDOW + (%1) * 4096
    invlpg [rax]
%endmacro

%macro expect_fault_at 2
    mov rax, %1
    check e, [seen_cr2], rax
    check e, qword [seen_error], %2
    check e, qword [seen], 14
%endmacro

test:
    ; Not present: read, write, fetch, and the same from ring 3.
    mov rbx, WINDOW
    faults 14, 0, mov eax, [rbx]
    faults 14, 2, mov [rbx], eax
    faults 14, 2, add dword [rbx + 8], 1
    mov rax, WINDOW + 8
    check e, [seen_cr2], rax
    resume_at .fetched
    jmp rbx
.fetched:
    expect_fault_at WINDOW, 0x10            ; I/D, since EFER.NXE is set
    user read_window
    expect_fault_at WINDOW, 4
    user write_window
    expect_fault_at WINDOW, 6

    ; Ring 0 reads and writes set A and D; a read alone does not set D.
    map 0, P | W
    mov eax, [rbx]
    mov rax, [TABLE_WINDOW]
    and eax, A | D
    check e, eax, A
    mov dword [rbx], 0x12345678
    mov rax, [TABLE_WINDOW]
    and eax, A | D
    check e, eax, A | D
    check e, dword [FREE], 0x12345678
    ; A is set in the upper levels too.
    mov rax, [DIRECTORY + 511 * 8]
    and eax, A
    check e, eax, A

    ; A supervisor page is none of ring 3's business.
    user read_window
    expect_fault_at WINDOW, 5
    user write_window
    expect_fault_at WINDOW, 7

    ; A read-only user page: CR0.WP decides for ring 0.
    map 0, P | U
    user read_window
    check_seen 0x80, 0
    user write_window
    expect_fault_at WINDOW, 7
    faults 14, 3, mov [rbx], eax
    mov rax, cr0
    and eax, ~0x10000
    mov cr0, rax
    mov dword [rbx], 0x55
    mov rax, cr0
    or eax, 0x10000
    mov cr0, rax
    check e, dword [FREE], 0x55
    faults 14, 3, mov [rbx], eax

    ; No-execute.
    mov byte [FREE + 0x1000], 0xc3          ; ret
    map 1, P | W | U
    mov rbx, WINDOW + 0x1000
    call rbx
    map 1, P | W | U | NX
    resume_at .no_execute
    jmp rbx
.no_execute:
    expect_fault_at WINDOW + 0x1000, 0x11
    ; SMEP and SMAP, if the processor has them.
    mov eax, 7
    xor ecx, ecx
    cpuid
    mov r12d, ebx
    mov rbx, WINDOW + 0x1000
    map 1, P | W | U
    ; Our own code and stack are in pages open to ring 3: close those to it meanwhile.
    mov ecx, 512
    lea rdi, [TABLE_LOW]
.close:
    and byte [rdi], ~U
    add rdi, 8
    loop .close
    mov rax, cr3
    mov cr3, rax
    bt r12d, 7
    jnc .no_smep
    mov rax, cr4
    bts rax, 20
    mov cr4, rax
    resume_at .smep
    jmp rbx
.smep:
    expect_fault_at WINDOW + 0x1000, 0x11
    mov rax, cr4
    btr rax, 20
    mov cr4, rax
    call rbx
.no_smep:
    bt r12d, 20
    jnc .no_smap
    mov rax, cr4
    bts rax, 21
    mov cr4, rax
    faults 14, 1, mov eax, [rbx]
    faults 14, 3, mov [rbx], eax
    stac
    mov eax, [rbx]
    mov [rbx + 8], eax
    clac
    faults 14, 1, mov eax, [rbx]
    mov rax, cr4
    btr rax, 21
    mov cr4, rax
    mov eax, [rbx]
.no_smap:
    mov ecx, 512
    lea rdi, [TABLE_LOW]
.open:
    or byte [rdi], U
    add rdi, 8
    loop .open
    mov rax, cr3
    mov cr3, rax

    ; A reserved bit.
    mov rax, (FREE | P | W)
    bts rax, 51
    mov [TABLE_WINDOW + 2 * 8], rax
    mov rbx, WINDOW + 0x2000
    invlpg [rbx]
    faults 14, 9, mov eax, [rbx]

    ; Stale translations go with INVLPG, MOV CR3 and nothing less is relied on: after INVLPG the new page is seen.
    mov dword [FREE + 0x3000], 3
    mov dword [FREE + 0x4000], 4
    mov r15d, 200
.remap:
    map 3, P | W
    mov rbx, WINDOW + 0x3000
    check e, dword [rbx], 3
    mov rax, FREE + 0x4000 | P | W
    mov [TABLE_WINDOW + 3 * 8], rax
    invlpg [rbx]
    check e, dword [rbx], 4
    mov rax, FREE + 0x3000 | P | W
    mov [TABLE_WINDOW + 3 * 8], rax
    mov rax, cr3
    mov cr3, rax
    check e, dword [rbx], 3
    dec r15d
    jnz .remap

    ; A global page survives MOV CR3, and goes with a change of CR4.PGE.
    mov rax, cr4
    or eax, 0x80
    mov cr4, rax
    map 3, P | W | G
    mov rbx, WINDOW + 0x3000
    check e, dword [rbx], 3
    mov rax, FREE + 0x4000 | P | W | G
    mov [TABLE_WINDOW + 3 * 8], rax
    mov rax, cr4
    and eax, ~0x80
    mov cr4, rax
    check e, dword [rbx], 4

    ; A 2 MiB page: INVLPG of any address in it drops all of it.
    mov qword [DIRECTORY + 510 * 8], FREE | P | W | PS
    mov rbx, WINDOW - 0x200000
    invlpg [rbx]
    check e, dword [rbx + 0x3000], 3
    check e, dword [rbx + 0x4000], 4
    mov qword [DIRECTORY + 510 * 8], (FREE + 0x200000) | P | W | PS
    mov dword [FREE + 0x203000], 0x33
    mov dword [FREE + 0x204000], 0x44
    invlpg [rbx + 0x4000]
    check e, dword [rbx + 0x3000], 0x33
    check e, dword [rbx + 0x4000], 0x44
    mov rax, [DIRECTORY + 510 * 8]
    and eax, A | D
    check e, eax, A

    ; A store across two pages, the second of which is missing, writes nothing.
    map 3, P | W
    mov qword [TABLE_WINDOW + 4 * 8], 0
    mov rbx, WINDOW + 0x4000
    invlpg [rbx]
    mov dword [rbx - 4], 0x0badcafe
    mov rax, -1
    faults 14, 2, mov [rbx - 4], rax
    mov rax, WINDOW + 0x4000
    check e, [seen_cr2], rax
    check e, dword [rbx - 4], 0x0badcafe
    ; And the same for a push, whose stack pointer must not move. The handler gets a stack of its own.
    mov byte [idt + 14 * 16 + 4], 1
    mov r13, rsp
    lea r14, [rbx + 4]
    resume_at .pushed
    mov rsp, r14
    push rax
.pushed:
    check e, qword [seen], 14
    check e, [seen_rsp], r14
    check e, dword [rbx - 4], 0x0badcafe
    ret

read_window:
    mov rbx, WINDOW
    mov eax, [rbx]
    int 0x80
write_window:
    mov rbx, WINDOW
    mov [rbx], eax
    int 0x80
end_of_guest
