; What a paravirtualized guest asks for: KVM's leaves, the paravirtual EOI, hypercalls of KVM's and our own.
%include "system.inc"

APIC            equ 0xfee00000
VECTOR          equ 0x70
LOWER           equ 0x60
KVM_PV_EOI_EN   equ 0x4b564d04
ENOSYS          equ -1000
EINVAL          equ -22
EFAULT          equ -14
EPERM           equ -1
OWN             equ 0x54560000
ROUNDS          equ 40

%macro write_msr 2
    mov ecx, %1
    mov rax, %2
    mov rdx, rax
    shr rdx, 32
    wrmsr
%endmacro

%macro refuses_msr 2
    mov ecx, %1
    mov rax, %2
    mov rdx, rax
    shr rdx, 32
    faults 13, 0, wrmsr
%endmacro

; Number, RBX, RCX, RDX, RSI; the result that it must have.
%macro calls 6
    mov rax, %1
    mov rbx, %2
    mov rcx, %3
    mov rdx, %4
    mov rsi, %5
    vmcall
    check e, rax, %6
%endmacro

test:
    mov eax, 0x40000000
    cpuid
    check e, ebx, "KVMK"
    check e, ecx, "VMKV"
    check e, edx, "M"
    mov eax, 0x40000001
    cpuid
    mov [features], eax
    mov qword [handlers + VECTOR * 8], interrupted
    mov qword [handlers + LOWER * 8], interrupted
    mov eax, APIC
    mov dword [rax + 0xf0], 0x1ff           ; enabled
    bt dword [features], 6
    jnc .no_pv_eoi

    ; Reserved bits, and words that are not in RAM.
    refuses_msr KVM_PV_EOI_EN, 0x1003
    refuses_msr KVM_PV_EOI_EN, 0x1002
    refuses_msr KVM_PV_EOI_EN, APIC + 1
    refuses_msr KVM_PV_EOI_EN, 0xfffffffffffffffd
    refuses_msr KVM_PV_EOI_EN, 0x4000001    ; the first byte beyond 64 MiB
    mov ecx, KVM_PV_EOI_EN
    rdmsr
    check e, rax, 0
    mov r15d, ROUNDS
.eois:
    mov rbx, word_of_eoi
    or rbx, 1
    write_msr KVM_PV_EOI_EN, rbx
    mov ecx, KVM_PV_EOI_EN
    rdmsr
    check e, rax, rbx
    mov qword [count], 0
    mov qword [exits], 0
    ; One alone is ended by a store.
    mov eax, APIC
    mov dword [rax + 0x300], 0x40000 | VECTOR
    sti
.first:
    cmp qword [count], 1
    jb .first
    cli
    check e, qword [exits], 0
    check e, dword [rax + 0x100 + (VECTOR >> 5) * 0x10], 0
    check e, dword [word_of_eoi], 0
    ; Of two the first must leave, since one waits behind it.
    mov dword [rax + 0x300], 0x40000 | LOWER
    mov dword [rax + 0x300], 0x40000 | VECTOR
    sti
.both:
    cmp qword [count], 3
    jb .both
    cli
    check e, qword [exits], 1
    check e, dword [rax + 0x100 + (VECTOR >> 5) * 0x10], 0
    check e, dword [rax + 0x100 + (LOWER >> 5) * 0x10], 0
    ; Switched off, each leaves.
    write_msr KVM_PV_EOI_EN, 0
    mov eax, APIC
    mov dword [rax + 0x300], 0x40000 | VECTOR
    sti
.off:
    cmp qword [count], 4
    jb .off
    cli
    check e, qword [exits], 2
    dec r15d
    jnz .eois
.no_pv_eoi:

    mov eax, 0x40000100
    cpuid
    cmp ebx, "Tran"
    jne .no_hypercalls
    check e, ecx, "svis"
    check e, edx, "or"
    mov eax, 0x40000101
    cpuid
    check e, eax, OWN
    check e, ebx, 0x1fff
    mov r15d, ROUNDS
.hypercalls:
    ; KVM's.
    calls 1, 0, 0, 0, 0, 0
    calls 11, 0, 0, 0, 0, 0
    calls 9, FREE, 0, 0, 0, 0               ; the real time
    check a, dword [FREE], 1700000000
    check b, dword [FREE + 8], 1000000000
    calls 9, FREE, 1, 0, 0, -95
    calls 9, 0x3ffffc1, 0, 0, 0, EFAULT     ; its last byte is beyond 64 MiB
    calls 2, 0, 0, 0, 0, ENOSYS
    calls 0x7fffffff, 0, 0, 0, 0, ENOSYS
    calls -1, 0, 0, 0, 0, ENOSYS
    mov qword [count], 0
    calls 10, 2, 0, 0, VECTOR, 0            ; there is no processor 1
    calls 10, 0, 1, 0, VECTOR, 0            ; nor 64
    calls 10, 1, 0, 1, VECTOR, 0
    calls 10, -1, -1, -1, VECTOR, 0
    calls 10, 1, 0, 0, 0x40000 | VECTOR, EINVAL
    calls 10, 1, 0, 0, 0x800 | VECTOR, EINVAL
    sti
    calls 10, 1, 0, 0, VECTOR, 1
    cmp qword [count], 0                    ; taken before, or after this instruction
    nop
    cli
    check e, qword [count], 1
    calls 5, 0, 0, 0, 0, 0                  ; a kick ends the next HLT, interrupts or not
    hlt
    ; By the other instruction.
    mov eax, OWN
    vmmcall
    check e, rax, 0
    ; Ours.
    calls OWN, 0, 0, 0, 0, 0
    calls OWN + 13, 0, 0, 0, 0, ENOSYS
    calls OWN + 6, 0xc0000102, 0x1234567, 0, 0, 0
    calls OWN + 5, 0xc0000102, 0, 0, 0, 0
    check e, rbx, 0x1234567
    calls OWN + 6, 0xc0000102, 0x8000000000000000, 0, 0, EINVAL
    calls OWN + 5, 0x12345678, 0, 0, 0, EINVAL
    calls OWN + 5, 0x1b, 0, 0, 0, 0         ; the board's
    check e, ebx, APIC + 0x900
    calls OWN + 1, 0x21, 1, 0, 0, 0         ; the mask of the 8259
    check e, rbx, 0xff
    calls OWN + 2, 0x80, 4, -1, 0, 0
    calls OWN + 2, 0x10080, 1, 0, 0, EINVAL
    calls OWN + 3, APIC + 0x30, 4, 0, 0, 0
    check e, rbx, 0x50014
    calls OWN + 3, 0x1000, 8, 0, 0, EFAULT
    calls OWN + 3, APIC + 0x32, 4, 0, 0, EINVAL
    calls OWN + 4, APIC + 0x80, 4, 0x20, 0, 0
    calls OWN + 3, APIC + 0x80, 4, 0, 0, 0
    check e, rbx, 0x20
    calls OWN + 8, 5, 0, 0, 0, 0
    mov rax, cr8
    check e, rax, 5
    calls OWN + 3, APIC + 0x80, 4, 0, 0, 0
    check e, rbx, 0x50
    calls OWN + 8, 0, 0, 0, 0, 0
    mov rax, cr8
    check e, rax, 0
    calls OWN + 8, 16, 0, 0, 0, EINVAL
    calls OWN + 7, PML4, 0, 0, 0, 0
    calls OWN + 7, 0x8000000000000000, 0, 0, 0, EINVAL
    ; A page of the window, to one frame and then another.
    mov dword [FREE], 0x11
    mov dword [FREE + 0x1000], 0x22
    calls OWN + 10, TABLE_WINDOW, FREE + 3, WINDOW, 0, 0
    check e, dword [abs WINDOW], 0x11
    calls OWN + 10, TABLE_WINDOW, FREE + 0x1003, WINDOW, 0, 0
    check e, dword [abs WINDOW], 0x22
    mov qword [TABLE_WINDOW], 0
    calls OWN + 9, WINDOW, 0, 0, 0, 0
    mov rdi, WINDOW
    faults 14, 0, mov eax, [rdi]
    calls OWN + 10, TABLE_WINDOW + 4, 0, 0, 0, EINVAL
    calls OWN + 10, 0x4000000, 0, 0, 0, EFAULT
    calls OWN + 9, 0x8000000000000000, 0, 0, 0, EINVAL
    calls OWN + 11, 0, 0, 0, 0, 0
    mov r8, rbx
    mov r9, rcx
    mov r10, rdx
    mov r11, rsi
    xor eax, eax
    cpuid
    check e, r8, rax
    check e, r9, rbx
    check e, r10, rcx
    check e, r11, rdx
    ; Waiting until the timer comes.
    mov qword [count], 0
    mov eax, APIC
    mov dword [rax + 0x3e0], 0xb            ; divide by 1
    mov dword [rax + 0x320], VECTOR
    mov dword [rax + 0x380], 20000
    calls OWN + 12, 0, 0, 0, 0, 0
    cli
    check e, qword [count], 1
    ; Ring 3 asks for nothing.
    user ask_in_ring_3
    check e, qword [seen], 0x80
    check e, r12, EPERM
    check e, r13, EPERM
    dec r15d
    jnz .hypercalls
.no_hypercalls:
    ret

interrupted:
    inc qword [count]
    btr dword [word_of_eoi], 0
    jc .done
    inc qword [exits]
    mov eax, APIC
    mov dword [rax + 0xb0], 0
.done:
    ret

ask_in_ring_3:
    mov eax, 10
    mov ebx, 1
    xor ecx, ecx
    xor edx, edx
    mov esi, VECTOR
    vmcall
    mov r12, rax
    mov eax, OWN + 7
    xor ebx, ebx
    vmmcall
    mov r13, rax
    int 0x80

    align 8
features:       dd 0
word_of_eoi:    dd 0
count:          dq 0
exits:          dq 0
end_of_guest
