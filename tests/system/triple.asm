; A fault whose handler's frame cannot be written, and then no double fault's either: the processor shuts down.
; ends: triple fault
%include "system.inc"

test:
    ; #PF -> #DF -> shutdown: the stack is in a page that is not there, and no gate has a stack of its own.
    mov rsp, WINDOW + 0x800
    push rax
    ; Nobody comes here.
    mov rsp, STACK_TOP
    mov eax, 0x20
    out DEBUG_EXIT, eax
    hlt
end_of_guest
