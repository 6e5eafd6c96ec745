; The clocks agree: what the TSC says passes during a known count of the PIT, of the local APIC's timer and of the ACPI
; PM timer is within 5 % of what it was announced to be, in polled loops as kernels calibrate by. As in kernels a
; measurement is made again if it does not agree: the host may have been elsewhere in the middle of it.
%include "system.inc"

APIC        equ 0xfee00000
PIT_HZ      equ 1193182
PM_HZ       equ 3579545
MILLISECONDS equ 4

; The TSC in rax.
%macro tsc 0
    rdtsc
    shl rdx, 32
    or rax, rdx
%endmacro

; Register %1 must be within 5 % of register %2, in one of fifty attempts that start at %3; rax and rdx are lost.
%macro agree 3
    imul rax, %1, 100
    imul rdx, %2, 95
    cmp rax, rdx
    jb %%again
    imul rdx, %2, 105
    cmp rax, rdx
    jbe %%good
%%again:
    inc dword [attempts]
    cmp dword [attempts], 50
    jb %3
%%good:
    check b, dword [attempts], 50
    mov dword [attempts], 0
%endmacro

test:
    ; The TSC against PIT channel 2 in mode 0, whose output port 0x61 shows: r12 := TSC Hz, the least of ten tries,
    ; since a try can only be too long.
.calibrate:
    mov r12, -1
    mov r14d, 10
.try:
    in al, 0x61
    and al, 0xfc
    or al, 1                                ; gate on, speaker off
    out 0x61, al
    mov al, 0xb0
    out 0x43, al
    mov al, (PIT_HZ * MILLISECONDS / 1000) & 0xff
    out 0x42, al
    mov al, (PIT_HZ * MILLISECONDS / 1000) >> 8
    out 0x42, al
    tsc
    mov rbx, rax
.pit:
    in al, 0x61
    test al, 0x20
    jz .pit
    tsc
    sub rax, rbx
    imul rax, rax, 1000 / MILLISECONDS
    cmp rax, r12
    cmovb r12, rax
    dec r14d
    jnz .try
    check a, r12, 1000000

    ; What CPUID says of the TSC, if it does (leaf 0x15: crystal, ratio).
    xor eax, eax
    cpuid
    cmp eax, 0x15
    jb .unannounced
    mov eax, 0x15
    xor ecx, ecx
    cpuid
    test eax, eax
    jz .unannounced
    test ecx, ecx
    jz .unannounced
    mov r13d, eax
    mov eax, ebx
    mul rcx
    div r13
    mov r13, rax
    agree r12, r13, .calibrate
.unannounced:

    ; A latched count of PIT channel 0 in mode 2 goes down as the TSC goes up.
.count:
    mov al, 0x34
    out 0x43, al
    mov al, 0xff
    out 0x40, al
    out 0x40, al
    call latch
    mov r14d, eax
    tsc
    mov rbx, rax
.counting:
    call latch
    mov ecx, r14d
    sub ecx, eax
    cmp ecx, PIT_HZ / 100                   ; 10 ms
    jb .counting
    mov r15d, ecx
    tsc
    sub rax, rbx
    mov ecx, PIT_HZ
    mul rcx
    div r15
    mov r13, rax
    agree r13, r12, .count

    ; The PM timer: 24 bits at port PM_TMR, whose address the FADT has. Found by its signature below 1 MiB or in the
    ; memory above; without ACPI tables it is left out.
    call find_pm_timer
    test r8d, r8d
    jz .no_pm_timer
.pm_again:
    mov edx, r8d
    in eax, dx
    mov r14d, eax
    tsc
    mov rbx, rax
.pm:
    mov edx, r8d
    in eax, dx
    sub eax, r14d
    and eax, 0xffffff
    cmp eax, PM_HZ / 1000 * MILLISECONDS
    jb .pm
    mov r15d, eax
    tsc
    sub rax, rbx
    mov ecx, PM_HZ
    mul rcx
    div r15
    mov r13, rax
    agree r13, r12, .pm_again
.no_pm_timer:

    ; The local APIC's timer counts down from its initial count, at a rate that divides as it is told to.
    mov r8d, APIC
    mov dword [r8 + 0xf0], 0x1ff
    mov dword [r8 + 0x320], 0x10000         ; masked, one shot
.rates:
    mov dword [r8 + 0x3e0], 0xb             ; divide by 1
    call apic_rate
    mov r14, rax
    check a, r14, 1000000
    mov dword [r8 + 0x3e0], 0x3             ; divide by 16
    call apic_rate
    shl rax, 4
    mov r15, rax
    agree r15, r14, .rates
    ; Periodic: it starts again by itself, and its period is what the rate says: 1 ms, ten times, by interrupts.
    mov qword [handlers + 0x70 * 8], count_apic
    mov dword [r8 + 0x3e0], 0xb
.periodic:
    mov dword [apic_count], 0
    mov dword [r8 + 0x320], 0x20070
    mov rax, r14
    xor edx, edx
    mov ecx, 1000
    div rcx
    mov [r8 + 0x380], eax
    sti
.first:
    hlt
    cmp dword [apic_count], 0
    je .first
    tsc
    mov rbx, rax
    mov r15d, [apic_count]
.periods:
    hlt
    mov eax, [apic_count]
    sub eax, r15d
    cmp eax, 20
    jb .periods
    mov r15d, eax
    tsc
    cli
    mov dword [r8 + 0x320], 0x10000
    sub rax, rbx
    ; TSC ticks per period, times 1000. A busy host may make it longer, since missed interrupts merge; shorter only if
    ; the first one was seen late.
    mov ecx, 1000
    mul rcx
    div r15
    imul rax, rax, 100
    imul rdx, r12, 90
    cmp rax, rdx
    jae .period_good
    inc dword [attempts]
    cmp dword [attempts], 50
    jb .periodic
.period_good:
    check b, dword [attempts], 50

    ; The TSC never goes back.
    tsc
    mov rbx, rax
    mov ecx, 20000
.monotonic:
    tsc
    check ae, rax, rbx
    mov rbx, rax
    dec ecx
    jnz .monotonic
    ret

; Latches and reads PIT channel 0 into eax.
latch:
    xor eax, eax
    out 0x43, al
    in al, 0x40
    mov ah, al
    in al, 0x40
    xchg al, ah
    ret

; The APIC timer's ticks per second in rax, by the TSC over 10 ms.
apic_rate:
    mov rax, r12
    xor edx, edx
    mov ecx, 100
    div rcx
    mov r10, rax
    mov dword [r8 + 0x380], 0xffffffff
    tsc
    mov rbx, rax
.wait:
    tsc
    sub rax, rbx
    cmp rax, r10
    jb .wait
    mov r11, rax
    mov ecx, [r8 + 0x390]
    mov eax, 0xffffffff
    sub eax, ecx
    mul r12
    div r11
    ret

; The PM timer's port in r8d, or 0.
find_pm_timer:
    xor r8d, r8d
    mov rsi, 0xe0000
.look:
    mov rax, "RSD PTR "
    cmp [rsi], rax
    je .found
    add rsi, 16
    cmp rsi, 0x100000
    jb .look
    ret
.found:
    mov r9d, [rsi + 16]                     ; RSDT
    mov r10d, 4
    cmp byte [rsi + 15], 2
    jb .tables
    cmp qword [rsi + 24], 0
    je .tables
    mov r9, [rsi + 24]                      ; XSDT
    mov r10d, 8
.tables:
    mov r11d, [r9 + 4]
    add r11, r9
    add r9, 36
.next:
    cmp r9, r11
    jae .end
    mov eax, [r9]
    cmp r10d, 8
    jne .narrow
    mov rax, [r9]
.narrow:
    add r9, r10
    cmp dword [rax], "FACP"
    jne .next
    mov r8d, [rax + 76]                     ; PM_TMR_BLK
.end:
    ret

count_apic:
    inc dword [apic_count]
    mov eax, APIC
    mov dword [rax + 0xb0], 0
    ret

    align 4
apic_count: dd 0
attempts:   dd 0
end_of_guest
