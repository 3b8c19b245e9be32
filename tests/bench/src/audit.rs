//! Appends to an audit log: records a second, written as a VM without a log of its own waits for it, and on the disk
//! (`fdatasync`) as one with `--secrets-audit` does.
//!
//! Beside it, in turns, what the disk alone does: a write of the length of a batch of one, and `fdatasync`.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use cachot_custody::audit::{
    Access, Decision, Entry, Log, Record, Signer, Trust, Verifier, verify,
};
use cachot_snapshot::image::{HostKey, TrustedKeys};

use crate::stats::Samples;

/// Records of a large batch: a VM with many secrets.
const BATCH: usize = 64;

/// Writers at the same time, as children of a fork are.
const WRITERS: usize = 8;

const CONTEXT: &str = "cachot audit checkpoint v1";

struct Key(HostKey, TrustedKeys);

impl Signer for Key {
    fn key(&self) -> [u8; 32] {
        self.0.public().to_bytes()
    }

    fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign_for(CONTEXT, message)
    }
}

impl Verifier for Key {
    fn check(&self, key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> Trust {
        match self.1.has_signed(key, CONTEXT, message, signature) {
            true => Trust::Good,
            false => Trust::WrongSignature,
        }
    }
}

fn batch(length: usize) -> anyhow::Result<Vec<Entry>> {
    let record = |number: usize| -> anyhow::Result<Entry> {
        Ok(Entry::Record(Record {
            vm: Some("web".into()),
            user: "1000".into(),
            name: Some(format!("SECRET_{number}").parse()?),
            scope: Some("user:1000".into()),
            version: Some(1),
            source: Some("store".into()),
            access: Access::Materialize,
            decision: Decision::Allow,
            reason: None,
            lineage: Vec::new(),
        }))
    };
    (0..length).map(record).collect()
}

/// Measures in a folder below this one.
///
/// # Errors
/// If something fails, or the log that was written does not verify.
pub fn bench(folder: &Path, runs: usize) -> anyhow::Result<()> {
    let folder = tempfile::tempdir_in(folder).context("no folder to measure in")?;
    let state = folder.path().join("state");
    let key = Key(HostKey::load_or_create(&state)?, TrustedKeys::load(&state)?);
    let log = Log::new(&folder.path().join("audit"), None, &key);
    let (one, many) = (batch(1)?, batch(BATCH)?);
    let mut plain = File::create(folder.path().join("plain"))?;
    let head = log.append(&one)?;
    log.close(&head)?;

    let [mut disk, mut written, mut single, mut large, mut closed] =
        [const { Samples(Vec::new()) }; 5];
    for _ in 0..runs {
        let begun = Instant::now();
        plain.write_all(&[b'x'; 700])?;
        plain.sync_data()?;
        disk.push(begun.elapsed());

        let begun = Instant::now();
        let head = log.append(&one)?;
        written.push(begun.elapsed());
        head.sync()?;

        let begun = Instant::now();
        log.append(&one)?.sync()?;
        single.push(begun.elapsed());

        let begun = Instant::now();
        log.append(&many)?.sync()?;
        large.push(begun.elapsed());

        let begun = Instant::now();
        let head = log.append(&[])?;
        log.close(&head)?;
        closed.push(begun.elapsed());
    }

    println!("audit log, {runs} turns");
    println!("  the disk alone, a write and fdatasync [ms]   {disk}");
    row("a batch of 1, written", &written, 1);
    row("a batch of 1, and fdatasync", &single, 1);
    row("a batch of 64, and fdatasync", &large, BATCH);
    println!("  an empty batch, and its head published [ms]  {closed}");
    println!(
        "  a batch of 1, and fdatasync / the disk alone {}",
        single.ratios(&disk)
    );
    println!(
        "  a batch of 1, written / and fdatasync        {}",
        written.ratios(&single)
    );

    let begun = Instant::now();
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let writers: Vec<_> = (0..WRITERS)
            .map(|_| scope.spawn(|| (0..runs).try_for_each(|_| log.append(&one)?.sync())))
            .collect();
        for writer in writers {
            writer.join().expect("no panic")?;
        }
        Ok(())
    })?;
    let total = WRITERS * runs;
    println!(
        "  {WRITERS} writers at the same time, fdatasync each   {:.0} records/s",
        rate(total, begun.elapsed())
    );

    let begun = Instant::now();
    let report = verify(&folder.path().join("audit"), &key, None)?;
    ensure!(
        report.is_good(),
        "the log is not what was written: {report:?}"
    );
    println!(
        "  verify                                       {:.0} lines/s",
        rate(usize::try_from(report.lines)?, begun.elapsed())
    );
    Ok(())
}

fn row(what: &str, samples: &Samples, records: usize) {
    let median = Duration::from_secs_f64(samples.median() / 1e3);
    println!(
        "  {what:<43}  {:.0} records/s; a batch [ms] {samples}",
        rate(records, median)
    );
}

fn rate(count: usize, time: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "some thousands")]
    let count = count as f64;
    count / time.as_secs_f64()
}
