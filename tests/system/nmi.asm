; NMIs: taken whatever IF says, blocked until IRET, one remembered meanwhile, and not within the shadow of MOV SS.
%include "system.inc"

APIC        equ 0xfee00000
IOAPIC      equ 0xfec00000
; ICR: shorthand self, level assert, delivery mode NMI.
SELF_NMI    equ 0x44400

%macro send_nmi 0
    mov dword [rbp + 0x300], SELF_NMI
%endmacro

test:
    mov ebp, APIC
    mov dword [rbp + 0xf0], 0x1ff           ; enabled
    mov qword [handlers + 2 * 8], count

    ; With IF clear.
    mov qword [nested], 0
    send_nmi
    call settle
    check e, dword [nmis], 1
    ; In a loop, so that it meets compiled code.
    mov r15d, 200
.again:
    send_nmi
    call settle
    dec r15d
    jnz .again
    check e, dword [nmis], 201

    ; In its handler a further one waits until IRET; of two, one is remembered.
    mov dword [nmis], 0
    mov qword [nested], 2
    send_nmi
    call settle
    check e, dword [nmis], 2
    check e, dword [deepest], 1

    ; An IRET within the handler, of another exception, ends the blocking, too.
    mov dword [nmis], 0
    mov qword [handlers + 2 * 8], breaks
    send_nmi
    call settle
    check e, dword [nmis], 2
    check e, dword [deepest], 2

    ; From ring 3 onto RSP0, and with IST onto that: the PIT by way of the IOAPIC, whose entry for it says NMI.
    mov qword [handlers + 2 * 8], 0
    mov ebx, IOAPIC
    mov dword [rbx], 0x15
    mov dword [rbx + 0x10], 0
    mov dword [rbx], 0x14
    mov dword [rbx + 0x10], 0x400
    user spin
    check e, qword [seen], 2
    check e, qword [seen_cs], USER_CODE64
    check e, qword [seen_frame], INTERRUPT_STACK - 40
    mov byte [idt + 2 * 16 + 4], 1
    user spin
    check e, qword [seen], 2
    check e, qword [seen_frame], IST1_TOP - 40
    mov byte [idt + 2 * 16 + 4], 0
    mov ebx, IOAPIC
    mov dword [rbx + 0x10], 0x10400         ; masked
    ret

; Asks for one interrupt in about a millisecond, and waits for it.
spin:
    mov al, 0x30                            ; channel 0, mode 0
    out 0x43, al
    mov al, 0xa9
    out 0x40, al
    mov al, 0x04
    out 0x40, al
.wait:
    jmp .wait

; Gives what was sent time to arrive.
settle:
    mov ecx, 100
.wait:
    pause
    loop .wait
    ret

; The handler: counts, and sends as many NMIs as `nested` says.
count:
    inc dword [nmis]
    inc dword [depth]
    mov eax, [depth]
    cmp eax, [deepest]
    jbe .not_deeper
    mov [deepest], eax
.not_deeper:
    mov rbx, [nested]
    mov qword [nested], 0
    mov edx, APIC
.send:
    test rbx, rbx
    jz .sent
    mov dword [rdx + 0x300], SELF_NMI
    call settle
    dec rbx
    jmp .send
.sent:
    dec dword [depth]
    ret

; A handler that meets a breakpoint, whose handler returns by IRET.
breaks:
    inc dword [nmis]
    inc dword [depth]
    mov eax, [depth]
    cmp eax, [deepest]
    jbe .not_deeper
    mov [deepest], eax
.not_deeper:
    cmp dword [nmis], 1
    jne .done
    mov edx, APIC
    mov dword [rdx + 0x300], SELF_NMI
    call settle
    mov qword [handlers + 3 * 8], nothing
    int3
    call settle
    mov qword [handlers + 3 * 8], 0
.done:
    dec dword [depth]
    ret

nothing:
    ret

    align 8
nested:         dq 0
nmis:           dd 0
depth:          dd 0
deepest:        dd 0
end_of_guest
