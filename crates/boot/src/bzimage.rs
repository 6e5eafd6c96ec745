//! The bzImage format: the setup header, what it promises, and where the image wants to be.
//!
//! Source: Documentation/arch/x86/boot.rst. Protocol 2.12 (Linux 3.8) is the oldest accepted: it is the first that
//! says whether there is a 64-bit entry.

use std::ops::Range;

use linux_loader::loader::bootparam::setup_header;
use vm_memory::ByteValued;

use crate::KernelError;

/// Offset of the 64-bit entry from the load address.
pub const ENTRY_64: u64 = 0x200;
/// What initrd_addr_max holds in every x86-64 kernel; for kernels without a header.
pub const DEFAULT_INITRD_MAX: u64 = 0x7fff_ffff;
/// COMMAND_LINE_SIZE without its NUL; for kernels without a header.
pub const DEFAULT_CMDLINE_SIZE: u64 = 2047;

const HEADER_OFFSET: usize = 0x1f1;
const SECTOR: usize = 512;
const BOOT_FLAG: u16 = 0xaa55;
const MAGIC: &[u8; 4] = b"HdrS";
const OLDEST_PROTOCOL: u16 = 0x20c;
/// loadflags: the protected-mode code is loaded at 1 MiB or above.
const LOADED_HIGH: u8 = 1 << 0;
/// xloadflags: there is a 64-bit entry at 0x200.
const XLF_KERNEL_64: u16 = 1 << 0;
/// Where the header's jump instruction keeps its displacement; the header ends there + 0x202.
const JUMP_DISPLACEMENT: usize = 0x201;
/// Smallest end of a header of protocol 2.12: behind handover_offset.
const HEADER_END: usize = 0x268;

/// A bzImage whose header has been checked against the file.
pub struct BzImage<'a> {
    bytes: &'a [u8],
    header: setup_header,
    setup_size: usize,
    code_size: usize,
}

impl<'a> BzImage<'a> {
    /// Checks that `bytes` are a complete 64-bit bzImage.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, KernelError> {
        let truncated = |part, needed: usize| KernelError::Truncated {
            part,
            needed: needed as u64,
            length: bytes.len() as u64,
        };
        if bytes.get(0x1fe..0x200) != Some(&BOOT_FLAG.to_le_bytes()) || bytes.get(0x202..0x206) != Some(MAGIC)
        {
            // The setup code begins with "MZ" or a jump, so a cut before the magic cannot be told from another file.
            return Err(KernelError::NotAKernel);
        }
        if bytes.len() < HEADER_END {
            return Err(truncated("the setup header", HEADER_END));
        }
        let version = u16::from_le_bytes([bytes[0x206], bytes[0x207]]);
        if version < OLDEST_PROTOCOL {
            return Err(KernelError::OldProtocol { version });
        }
        let header_end = 0x202 + bytes[JUMP_DISPLACEMENT] as usize;
        if header_end < HEADER_END {
            return Err(KernelError::Field { field: "the setup header's end", value: header_end as u64 });
        }
        let header = Self::copy_header(bytes, header_end);

        if header.loadflags & LOADED_HIGH == 0 {
            return Err(KernelError::ZImage);
        }
        if header.xloadflags & XLF_KERNEL_64 == 0 {
            return Err(KernelError::Bits32);
        }
        // Zero means 4, for historical reasons.
        let sectors = if header.setup_sects == 0 { 4 } else { header.setup_sects as usize };
        let setup_size = (sectors + 1) * SECTOR;
        // In paragraphs of 16 bytes. What follows (a signature) is not part of the kernel.
        let code_size = header.syssize as usize * 16;
        if code_size <= ENTRY_64 as usize {
            return Err(KernelError::Field { field: "syssize", value: header.syssize.into() });
        }
        if bytes.len() < setup_size + code_size {
            return Err(truncated("the kernel", setup_size + code_size));
        }
        let image = Self { bytes, header, setup_size, code_size };
        image.check_addresses()?;
        Ok(image)
    }

    /// The header, without what lies behind its end (code, which the boot_params must not get).
    fn copy_header(bytes: &[u8], header_end: usize) -> setup_header {
        let mut header = setup_header::default();
        let end = header_end.min(HEADER_OFFSET + size_of::<setup_header>()).min(bytes.len());
        let source = &bytes[HEADER_OFFSET..end];
        header.as_mut_slice()[..source.len()].copy_from_slice(source);
        header
    }

    fn check_addresses(&self) -> Result<(), KernelError> {
        let header = &self.header;
        if self.is_relocatable() && !header.kernel_alignment.is_power_of_two() {
            return Err(KernelError::Field {
                field: "kernel_alignment",
                value: header.kernel_alignment.into(),
            });
        }
        if header.init_size == 0 {
            return Err(KernelError::Field { field: "init_size", value: 0 });
        }
        let load = self.load_address();
        if load == 0 || load.checked_add(u64::from(u32::MAX) * 2).is_none() {
            return Err(KernelError::Field { field: "pref_address", value: load });
        }
        Ok(())
    }

    fn is_relocatable(&self) -> bool {
        self.header.relocatable_kernel != 0
    }

    /// Where the protected-mode code goes: where the kernel would like to run, so that it need not move itself; a
    /// kernel that is not relocatable has one place only.
    pub fn load_address(&self) -> u64 {
        let header = &self.header;
        if !self.is_relocatable() {
            return header.code32_start.into();
        }
        let mask = u64::from(header.kernel_alignment).wrapping_sub(1);
        header.pref_address.saturating_add(mask) & !mask
    }

    /// What the kernel needs of memory from its entry until it has read the memory map.
    pub fn runtime_range(&self) -> Range<u64> {
        let (load, preferred) = (self.load_address(), self.header.pref_address);
        let run = if self.is_relocatable() { load } else { preferred };
        let end = run.saturating_add(self.init_size()).max(load.saturating_add(self.code_size as u64));
        load.min(run)..end
    }

    /// The part that is loaded: everything behind the real-mode code.
    pub fn protected_mode_code(&self) -> &'a [u8] {
        &self.bytes[self.setup_size..self.setup_size + self.code_size]
    }

    /// The packed vmlinux.
    pub fn payload(&self) -> Result<&'a [u8], KernelError> {
        let (offset, length) = (self.header.payload_offset as usize, self.header.payload_length as usize);
        let start = self.setup_size + offset;
        let code_end = self.setup_size + self.code_size;
        if offset == 0 || start >= code_end {
            return Err(KernelError::Field { field: "payload_offset", value: offset as u64 });
        }
        if length == 0 || length > code_end - start {
            return Err(KernelError::Field { field: "payload_length", value: length as u64 });
        }
        Ok(&self.bytes[start..start + length])
    }

    /// Memory the kernel needs from its load address on; also a bound for what its payload unpacks to.
    pub fn init_size(&self) -> u64 {
        self.header.init_size.into()
    }

    /// Highest address that the initramfs may occupy.
    pub fn initrd_addr_max(&self) -> u64 {
        self.header.initrd_addr_max.into()
    }

    /// Longest command line, without its NUL.
    pub fn cmdline_size(&self) -> u64 {
        self.header.cmdline_size.into()
    }

    /// The header as the file has it.
    pub fn setup_header(&self) -> setup_header {
        self.header
    }

    /// "6.1.0-… (debian-kernel@…) #1 SMP …".
    pub fn version(&self) -> Option<String> {
        let offset = self.header.kernel_version as usize;
        if offset == 0 {
            return None;
        }
        let setup = &self.bytes[..self.setup_size];
        let text = setup.get(SECTOR + offset..)?;
        let length = text.iter().position(|&byte| byte == 0)?;
        let text = std::str::from_utf8(&text[..length]).ok()?;
        text.chars().all(|c| c.is_ascii_graphic() || c == ' ').then(|| text.to_owned())
    }
}
