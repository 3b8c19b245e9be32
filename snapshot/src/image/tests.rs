//! Images from their writing to their use, and all that can go wrong on the way.

use std::fs::{self, File};
use std::io::Read;

use super::example::{Host, PLAN, STATE, memory};
use super::*;

fn content(file: impl Into<File>) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.into().read_to_end(&mut bytes).expect("read");
    bytes
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
    let disk = host.path("disk");
    let file = File::create_new(&disk).expect("a file");
    image.copy_disk(PartName::Disk(0), &file).expect("copied");
    assert!(fs::read(disk).expect("read") == vec![7; 100_000]);
}
