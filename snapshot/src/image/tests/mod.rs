//! Images from their writing to their use, and all that can go wrong on the way.

mod damage;
mod encrypted;
mod life;
mod manifest;
mod meaning;
mod stream;

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::example::{Host, PLAN, STATE, memory};
use super::*;

fn content(file: impl Into<File>) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.into().read_to_end(&mut bytes).expect("read");
    bytes
}

/// The files of an image.
fn files(image: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(image).expect("a folder");
    let mut files: Vec<_> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    files
}

/// An error and its causes, as the command line prints them.
fn said(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let said: Vec<_> = causes.map(ToString::to_string).collect();
    said.join(": ")
}

/// Opens an image and reads all of it.
fn open_and_verify(path: &Path, host: &Host) -> Result<(), ImageError> {
    Image::open(path, &host.trusted())?.verify_all()
}

#[test]
fn test_published_image_gives_back_what_was_written() {
    let host = Host::new();
    let path = host.publish("image");

    let image = Image::open(&path, &host.trusted()).expect("opened");

    image.verify_all().expect("whole");
    assert!(content(image.load_memory().expect("loaded")) == memory());
    assert_eq!(image.read(PartName::State).expect("read"), STATE);
    assert_eq!(image.read(PartName::Plan).expect("read"), PLAN);
    assert_eq!(
        image.read(PartName::Needles).expect("read").len(),
        2 * DIGEST_LEN
    );
    let disk = host.path("disk");
    let file = File::create_new(&disk).expect("a file");
    image.copy_disk(PartName::Disk(0), &file).expect("copied");
    assert!(fs::read(disk).expect("read") == vec![7; 100_000]);
    let manifest = image.manifest();
    let contents = example::contents();
    assert_eq!(manifest.machine, contents.machine);
    assert_eq!(manifest.guest, contents.guest);
    assert_eq!(manifest.secrets, contents.secrets);
    assert_eq!(manifest.receipt, contents.receipt);
    assert_eq!(manifest.descent(), [manifest.id]);
}

/// Publishes an image with this RAM and nothing else.
fn publish_memory(host: &Host, memory: &[u8]) -> PathBuf {
    let path = host.path("image");
    let writer = ImageWriter::create(&path, vec![]).expect("begun");
    let file = writer.part(PartName::Memory).expect("a part");
    file.write_all_at(memory, 0).expect("written");
    let mut contents = example::contents();
    contents.guest.disks.clear();
    contents.receipt.needles = 0;
    contents.machine.memory.truncate(1);
    contents.machine.memory[0].length = memory.len() as u64;
    writer.publish(contents, &host.key).expect("published");
    path
}

#[test]
fn test_parts_that_several_threads_read_are_whole_or_refused() {
    let host = Host::new();
    let byte = |at: usize| (at / 4096).to_le_bytes()[0] ^ at.to_le_bytes()[0];
    let memory: Vec<u8> = (0..130 * CHUNK_LEN + 8192).map(byte).collect();
    let path = publish_memory(&host, &memory);
    let image = Image::open(&path, &host.trusted()).expect("opened");
    image.verify_all().expect("whole");
    assert!(content(image.load_memory().expect("loaded")) == memory);

    let stored = File::options()
        .write(true)
        .open(path.join("memory"))
        .expect("open");
    for chunk in [0, 77, 130] {
        let at = chunk * CHUNK_LEN + 1;
        let changed = [memory[at] ^ 0x80];
        stored.write_all_at(&changed, at as u64).expect("written");
        let refused = image.load_memory().map(|_| ());
        assert!(
            matches!(refused, Err(ImageError::Damaged { chunk: found, .. }) if found == chunk as u64),
            "{chunk}: {refused:?}"
        );
        stored
            .write_all_at(&memory[at..][..1], at as u64)
            .expect("written");
    }
    image.verify_all().expect("as it was");
}

#[test]
fn test_empty_parts_are_parts() {
    let host = Host::new();
    let path = publish_memory(&host, &[1; 4096]);
    let image = Image::open(&path, &host.trusted()).expect("opened");
    image.verify_all().expect("whole");
    for name in [PartName::State, PartName::Plan, PartName::Needles] {
        assert_eq!(image.read(name).expect("read"), b"");
    }
    let refused = image.copy_disk(PartName::Disk(0), &tempfile::tempfile().expect("a file"));
    assert!(
        matches!(refused, Err(ImageError::NoPart { .. })),
        "{refused:?}"
    );
}
