//! What a program that uses a secret sees when there is news of it: a line at the start and after each event.
//!
//! Values are shown as lengths and digests, so that nothing has to be masked in the output.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::Path;

use anyhow::Context;
use rustix::event::PollFlags;
use rustix::io::Errno;

use crate::device::Device;
use crate::read::Mapping;

/// Length and FNV-1a hash.
pub fn digest(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{}:{hash:016x}", bytes.len())
}

/// Opens `path` and shows what this file has, and what the name finds, until the device is gone.
pub fn watch(path: &Path) -> anyhow::Result<()> {
    let mut file = open(path)?;
    on_news(|epoch| {
        let again = File::open(path).and_then(|mut file| content(&mut file));
        println!(
            "epoch {epoch} file {} name {}",
            show(content(&mut file)),
            show(again)
        );
    })
}

/// Maps `path` and shows the mapping's first page, without the zero bytes at its end, until the device is gone. A
/// mapping that is no more ends the process with SIGBUS.
pub fn watch_mapping(path: &Path) -> anyhow::Result<()> {
    const PAGE: usize = 4096;
    let mapping = Mapping::new(&open(path)?, PAGE)?;
    on_news(|epoch| {
        let mut bytes: Vec<u8> = (0..PAGE).map(|at| mapping.byte(at)).collect();
        let end = bytes.iter().rposition(|byte| *byte != 0);
        bytes.truncate(end.map_or(0, |last| last + 1));
        println!("epoch {epoch} mapping {}", digest(&bytes));
    })
}

fn on_news(mut show: impl FnMut(u64)) -> anyhow::Result<()> {
    let device = Device::open()?;
    loop {
        show(device.epoch().unwrap_or(0));
        if device.poll(None)?.contains(PollFlags::HUP) {
            show(0);
            return Ok(());
        }
    }
}

fn open(path: &Path) -> anyhow::Result<File> {
    File::open(path).with_context(|| format!("cannot open {}", path.display()))
}

fn content(file: &mut File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn show(content: io::Result<Vec<u8>>) -> String {
    match content {
        Ok(bytes) => digest(&bytes),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::STALE) => "ESTALE".into(),
            Some(Errno::KEYREVOKED) => "EKEYREVOKED".into(),
            Some(Errno::NODEV) => "ENODEV".into(),
            Some(Errno::NOENT) => "ENOENT".into(),
            Some(Errno::IO) => "EIO".into(),
            _ => error.to_string(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::digest;

    #[test]
    fn test_digest_is_that_of_fnv_1a() {
        // Test vectors of the algorithm's authors.
        assert_eq!(digest(b""), "0:cbf29ce484222325");
        assert_eq!(digest(b"foobar"), "6:85944171f73967e8");
    }
}
