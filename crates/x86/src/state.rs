//! [`CpuState`]: the guest processor as the interpreter, the monitor and compiled code see it.
//!
//! One layout, `repr(C)`; the translator takes offsets with `core::mem::offset_of!`, so a field is described here
//! and nowhere else. Between guest instructions (and at every block edge) this is the whole truth.

use core::sync::atomic::AtomicU32;

use crate::{Exception, Flags, GuestVirt, LazyFlags, Mode, Segment, SegmentRegister, control, flags, fpu};

/// Index of RSP in [`CpuState::gpr`]; the order is the encoding's: rax rcx rdx rbx rsp rbp rsi rdi r8..r15.
pub const RSP: usize = 4;
/// Index of RBP.
pub const RBP: usize = 5;

/// Bits of [`CpuState::exit_request`]. Compiled code polls the whole word at block entry and on back edges.
pub mod exit_request {
    /// The vCPU is to leave its engine: another thread wants it, or the board must hear what the guest did.
    pub const KICK: u32 = 1 << 0;
    /// The board waits for the guest to be able to take an interrupt.
    pub const INTERRUPT_WINDOW: u32 = 1 << 1;
    /// The engine itself must look: single-step, an interrupt shadow, a code page written, …
    pub const ENGINE: u32 = 1 << 2;
}

/// What blocks interrupts for one instruction (SDM Vol. 3A 6.8.3, Vol. 2 MOV and STI).
pub mod shadow {
    /// After STI that set IF.
    pub const STI: u32 = 1 << 0;
    /// After MOV SS or POP SS: debug traps and NMIs wait too.
    pub const MOV_SS: u32 = 1 << 1;
}

/// Model-specific registers that are plain storage to the processor.
#[derive(Clone, Debug)]
#[repr(C)]
#[allow(missing_docs, reason = "the names are the SDM's, without IA32_")]
pub struct Msrs {
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub fmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub tsc_aux: u64,
    /// Added to the machine's clock to give the TSC; WRMSR IA32_TSC and IA32_TSC_ADJUST move it.
    pub tsc_offset: u64,
    pub tsc_adjust: u64,
    pub pat: u64,
    pub misc_enable: u64,
    pub spec_ctrl: u64,
    pub mtrr_def_type: u64,
    pub kvm_system_time: u64,
    pub kvm_wall_clock: u64,
}

/// No count of instructions: [`CpuState::shadow_from`] outside of any shadow.
pub const NO_SHADOW: u64 = u64::MAX;

/// Words of [`CpuState::last_targets`].
pub const LAST_TARGETS: usize = 1024;

/// State of one guest processor. What compiled code uses most comes first, since the displacement is shorter there.
#[repr(C, align(64))]
pub struct CpuState {
    /// Start of the TLB array for the current privilege view and address space; see `memory::tlb`.
    pub tlb: *mut u8,
    /// (Number of entries - 1) << log2(entry size): and-mask for the byte offset into the array.
    pub tlb_mask: u64,
    /// Guest instructions retired.
    pub instructions: u64,
    /// Not zero: leave at the next poll. See [`exit_request`]. Other threads set bits in it.
    pub exit_request: AtomicU32,
    /// [`shadow`] bits in force for the next instruction.
    pub interrupt_shadow: u32,
    /// Functions that the translator has for what compiled code hands over in registers; filled by the engine.
    pub handover: [*const u8; 6],
    /// Status flags that are not computed yet; only at edges of compiled code.
    pub lazy_flags: LazyFlags,
    /// General registers in encoding order.
    pub gpr: [u64; 16],
    /// Instruction pointer (offset within CS).
    pub rip: u64,
    /// Not zero: code at CPL 3 may access memory through the window (`memory::window`).
    pub window: u64,
    /// Status flags, in source form. The truth about CF PF AF ZF SF OF, unless compiled code has left them lazy.
    pub flags: Flags,
    /// RFLAGS without the status flags (those bits are zero here), bit 1 set.
    pub rflags: u64,
    /// Not zero: an event waits for the guest to be able to take it, so whoever sets RFLAGS.IF must have the engine look.
    pub event_waiting: u32,
    /// Where compiled code began a shadow of STI last, as a count of instructions; see [`CpuState::take_shadow`].
    pub shadow_from: u64,
    /// [`Mode::of`] this state, kept by [`CpuState::update_mode`].
    pub mode: Mode,
    /// Current privilege level.
    pub cpl: u8,
    /// NMIs are blocked until IRET.
    pub nmi_blocked: bool,
    /// HLT was executed and no interrupt has come yet.
    pub halted: bool,
    /// Start of the TLB array for instruction fetches at the current privilege and address space.
    pub fetch_tlb: *mut u8,
    /// Mask of that array, as `tlb_mask`.
    pub fetch_tlb_mask: u64,
    /// The engine's table of recent indirect-jump targets; its layout is between translator and runtime.
    pub jump_cache: *mut u8,
    /// Stack pointer that the engine's entry thunk saved; abandoning a frame restores it.
    pub host_stack: u64,
    /// Table of functions that compiled code may call; filled by the engine.
    pub helpers: *const *const u8,
    /// The engine behind this state, for functions called from compiled code.
    pub engine: *mut u8,
    /// The machine's clock, for the same.
    pub clock: *const u8,
    /// Arguments and results of slow paths and helpers.
    pub scratch: [u64; 8],
    /// Vector arguments and results of helpers; [0] is the result.
    pub scratch_vector: [u128; 3],
    /// XMM0..XMM15.
    pub xmm: [u128; 16],
    /// x87 and MMX.
    pub x87: fpu::X87,
    /// SSE control and status. While `mxcsr_loaded`, its flags are newer in the host's register.
    pub mxcsr: u32,
    /// Not zero: compiled code is running and has put the guest's MXCSR into the host's.
    pub mxcsr_loaded: u32,
    /// An exception raised by a helper: vector + 1, or 0.
    pub pending_exception: u32,
    /// The page fault for which compiled code was abandoned, if the runtime knows it already.
    pub abandoned: Option<Exception>,

    /// ES CS SS DS FS GS, as [`SegmentRegister`] numbers them.
    pub segments: [Segment; 6],
    /// Local descriptor table.
    pub ldtr: Segment,
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table (base, limit).
    pub gdtr: Segment,
    /// Interrupt descriptor table (base, limit).
    pub idtr: Segment,
    /// CR0.
    pub cr0: u64,
    /// CR2: last page-fault address.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// CR8: task priority; the board copies it to the local APIC at exits.
    pub cr8: u64,
    /// EFER.
    pub efer: u64,
    /// XCR0.
    pub xcr0: u64,
    /// DR0..DR3, [4] and [5] unused, DR6, DR7.
    pub dr: [u64; 8],
    /// PDPTEs loaded by MOV CR3 in PAE paging (SDM Vol. 3A 4.4.1).
    pub pdptes: [u64; 4],
    /// Plain MSRs.
    pub msrs: Msrs,

    /// Address of what instrumented code counts for the block that it entered last; 0 if there was none yet.
    pub profiled: u64,
    /// Whether paravirtual features (KVM's leaves and MSRs, hypercalls) are there: the engine's to set, never changed while it runs.
    pub paravirt: bool,
    /// Where indirect calls and jumps led last: by the instruction, see [`CpuState::target_index`]. A hint for the compiler.
    pub last_targets: [u64; LAST_TARGETS],
    /// What the engine keeps for callouts out of compiled code.
    pub callouts: *mut u8,
    /// Functions that the translator has for what most misses have in common; filled by the engine, with `handover`.
    pub misses: [*const u8; 6],
}

// SAFETY: the raw pointers are the owning engine's (its TLB, tables and itself), which move with the state or
// outlive it; no other thread dereferences them.
unsafe impl Send for CpuState {}

impl CpuState {
    /// Which word of [`CpuState::last_targets`] is for the instruction at `rip`: the same wherever KASLR has moved it, by multiples of 2 MiB.
    pub const fn target_index(rip: u64) -> usize {
        (rip ^ rip >> 10) as usize % LAST_TARGETS
    }

    /// State after power-up (SDM Vol. 3A table 9-1), with CS:RIP at the reset vector.
    pub fn new() -> Self {
        let mut segments = [Segment::real(0); 6];
        segments[1] = Segment { base: 0xffff_0000, limit: 0xffff, selector: 0xf000, attributes: 0x9b };
        let mut gpr = [0; 16];
        gpr[2] = 0x600; // EDX: family/model/stepping signature
        let mut state = Self {
            gpr,
            rip: 0xfff0,
            window: 0,
            flags: Flags::from_bits(0),
            lazy_flags: LazyFlags::default(),
            rflags: flags::FIXED_ONE,
            exit_request: AtomicU32::new(0),
            interrupt_shadow: 0,
            handover: [core::ptr::null(); 6],
            misses: [core::ptr::null(); 6],
            event_waiting: 0,
            shadow_from: NO_SHADOW,
            mode: Mode::default(),
            cpl: 0,
            nmi_blocked: false,
            halted: false,
            tlb: core::ptr::null_mut(),
            tlb_mask: 0,
            fetch_tlb: core::ptr::null_mut(),
            fetch_tlb_mask: 0,
            jump_cache: core::ptr::null_mut(),
            instructions: 0,
            host_stack: 0,
            helpers: core::ptr::null(),
            engine: core::ptr::null_mut(),
            clock: core::ptr::null(),
            scratch: [0; 8],
            scratch_vector: [0; 3],
            xmm: [0; 16],
            x87: fpu::X87::new(),
            mxcsr: fpu::MXCSR_RESET,
            mxcsr_loaded: 0,
            pending_exception: 0,
            abandoned: None,
            segments,
            ldtr: Segment { attributes: 0x82, limit: 0xffff, ..Segment::default() },
            tr: Segment { attributes: 0x8b, limit: 0xffff, ..Segment::default() },
            gdtr: Segment { limit: 0xffff, ..Segment::default() },
            idtr: Segment { limit: 0xffff, ..Segment::default() },
            cr0: control::cr0::ET | control::cr0::NW | control::cr0::CD,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            cr8: 0,
            efer: 0,
            xcr0: control::xcr0::X87,
            dr: [0, 0, 0, 0, 0, 0, control::debug::DR6_FIXED, control::debug::DR7_FIXED],
            pdptes: [0; 4],
            msrs: Msrs {
                star: 0,
                lstar: 0,
                cstar: 0,
                fmask: 0,
                kernel_gs_base: 0,
                sysenter_cs: 0,
                sysenter_esp: 0,
                sysenter_eip: 0,
                tsc_aux: 0,
                tsc_offset: 0,
                tsc_adjust: 0,
                pat: 0x0007_0406_0007_0406,
                misc_enable: 1,
                spec_ctrl: 0,
                mtrr_def_type: 0,
                kvm_system_time: 0,
                kvm_wall_clock: 0,
            },
            profiled: 0,
            paravirt: true,
            last_targets: [0; LAST_TARGETS],
            callouts: core::ptr::null_mut(),
        };
        state.update_mode();
        state
    }

    /// Recomputes [`CpuState::mode`]; whoever changes CR0, CR4, EFER, CPL, a segment register, RFLAGS.VM,
    /// RFLAGS.AC or MXCSR's masks calls it before the next instruction.
    pub fn update_mode(&mut self) {
        self.mode = Mode::of(self);
    }

    /// Makes [`CpuState::flags`] the truth.
    #[inline]
    pub fn settle_flags(&mut self) {
        if self.lazy_flags.kind != LazyFlags::SETTLED {
            self.settle_lazy_flags();
        }
    }

    fn settle_lazy_flags(&mut self) {
        // A kind that is none would be a translator bug; the words then stay what they were.
        if let Some(flags) = self.lazy_flags.settle() {
            self.flags = flags;
        }
        self.lazy_flags.kind = LazyFlags::SETTLED;
    }

    /// Makes [`CpuState::lazy_flags`] the truth, in its form that compiled code can load with two instructions.
    pub fn pack_flags(&mut self) {
        self.settle_flags();
        self.lazy_flags = LazyFlags::packed(self.flags);
    }

    /// RFLAGS as PUSHF would show it, plus RF and VM.
    #[inline]
    pub fn rflags(&self) -> u64 {
        self.rflags | self.flags.to_bits()
    }

    /// Sets all of RFLAGS; unknown bits are dropped and bit 1 is set. Does not touch [`CpuState::mode`].
    #[inline]
    pub fn set_rflags(&mut self, value: u64) {
        self.flags = Flags::from_bits(value);
        self.rflags = value & flags::WRITABLE & !flags::STATUS | flags::FIXED_ONE;
    }

    /// A segment register.
    #[inline(always)]
    pub fn segment(&self, register: SegmentRegister) -> &Segment {
        &self.segments[register as usize]
    }

    /// Linear address of an instruction pointer value under the current CS.
    #[inline]
    pub fn linear_rip(&self, rip: u64) -> GuestVirt {
        if self.mode.is_64bit() {
            GuestVirt(rip)
        } else {
            GuestVirt(self.segments[1].base.wrapping_add(rip) & 0xffff_ffff)
        }
    }

    /// After compiled code: if no instruction was executed since its STI, the shadow still holds.
    #[inline]
    pub fn take_shadow(&mut self) {
        if self.shadow_from == self.instructions {
            self.shadow_from = NO_SHADOW;
            self.interrupt_shadow |= shadow::STI;
        }
    }

    /// Whether maskable interrupts can be taken before the next instruction.
    #[inline]
    pub fn interruptible(&self) -> bool {
        self.rflags & flags::IF != 0 && self.interrupt_shadow == 0
    }
}

impl Default for CpuState {
    fn default() -> Self {
        Self::new()
    }
}
