//! The exit loop: `exit = run(entry)`, the board does what the exit asks, and its answer is the next entry.

use std::{
    io::Write,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use devices::PowerEvent;
use vcpu::{Answer, Entry, Exit};
use x86::CpuState;

use crate::{
    alarm::Alarm,
    board::{Board, MachineError},
    config::Config,
    outcome::Outcome,
    panic_watch::PanicWatch,
    profile::ProfileWriter,
    report::{ExitCounts, Report, TranslationReport},
    wake::{Input, Mailbox, Watcher},
};

/// Builds the machine, boots it and runs it to its end (booting again where the guest asks for that). `console` makes
/// the sink of the serial console's output for each boot.
pub fn run(
    config: &Config,
    console: &mut dyn FnMut() -> Result<Box<dyn Write + Send>, MachineError>,
    mailbox: &Arc<Mailbox>,
    input: Input,
    started: &mut dyn FnMut(&boot::Booted),
) -> Result<(Outcome, Report), MachineError> {
    let host = |what| move |source| MachineError::Host { what, source };
    let _watcher = Watcher::start(Arc::clone(mailbox), input).map_err(host("a thread"))?;
    let mut report = Report::start();
    let mut boot = 0;
    loop {
        boot += 1;
        let (console, panicked) = PanicWatch::new(console()?);
        let (mut board, booted) = Board::build(config, Box::new(console))?;
        started(&booted);
        let profile = match (&config.profile, board.recorder.take()) {
            (Some(profile), Some(recorder)) => Some(ProfileWriter::start(profile, boot, recorder, config)?),
            _ => None,
        };
        mailbox.connect(board.vcpu.kick_handle());
        let mut alarm = Alarm::new(board.vcpu.kick_handle()).map_err(host("a timer"))?;
        let result = ExitLoop {
            board: &mut board,
            mailbox,
            alarm: &mut alarm,
            exits: &mut report.exits,
            backlog: false,
        }
        .run();
        board.chipset.flush_console();
        report.add(&board.vcpu.statistics());
        if let Some(profile) = profile {
            profile.finish(match &result {
                Ok(outcome) => outcome.to_string(),
                Err(error) => error.to_string(),
            })?;
        }
        let outcome = match result? {
            Outcome::Reboot if panicked.load(Ordering::Relaxed) => Outcome::Panic,
            Outcome::Reboot if !config.no_reboot => continue,
            outcome => outcome,
        };
        report.translations = config.translations.as_deref().map(TranslationReport::of);
        return Ok((outcome, report.finish()));
    }
}

struct ExitLoop<'a> {
    board: &'a mut Board,
    mailbox: &'a Mailbox,
    alarm: &'a mut Alarm,
    exits: &'a mut ExitCounts,
    /// The mailbox holds input that the UART had no room for.
    backlog: bool,
}

impl ExitLoop<'_> {
    fn run(&mut self) -> Result<Outcome, MachineError> {
        // What was left while there was no one to kick.
        self.mailbox.keep();
        let mut answer = Answer::Done;
        loop {
            if let Some(outcome) = self.take_mail() {
                return Ok(outcome);
            }
            let entry = self.entry(answer);
            let exit = self.board.vcpu.run(entry)?;
            self.exits.count(exit);
            answer = self.board.answer(exit);
            if let Some(error) = self.board.chipset.take_console_error() {
                return Err(MachineError::Console(error));
            }
            if let Some(event) = self.board.power_event() {
                return Ok(match event {
                    PowerEvent::PowerOff => Outcome::PowerOff,
                    PowerEvent::Reset => Outcome::Reboot,
                    PowerEvent::DebugExit(value) => Outcome::DebugExit(value),
                });
            }
            match exit {
                Exit::Shutdown => return Ok(Outcome::TripleFault(describe(self.board.vcpu.state()))),
                Exit::Halt => {
                    if let Some(outcome) = self.halt() {
                        return Ok(outcome);
                    }
                }
                _ => {}
            }
        }
    }

    fn take_mail(&mut self) -> Option<Outcome> {
        let mut mail = self.mailbox.look()?;
        if mail.quit {
            return Some(Outcome::Quit);
        }
        if let Some(signal) = mail.signal {
            return Some(Outcome::Signal(signal));
        }
        if !mail.input.is_empty() {
            let taken = self.board.chipset.push_console_input(mail.input.make_contiguous());
            mail.input.drain(..taken);
            self.backlog = !mail.input.is_empty();
        }
        None
    }

    /// Lets the devices catch up, and tells the engine what they want of the processor.
    fn entry(&mut self, answer: Answer) -> Entry {
        let board = &mut *self.board;
        let now = board.clock.now();
        if board.chipset.next_deadline().is_some_and(|deadline| deadline <= now) {
            board.chipset.advance(now);
            self.alarm.passed();
        }
        self.alarm.set(board.chipset.next_deadline(), now);
        let mut entry = Entry {
            answer,
            nmi: board.chipset.acknowledge_nmi(),
            task_priority: board.give_task_priority(),
            ..Entry::default()
        };
        if board.chipset.pending_interrupt() {
            if board.vcpu.ready_for_interrupt() {
                entry.interrupt = board.chipset.acknowledge_interrupt();
            } else {
                entry.interrupt_window = true;
            }
        }
        board.chipset.offer_eoi();
        // The UART may have room again for what was typed.
        if self.backlog && board.chipset.console_input_room() > 0 {
            self.mailbox.keep();
        }
        entry
    }

    /// HLT: sleeps until a device or the user has something for the processor.
    fn halt(&mut self) -> Option<Outcome> {
        if self.board.take_kick() {
            self.board.vcpu.update_state(&mut |state| state.halted = false);
            return None;
        }
        self.board.chipset.flush_console();
        loop {
            if let Some(outcome) = self.take_mail() {
                return Some(outcome);
            }
            let board = &mut *self.board;
            let now = board.clock.now();
            board.chipset.advance(now);
            // An interrupt wakes a processor that has them on, an NMI any.
            let awake = board.vcpu.ready_for_interrupt();
            if board.chipset.pending_nmi() || awake && board.chipset.pending_interrupt() {
                return None;
            }
            if !awake {
                return Some(Outcome::Dead(describe(board.vcpu.state())));
            }
            let wait = board
                .chipset
                .next_deadline()
                .map(|deadline| Duration::from_nanos(deadline.saturating_sub(board.clock.now())));
            self.mailbox.sleep(wait);
        }
    }
}

/// The registers, for a guest that came to grief.
fn describe(state: &CpuState) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    const NAMES: [&str; 16] = [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
        "r14", "r15",
    ];
    for row in 0..4 {
        for column in 0..4 {
            let index = row * 4 + column;
            // Writing to a String can't fail.
            let _ = write!(text, "{:>4}={:016x}", NAMES[index], state.gpr[index]);
        }
        text.push('\n');
    }
    let _ = write!(
        text,
        " rip={:016x} rflags={:08x} cs={:04x} ss={:04x} cpl={} cr0={:08x} cr2={:016x} cr3={:x} cr4={:x} efer={:x}",
        state.rip,
        state.rflags(),
        state.segments[1].selector,
        state.segments[2].selector,
        state.cpl,
        state.cr0,
        state.cr2,
        state.cr3,
        state.cr4,
        state.efer
    );
    text
}
