; Model-specific registers that CPUID announces, illegal values of EFER, CR0, CR4 and XCR0, the FS and GS base
; instructions, SWAPGS.
%include "system.inc"

NON_CANONICAL   equ 0x0000800000000000
BASE            equ 0xffff800012345678

; RDMSR must give this.
%macro reads 2
    mov ecx, %1
    rdmsr
    shl rdx, 32
    or rax, rdx
    mov rbx, %2
    check e, rax, rbx
%endmacro

%macro read_faults 1
    mov ecx, %1
    faults 13, 0, rdmsr
%endmacro

%macro load_value 2                 ; ECX, EDX:EAX
    mov ecx, %1
    mov rax, %2
    mov rdx, rax
    shr rdx, 32
    mov eax, eax
%endmacro

%macro writes 2
    load_value %1, %2
    wrmsr
%endmacro

%macro write_faults 2
    load_value %1, %2
    faults 13, 0, wrmsr
%endmacro

; Writes a value, reads it back, and restores.
%macro keeps 2
    mov ecx, %1
    rdmsr
    mov r14d, eax
    mov r15d, edx
    writes %1, %2
    reads %1, %2
    mov eax, r14d
    mov edx, r15d
    mov ecx, %1
    wrmsr
%endmacro

; MOV to a control register of its value with bit %2 flipped must fault, and leave it.
%macro flip_faults 2
    mov rax, %1
    mov rbx, rax
    btc rax, %2
    faults 13, 0, mov %1, rax
    mov rax, %1
    check e, rax, rbx
%endmacro

test:
    mov eax, 1
    cpuid
    mov r12d, ecx
    mov r13d, edx
    mov eax, 7
    xor ecx, ecx
    cpuid
    mov [features_7b], ebx
    mov [features_7d], edx

registers:
    ; SYSCALL, SYSENTER, segment bases.
    keeps 0xc0000081, 0x0023001000000000
    keeps 0xc0000082, BASE
    keeps 0xc0000083, BASE
    keeps 0xc0000084, 0x47700
    keeps 0x174, 0x10
    keeps 0x175, BASE
    keeps 0x176, BASE
    keeps 0xc0000100, BASE
    keeps 0xc0000101, BASE
    keeps 0xc0000102, BASE
    write_faults 0xc0000082, NON_CANONICAL
    write_faults 0xc0000083, NON_CANONICAL
    write_faults 0x175, NON_CANONICAL
    write_faults 0x176, NON_CANONICAL
    write_faults 0xc0000100, NON_CANONICAL
    write_faults 0xc0000101, NON_CANONICAL
    write_faults 0xc0000102, NON_CANONICAL
    write_faults 0xc0000084, 1 << 32        ; FMASK is 32 bits
    ; A base is what an access uses, and a selector's load replaces.
    writes 0xc0000100, FREE
    mov dword [FREE + 0x10], 0x600dcafe
    check e, dword [fs:0x10], 0x600dcafe
    mov eax, USER_DATA
    mov fs, eax
    reads 0xc0000100, 0
    xor eax, eax
    mov fs, eax
    ; PAT: its value after reset, its memory types.
    reads 0x277, 0x0007040600070406
    keeps 0x277, 0x0007010600070106
    write_faults 0x277, 0x0007040600070402
    write_faults 0x277, 0x0807040600070406
    ; The APIC base: enabled, this is the boot processor.
    mov ecx, 0x1b
    rdmsr
    check e, edx, 0
    and eax, 0xfffff900
    check e, eax, 0xfee00900
    ; What is announced can be read.
    mov ecx, 0x10
    rdmsr
    mov ecx, 0x8b
    rdmsr
    mov ecx, 0x1a0
    rdmsr
    mov ecx, 0x179
    rdmsr
    bt dword [features_7d], 29
    jnc .no_capabilities
    mov ecx, 0x10a
    rdmsr
    write_faults 0x10a, 0
.no_capabilities:
    bt dword [features_7d], 26
    jnc .no_speculation
    mov ecx, 0x48
    rdmsr
    writes 0x49, 1
    read_faults 0x49                        ; write-only
    write_faults 0x48, 1 << 40
.no_speculation:
    ; TSC_AUX, by RDTSCP and RDPID.
    writes 0xc0000103, 0x12345
    rdtscp
    check e, ecx, 0x12345
    write_faults 0xc0000103, 1 << 32
    ; The TSC is writable, and TSC_ADJUST moves with it.
    writes 0x10, 1 << 60
    rdtsc
    shr edx, 28
    check e, edx, 1
    bt dword [features_7b], 1
    jnc .no_adjust
    mov ecx, 0x3b
    rdmsr
    shl rdx, 32
    or rax, rdx
    mov rbx, 1 << 59
    check a, rax, rbx
    writes 0x3b, 0
    rdtsc
    shr edx, 27
    check e, edx, 0
.no_adjust:
    ; No such registers.
    read_faults 0x12345678
    read_faults 0xc0001234
    write_faults 0x12345678, 0
    write_faults 0xc0001234, 0
    user ring_3_reads
    check_seen 13, 0
    user ring_3_writes
    check_seen 13, 0

efer:
    ; LME and LMA stay, reserved bits fault.
    mov ecx, 0xc0000080
    rdmsr
    check e, edx, 0
    and eax, 0xd01
    check e, eax, 0xd01
    write_faults 0xc0000080, 0xc01          ; LME off under paging
    write_faults 0xc0000080, 0xd03
    write_faults 0xc0000080, 0x100000d01
    ; NXE off: bit 63 of an entry is reserved.
    mov rax, FREE | 3 | (1 << 63)
    mov [TABLE_WINDOW], rax
    check e, dword [WINDOW + 0x10], 0x600dcafe
    writes 0xc0000080, 0x501
    faults 14, 9, mov eax, [abs WINDOW + 0x10]
    resume_at .fetched
    mov rax, WINDOW
    jmp rax
.fetched:
    check e, qword [seen], 14
    check e, qword [seen_error], 9          ; no I/D bit without NXE and SMEP
    writes 0xc0000080, 0xd01
    mov eax, [abs WINDOW + 0x10]
    check e, eax, 0x600dcafe

control:
    ; CR0: paging without protection, NW without CD, the upper half; paging cannot go in 64-bit mode.
    flip_faults cr0, 0
    flip_faults cr0, 29
    flip_faults cr0, 32
    flip_faults cr0, 63
    flip_faults cr0, 31
    ; ET and reserved bits of the lower half do not change.
    mov rax, cr0
    mov rbx, rax
    btc rax, 4
    mov cr0, rax
    mov rax, cr0
    check e, rax, rbx
    ; CR4: PAE under long mode, reserved bits, what CPUID does not announce.
    flip_faults cr4, 5
    flip_faults cr4, 15
    flip_faults cr4, 31
    flip_faults cr4, 32
    flip_faults cr4, 63
    bt r12d, 5                              ; VMX
    jc .vmx
    flip_faults cr4, 13
.vmx:
    ; CR3: beyond the physical address width.
    flip_faults cr3, 63
    flip_faults cr3, 52
    ; CR8: four bits. No CR1, no CR5.
    mov eax, 5
    mov cr8, rax
    mov rbx, cr8
    check e, rbx, 5
    mov eax, 0x10
    faults 13, 0, mov cr8, rax
    xor eax, eax
    mov cr8, rax
    faults 6, 0, db 0x0f, 0x20, 0xc8        ; MOV RAX, CR1
    faults 6, 0, db 0x0f, 0x22, 0xe8        ; MOV CR5, RAX
    ; SMSW and LMSW, which can set PE and not clear it.
    smsw rax
    mov rbx, cr0
    check e, rax, rbx
    mov eax, 0x0a                           ; TS and MP, no PE
    lmsw ax
    mov rax, cr0
    and eax, 0xf
    check e, eax, 0xb
    clts
    mov rax, cr0
    and eax, 0xf
    check e, eax, 3
    ; TSD: RDTSC only in ring 0.
    mov rax, cr4
    bts rax, 2
    mov cr4, rax
    rdtsc
    user ring_3_time
    check_seen 13, 0
    mov rax, cr4
    btr rax, 2
    mov cr4, rax
    user ring_3_time
    check_seen 0x80, 0
    ; XCR0.
    bt r12d, 26
    jnc .no_xsave
    mov rax, cr4
    btr rax, 18
    mov cr4, rax
    xor ecx, ecx
    faults 6, 0, xgetbv
    mov eax, 1
    cpuid
    bt ecx, 27
    setc al
    check e, al, 0
    mov rax, cr4
    bts rax, 18
    mov cr4, rax
    mov eax, 1
    cpuid
    bt ecx, 27
    setc al
    check e, al, 1
    xor ecx, ecx
    mov eax, 3
    xor edx, edx
    xsetbv
    xgetbv
    check e, eax, 3
    check e, edx, 0
    mov eax, 2                              ; x87 is not optional
    faults 13, 0, xsetbv
    mov eax, 5                              ; nor SSE where AVX is
    faults 13, 0, xsetbv
    mov eax, 3
    mov edx, 0x40000000
    faults 13, 0, xsetbv
    mov ecx, 7
    xor edx, edx
    faults 13, 0, xsetbv
    user ring_3_xsetbv
    check_seen 13, 0
.no_xsave:

bases:
    bt dword [features_7b], 0
    jnc .no_fsgsbase
    faults 6, 0, rdfsbase rax               ; CR4.FSGSBASE is off
    faults 6, 0, wrgsbase rax
    mov rax, cr4
    bts rax, 16
    mov cr4, rax
    mov rax, BASE
    wrfsbase rax
    rdfsbase rbx
    check e, rbx, rax
    reads 0xc0000100, BASE
    mov rbx, -1
    rdfsbase ebx
    mov eax, BASE & 0xffffffff
    check e, rbx, rax
    mov rax, 0x5555555500400000
    wrgsbase eax                            ; 32 bits, zero-extended
    rdgsbase rbx
    check e, rbx, FREE
    check e, dword [gs:0x10], 0x600dcafe
    mov rax, NON_CANONICAL
    faults 13, 0, wrfsbase rax
    faults 13, 0, wrgsbase rax
    ; They do not look at the selector, and work in ring 3.
    xor eax, eax
    mov fs, eax
    mov rax, USER_STACK
    wrfsbase rax
    user ring_3_bases
    check_seen 0x80, 0
    check e, r8, USER_STACK
    rdfsbase rax
    check e, rax, USER_STACK - 8
    resume_at .compatible
    push CODE32
    push .compatible_at
    retfq
    bits 32
.compatible_at:
    db 0xf3, 0x0f, 0xae, 0xc0               ; only in 64-bit mode
    bits 64
.compatible:
    check_seen 6, 0
.no_fsgsbase:
    ; SWAPGS.
    writes 0xc0000101, FREE
    writes 0xc0000102, BASE
    swapgs
    reads 0xc0000101, BASE
    reads 0xc0000102, FREE
    swapgs
    check e, dword [gs:0x10], 0x600dcafe
    user ring_3_swapgs
    check_seen 13, 0
    resume_at .swapgs_compatible
    push CODE32
    push .swapgs_compatible_at
    retfq
    bits 32
.swapgs_compatible_at:
    db 0x0f, 0x01, 0xf8
    bits 64
.swapgs_compatible:
    check_seen 6, 0
    reads 0xc0000101, FREE
    ret

ring_3_reads:
    mov ecx, 0x10
    rdmsr
    int 0x80
ring_3_writes:
    mov ecx, 0xc0000103
    wrmsr
    int 0x80
ring_3_time:
    rdtsc
    int 0x80
ring_3_xsetbv:
    xor ecx, ecx
    mov eax, 3
    xor edx, edx
    xsetbv
    int 0x80
ring_3_bases:
    rdfsbase r8
    lea rax, [r8 - 8]
    wrfsbase rax
    int 0x80
ring_3_swapgs:
    swapgs
    int 0x80

    align 4
features_7b:    dd 0
features_7d:    dd 0
end_of_guest
