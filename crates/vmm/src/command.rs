//! The `transvisor` command: arguments in, exit status out. Guest output goes to standard output, everything else to
//! standard error.

use std::{
    ffi::OsString,
    io::{IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
};

use clap::Parser;
use guest_images::{CacheDir, Guest};
use runtime::{EngineMode, persistent::Translations};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::{
    arguments::{
        Arguments, Command, FetchArguments, RunArguments, SerialArgument, TranslationCacheArgument,
        rewrite_qemu_options,
    },
    board::{MachineError, serial_output},
    compare_command,
    config::Config,
    console::RawTerminal,
    doctor, machine, profile_command,
    progress::TerminalProgress,
    wake::{Input, Mailbox},
};

/// Status for errors of the host or the configuration.
const BAD_INPUT: u8 = 2;

/// Runs the command; the first argument is the program's name.
pub fn main(arguments: Vec<OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(rewrite_qemu_options(arguments)) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are no errors; clap knows.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { BAD_INPUT } else { 0 });
        }
    };
    let result = match arguments.command {
        Command::Run(arguments) => run(&arguments),
        Command::List => list(),
        Command::Fetch(arguments) => fetch(&arguments),
        Command::Profile(command) => profile_command::profile(&command),
        Command::Top(arguments) => profile_command::top(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Compare(arguments) => compare_command::run(&arguments),
    };
    match result {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            let mut text = error.to_string();
            // Most of our errors already say what their cause said.
            for cause in error.chain().skip(1).map(ToString::to_string) {
                if !text.contains(&cause) {
                    text = format!("{text}: {cause}");
                }
            }
            eprintln!("transvisor: {text}");
            ExitCode::from(BAD_INPUT)
        }
    }
}

fn list() -> anyhow::Result<u8> {
    let mut stdout = std::io::stdout().lock();
    for recipe in &guest_images::RECIPES {
        writeln!(stdout, "{:<14} {}", recipe.name, recipe.summary)?;
    }
    Ok(0)
}

fn fetch(arguments: &FetchArguments) -> anyhow::Result<u8> {
    let guest = prepare(&arguments.guest, arguments.cache_dir.clone(), arguments.quiet)?;
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "kernel     {}", guest.kernel.display())?;
    writeln!(stdout, "initramfs  {}", guest.initramfs.display())?;
    writeln!(stdout, "cmdline    {}", guest.cmdline)?;
    Ok(0)
}

fn prepare(name: &str, cache: Option<PathBuf>, quiet: bool) -> anyhow::Result<Guest> {
    let cache = cache.map_or_else(CacheDir::from_environment, |path| Ok(CacheDir::new(path)))?;
    Ok(guest_images::fetch(name, &cache, &mut TerminalProgress::new(quiet))?)
}

fn run(arguments: &RunArguments) -> anyhow::Result<u8> {
    let guest = match &arguments.guest {
        Some(name) => Some(prepare(name, arguments.cache_dir.clone(), arguments.quiet)?),
        None => None,
    };
    let mut config = Config::resolve(arguments, guest.as_ref()).map_err(anyhow::Error::msg)?;
    if let Some(profile) = profile_command::prepare(arguments)? {
        config = config.profiled(profile);
    }
    if let Some(why) = &config.chosen {
        // Also with --quiet: which engine it is decides what the run means.
        eprintln!("transvisor: {why}");
    }
    config.translations = open_translations(arguments, &config);
    let interactive = config.serial == SerialArgument::Stdio;
    let mailbox = Mailbox::new();
    let signals = watch_signals(&mailbox)?;

    let mut terminal = None;
    let mut started = |booted: &boot::Booted| {
        if !arguments.quiet {
            announce(&config, booted, interactive);
        }
        if interactive && terminal.is_none() {
            terminal = RawTerminal::enter();
        }
    };
    let input = if interactive { Input::Stdin } else { Input::None };
    let result = machine::run(&config, &mut || serial_output(&config.serial), &mailbox, input, &mut started);
    drop(terminal);
    signals.close();

    let (outcome, report) = match result {
        Ok(ended) => ended,
        // Whoever read our output has gone: nothing to say and nobody to say it to.
        Err(MachineError::Console(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            return Ok(BAD_INPUT);
        }
        Err(error) => return Err(error.into()),
    };
    if let Some(error) = report.translations.as_ref().and_then(|translations| translations.error.as_ref()) {
        eprintln!("transvisor: translation cache: {error}");
    }
    if arguments.json {
        let ended = serde_json::json!({ "outcome": outcome.to_string(), "status": outcome.exit_status(), "report": report });
        eprintln!("{ended}");
    } else {
        if !arguments.quiet || outcome.exit_status() != 0 {
            if std::io::stdout().is_terminal() {
                eprintln!();
            }
            eprintln!("transvisor: {outcome}");
        }
        if arguments.stats {
            eprintln!("{report}");
        }
        if let Some(profile) = &config.profile
            && !arguments.quiet
        {
            let path = profile.directory.path().join(profiler::store::REPORT);
            eprintln!("transvisor: the profile is in {}", path.display());
        }
    }
    Ok(outcome.exit_status())
}

/// The translation cache, if there is to be one. What can't be used is said in a line, and the run goes on.
fn open_translations(arguments: &RunArguments, config: &Config) -> Option<Arc<Translations>> {
    let has_use = config.kvm.is_none()
        && config.engine.mode == EngineMode::Translate
        && config.engine.template_threshold != u32::MAX
        && config.profile.is_none();
    if !has_use {
        return None;
    }
    let path = match &arguments.translation_cache {
        TranslationCacheArgument::Off => return None,
        TranslationCacheArgument::File(path) => path.clone(),
        TranslationCacheArgument::Auto => {
            let cache = arguments.cache_dir.clone().map(CacheDir::new);
            // Without a home, there is none.
            let cache = cache.or_else(|| CacheDir::from_environment().ok())?;
            let directory = cache.path().join("translations");
            Translations::bound(&directory);
            let kernel = config.kernel.canonicalize().unwrap_or_else(|_| config.kernel.clone());
            Translations::path_in(&directory, &kernel.to_string_lossy())
        }
    };
    let (translations, refusal) = Translations::open(&path);
    if let Some(refusal) = refusal {
        eprintln!("transvisor: translation cache {} is not used: {refusal}", path.display());
    }
    translations.map(Arc::new)
}

fn announce(config: &Config, booted: &boot::Booted, interactive: bool) {
    let version = booted.version.as_deref().and_then(|v| v.split(' ').next()).unwrap_or("kernel");
    eprintln!("transvisor: booting {version} ({}), {} of memory", config.kernel.display(), config.memory);
    if interactive && std::io::stdin().is_terminal() {
        eprintln!("transvisor: this terminal is the serial console; Ctrl-A X quits, Ctrl-A H helps");
    }
}

/// Signals that ask a process to end become mail, so that the terminal is restored and the console flushed.
fn watch_signals(mailbox: &Arc<Mailbox>) -> anyhow::Result<signal_hook::iterator::Handle> {
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    let handle = signals.handle();
    let mailbox = Arc::clone(mailbox);
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            mailbox.leave(|mail| mail.signal = Some(signal));
        }
    })?;
    Ok(handle)
}
