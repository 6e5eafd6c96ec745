/* A kernel that runs elsewhere than it was linked for, as Linux does with KASLR: linked at BASE + 2 MiB, loaded at 2 MiB, it maps
 * physical memory at BASE + SLIDE and goes on there. Entered by PVH; the code is position-independent. */

    .intel_syntax noprefix
    .set BASE, 0xffffffff80000000

    .section .note.pvh, "a", @note
    .align 4
    .long 4, 4, 18                  /* XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .long start - BASE

    .text
    .code32
    .globl start
start:
    cld
    mov eax, OFFSET low - BASE
    or eax, 3
    mov [pml4 - BASE], eax
    mov eax, OFFSET high - BASE
    or eax, 3
    mov [pml4 - BASE + 511 * 8], eax
    mov eax, OFFSET identity - BASE
    or eax, 3
    mov [low - BASE], eax
    mov eax, OFFSET moved - BASE
    or eax, 3
    mov [high - BASE + 510 * 8], eax
    /* 32 MiB in large pages, twice. */
    mov eax, 0x83
    mov ecx, 0
1:  mov [identity - BASE + ecx * 8], eax
    mov [moved - BASE + SLIDE / 0x200000 * 8 + ecx * 8], eax
    add eax, 0x200000
    inc ecx
    cmp ecx, 16
    jb 1b
    mov eax, cr4
    or eax, 0x20                    /* PAE */
    mov cr4, eax
    mov eax, OFFSET pml4 - BASE
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x100                   /* LME */
    wrmsr
    mov eax, cr0
    or eax, 0x80000000              /* PG */
    mov cr0, eax
    lgdt [gdt_pointer - BASE]
    ljmp 0x08, OFFSET long_mode - BASE

    .code64
long_mode:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    lea rax, moved_code[rip]
    movabs rdx, BASE + SLIDE
    add rax, rdx
    jmp rax
moved_code:
    lea rsp, stack_top[rip]
    call main
    mov dx, 0xf4
    out dx, al
2:  cli
    hlt
    jmp 2b

    .section .data
    .align 8
gdt:
    .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
gdt_pointer:
    .word . - gdt - 1
    .quad gdt - BASE

    .section .bss
    .align 4096
pml4:     .skip 4096
low:      .skip 4096
high:     .skip 4096
identity: .skip 4096
moved:    .skip 4096
stack:    .skip 4096
stack_top:
