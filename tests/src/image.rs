//! What a ring-3 test starts from and ends in: registers, and a window of memory at the same linear address
//! natively and in the guest.

use x86::{CpuState, Segment, flags, fpu::X87};

/// Where code is put; a test runs at some offset in it.
pub const CODE: u64 = 0x4000_0000;
/// Bytes of code window: two pages, so that code can cross from one to the other.
pub const CODE_SIZE: u64 = 0x2000;
/// Where in the code window cases of `.ins` files lie.
pub const USUAL_OFFSET: u64 = 0x200;
/// Where data is; the pages before and after are not mapped.
pub const DATA: u64 = 0x5000_0000;
/// Bytes of data window.
pub const DATA_SIZE: u64 = 0x4000;
/// RSP where a case does not say otherwise.
pub const STACK: u64 = DATA + 0x3800;

/// Names of the general registers in encoding order.
pub const REGISTERS: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];

/// Names of the flags that a case may name, with their bits.
pub const FLAGS: [(&str, u64); 7] = [
    ("cf", flags::CF),
    ("pf", flags::PF),
    ("af", flags::AF),
    ("zf", flags::ZF),
    ("sf", flags::SF),
    ("df", flags::DF),
    ("of", flags::OF),
];

/// RFLAGS bits that are compared.
pub const COMPARED_FLAGS: u64 = flags::STATUS | flags::DF;

/// State of a ring-3 program between two instructions.
#[derive(Clone, PartialEq, Debug)]
pub struct Image {
    /// General registers in encoding order.
    pub gpr: [u64; 16],
    /// Instruction pointer, relative to where the code was put.
    pub rip: u64,
    /// The bits of [`COMPARED_FLAGS`].
    pub flags: u64,
    /// XMM0..15.
    pub xmm: [u128; 16],
    /// SSE control and status.
    pub mxcsr: u32,
    /// x87 and MMX.
    pub x87: X87,
    /// Contents of the data window.
    pub data: Vec<u8>,
}

impl Image {
    /// All zero, but for RSP and the control words.
    pub fn new() -> Self {
        let mut gpr = [0; 16];
        gpr[x86::state::RSP] = STACK;
        Self {
            gpr,
            rip: 0,
            flags: 0,
            xmm: [0; 16],
            mxcsr: x86::fpu::MXCSR_RESET,
            x87: X87::new(),
            data: vec![0; DATA_SIZE as usize],
        }
    }

    /// The same for a size of code. In a 16-bit segment the stack pointer is an offset; the upper half of ESP is zero,
    /// because an IRET to a 16-bit stack does not set it.
    pub fn of(bits: u32) -> Self {
        let mut image = Self::new();
        if bits == 16 {
            image.gpr[x86::state::RSP] &= 0xffff;
        }
        image
    }

    /// Differences to `expected`, one line each; flags in `undefined` and the x87 pointers are not compared.
    pub fn differences(&self, expected: &Self, undefined: u64) -> Vec<String> {
        let mut lines = Vec::new();
        let mut differ = |name: String, got: String, want: String| {
            if got != want {
                lines.push(format!("{name}: {got}, expected {want}"));
            }
        };
        for (index, name) in REGISTERS.iter().enumerate() {
            differ((*name).into(), format!("{:#x}", self.gpr[index]), format!("{:#x}", expected.gpr[index]));
        }
        differ("rip".into(), format!("+{:#x}", self.rip), format!("+{:#x}", expected.rip));
        for (name, bit) in FLAGS {
            if undefined & bit == 0 {
                let value = |flags: u64| u8::from(flags & bit != 0).to_string();
                differ(name.into(), value(self.flags), value(expected.flags));
            }
        }
        for index in 0..16 {
            let value = |image: &Self| format!("{:#034x}", image.xmm[index]);
            differ(format!("xmm{index}"), value(self), value(expected));
        }
        differ("mxcsr".into(), format!("{:#06x}", self.mxcsr), format!("{:#06x}", expected.mxcsr));
        let (x, y) = (&self.x87, &expected.x87);
        differ("fcw".into(), format!("{:#06x}", x.control), format!("{:#06x}", y.control));
        differ("fsw".into(), format!("{:#06x}", x.status), format!("{:#06x}", y.status));
        differ("ftw".into(), format!("{:#04x}", x.tags), format!("{:#04x}", y.tags));
        for index in 0..8 {
            let value = |x87: &X87| {
                format!("{:#06x}_{:016x}", x87.registers[index][1] & 0xffff, x87.registers[index][0])
            };
            differ(format!("r{index} (x87)"), value(x), value(y));
        }
        let changed = self.data.iter().zip(&expected.data).enumerate().filter(|(_, (got, want))| got != want);
        for (offset, (got, want)) in changed.take(16) {
            differ(format!("[{:#x}]", DATA + offset as u64), format!("{got:02x}"), format!("{want:02x}"));
        }
        lines
    }
}

impl Default for Image {
    fn default() -> Self {
        Self::new()
    }
}

/// Selector of 16-bit code, in the LDT: the code window, and up to 64 KiB.
pub const CODE16: u16 = 0x07;
/// Selector of 16-bit data and stack, in the LDT: the data window.
pub const DATA16: u16 = 0x0f;
/// Descriptor of [`CODE16`].
pub const DESCRIPTOR_CODE16: u64 = descriptor16(CODE, 0xffff, 0xfb);
/// Descriptor of [`DATA16`].
pub const DESCRIPTOR_DATA16: u64 = descriptor16(DATA, DATA_SIZE - 1, 0xf3);

const fn descriptor16(base: u64, limit: u64, access: u64) -> u64 {
    limit | (base & 0xff_ffff) << 16 | access << 40 | (base >> 24) << 56
}

/// The instruction pointer at `offset` in the code window.
pub fn code_address(offset: u64, bits: u32) -> u64 {
    if bits == 16 { offset } else { CODE + offset }
}

/// Whether `bits` is a size of code that cases can have.
pub fn is_code_size(bits: u32) -> bool {
    matches!(bits, 16 | 32 | 64)
}

/// With a 16-bit stack, what the upper half of ESP becomes in a round trip through another ring is not for us to say.
pub fn keep_upper_stack_pointer(bits: u32, before: u64, after: &mut u64) {
    if bits == 16 {
        *after = before & !0xffff | *after & 0xffff;
    }
}

/// Segment registers as Linux starts a process (arch/x86/include/asm/segment.h), and CPL 3.
pub fn set_segments(state: &mut CpuState, bits: u32) {
    use x86::control::{cr0, efer};
    state.cr0 = cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::WP | cr0::AM | cr0::PG;
    state.efer = efer::SCE | efer::LME | efer::LMA | efer::NXE;
    let code = match bits {
        64 => Segment::from_descriptor(0x33, 0x00af_fb00_0000_ffff),
        32 => Segment::from_descriptor(0x23, 0x00cf_fb00_0000_ffff),
        _ => Segment::from_descriptor(CODE16, DESCRIPTOR_CODE16),
    };
    let data = if bits == 16 {
        Segment::from_descriptor(DATA16, DESCRIPTOR_DATA16)
    } else {
        Segment::from_descriptor(0x2b, 0x00cf_f300_0000_ffff)
    };
    // DS, ES, FS and GS are null in 64-bit mode.
    let other = if bits == 64 { Segment::default() } else { data };
    state.segments = [other, code, data, other, Segment::default(), Segment::default()];
    state.cpl = 3;
}

/// The 512-byte FXSAVE image of x87, MMX and SSE state (SDM Vol. 1 table 10-2), of the 64-bit form.
pub fn fxsave_of(image: &Image) -> [u8; 512] {
    let mut bytes = [0; 512];
    let x87 = &image.x87;
    bytes[0..2].copy_from_slice(&x87.control.to_le_bytes());
    bytes[2..4].copy_from_slice(&x87.status.to_le_bytes());
    bytes[4] = x87.tags as u8;
    bytes[24..28].copy_from_slice(&image.mxcsr.to_le_bytes());
    bytes[28..32].copy_from_slice(&x86::fpu::MXCSR_MASK.to_le_bytes());
    for position in 0..8 {
        // ST(0) first.
        let [low, high] = x87.registers[(x87.top() + position) & 7];
        bytes[32 + 16 * position..][..8].copy_from_slice(&low.to_le_bytes());
        bytes[40 + 16 * position..][..2].copy_from_slice(&(high as u16).to_le_bytes());
    }
    for (index, value) in image.xmm.iter().enumerate() {
        bytes[160 + 16 * index..][..16].copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

/// An exception that ended a run; RIP of the image is that of the faulting instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// Vector.
    pub vector: u8,
    /// Linear address, for #PF.
    pub address: Option<u64>,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = match self.vector {
            0 => "#DE",
            1 => "#DB",
            3 => "#BP",
            4 => "#OF",
            5 => "#BR",
            6 => "#UD",
            7 => "#NM",
            12 => "#SS",
            13 => "#GP",
            14 => "#PF",
            16 => "#MF",
            17 => "#AC",
            19 => "#XM",
            other => return write!(f, "#{other}"),
        };
        match self.address {
            Some(address) => write!(f, "{name}({address:#x})"),
            None => write!(f, "{name}"),
        }
    }
}

/// How a run ended.
#[derive(Clone, PartialEq, Debug)]
pub struct Ran {
    /// State at the end.
    pub image: Image,
    /// The exception, if there was one.
    pub fault: Option<Fault>,
}

impl Ran {
    /// As [`Image::differences`], and the faults.
    pub fn differences(&self, expected: &Self, undefined: u64) -> Vec<String> {
        let name =
            |fault: Option<Fault>| fault.map_or_else(|| "no fault".to_owned(), |fault| fault.to_string());
        let mut lines = self.image.differences(&expected.image, undefined);
        if self.fault != expected.fault {
            lines.insert(0, format!("{}, expected {}", name(self.fault), name(expected.fault)));
        }
        lines
    }
}
