; Process-context identifiers: what survives MOV CR3, what its bit 63 keeps, the four types of INVPCID, global pages.
;
; A processor may drop any translation at any time, so only what must be gone is checked: after an invalidation a changed
; entry must be seen. Where a translation should have been kept the guest sees to it that both answers are right.
%include "system.inc"

%define P 1
%define W 2
%define G 0x100
PAGE0       equ WINDOW
PAGE1       equ WINDOW + 0x1000
SECOND      equ FREE + 0x10000      ; the other address space's PML4, PDPT, directory, tables
KEEP        equ 63

; Maps page %2 of the window, in address space %1 (its table), to the frame with value %3, with bits %4.
%macro map 4
    mov qword [%1 + (%2) * 8], FREE + (%3) * 4096 | P | W | (%4)
%endmacro

; CR3 := address space %1 with PCID %2; %3 is `keep` or `flush`.
%macro enter 3
    mov rax, (%1) | (%2)
  %ifidn %3, keep
    bts rax, KEEP
  %endif
    mov cr3, rax
%endmacro

%macro invpcid_of 3                 ; type, PCID, address
    mov qword [invpcid_descriptor], %2
    mov rax, %3
    mov [invpcid_descriptor + 8], rax
    mov ecx, %1
    invpcid rcx, [invpcid_descriptor]
%endmacro

%define TABLE_A TABLE_WINDOW
%define TABLE_B (SECOND + 0x4000)

test:
    mov eax, 1
    cpuid
    bt ecx, 17
    jnc .none
    mov eax, 7
    xor ecx, ecx
    cpuid
    mov r12d, ebx
    ; Frames 0 to 15 hold their numbers, plus 100.
    mov rdi, FREE
    mov eax, 100
.frame:
    mov [rdi], eax
    add rdi, 4096
    inc eax
    cmp eax, 116
    jb .frame
    ; The second address space.
    mov rsi, PML4
    mov rdi, SECOND
    mov ecx, 4096 * 5 / 8
    rep movsq
    mov qword [SECOND], (SECOND + 0x1000) | 7
    mov qword [SECOND + 0x1000], (SECOND + 0x2000) | 7
    mov qword [SECOND + 0x2000], (SECOND + 0x3000) | 7
    mov qword [SECOND + 0x2000 + 511 * 8], TABLE_B | 7
    ; Without PCIDs bit 63 of CR3 is reserved, and so are PCIDs other than 0 for INVPCID.
    mov rax, cr3
    bts rax, KEEP
    faults 13, 0, mov cr3, rax
    bt r12d, 10
    jnc .enable
    mov qword [invpcid_descriptor], 1
    mov qword [invpcid_descriptor + 8], 0
    mov ecx, 1
    faults 13, 0, invpcid rcx, [invpcid_descriptor]
.enable:
    ; CR4.PCIDE can only be set while CR3[11:0] is 0.
    mov rax, cr3
    or eax, 8                               ; PWT
    mov cr3, rax
    mov rbx, cr4
    bts rbx, 17
    faults 13, 0, mov cr4, rbx
    mov rax, cr3
    and eax, ~8
    mov cr3, rax
    mov cr4, rbx
    ; CR3 reads without bit 63, with the PCID.
    enter PML4, 1, keep
    mov rax, cr3
    check e, rax, PML4 | 1
    ; Paging cannot be turned off under PCIDs, from compatibility mode.
    resume_at .after_paging
    push CODE32
    push .paging_off
    retfq
    bits 32
.paging_off:
    mov eax, cr0
    and eax, 0x7fffffff
.paging_off_at:
    mov cr0, eax
    bits 64
.after_paging:
    check_seen 13, 0
    mov rax, .paging_off_at
    check e, [seen_rip], rax

    ; Two address spaces with a PCID each: switching, with and without keeping, always shows the right page.
    map TABLE_A, 0, 0, 0
    map TABLE_B, 0, 1, 0
    map TABLE_A, 1, 2, 0
    map TABLE_B, 1, 3, 0
    enter PML4, 1, flush
    enter SECOND, 2, flush
    mov r15d, 300
.switch:
    enter PML4, 1, keep
    check e, dword [PAGE0], 100
    check e, dword [PAGE1], 102
    enter SECOND, 2, keep
    check e, dword [PAGE0], 101
    check e, dword [PAGE1], 103
    dec r15d
    jnz .switch

    ; The same PCID for another address space: without bit 63 nothing old is seen.
    enter SECOND, 1, flush
    check e, dword [PAGE0], 101
    enter PML4, 1, flush
    check e, dword [PAGE0], 100

    ; More PCIDs than any implementation is likely to keep at once.
    xor r14d, r14d
.many:
    lea rax, [r14 + SECOND]
    test r14d, 1
    jz .even
    lea rax, [r14 + PML4]
.even:
    mov cr3, rax
    mov ebx, r14d
    and ebx, 1
    neg ebx
    add ebx, 101
    check e, [PAGE0], ebx
    inc r14d
    cmp r14d, 0x1000
    jb .many

    ; INVLPG drops the page under the current PCID; MOV CR3 without bit 63 all of the PCID that it loads.
    enter SECOND, 2, flush
    check e, dword [PAGE0], 101
    enter PML4, 1, flush
    check e, dword [PAGE0], 100
    map TABLE_A, 0, 4, 0
    map TABLE_B, 0, 5, 0
    invlpg [abs PAGE0]
    check e, dword [PAGE0], 104
    enter SECOND, 2, flush
    check e, dword [PAGE0], 105
    enter PML4, 1, keep
    check e, dword [PAGE0], 104

    bt r12d, 10
    jnc .no_invpcid
    ; INVPCID: no other types, no wide PCIDs, canonical addresses for type 0; not in ring 3.
    mov qword [invpcid_descriptor], 1
    mov rax, 0x0000800000000000
    mov [invpcid_descriptor + 8], rax
    mov ecx, 4
    faults 13, 0, invpcid rcx, [invpcid_descriptor]
    mov rcx, 1 << 32
    faults 13, 0, invpcid rcx, [invpcid_descriptor]
    xor ecx, ecx
    faults 13, 0, invpcid rcx, [invpcid_descriptor]
    mov qword [invpcid_descriptor], 0x1000
    mov ecx, 1
    faults 13, 0, invpcid rcx, [invpcid_descriptor]
    user ring_3
    check_seen 13, 0
    ; Each type, 100 times: both spaces used, both changed, the invalidation, and what must have gone has.
    mov r15d, 100
.types:
    map TABLE_A, 0, 0, 0
    map TABLE_B, 0, 1, 0
    map TABLE_A, 1, 2, 0
    map TABLE_B, 1, 3, 0
    invpcid_of 2, 0, 0
    enter SECOND, 2, keep
    check e, dword [PAGE0], 101
    check e, dword [PAGE1], 103
    enter PML4, 1, keep
    check e, dword [PAGE0], 100
    check e, dword [PAGE1], 102
    ; Type 0: one address of one PCID that is not the current one.
    map TABLE_B, 0, 6, 0
    invpcid_of 0, 2, PAGE0
    enter SECOND, 2, keep
    check e, dword [PAGE0], 106
    check e, dword [PAGE1], 103
    enter PML4, 1, keep
    map TABLE_A, 0, 7, 0
    invpcid_of 0, 1, PAGE0                  ; and of the current one
    check e, dword [PAGE0], 107
    ; Type 1: all of one PCID.
    map TABLE_B, 0, 8, 0
    map TABLE_B, 1, 9, 0
    invpcid_of 1, 2, 0
    check e, dword [PAGE0], 107
    check e, dword [PAGE1], 102
    enter SECOND, 2, keep
    check e, dword [PAGE0], 108
    check e, dword [PAGE1], 109
    map TABLE_B, 0, 1, 0
    invpcid_of 1, 2, 0
    check e, dword [PAGE0], 101
    ; Type 3: all but global pages. Global pages are another matter below.
    map TABLE_A, 0, 10, 0
    map TABLE_B, 0, 11, 0
    invpcid_of 3, 0, 0
    check e, dword [PAGE0], 111
    enter PML4, 1, keep
    check e, dword [PAGE0], 110
    ; Type 2: everything.
    map TABLE_A, 1, 12, 0
    map TABLE_B, 1, 13, 0
    invpcid_of 2, 0, 0
    check e, dword [PAGE1], 112
    enter SECOND, 2, keep
    check e, dword [PAGE1], 113
    enter PML4, 1, keep
    dec r15d
    jnz .types
.no_invpcid:

    ; Global pages: used under one PCID, changed, and dropped by each of the ways that must.
    mov rax, cr4
    or eax, 0x80
    mov cr4, rax
    map TABLE_A, 2, 0, G
    map TABLE_B, 2, 0, G
    check e, dword [PAGE1 + 0x1000], 100
    enter SECOND, 2, keep
    check e, dword [PAGE1 + 0x1000], 100
    map TABLE_A, 2, 1, G
    map TABLE_B, 2, 1, G
    invlpg [abs PAGE1 + 0x1000]             ; whatever PCID filled it
    check e, dword [PAGE1 + 0x1000], 101
    enter PML4, 1, keep
    check e, dword [PAGE1 + 0x1000], 101
    map TABLE_A, 2, 2, G
    map TABLE_B, 2, 2, G
    mov rax, cr4
    btr rax, 7
    mov cr4, rax
    check e, dword [PAGE1 + 0x1000], 102
    bts rax, 7
    mov cr4, rax
    bt r12d, 10
    jnc .no_global_invpcid
    check e, dword [PAGE1 + 0x1000], 102
    map TABLE_A, 2, 3, G
    map TABLE_B, 2, 3, G
    invpcid_of 2, 0, 0
    check e, dword [PAGE1 + 0x1000], 103
    enter SECOND, 2, keep
    check e, dword [PAGE1 + 0x1000], 103
.no_global_invpcid:
    ; A page that was global and is private now must differ between the spaces.
    map TABLE_A, 2, 4, 0
    map TABLE_B, 2, 5, 0
    invlpg [abs PAGE1 + 0x1000]
    enter PML4, 1, flush
    check e, dword [PAGE1 + 0x1000], 104
    enter SECOND, 2, flush
    check e, dword [PAGE1 + 0x1000], 105

    ; Clearing CR4.PCIDE drops everything.
    map TABLE_B, 2, 6, 0
    enter SECOND, 0, flush
    check e, dword [PAGE1 + 0x1000], 106
    map TABLE_B, 2, 7, 0
    mov rax, cr4
    btr rax, 17
    mov cr4, rax
    check e, dword [PAGE1 + 0x1000], 107
    mov rax, PML4
    mov cr3, rax
    check e, dword [PAGE1 + 0x1000], 104
.none:
    ret

ring_3:
    xor ecx, ecx
    invpcid rcx, [invpcid_descriptor]
    int 0x80

    align 16
invpcid_descriptor: dq 0, 0
end_of_guest
