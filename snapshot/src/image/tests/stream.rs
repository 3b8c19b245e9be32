//! Parts that are read from the beginning to the end.

use std::ops::Range;

use super::encrypted;
use super::*;
use crate::image::example::MEMORY_LEN;

/// The bytes of RAM in a range, put together from what is streamed; and how many were.
fn streamed(image: &Image, range: Range<u64>) -> (Vec<u8>, u64) {
    let mut bytes = vec![0; usize::try_from(range.end - range.start).expect("small")];
    let (mut next, mut count) = (range.start, 0);
    image
        .stream(PartName::Memory, range.clone(), &mut |at, piece| {
            assert!(at >= next && !piece.is_empty(), "{at} after {next}");
            next = at + piece.len() as u64;
            count += piece.len() as u64;
            let from = usize::try_from(at - range.start).expect("small");
            bytes[from..from + piece.len()].copy_from_slice(piece);
            Ok(())
        })
        .expect("streamed");
    (bytes, count)
}

/// Ranges within chunks, over their borders, over holes, and of nothing.
fn check_ranges(image: &Image) {
    let chunk = CHUNK_LEN as u64;
    let places = [
        0,
        11,
        chunk,
        2 * chunk + 4999,
        2 * chunk + 5001,
        3 * chunk,
        MEMORY_LEN,
    ];
    for start in places {
        for end in places.into_iter().filter(|end| *end >= start) {
            let (bytes, _) = streamed(image, start..end);
            let range = [start, end].map(|place| usize::try_from(place).expect("small"));
            assert!(bytes == memory()[range[0]..range[1]], "{start}..{end}");
        }
    }
}

#[test]
fn test_stream_gives_any_range_without_its_holes() {
    let host = Host::new();
    let image = Image::open(&host.publish("image"), &host.trusted()).expect("opened");
    check_ranges(&image);
    let (_, count) = streamed(&image, 0..MEMORY_LEN);
    assert_eq!(count, MEMORY_LEN - CHUNK_LEN as u64);
}

#[test]
fn test_stream_of_an_encrypted_part_is_its_plain_text() {
    let host = Host::new();
    let (recipient, identities) = encrypted::key_pair(&host, "key");
    let path = encrypted::publish(&host, vec![recipient]);
    let mut image = Image::open(&path, &host.trusted()).expect("opened");
    let refused = image.stream(PartName::Memory, 0..MEMORY_LEN, &mut |_, _| Ok(()));
    assert!(
        matches!(refused, Err(ImageError::Encrypted(_))),
        "{refused:?}"
    );
    image.set_identities(identities);
    check_ranges(&image);
}

#[test]
fn test_stream_stops_before_a_changed_chunk() {
    let host = Host::new();
    let path = host.publish("image");
    let image = Image::open(&path, &host.trusted()).expect("opened");
    let stored = File::options()
        .write(true)
        .open(path.join("memory"))
        .expect("open");
    stored
        .write_all_at(b"x", 2 * CHUNK_LEN as u64)
        .expect("written");
    let mut read = 0;
    let refused = image.stream(PartName::Memory, 0..MEMORY_LEN, &mut |_, bytes| {
        read += bytes.len();
        Ok(())
    });
    assert!(
        matches!(refused, Err(ImageError::Damaged { chunk: 2, .. })),
        "{refused:?}"
    );
    assert_eq!(read, CHUNK_LEN);
}
