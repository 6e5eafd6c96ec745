; options: no paravirt
; A machine without paravirtual features: no leaves of a hypervisor, none of KVM's registers. (Hypercalls, which KVM has whatever
; CPUID says, are left to the monitor's own tests.)
%include "system.inc"

test:
    mov r15d, 20
.again:
%assign leaf 0x40000000
%rep 4
    mov eax, leaf
    xor ecx, ecx
    cpuid
    check e, rax, 0
    check e, rbx, 0
    check e, rcx, 0
    check e, rdx, 0
  %if leaf == 0x40000001
    %assign leaf 0x40000100
  %else
    %assign leaf leaf + 1
  %endif
%endrep
    ; The bit that tells of a hypervisor stays: there is one.
    mov eax, 1
    cpuid
    shr ecx, 31
    check e, ecx, 1
%assign index 0x4b564d00
%rep 8
    mov ecx, index
    faults 13, 0, rdmsr
    mov ecx, index
    xor eax, eax
    xor edx, edx
    faults 13, 0, wrmsr
  %assign index index + 1
%endrep
    dec r15d
    jnz .again
    ret
end_of_guest
