/* Entry of the nanobench guest: PVH (Xen: docs/misc/pvh.pandoc), 32-bit flat protected mode without paging. Makes
 * identity tables for 4 GiB by 2 MiB pages, open to ring 3, enters 64-bit mode and calls main. Also the stubs that C
 * can't be: exceptions, interrupts, system calls, and code that runs in ring 3. */

    .intel_syntax noprefix

    .section .note.pvh, "a", @note
    .align 4
    .long 4, 4, 18                  /* XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .long start

    .text
    .code32
    .globl start
start:
    cli
    cld
    mov esp, OFFSET stack_top
    mov eax, OFFSET pdpt
    or eax, 7
    mov [pml4], eax
    mov edi, OFFSET pdpt
    mov eax, OFFSET directories
    or eax, 7
    mov ecx, 4
1:  mov [edi], eax
    add edi, 8
    add eax, 0x1000
    loop 1b
    mov edi, OFFSET directories
    mov eax, 0x87                   /* present, writable, user, large */
    mov ecx, 2048
2:  mov [edi], eax
    add eax, 0x200000
    add edi, 8
    loop 2b
    mov eax, cr4
    or eax, 0x620                   /* PAE, OSFXSR, OSXMMEXCPT */
    mov cr4, eax
    mov eax, OFFSET pml4
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x101                   /* LME, SCE */
    wrmsr
    mov eax, cr0
    or eax, 0x80000022              /* PG, NE, MP */
    and eax, ~0x0c
    mov cr0, eax
    lgdt [gdt_pointer]
    ljmp 0x08, OFFSET long_mode

    .code64
long_mode:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    lea rsp, stack_top[rip]
    call main
3:  cli
    hlt
    jmp 3b

/* An exception that a benchmark wants: execution goes on at the address in rbx. */
    .globl skip_with_error, skip
skip_with_error:
    add rsp, 8
skip:
    mov [rsp], rbx
    iretq

/* An exception that nobody wants: rdi := its RIP (an error code may lie below it). */
    .globl unexpected
unexpected:
    mov rdi, [rsp]
    mov rsi, [rsp + 8]
    mov rdx, cr2
    cld
    and rsp, -16
    call unexpected_exception

/* EOI at the local APIC, or as KVM's guests do it: by clearing a bit, if it was set. */
    .macro end_of_interrupt paravirt
    .if \paravirt
    btr DWORD PTR eoi_word[rip], 0
    jc 9f
    .endif
    mov eax, 0xfee000b0
    mov DWORD PTR [rax], 0
9:
    .endm

/* An interrupt: counted, and ended. */
    .macro counts_interrupt paravirt
    push rax
    push rdx
    rdtsc
    shl rdx, 32
    or rax, rdx
    mov interrupted_at[rip], rax
    inc QWORD PTR interrupts[rip]
    end_of_interrupt \paravirt
    pop rdx
    pop rax
    iretq
    .endm

/* The same, and how long its end takes (or without `within`, nothing) is added to eoi_ticks. */
    .macro times_eoi paravirt, within
    push rax
    push rdx
    push rcx
    rdtsc
    mov ecx, eax
    .if \within
    end_of_interrupt \paravirt
    .endif
    rdtsc
    sub eax, ecx
    add eoi_ticks[rip], rax
    .if !\within
    end_of_interrupt \paravirt
    .endif
    inc QWORD PTR interrupts[rip]
    pop rcx
    pop rdx
    pop rax
    iretq
    .endm

    .globl count_interrupt, count_interrupt_paravirt, time_eoi, time_eoi_paravirt, time_nothing, time_nothing_paravirt
count_interrupt: counts_interrupt 0
count_interrupt_paravirt: counts_interrupt 1
time_eoi: times_eoi 0, 1
time_eoi_paravirt: times_eoi 1, 1
time_nothing: times_eoi 0, 0
time_nothing_paravirt: times_eoi 1, 0

/* uint64_t ring_3(void (*body)(uint64_t rounds), uint64_t rounds): runs the body on the user stack in ring 3. */
    .globl ring_3
ring_3:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov kernel_stack[rip], rsp
    mov r8, rdi
    mov rdi, rsi
    lea rax, user_stack_top[rip]
    push 0x1b
    push rax
    push 0x202 & ~0x200
    push 0x23
    lea rax, 1f[rip]
    push rax
    iretq
1:  call r8
    mov eax, 1
    syscall

/* System calls: 0 returns at once, 1 ends ring_3. */
    .globl system_call
system_call:
    test eax, eax
    jnz 1f
    sysretq
1:  mov rsp, kernel_stack[rip]
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

/* The body: system calls. */
    .globl system_calls
system_calls:
    mov r10, rdi
1:  xor eax, eax
    syscall
    dec r10
    jnz 1b
    ret

/* iretq to the next instruction. */
    .globl returns_from_interrupt
returns_from_interrupt:
    mov rcx, rdi
1:  mov rax, rsp
    push 0x10
    push rax
    pushfq
    push 0x08
    lea rax, 2f[rip]
    push rax
    iretq
2:  dec rcx
    jnz 1b
    ret

/* Code that is written: mov eax, N; ret. */
    .section .written, "awx", @progbits
    .align 64
    .globl written_code
written_code:
    .byte 0xb8, 0, 0, 0, 0, 0xc3

    .data
    .align 8
    .globl gdt
gdt:
    .quad 0
    .quad 0x00af9b000000ffff        /* 08 code */
    .quad 0x00cf93000000ffff        /* 10 data */
    .quad 0x00cff3000000ffff        /* 18 user data */
    .quad 0x00affb000000ffff        /* 20 user code */
    .quad 0, 0                      /* 28 TSS */
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
    .align 8
    .globl kernel_stack, interrupts, interrupted_at, eoi_ticks, eoi_word
kernel_stack: .quad 0
interrupts: .quad 0
interrupted_at: .quad 0
eoi_ticks: .quad 0
eoi_word: .long 0

    .bss
    .align 4096
    .globl pml4, pdpt, directories, stack_top
pml4: .skip 4096
pdpt: .skip 4096
directories: .skip 4 * 4096
    .skip 16384
stack_top:
    .skip 16384
user_stack_top:
    .section .note.GNU-stack, "", @progbits
