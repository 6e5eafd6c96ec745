//! `--jitdump`, read as the specification says and compared with the profile beside it. That `perf` reads it too is tested with
//! the command (`crates/vmm/tests/profile.rs`).

use std::{fs, path::Path, sync::Arc, time::Duration};

use profiler::{
    model::Profile,
    store::{self, Directory},
    symbols::Symbols,
};
use runtime::EngineConfig;
use transvisor::{
    config::Config,
    harness::Machine,
    profile::{ForPerf, ProfileConfig},
    size::Size,
};
use transvisor_tests::kernel;

/// Bytes being read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count);
        self.0 = rest;
        taken
    }

    fn word(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }

    fn long(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().unwrap())
    }

    fn text(&mut self) -> String {
        let length = self.0.iter().position(|&byte| byte == 0).unwrap();
        let text = String::from_utf8(self.take(length).to_vec()).unwrap();
        self.take(1);
        text
    }
}

fn run(folder: &Path, engine: EngineConfig) -> (Profile, Vec<u8>) {
    let image = kernel::compile(&folder.join("kernel.elf"), 1);
    let directory = Directory::create(&folder.join("profile")).unwrap();
    let symbols = Some(Arc::new(Symbols::read(&image).unwrap()));
    let config = Config { memory: Size(64 << 20), engine, ..Config::new(image) };
    let config = config.profiled(ProfileConfig { directory, symbols, for_perf: ForPerf::JitDump });
    let (ended, console) = Machine::launch(config).wait_end(Duration::from_secs(60));
    ended.unwrap_or_else(|error| panic!("{error}\n{console}"));
    let dump = folder.join("profile").join(format!("jit-{}.dump", std::process::id()));
    (store::load(&folder.join("profile")).unwrap(), fs::read(dump).unwrap())
}

#[test]
fn a_dump_has_every_piece_of_code() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("jitdump-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    // Code is thrown away all the time.
    let engine = EngineConfig {
        template_threshold: 2,
        threshold: 6,
        hot_threshold: 4,
        longest_block: 1,
        stress: Some(7),
        ..EngineConfig::default()
    };
    let (profile, dump) = run(&folder, engine);
    let mut reader = Reader(&dump);
    let head: Vec<u32> = (0..6).map(|_| reader.word()).collect();
    assert_eq!(head, [0x4a69_5444, 1, 40, 62, 0, std::process::id()]);
    let (mut last, flags) = (reader.long(), reader.long());
    assert_eq!(flags, 0);

    let (mut number, mut lines, mut closed) = (0, Vec::new(), false);
    while !reader.0.is_empty() {
        assert!(!closed, "nothing behind the end");
        let (kind, size, at) = (reader.word(), reader.word(), reader.long());
        assert!(at >= last, "in the order of time");
        last = at;
        let mut body = Reader(reader.take(size as usize - 16));
        match kind {
            0 => {
                let code = &profile.code[number];
                assert_eq!([body.word(), body.word()], [std::process::id(); 2]);
                let fields: Vec<u64> = (0..4).map(|_| body.long()).collect();
                let (address, bytes) = (code.host_address, u64::from(code.installed_bytes));
                assert_eq!(fields, [address, address, bytes, number as u64]);
                let head = profile.blocks[code.members[0].block.unwrap()].symbol.clone().unwrap();
                assert!(body.text().ends_with(&format!(":{head}")), "{head}");
                assert_eq!(body.0.len() as u64, bytes);
                let within = |&(at, _): &(u64, String)| at >= address && at < address + bytes;
                assert!(!lines.is_empty() && lines.iter().all(within), "{lines:?}");
                if head == "add" {
                    let all: Vec<&str> = lines.iter().map(|(_, line)| line.as_str()).collect();
                    assert!(all.contains(&kernel::line("add").as_str()), "{all:?}");
                }
                lines.clear();
                number += 1;
            }
            2 => {
                let (_, count) = (body.long(), body.long());
                let entry = |body: &mut Reader<'_>| {
                    let (at, line, discriminator) = (body.long(), body.word(), body.word());
                    assert_eq!(discriminator, 0);
                    (at, format!("{}:{line}", body.text()))
                };
                lines = (0..count).map(|_| entry(&mut body)).collect();
                assert!(lines.is_sorted() && body.0.is_empty());
            }
            3 => closed = true,
            other => panic!("a record of kind {other}"),
        }
    }
    assert!(closed && number == profile.code.len() && number > 20, "{number} of {}", profile.code.len());
    fs::remove_dir_all(folder).unwrap();
}
