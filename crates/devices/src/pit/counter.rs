//! One counter of the 8254 in its six modes, as a function of time.
//!
//! Time is in ticks of the 1.193182 MHz input. A counter remembers since when it counts from which number; its count
//! and its OUT pin at a later tick follow from that. The clock pulse that the chip needs to move a written count into
//! the counting element is not modelled: counting begins with the write.

/// The modes (8254 datasheet, "Mode Definitions").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// 0: OUT rises when the count is over.
    TerminalCount,
    /// 1: the gate starts a low pulse.
    OneShot,
    /// 2: OUT is low for one tick of each period.
    RateGenerator,
    /// 3: OUT is high for half of each period.
    SquareWave,
    /// 4: OUT is low for one tick when the count is over.
    SoftwareStrobe,
    /// 5: the same, started by the gate.
    HardwareStrobe,
}

/// One counter.
#[derive(Clone, Debug)]
pub(super) struct Counter {
    mode: Mode,
    bcd: bool,
    /// Count register as written, 1..=65536 (or 10000 in BCD); 0: nothing was written since the control word.
    reload: u64,
    gate: bool,
    /// A counting element that was loaded.
    run: Option<Run>,
}

#[derive(Clone, Copy, Debug)]
struct Run {
    /// Number it counts down from.
    from: u64,
    /// Ticks counted before `since`.
    counted: u64,
    /// Counting since this tick; `None`: halted.
    since: Option<u64>,
    /// Modes 2 and 3: another count takes over when this tick is reached.
    next: Option<(u64, u64)>,
}

impl Run {
    fn elapsed(&self, now: u64) -> u64 {
        self.counted + self.since.map_or(0, |since| now.saturating_sub(since))
    }
}

impl Counter {
    pub(super) fn new() -> Self {
        Self { mode: Mode::TerminalCount, bcd: false, reload: 0, gate: true, run: None }
    }

    /// A control word: the counter stops, OUT goes to the mode's initial level.
    pub(super) fn set_mode(&mut self, bits: u8, bcd: bool) {
        self.mode = match bits & 7 {
            0 => Mode::TerminalCount,
            1 => Mode::OneShot,
            2 | 6 => Mode::RateGenerator,
            3 | 7 => Mode::SquareWave,
            4 => Mode::SoftwareStrobe,
            _ => Mode::HardwareStrobe,
        };
        self.bcd = bcd;
        self.reload = 0;
        self.run = None;
    }

    /// Mode and BCD as the status byte shows them.
    pub(super) fn mode_bits(&self) -> u8 {
        (self.mode as u8) << 1 | u8::from(self.bcd)
    }

    fn is_periodic(&self) -> bool {
        matches!(self.mode, Mode::RateGenerator | Mode::SquareWave)
    }

    fn starts_by_gate(&self) -> bool {
        matches!(self.mode, Mode::OneShot | Mode::HardwareStrobe)
    }

    /// The modulus of the counting element: where it goes below zero.
    fn modulus(&self) -> u64 {
        if self.bcd { 10_000 } else { 65_536 }
    }

    /// The low byte of two was written: mode 0 stops until the other comes.
    pub(super) fn half_written(&mut self) {
        if self.mode == Mode::TerminalCount {
            self.run = None;
        }
    }

    /// A count was written.
    pub(super) fn load(&mut self, count: u16, now: u64) {
        let number = if self.bcd { from_bcd(count) } else { u64::from(count) };
        let number = match number {
            0 => self.modulus(),
            // A count of 1 is illegal in modes 2 and 3; the shortest that the chip can do is 2.
            1 if self.is_periodic() => 2,
            number => number,
        };
        self.reload = number;
        if self.starts_by_gate() {
            return; // A running one-shot goes on; the next trigger takes the new count.
        }
        self.catch_up(now);
        match &mut self.run {
            Some(run) if matches!(self.mode, Mode::RateGenerator | Mode::SquareWave) => {
                run.next = run.since.map(|since| {
                    // The period, or in mode 3 the half period, is finished first; halves are merged into wholes.
                    let periods = run.elapsed(now) / run.from + 1;
                    (since.saturating_add(periods * run.from - run.counted), number)
                });
                if run.since.is_none() {
                    *run = Run { from: number, counted: 0, since: None, next: None };
                }
            }
            _ => self.start(now),
        }
    }

    fn start(&mut self, now: u64) {
        let since = (self.gate || self.starts_by_gate()).then_some(now);
        self.run = Some(Run { from: self.reload, counted: 0, since, next: None });
    }

    /// Lets a count that was waiting for the end of its period take over.
    fn catch_up(&mut self, now: u64) {
        self.run = self.run_at(now);
    }

    /// The run that is in force at a tick.
    fn run_at(&self, now: u64) -> Option<Run> {
        match self.run {
            Some(Run { next: Some((at, from)), .. }) if at <= now => {
                Some(Run { from, counted: 0, since: Some(at), next: None })
            }
            run => run,
        }
    }

    /// The GATE input changes: a level in modes 0, 2, 3 and 4, a trigger in modes 1, 2, 3 and 5.
    pub(super) fn set_gate(&mut self, gate: bool, now: u64) {
        if self.gate == gate {
            return;
        }
        self.catch_up(now);
        self.gate = gate;
        if gate && self.reload != 0 && (self.starts_by_gate() || self.is_periodic()) {
            self.start(now);
        } else if !self.starts_by_gate()
            && let Some(run) = &mut self.run
        {
            run.counted = run.elapsed(now);
            run.since = gate.then_some(now);
            run.next = None;
        }
    }

    /// Whether a written count has not reached the counting element.
    pub(super) fn is_null(&self, now: u64) -> bool {
        match self.run_at(now) {
            None => true,
            Some(run) => run.next.is_some(),
        }
    }

    /// What the counting element holds, in BCD if so programmed.
    pub(super) fn count(&self, now: u64) -> u16 {
        let Some(run) = self.run_at(now) else { return 0 };
        let elapsed = run.elapsed(now);
        let value = match self.mode {
            Mode::RateGenerator => run.from - elapsed % run.from,
            Mode::SquareWave => {
                let high = run.from.div_ceil(2);
                let phase = elapsed % run.from;
                let steps = if phase < high { phase } else { phase - high };
                match (run.from & 1, steps) {
                    (0, _) => run.from - 2 * steps,
                    (_, 0) => run.from,
                    // Odd counts lose one at the first step of the high half and three at that of the low half.
                    (_, _) if phase < high => run.from + 1 - 2 * steps,
                    _ => run.from - 1 - 2 * steps,
                }
            }
            _ => (run.from + self.modulus() - elapsed % self.modulus()) % self.modulus(),
        };
        if self.bcd { to_bcd(value) } else { value as u16 }
    }

    /// Level of the OUT pin.
    pub(super) fn out(&self, now: u64) -> bool {
        let Some(run) = self.run_at(now) else { return self.mode != Mode::TerminalCount };
        let elapsed = run.elapsed(now);
        match self.mode {
            Mode::TerminalCount | Mode::OneShot => elapsed >= run.from,
            // With the gate low OUT is high at once.
            Mode::RateGenerator => run.since.is_none() || elapsed % run.from != run.from - 1,
            Mode::SquareWave => run.since.is_none() || elapsed % run.from < run.from.div_ceil(2),
            Mode::SoftwareStrobe | Mode::HardwareStrobe => elapsed != run.from,
        }
    }

    /// The first tick after `after` at which OUT rises.
    pub(super) fn next_rise(&self, after: u64) -> Option<u64> {
        let run = self.run_at(after)?;
        let since = run.since?;
        let once = |elapsed: u64| {
            let at = since.saturating_add(elapsed.saturating_sub(run.counted));
            (at > after && elapsed > run.counted).then_some(at)
        };
        match self.mode {
            Mode::TerminalCount | Mode::OneShot => once(run.from),
            Mode::SoftwareStrobe | Mode::HardwareStrobe => once(run.from + 1),
            // Both rise where a period ends. A count that waits to take over does so at the same tick.
            Mode::RateGenerator | Mode::SquareWave => {
                let periods = run.elapsed(after) / run.from + 1;
                Some(since.saturating_add(periods.saturating_mul(run.from).saturating_sub(run.counted)))
            }
        }
    }
}

/// Number that four BCD digits stand for; digits above nine carry, as a counter of decades would count them.
fn from_bcd(bcd: u16) -> u64 {
    (0..4).rev().fold(0, |number, digit| number * 10 + u64::from(bcd >> (4 * digit) & 0xf)) % 10_000
}

/// The low four decimal digits in BCD.
fn to_bcd(number: u64) -> u16 {
    (0..4).fold((0, number), |(bcd, left), digit| (bcd | ((left % 10) as u16) << (4 * digit), left / 10)).0
}
