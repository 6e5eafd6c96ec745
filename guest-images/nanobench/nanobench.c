/* nanobench, after Adams and Agesen, "A Comparison of Software and Hardware Techniques for x86 Virtualization" (ASPLOS
 * 2006): what each operation costs that a virtual machine monitor has to do something about. A bare-metal guest.
 *
 * It writes to the serial port, one line each:
 *
 *   @tsc HZ                         frequency of the TSC, by PIT channel 2
 *   @op NAME ROUNDS PICOSECONDS     of one round
 *   @skip NAME REASON               the processor lacks it, or raised an exception
 *   @fail WHAT                      it can't go on
 *   @end
 *
 * It does each operation as a kernel on real hardware does, or, where the monitor announces its hypercalls (docs/hypercalls.md),
 * as a paravirtualized one: then only those are measured for which there is a hypercall, under the same names.
 *
 * It powers itself off at the end. Rounds double until they take long enough; of several such measurements the least counts, since
 * a busy host can only add. Time is the guest's TSC. */

#include <stdint.h>

#define LONG_ENOUGH_US 1000
#define REPEATS 9
#define MOST_ROUNDS (1u << 26)
#define PIT_HZ 1193182
#define APIC 0xfee00000u
#define VECTOR 0x70

extern uint64_t gdt[], pml4[], pdpt[], directories[];
extern uint8_t stack_top[], written_code[];
extern volatile uint64_t interrupts, interrupted_at, eoi_ticks;
extern volatile uint32_t eoi_word;
void skip_with_error(void), skip(void), unexpected(void), system_call(void);
void count_interrupt(void), count_interrupt_paravirt(void);
void time_eoi(void), time_eoi_paravirt(void), time_nothing(void), time_nothing_paravirt(void);
void system_calls(uint64_t rounds), returns_from_interrupt(uint64_t rounds);
void ring_3(void (*body)(uint64_t), uint64_t rounds);

static uint64_t tsc_hz;
/* The monitor has hypercalls, and this guest uses them. */
static int paravirt;

static void outb(uint16_t port, uint8_t value) { __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port)); }
static void outw(uint16_t port, uint16_t value) { __asm__ volatile("outw %0, %1" ::"a"(value), "Nd"(port)); }
static uint8_t inb(uint16_t port) {
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}
static uint64_t rdtsc(void) {
    uint32_t low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high)::"memory");
    return (uint64_t)high << 32 | low;
}
static uint64_t rdmsr(uint32_t index) {
    uint32_t low, high;
    __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(index));
    return (uint64_t)high << 32 | low;
}
static void wrmsr(uint32_t index, uint64_t value) {
    __asm__ volatile("wrmsr" ::"c"(index), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)) : "memory");
}
static void ask_cpuid(uint32_t leaf, uint32_t out[4]) {
    out[0] = leaf;
    out[2] = 0;
    __asm__ volatile("cpuid" : "+a"(out[0]), "=b"(out[1]), "+c"(out[2]), "=d"(out[3]));
}
static volatile uint32_t *apic(uint32_t offset) { return (volatile uint32_t *)(uintptr_t)(APIC + offset); }

static void print(const char *text) {
    for (; *text; text++) {
        while (!(inb(0x3fd) & 0x20)) {}
        outb(0x3f8, (uint8_t)*text);
    }
}
static void print_number(uint64_t value) {
    char digits[21];
    char *at = digits + 20;
    *at = 0;
    do *--at = (char)('0' + value % 10); while (value /= 10);
    print(at);
}
static void print_hex(uint64_t value) {
    char digits[17];
    for (int i = 0; i < 16; i++) digits[i] = "0123456789abcdef"[value >> (60 - 4 * i) & 15];
    digits[16] = 0;
    print(digits);
}

_Noreturn static void power_off(void) {
    outw(0x604, 0x2000);            /* QEMU: S5 is 0 */
    outw(0x604, 0x2000 | 5 << 10);  /* Transvisor: S5 is 5 */
    for (;;) __asm__ volatile("cli; hlt");
}

/* What runs, and where to go on if it raises an exception that it should not. */
static const char *running;
static void *recovery[5];

_Noreturn void unexpected_exception(uint64_t a, uint64_t b, uint64_t address) {
    if (running) __builtin_longjmp(recovery, 1);
    print("@fail unexpected exception, on the stack ");
    print_hex(a);
    print(" ");
    print_hex(b);
    print(", cr2 ");
    print_hex(address);
    print("\n");
    power_off();
}

/* The tables. */

static struct gate { uint16_t low, selector, type, middle; uint32_t high, zero; } idt[256];
static struct __attribute__((packed)) { uint32_t reserved; uint64_t stacks[3]; uint64_t rest[9]; uint32_t bitmap; } tss;

static void set_gate(int vector, void (*handler)(void)) {
    uint64_t address = (uint64_t)handler;
    idt[vector] = (struct gate){(uint16_t)address, 8, 0x8e00, (uint16_t)(address >> 16), (uint32_t)(address >> 32), 0};
}

static void set_tables(void) {
    for (int vector = 0; vector < 256; vector++) set_gate(vector, unexpected);
    struct __attribute__((packed)) { uint16_t limit; uint64_t base; } pointer = {sizeof idt - 1, (uint64_t)idt};
    __asm__ volatile("lidt %0" ::"m"(pointer));
    uint64_t base = (uint64_t)&tss;
    tss.stacks[0] = (uint64_t)stack_top - 8192;
    tss.bitmap = sizeof tss << 16;
    gdt[5] = (sizeof tss - 1) | (base & 0xffffff) << 16 | 0x89ull << 40 | (base >> 24 & 0xff) << 56;
    gdt[6] = base >> 32;
    __asm__ volatile("ltr %w0" ::"r"(0x28));
    wrmsr(0xc0000081, 0x10ull << 48 | 0x08ull << 32);   /* SYSRET: SS 18+3, CS 20+3 */
    wrmsr(0xc0000082, (uint64_t)system_call);
    wrmsr(0xc0000084, 0x200);
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    *apic(0xf0) = 0x1ff;
    *apic(0x80) = 0;
}

static uint64_t calibrate(void) {
    uint64_t best = ~0ull;
    const uint32_t count = PIT_HZ / 50;     /* 20 ms */
    for (int i = 0; i < 8; i++) {
        outb(0x61, (inb(0x61) & ~3) | 1);
        outb(0x43, 0xb0);
        outb(0x42, count & 0xff);
        outb(0x42, count >> 8);
        uint64_t begin = rdtsc();
        while (!(inb(0x61) & 0x20)) {}
        uint64_t hz = (rdtsc() - begin) * 50;
        if (hz < best) best = hz;
    }
    return best;
}

/* The benchmarks: each does its operation `rounds` times. */

static void in(uint64_t rounds) { while (rounds--) (void)inb(0x61); }
static void out(uint64_t rounds) { while (rounds--) outb(0x80, 0); }
static void cr8wr(uint64_t rounds) { while (rounds--) __asm__ volatile("mov %0, %%cr8" ::"r"(0ull)); }
static void nothing(void) { __asm__ volatile(""); }
static void call_ret(uint64_t rounds) {
    while (rounds--) __asm__ volatile("call *%0" ::"r"(nothing) : "memory");
}
static void direct_call(uint64_t rounds) { while (rounds--) __asm__ volatile("call %P0" ::"i"(nothing) : "memory"); }
static void target_a(void) { __asm__ volatile("nop"); }
static void target_b(void) { __asm__ volatile("nop; nop"); }
static void target_c(void) { __asm__ volatile("nop; nop; nop"); }
static void (*volatile targets[4])(void) = {nothing, target_a, target_b, target_c};
static void indirect_call(uint64_t rounds) {
    while (rounds--) __asm__ volatile("call *%0" ::"r"(targets[rounds & 3]) : "memory");
}
static void pgfault(uint64_t rounds) {
    /* The last 2 MiB below the third GiB: taken out of the tables. */
    directories[3 * 512 - 1] = 0;
    __asm__ volatile("mov %%cr3, %%rax; mov %%rax, %%cr3" ::: "rax", "memory");
    while (rounds--) __asm__ volatile("lea 1f(%%rip), %%rbx; mov (%0), %%al; 1:" ::"r"(0xbfe00000ull) : "rax", "rbx", "memory");
}
static void divzero(uint64_t rounds) {
    while (rounds--) __asm__ volatile("lea 1f(%%rip), %%rbx; xor %%ecx, %%ecx; div %%ecx; 1:" ::: "rax", "rbx", "rcx", "rdx", "cc");
}
static void ptemod(uint64_t rounds) {
    /* A software bit of a present entry, without a flush. */
    volatile uint64_t *entry = &directories[3 * 512 - 2];
    while (rounds--) *entry ^= 1 << 9;
}
static void cpuid(uint64_t rounds) {
    while (rounds--) {
        uint32_t a = 1, c = 0;
        __asm__ volatile("cpuid" : "+a"(a), "+c"(c)::"rbx", "rdx");
    }
}
static void rdmsr_(uint64_t rounds) { while (rounds--) (void)rdmsr(0xc0000102); }
static void wrmsr_(uint64_t rounds) { while (rounds--) wrmsr(0xc0000102, 0); }
static void invlpg(uint64_t rounds) { while (rounds--) __asm__ volatile("invlpg (%0)" ::"r"(0xbfc00000ull) : "memory"); }
static void cr3wr(uint64_t rounds) {
    while (rounds--) __asm__ volatile("mov %0, %%cr3" ::"r"(pml4) : "memory");
}
static void cr3wr_pcid(uint64_t rounds) {
    uint64_t cr4;
    __asm__ volatile("mov %%cr4, %0" : "=r"(cr4));
    __asm__ volatile("mov %0, %%cr4" ::"r"(cr4 | 1 << 17) : "memory");
    while (rounds--) {
        uint64_t value = (uint64_t)pml4 | 1ull << 63 | (rounds & 1);
        __asm__ volatile("mov %0, %%cr3" ::"r"(value) : "memory");
    }
    __asm__ volatile("mov %0, %%cr3" ::"r"(pml4) : "memory");
    __asm__ volatile("mov %0, %%cr4" ::"r"(cr4) : "memory");
}
static void mmio_read(uint64_t rounds) { while (rounds--) (void)*apic(0x30); }
static void self_ipi(uint64_t rounds) {
    __asm__ volatile("sti");
    while (rounds--) {
        uint64_t before = interrupts;
        *apic(0x300) = 0x44000 | VECTOR;    /* self, assert, fixed */
        while (interrupts == before) {}
    }
    __asm__ volatile("cli");
}
static void smc(uint64_t rounds) {
    while (rounds--) {
        *(volatile uint32_t *)(written_code + 1) = (uint32_t)rounds;
        uint32_t result;
        __asm__ volatile("call *%1" : "=a"(result) : "r"(written_code) : "memory");
        if (result != (uint32_t)rounds) {
            running = 0;
            print("@fail smc: stale code ran\n");
            power_off();
        }
    }
}
static void syscall_(uint64_t rounds) { ring_3(system_calls, rounds); }

/* The same by hypercall. */

enum {
    KVM_HC_SEND_IPI = 10,
    NOTHING = 0x54560000, PORT_READ, PORT_WRITE, MMIO_READ, MMIO_WRITE, MSR_READ, MSR_WRITE, SET_CR3, SET_CR8, FLUSH_PAGE, SET_PTE,
    QUERY_CPUID, WAIT,
};
#define KVM_PV_EOI_EN 0x4b564d04

/* Refusals are negative. */
static int64_t hypercall(uint64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d) {
    __asm__ volatile("vmcall" : "+a"(number), "+b"(a), "+c"(b), "+d"(c), "+S"(d)::"memory");
    return (int64_t)number;
}

static void hc_nothing(uint64_t rounds) { while (rounds--) hypercall(NOTHING, 0, 0, 0, 0); }
static void hc_in(uint64_t rounds) { while (rounds--) hypercall(PORT_READ, 0x61, 1, 0, 0); }
static void hc_out(uint64_t rounds) { while (rounds--) hypercall(PORT_WRITE, 0x80, 1, 0, 0); }
static void hc_cr8wr(uint64_t rounds) { while (rounds--) hypercall(SET_CR8, 0, 0, 0, 0); }
static void hc_ptemod(uint64_t rounds) {
    uint64_t *entry = &directories[3 * 512 - 2];
    while (rounds--) hypercall(SET_PTE, (uint64_t)entry, *(volatile uint64_t *)entry ^ 1 << 9, 0xbfc00000, 0);
}
static void hc_cpuid(uint64_t rounds) { while (rounds--) hypercall(QUERY_CPUID, 1, 0, 0, 0); }
static void hc_rdmsr(uint64_t rounds) { while (rounds--) hypercall(MSR_READ, 0xc0000102, 0, 0, 0); }
static void hc_wrmsr(uint64_t rounds) { while (rounds--) hypercall(MSR_WRITE, 0xc0000102, 0, 0, 0); }
static void hc_invlpg(uint64_t rounds) { while (rounds--) hypercall(FLUSH_PAGE, 0xbfc00000, 0, 0, 0); }
static void hc_cr3wr(uint64_t rounds) { while (rounds--) hypercall(SET_CR3, (uint64_t)pml4, 0, 0, 0); }
static void hc_cr3wr_pcid(uint64_t rounds) {
    uint64_t cr4;
    __asm__ volatile("mov %%cr4, %0" : "=r"(cr4));
    __asm__ volatile("mov %0, %%cr4" ::"r"(cr4 | 1 << 17) : "memory");
    while (rounds--) hypercall(SET_CR3, (uint64_t)pml4 | 1ull << 63 | (rounds & 1), 0, 0, 0);
    hypercall(SET_CR3, (uint64_t)pml4, 0, 0, 0);
    __asm__ volatile("mov %0, %%cr4" ::"r"(cr4) : "memory");
}
static void hc_mmio_read(uint64_t rounds) { while (rounds--) hypercall(MMIO_READ, APIC + 0x30, 4, 0, 0); }
static void hc_self_ipi(uint64_t rounds) {
    __asm__ volatile("sti");
    while (rounds--) {
        uint64_t before = interrupts;
        hypercall(KVM_HC_SEND_IPI, 1, 0, 0, VECTOR);
        while (interrupts == before) {}
    }
    __asm__ volatile("cli");
}

/* Makes this guest a paravirtualized one, if the monitor offers all that it takes. */
static void look_for_hypercalls(void) {
    uint32_t out[4];
    ask_cpuid(0x40000100, out);
    if (out[0] < 0x40000101 || out[1] != 0x6e617254 /* Tran */ || out[2] != 0x73697673 /* svis */) return;
    ask_cpuid(0x40000101, out);
    if (out[0] != NOTHING || ~out[1] & 0x1fff) return;
    ask_cpuid(0x40000001, out);
    if (~out[0] & (1 << 6 | 1 << 11)) return;
    paravirt = 1;
    wrmsr(KVM_PV_EOI_EN, (uint64_t)&eoi_word | 1);
}

/* In the order of the report. */
static const struct {
    const char *name;
    void (*privileged)(uint64_t), (*by_hypercall)(uint64_t);
} OPERATIONS[] = {
    {"hypercall", 0, hc_nothing},
    {"syscall", syscall_, 0},
    {"in", in, hc_in},
    {"out", out, hc_out},
    {"cr8wr", cr8wr, hc_cr8wr},
    {"call_ret", direct_call, 0},
    {"indirect_call_same", call_ret, 0},
    {"indirect_call_four", indirect_call, 0},
    {"pgfault", pgfault, 0},
    {"divzero", divzero, 0},
    {"ptemod", ptemod, hc_ptemod},
    {"iret", returns_from_interrupt, 0},
    {"cpuid", cpuid, hc_cpuid},
    {"rdmsr", rdmsr_, hc_rdmsr},
    {"wrmsr", wrmsr_, hc_wrmsr},
    {"invlpg", invlpg, hc_invlpg},
    {"cr3wr", cr3wr, hc_cr3wr},
    {"cr3wr_pcid", cr3wr_pcid, hc_cr3wr_pcid},
    {"mmio_read", mmio_read, hc_mmio_read},
    {"self_ipi", self_ipi, hc_self_ipi},
    {"smc", smc, 0},
};

static void report(const char *name, uint64_t rounds, uint64_t ticks) {
    print("@op ");
    print(name);
    print(" ");
    print_number(rounds);
    print(" ");
    /* Picoseconds, in steps that fit 64 bits: ticks of a long measurement are below 2^40. */
    uint64_t thousandths = ticks * 1000 / rounds;
    print_number(thousandths * 1000 / (tsc_hz / 1000000));
    print("\n");
}

static void measure(const char *name, void (*body)(uint64_t)) {
    running = name;
    if (__builtin_setjmp(recovery)) {
        __asm__ volatile("cli");
        print("@skip ");
        print(running);
        print(" unexpected exception\n");
        running = 0;
        return;
    }
    body(4);
    for (uint64_t rounds = 8;; rounds *= 2) {
        uint64_t begin = rdtsc();
        body(rounds);
        uint64_t ticks = rdtsc() - begin;
        if (ticks >= tsc_hz / 1000000 * LONG_ENOUGH_US || rounds >= MOST_ROUNDS) {
            for (int i = 1; i < REPEATS; i++) {
                begin = rdtsc();
                body(rounds);
                uint64_t again = rdtsc() - begin;
                if (again < ticks) ticks = again;
            }
            running = 0;
            report(name, rounds, ticks);
            return;
        }
    }
}

/* From when the local APIC's timer fires, in a halt, to its handler: what is beyond the timer's own count. */
static void hlt_to_interrupt(void) {
    *apic(0x3e0) = 0xb;             /* divide by 1 */
    *apic(0x320) = 0x10000;
    /* Its frequency. */
    *apic(0x380) = 0xffffffff;
    uint64_t begin = rdtsc();
    while (rdtsc() - begin < tsc_hz / 100) {}
    uint64_t counted = 0xffffffffu - *apic(0x390);
    uint64_t ticks = rdtsc() - begin;
    *apic(0x380) = 0;
    *apic(0x320) = VECTOR;
    const uint64_t count = counted / 100;           /* 100 us */
    const uint64_t expected = ticks / 100;
    uint64_t rounds = 200, least = ~0ull;
    for (uint64_t i = 0; i < rounds; i++) {
        uint64_t armed = rdtsc();
        *apic(0x380) = (uint32_t)count;
        uint64_t before = interrupts;
        while (interrupts == before) {
            if (paravirt) hypercall(WAIT, 0, 0, 0, 0);
            else __asm__ volatile("sti; hlt" ::: "memory");
            __asm__ volatile("cli" ::: "memory");
        }
        uint64_t taken = interrupted_at - armed;
        uint64_t late = taken > expected ? taken - expected : 0;
        if (late < least) least = late;
    }
    *apic(0x320) = 0x10000;
    report("hlt_to_interrupt", 1, least);
}

/* Ticks that a handler counts in that many interrupts: the least of several times. */
static uint64_t count_eoi(void (*handler)(void), int rounds) {
    uint64_t least = ~0ull;
    set_gate(VECTOR, handler);
    __asm__ volatile("sti");
    for (int repeat = 0; repeat < REPEATS; repeat++) {
        eoi_ticks = 0;
        for (int i = 0; i < rounds; i++) {
            uint64_t before = interrupts;
            *apic(0x300) = 0x44000 | VECTOR;
            while (interrupts == before) {}
        }
        if (eoi_ticks < least) least = eoi_ticks;
    }
    __asm__ volatile("cli");
    return least;
}

/* The end of an interrupt, within its handler; at least the clock's tick for all rounds. */
static void eoi(void) {
    enum { ROUNDS = 300 };
    uint64_t nothing = count_eoi(paravirt ? time_nothing_paravirt : time_nothing, ROUNDS);
    uint64_t end = count_eoi(paravirt ? time_eoi_paravirt : time_eoi, ROUNDS);
    report("eoi", ROUNDS, end > nothing ? end - nothing : 1);
}

int main(void) {
    outb(0x3fb, 3);
    set_tables();
    tsc_hz = calibrate();
    print("@tsc ");
    print_number(tsc_hz);
    print("\n");
    look_for_hypercalls();
    set_gate(0, skip);
    set_gate(14, skip_with_error);
    set_gate(VECTOR, paravirt ? count_interrupt_paravirt : count_interrupt);
    uint32_t features[4];
    ask_cpuid(1, features);
    for (unsigned i = 0; i < sizeof OPERATIONS / sizeof *OPERATIONS; i++) {
        void (*body)(uint64_t) = paravirt ? OPERATIONS[i].by_hypercall : OPERATIONS[i].privileged;
        if (!body) continue;
        if (OPERATIONS[i].privileged == cr3wr_pcid && !(features[2] >> 17 & 1)) {
            print("@skip cr3wr_pcid no PCIDs\n");
            continue;
        }
        measure(OPERATIONS[i].name, body);
    }
    hlt_to_interrupt();
    eoi();
    print("@end\n");
    power_off();
}
