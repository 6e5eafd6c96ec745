//! [`Engine`]: one vCPU of KVM's.

use std::{
    cell::{Cell, OnceCell},
    path::Path,
    sync::{Arc, atomic::AtomicU8},
};

use kvm_bindings::{KVM_INTERNAL_ERROR_EMULATION, kvm_interrupt};
use kvm_ioctls::{Cap, VcpuExit, VcpuFd, VmFd};
use memory::Ram;
use vcpu::{Answer, Clock, EngineError, Entry, Exit, Kick, Statistics, Vcpu};
use x86::{CpuState, msr::IA32_TSC, msr::IA32_TSC_DEADLINE};

use crate::{
    Host, KvmError, cpuid,
    exchange::{Access, Exchange},
    kick::KickTarget,
    msr, registers, virtual_machine,
};

/// KVM_INTERRUPT, which kvm-ioctls leaves out: _IOW(KVMIO, 0x86, struct kvm_interrupt).
const KVM_INTERRUPT: libc::c_ulong = 0x4004_ae86;

/// The monitor's frequency, in KVM's unit.
const TSC_KHZ: u32 = (Clock::TSC_HZ / 1000) as u32;

/// What KVM waits for an answer to.
enum Asked {
    Nothing,
    Access(Exchange),
    Msr(Exit),
}

/// A vCPU.
pub struct Engine {
    vcpu: VcpuFd,
    kick: Arc<KickTarget>,
    clock: Clock,
    /// Frequency of the guest's TSC.
    tsc_khz: u32,
    /// The guest's own value of IA32_TSC_DEADLINE.
    deadline: u64,
    asked: Asked,
    /// What the last exit said of interrupts and of CR8.
    ready: bool,
    cr8: u64,
    /// HLT was executed and no interrupt has come yet.
    halted: bool,
    shutdown: bool,
    /// Registers that are neither KVM's nor the board's: the plain ones of the monitor's table. All else in it is stale.
    plain: Box<CpuState>,
    /// The whole state, once somebody asked for it since the last run.
    view: OnceCell<Box<CpuState>>,
    /// What went wrong where no error could be returned.
    failed: Cell<Option<KvmError>>,
    exits: u64,
    // Dropped in this order: the guest's memory lives longer than the machine that maps it.
    _vm: VmFd,
    _ram: Ram,
}

fn failed(what: String) -> EngineError {
    EngineError { engine: "kvm", what }
}

impl Engine {
    /// A vCPU in its power-up state, by the KVM at `device`; `paravirt`: with paravirtual features.
    pub fn new(device: &Path, ram: Ram, clock: Clock, paravirt: bool) -> Result<Self, EngineError> {
        let host = Host::open(device)?;
        let vm = virtual_machine::create(&host, &ram, paravirt)?;
        let mut vcpu = vm.create_vcpu(0).map_err(KvmError::refused("a virtual processor"))?;
        if host.kvm.check_extension(Cap::TscControl) {
            // As the monitor's. A refusal leaves the host's frequency, which CPUID then tells.
            let _ = vcpu.set_tsc_khz(TSC_KHZ);
        }
        let tsc_khz = vcpu.get_tsc_khz().map_err(KvmError::refused("the TSC's frequency (is it stable?)"))?;
        let table = cpuid::build(&host.kvm, tsc_khz, paravirt)?;
        vcpu.set_cpuid2(&table).map_err(KvmError::refused("the CPUID table"))?;
        let immediate_exit = (&raw mut vcpu.get_kvm_run().immediate_exit).cast::<AtomicU8>();
        // SAFETY: a byte of the mapping that `vcpu` holds; the engine frees it only after `drop` has disconnected the target.
        let kick = Arc::new(unsafe { KickTarget::new(immediate_exit) });
        let mut plain = Box::new(CpuState::new());
        plain.msrs.tsc_offset = 0;
        plain.paravirt = paravirt;
        Ok(Self {
            vcpu,
            kick,
            clock,
            tsc_khz,
            deadline: 0,
            asked: Asked::Nothing,
            ready: false,
            cr8: 0,
            halted: false,
            shutdown: false,
            plain,
            view: OnceCell::new(),
            failed: Cell::new(None),
            exits: 0,
            _vm: vm,
            _ram: ram,
        })
    }

    /// Takes the board's answer. `Some`: the next piece of the same access.
    fn accept(&mut self, answer: Answer) -> Result<Option<Exit>, EngineError> {
        match std::mem::replace(&mut self.asked, Asked::Nothing) {
            Asked::Nothing => Ok(None),
            Asked::Access(mut exchange) => {
                if !exchange.answer(answer) {
                    return Err(failed(format!("the board answered {answer:?} to a read: a board bug")));
                }
                let next = exchange.next();
                match next {
                    Some(_) => self.asked = Asked::Access(exchange),
                    None => self.complete(&exchange),
                }
                Ok(next)
            }
            Asked::Msr(exit) => {
                self.complete_msr(exit, answer);
                Ok(None)
            }
        }
    }

    /// Gives KVM the data that it waits for.
    fn complete(&mut self, exchange: &Exchange) {
        if !exchange.is_read() {
            return;
        }
        let data = exchange.data();
        let run = self.vcpu.get_kvm_run();
        if exchange.is_port() {
            // SAFETY: KVM left for a port, so this is the union's field.
            let offset = unsafe { run.__bindgen_anon_1.io }.data_offset as usize;
            let place = std::ptr::from_mut(run).cast::<u8>().wrapping_add(offset);
            // SAFETY: KVM gave `data.len()` bytes at that offset of the mapping, which the exchange was made from.
            unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), place, data.len()) };
        } else {
            // SAFETY: KVM left for MMIO, so this is the union's field.
            let mmio = unsafe { &mut run.__bindgen_anon_1.mmio };
            mmio.data[..data.len()].copy_from_slice(data);
        }
    }

    fn complete_msr(&mut self, exit: Exit, answer: Answer) {
        if let (Exit::MsrWrite { index: IA32_TSC_DEADLINE, .. }, Answer::Fault) = (exit, answer) {
            self.deadline = 0;
        }
        let run = self.vcpu.get_kvm_run();
        // SAFETY: KVM left for an MSR, so this is the union's field.
        let msr = unsafe { &mut run.__bindgen_anon_1.msr };
        msr.error = (answer == Answer::Fault).into();
        if let Exit::MsrRead { index } = exit {
            let value = match answer {
                Answer::Value(value) => value,
                Answer::Done | Answer::Fault => 0,
            };
            // The board counts in its clock; armed or not is all that it has to say.
            msr.data = if index == IA32_TSC_DEADLINE && value != 0 { self.deadline } else { value };
        }
    }

    /// Answers what is neither KVM's nor the board's from the monitor's table; `Some`: the board's.
    fn read_msr(&mut self, index: u32) -> Option<Exit> {
        let answer = match monitor::msr::read(&self.plain, &self.clock, index) {
            Ok(_) if msr::is_native(index) => Answer::Fault,
            Ok(value) => Answer::Value(value),
            Err(monitor::Stop::Exit(exit)) => return Some(exit),
            Err(_) => Answer::Fault,
        };
        self.complete_msr(Exit::MsrRead { index }, answer);
        None
    }

    fn write_msr(&mut self, index: u32, value: u64) -> Option<Exit> {
        if msr::is_native(index) {
            self.complete_msr(Exit::MsrWrite { index, value }, Answer::Fault);
            return None;
        }
        let answer = match monitor::msr::store(&mut self.plain, index, value) {
            Ok(()) if msr::is_checked(index) => match registers::write_msr(&self.vcpu, index, value) {
                Ok(()) => Answer::Done,
                Err(_) => Answer::Fault,
            },
            Ok(()) => Answer::Done,
            Err(monitor::Stop::Exit(Exit::MsrWrite { index: IA32_TSC_DEADLINE, value })) => {
                return Some(Exit::MsrWrite { index, value: self.set_deadline(value) });
            }
            Err(monitor::Stop::Exit(exit)) => return Some(exit),
            Err(_) => Answer::Fault,
        };
        self.complete_msr(Exit::MsrWrite { index, value }, answer);
        None
    }

    /// What a deadline in the guest's TSC is in the board's, whose [`Vcpu::tsc_offset`] is zero; 0 disarms.
    fn set_deadline(&mut self, deadline: u64) -> u64 {
        self.deadline = deadline;
        if deadline == 0 {
            return 0;
        }
        let now = registers::read_msr(&self.vcpu, IA32_TSC).unwrap_or(0);
        self.clock.tsc().saturating_add(board_ticks(deadline.saturating_sub(now), self.tsc_khz)).max(1)
    }

    /// Delivers what the entry has, sets CR8, and says whether to leave when the guest can take an interrupt.
    fn inject(&mut self, entry: &Entry) -> Result<(), EngineError> {
        if let Some(priority) = entry.task_priority {
            self.cr8 = priority;
            self.vcpu.get_kvm_run().cr8 = priority;
        }
        if entry.nmi {
            self.vcpu.nmi().map_err(KvmError::refused("an NMI"))?;
            self.halted = false;
        }
        if let Some(vector) = entry.interrupt {
            let interrupt = kvm_interrupt { irq: vector.into() };
            use std::os::fd::AsRawFd;
            // SAFETY: the file is a vCPU's and the structure the one that this call reads.
            let result =
                unsafe { libc::ioctl(self.vcpu.as_raw_fd(), KVM_INTERRUPT as _, &raw const interrupt) };
            if result != 0 {
                let source = std::io::Error::last_os_error();
                return Err(KvmError::Refused { what: "an interrupt", source }.into());
            }
            self.halted = false;
        }
        self.vcpu.get_kvm_run().request_interrupt_window = entry.interrupt_window.into();
        Ok(())
    }

    /// Runs the guest until KVM leaves; `None`: KVM left for something that is nobody's business.
    fn enter(&mut self) -> Result<Option<Exit>, EngineError> {
        self.view.take();
        self.kick.enter();
        let left = self.vcpu.run();
        self.kick.leave();
        let exit = match left {
            Ok(VcpuExit::IoOut(port, data)) => {
                let data = data.to_vec();
                self.ask_port(Access::PortWrite(port), &data)
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                let data = vec![0; data.len()];
                self.ask_port(Access::PortRead(port), &data)
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                let exchange = Exchange::new(Access::MmioRead(address), data.len(), data);
                self.ask(exchange)
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                let exchange = Exchange::new(Access::MmioWrite(address), data.len(), data);
                self.ask(exchange)
            }
            Ok(VcpuExit::X86Rdmsr(read)) => {
                let index = read.index;
                self.read_msr(index)
            }
            Ok(VcpuExit::X86Wrmsr(write)) => {
                let (index, value) = (write.index, write.data);
                self.write_msr(index, value)
            }
            Ok(VcpuExit::Hlt) => {
                self.halted = true;
                Some(Exit::Halt)
            }
            Ok(VcpuExit::IrqWindowOpen) => Some(Exit::InterruptWindow),
            // The board looks at CR8 after every exit.
            Ok(VcpuExit::SetTpr) => Some(Exit::Kicked),
            Ok(VcpuExit::Intr) => None,
            Ok(VcpuExit::Shutdown) => {
                self.shutdown = true;
                Some(Exit::Shutdown)
            }
            Ok(VcpuExit::InternalError) => return Err(self.internal_error()),
            Ok(VcpuExit::FailEntry(reason, _)) => {
                return Err(failed(format!(
                    "the processor refuses to enter the guest (reason {reason:#x}); use --engine translate for this guest"
                )));
            }
            Ok(other) => return Err(failed(format!("KVM left for {other:?}, which nobody asked for"))),
            Err(error) if error.errno() == libc::EINTR => {
                self.kick.clear();
                Some(Exit::Kicked)
            }
            Err(error) if error.errno() == libc::EAGAIN => None,
            Err(error) => return Err(KvmError::refused("to run the guest")(error).into()),
        };
        let run = self.vcpu.get_kvm_run();
        (self.ready, self.cr8) = (run.ready_for_interrupt_injection != 0, run.cr8);
        if let Some(asked @ (Exit::MsrRead { .. } | Exit::MsrWrite { .. })) = exit {
            self.asked = Asked::Msr(asked);
        }
        Ok(exit)
    }

    fn ask_port(&mut self, access: Access, data: &[u8]) -> Option<Exit> {
        // SAFETY: KVM left for a port, so this is the union's field.
        let size = unsafe { self.vcpu.get_kvm_run().__bindgen_anon_1.io }.size;
        self.ask(Exchange::new(access, size.into(), data))
    }

    fn ask(&mut self, exchange: Exchange) -> Option<Exit> {
        let exit = exchange.next();
        if exit.is_some() {
            self.asked = Asked::Access(exchange);
        }
        exit
    }

    fn internal_error(&mut self) -> EngineError {
        // SAFETY: KVM left with an internal error, so this is the union's field.
        let error = unsafe { self.vcpu.get_kvm_run().__bindgen_anon_1.internal };
        let state = self.state();
        let (rip, mode) = (state.linear_rip(state.rip), state.mode.code_bits());
        let what = if error.suberror == KVM_INTERNAL_ERROR_EMULATION {
            "cannot emulate the guest's instruction"
        } else {
            "met with an internal error"
        };
        failed(format!(
            "this host's KVM {what} at {rip} ({mode}-bit code; suberror {}, data {:x?}); `transvisor doctor` says whether \
             the KVM is an emulation; use --engine translate for this guest",
            error.suberror,
            &error.data[..(error.ndata as usize).min(error.data.len())],
        ))
    }
}

/// Ticks of a clock of `khz` as ticks of the board's clock.
fn board_ticks(ticks: u64, khz: u32) -> u64 {
    let board = u128::from(ticks) * u128::from(TSC_KHZ) / u128::from(khz.max(1));
    // Later than ever is never.
    u64::try_from(board).unwrap_or(u64::MAX)
}

impl Vcpu for Engine {
    fn run(&mut self, entry: Entry) -> Result<Exit, EngineError> {
        if let Some(error) = self.failed.take() {
            return Err(error.into());
        }
        self.exits += 1;
        if self.shutdown {
            return Ok(Exit::Shutdown);
        }
        let next = self.accept(entry.answer)?;
        self.inject(&entry)?;
        if let Some(piece) = next {
            return Ok(piece);
        }
        if self.halted {
            return Ok(Exit::Halt);
        }
        loop {
            if let Some(exit) = self.enter()? {
                return Ok(exit);
            }
        }
    }

    /// Not while an MSR access waits for its answer, which may be an exception: KVM would lose the interrupt.
    fn ready_for_interrupt(&self) -> bool {
        self.ready && !self.shutdown && matches!(self.asked, Asked::Nothing)
    }

    fn kick_handle(&self) -> Kick {
        self.kick.clone()
    }

    /// Fetched from KVM when it is asked for, at most once between two runs.
    fn state(&self) -> &CpuState {
        self.view.get_or_init(|| {
            let mut state = Box::new(CpuState::new());
            state.msrs = self.plain.msrs.clone();
            if let Err(error) = registers::fetch(&self.vcpu, &mut state) {
                self.failed.set(Some(error));
            }
            state.halted = self.halted;
            state.paravirt = self.plain.paravirt;
            state
        })
    }

    fn task_priority(&self) -> u64 {
        self.cr8
    }

    fn tsc_offset(&self) -> u64 {
        0
    }

    fn update_state(&mut self, change: &mut dyn FnMut(&mut CpuState)) {
        self.state();
        let Some(mut state) = self.view.take() else { return };
        let mut before = state.msrs.clone();
        change(&mut state);
        self.plain.msrs = state.msrs.clone();
        self.cr8 = state.cr8;
        self.vcpu.get_kvm_run().cr8 = state.cr8;
        if let Err(error) = registers::store(&self.vcpu, &mut before, &mut state) {
            self.failed.set(Some(error));
        }
    }

    fn statistics(&self) -> Statistics {
        Statistics { exits: self.exits, ..Statistics::default() }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.kick.disconnect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_count_in_the_boards_clock() {
        assert_eq!(board_ticks(2_500_000, 2_500_000), 1_000_000);
        assert_eq!(board_ticks(1000, 1_000_000), 1000);
        assert_eq!(board_ticks(u64::MAX, 1), u64::MAX);
    }

    #[test]
    fn without_a_device_the_error_says_what_to_do() {
        let ram = Ram::new(1 << 20).unwrap();
        let error = Engine::new(Path::new("/nonexistent/kvm"), ram, Clock::host(), true).err().unwrap();
        assert!(error.to_string().starts_with("kvm: /nonexistent/kvm is not there"), "{error}");
    }
}
