//! Images from their writing to their use, and all that can go wrong on the way.

mod damage;
mod encrypted;
mod life;
mod manifest;
mod meaning;

use std::fs::{self, File};
use std::io::Read;
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
