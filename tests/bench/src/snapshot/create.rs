//! How long a snapshot pauses its machine, and how long it takes until it is on disk.

use std::fs::File;
use std::path::Path;
use std::time::Instant;

use cachot_vmm::protocol::{FileRole, SNAPSHOT_FILES};

use super::machine::{console, kvm, memfd, read_until};
use super::{Host, Machine, Monitor};
use crate::scan::{Random, guest_page, values};
use crate::stats::Samples;

/// MiB of RAM.
const MEMORY_MIB: u64 = 1024;

/// MiB of it that hold something: prose, pointers, random bytes, and a quarter of zero pages.
const RESIDENT_MIB: usize = 512;

/// Values that are searched for.
const VALUES: usize = 64;

/// Prints how long machines with and without secrets pause for a snapshot, and how long it takes until it is on disk.
/// Nothing is searched for where nothing was delivered, so the difference is what the search costs.
pub fn bench(host: &Host, folder: &Path, runs: usize) -> anyhow::Result<()> {
    let mut random = Random(0x0123_4567_89ab_cdef);
    let values = values(VALUES, 0, &mut random);
    let content = content(&mut random);
    let with = Source::start(host, &values, &content)?;
    let without = Source::start(host, &[], &content)?;
    drop(content);
    let (mut secret, mut plain) = (Times::default(), Times::default());
    // The first turn warms caches and is not counted.
    for turn in 0..=runs {
        for (source, times) in [(&with, &mut secret), (&without, &mut plain)] {
            let taken = source.snapshot(folder)?;
            if turn > 0 {
                times.push(&taken);
            }
        }
    }
    println!(
        "snapshot of {MEMORY_MIB} MiB, {RESIDENT_MIB} MiB of them resident, into {}, in ms:",
        folder.display()
    );
    println!("  {VALUES} values: pause {}", secret.pause);
    println!("  {VALUES} values: until verified {}", secret.verified);
    println!("  {VALUES} values: until on disk {}", secret.total);
    println!("  nothing to search for: pause {}", plain.pause);
    println!("  nothing to search for: until on disk {}", plain.total);
    println!(
        "  pause with the search / without {}",
        secret.pause.ratios(&plain.pause)
    );
    Ok(())
}

/// What a guest's memory may be full of.
fn content(random: &mut Random) -> Vec<u8> {
    let len = RESIDENT_MIB << 20;
    let mut text = Vec::with_capacity(len);
    while text.len() < len {
        guest_page(&mut text, random);
    }
    text
}

/// How long one snapshot took.
struct Taken {
    pause: f64,
    verified: f64,
    total: f64,
}

#[derive(Default)]
struct Times {
    pause: Samples,
    verified: Samples,
    total: Samples,
}

impl Times {
    fn push(&mut self, taken: &Taken) {
        self.pause.0.push(taken.pause);
        self.verified.0.push(taken.verified);
        self.total.0.push(taken.total);
    }
}

/// A machine that snapshots are taken of.
struct Source {
    monitor: Monitor,
}

impl Source {
    /// Boots a machine whose initial RAM disk is `content`, which makes it resident.
    fn start(host: &Host, values: &[Vec<u8>], content: &[u8]) -> anyhow::Result<Self> {
        let machine = Machine {
            memory_mib: MEMORY_MIB,
            // Its guest sleeps: the cores are for what is measured.
            cmdline: "tiny=read hold=2",
            values,
        };
        let monitor = Monitor::start(host)?;
        let (mut output, console) = console()?;
        let files = [
            kvm()?,
            console,
            (FileRole::Kernel, File::open(&host.tiny)?.into()),
            (FileRole::Initrd, memfd(content)?.into()),
        ];
        monitor.run(&machine, &files)?;
        read_until(&mut output, "holding\n")?;
        Ok(Self { monitor })
    }

    /// Takes a snapshot into new files, and waits until they are on disk.
    fn snapshot(&self, folder: &Path) -> anyhow::Result<Taken> {
        let folder = tempfile::tempdir_in(folder)?;
        let start = Instant::now();
        let mut files = Vec::new();
        for name in SNAPSHOT_FILES {
            let path = folder.path().join(name);
            files.push(
                File::options()
                    .read(true)
                    .write(true)
                    .create_new(true)
                    .open(path)?,
            );
        }
        let report = self.monitor.snapshot(&files)?;
        let verified = start.elapsed();
        for file in &files {
            file.sync_all()?;
        }
        File::open(folder.path())?.sync_all()?;
        let total = start.elapsed();
        #[expect(clippy::cast_precision_loss, reason = "microseconds of a pause")]
        let pause = report.paused_us as f64 / 1e3;
        Ok(Taken {
            pause,
            verified: verified.as_secs_f64() * 1e3,
            total: total.as_secs_f64() * 1e3,
        })
    }
}
