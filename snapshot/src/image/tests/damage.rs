//! Images that are not what was signed.

use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;
use crate::image::key::SIGNATURE_FILE_LEN;

/// Changes one bit of a file.
fn flip(path: &Path, bit: u64) {
    let file = File::options()
        .read(true)
        .write(true)
        .open(path)
        .expect("open");
    let mut byte = [0];
    file.read_exact_at(&mut byte, bit / 8).expect("read");
    byte[0] ^= 1 << (bit % 8);
    file.write_all_at(&byte, bit / 8).expect("written");
}

#[test]
fn test_every_changed_bit_of_the_manifest_is_refused() {
    let host = Host::new();
    let path = host.publish("image");
    let manifest = fs::read(path.join(MANIFEST_FILE)).expect("read");
    let signature = fs::read(path.join(SIGNATURE_FILE)).expect("read");
    let trusted = host.trusted();
    trusted
        .check(&path, &manifest, &signature)
        .expect("genuine");
    let mut changed = manifest;
    for bit in 0..changed.len() * 8 {
        changed[bit / 8] ^= 1 << (bit % 8);
        let refused = trusted.check(&path, &changed, &signature);
        assert!(
            matches!(refused, Err(ImageError::Signature(_))),
            "bit {bit}: {refused:?}"
        );
        changed[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn test_every_changed_bit_of_signature_and_digests_is_refused() {
    let host = Host::new();
    let path = host.publish("image");
    for name in [SIGNATURE_FILE, DIGESTS_FILE] {
        let file = path.join(name);
        for bit in 0..fs::metadata(&file).expect("there").len() * 8 {
            flip(&file, bit);
            let refused = Image::open(&path, &host.trusted());
            assert!(refused.is_err(), "bit {bit} of {name}");
            flip(&file, bit);
        }
    }
    open_and_verify(&path, &host).expect("as it was");
}

#[test]
fn test_changed_bits_of_parts_are_found_with_part_and_chunk() {
    let host = Host::new();
    let path = host.publish("image");
    let image = Image::open(&path, &host.trusted()).expect("opened");
    let names: Vec<_> = image
        .manifest()
        .parts
        .iter()
        .map(|part| part.name)
        .collect();
    assert_eq!(names.len(), 5);
    for name in names {
        let file = path.join(name.to_string());
        let bits = fs::metadata(&file).expect("there").len() * 8;
        // In every page or, in small parts, in every byte; holes become data by it.
        let stride = if bits > 1 << 20 {
            4096 * 8 + 1
        } else {
            bits / 64 + 9
        };
        for bit in (0..bits)
            .step_by(usize::try_from(stride).expect("small"))
            .chain([bits - 1])
        {
            flip(&file, bit);
            // The image was opened before: what was changed after the check is found all the same.
            let refused = match name {
                PartName::Memory => image.load_memory().map(|_| ()),
                PartName::Disk(_) => {
                    let copy = tempfile::tempfile().expect("a file");
                    image.copy_disk(name, &copy)
                }
                _ => image.read(name).map(|_| ()),
            };
            let at = bit / 8 / CHUNK_LEN as u64;
            assert!(
                matches!(&refused, Err(ImageError::Damaged { part, chunk, .. })
                    if *part == name && *chunk == at),
                "bit {bit} of {name}: {refused:?}"
            );
            flip(&file, bit);
        }
    }
    image.verify_all().expect("as it was");
}

#[test]
fn test_a_message_names_part_and_chunk() {
    let host = Host::new();
    let path = host.publish("image");
    flip(&path.join("memory"), 8 * 2 * CHUNK_LEN as u64);
    let refused = open_and_verify(&path, &host)
        .expect_err("refused")
        .to_string();
    assert!(refused.starts_with("memory of the image"), "{refused}");
    assert!(refused.contains("chunk 2 (from byte 524288)"), "{refused}");
}

#[test]
fn test_truncated_and_extended_files_are_refused() {
    let host = Host::new();
    let path = host.publish("image");
    for file in files(&path) {
        let genuine = fs::read(&file).expect("read");
        let len = genuine.len();
        for cut in [0, 1, len / 2, len - 1] {
            fs::write(&file, &genuine[..cut]).expect("written");
            let refused = Image::open(&path, &host.trusted());
            assert!(refused.is_err(), "{file:?} of {cut} bytes");
        }
        for more in [&b"\0"[..], b"\n", &[0; 4096]] {
            fs::write(&file, [&genuine, more].concat()).expect("written");
            let refused = Image::open(&path, &host.trusted());
            assert!(refused.is_err(), "{file:?} with {} bytes more", more.len());
        }
        fs::write(&file, &genuine).expect("written");
    }
    open_and_verify(&path, &host).expect("as it was");
}

#[test]
fn test_part_truncated_after_the_image_was_opened_is_refused() {
    let host = Host::new();
    let path = host.publish("image");
    let image = Image::open(&path, &host.trusted()).expect("opened");
    let memory = File::options()
        .write(true)
        .open(path.join("memory"))
        .expect("open");
    memory.set_len(CHUNK_LEN as u64).expect("cut");
    let refused = image.load_memory();
    assert!(
        matches!(refused, Err(ImageError::Length { part: PartName::Memory, found, .. }) if found == CHUNK_LEN as u64),
        "{refused:?}"
    );
}

#[test]
fn test_hole_where_data_was_signed_is_refused() {
    let host = Host::new();
    let path = host.publish("image");
    let memory = File::options()
        .write(true)
        .open(path.join("memory"))
        .expect("open");
    memory.set_len(0).expect("cut");
    memory.set_len(example::MEMORY_LEN).expect("extended");
    let refused = open_and_verify(&path, &host);
    assert!(
        matches!(
            refused,
            Err(ImageError::Damaged {
                part: PartName::Memory,
                chunk: 0,
                ..
            })
        ),
        "{refused:?}"
    );
}

#[test]
fn test_files_of_another_image_of_the_same_host_are_refused() {
    let host = Host::new();
    let (first, second) = (host.publish("first"), host.path("second"));
    // The same length and shape, other content.
    let (writer, contents) = host.begin(&second);
    for name in [
        PartName::Memory,
        PartName::State,
        PartName::Plan,
        PartName::Disk(0),
    ] {
        writer
            .part(name)
            .expect("a part")
            .write_all_at(b"x", 1)
            .expect("written");
    }
    writer.digests().set_len(0).expect("emptied");
    writer.publish(contents, &host.key).expect("published");
    open_and_verify(&second, &host).expect("whole");

    for file in files(&first) {
        let genuine = fs::read(&file).expect("read");
        let other = second.join(file.file_name().expect("a name"));
        fs::copy(&other, &file).expect("swapped");
        assert!(open_and_verify(&first, &host).is_err(), "{file:?}");
        fs::write(&file, genuine).expect("written");
    }
    // Manifest and signature together are genuine, but not of these parts.
    for name in [MANIFEST_FILE, SIGNATURE_FILE] {
        fs::copy(second.join(name), first.join(name)).expect("swapped");
    }
    assert!(matches!(
        open_and_verify(&first, &host),
        Err(ImageError::Digests(_))
    ));
    fs::copy(second.join(DIGESTS_FILE), first.join(DIGESTS_FILE)).expect("swapped");
    let refused = open_and_verify(&first, &host);
    assert!(
        matches!(
            refused,
            Err(ImageError::Damaged {
                part: PartName::Memory,
                chunk: 0,
                ..
            })
        ),
        "{refused:?}"
    );
}

#[test]
fn test_equal_chunks_in_another_order_are_refused() {
    let host = Host::new();
    let path = host.publish("image");
    let memory = path.join("memory");
    let mut bytes = fs::read(&memory).expect("read");
    bytes.rotate_left(CHUNK_LEN);
    fs::write(&memory, bytes).expect("written");
    let refused = open_and_verify(&path, &host);
    assert!(
        matches!(
            refused,
            Err(ImageError::Damaged {
                part: PartName::Memory,
                ..
            })
        ),
        "{refused:?}"
    );
}

#[test]
fn test_missing_files_are_refused_by_name() {
    let host = Host::new();
    let path = host.publish("image");
    for file in files(&path) {
        let genuine = fs::read(&file).expect("read");
        fs::remove_file(&file).expect("removed");
        let refused = Image::open(&path, &host.trusted())
            .expect_err("refused")
            .to_string();
        let name = file.file_name().expect("a name").to_string_lossy();
        assert!(refused.ends_with(&format!("it has no {name}")), "{refused}");
        fs::write(&file, genuine).expect("written");
    }
}

#[test]
fn test_links_and_special_files_are_refused() {
    let host = Host::new();
    let path = host.publish("image");
    let aside = host.path("aside");
    let refused = |what: &str, file: &Path| {
        let refused = Image::open(&path, &host.trusted());
        assert!(
            matches!(refused, Err(ImageError::Refused { .. })),
            "{file:?}: {what}: {refused:?}"
        );
    };
    for file in files(&path) {
        fs::rename(&file, &aside).expect("moved");
        symlink(&aside, &file).expect("linked");
        refused("a link", &file);
        fs::remove_file(&file).expect("removed");
        let fifo = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &file, rustix::fs::FileType::Fifo, fifo, 0)
            .expect("a FIFO");
        refused("a FIFO", &file);
        fs::remove_file(&file).expect("removed");
        std::os::unix::net::UnixListener::bind(&file).expect("a socket");
        refused("a socket", &file);
        fs::remove_file(&file).expect("removed");
        fs::create_dir(&file).expect("made");
        refused("a folder", &file);
        fs::remove_dir(&file).expect("removed");
        fs::rename(&aside, &file).expect("moved");
        fs::set_permissions(&file, PermissionsExt::from_mode(0o620)).expect("opened up");
        refused("writable by a group", &file);
        fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).expect("closed");
    }
    open_and_verify(&path, &host).expect("as it was");

    let link = host.path("link");
    symlink(&path, &link).expect("linked");
    for link in [link.clone(), link.join("")] {
        let refused = Image::open(&link, &host.trusted());
        assert!(
            matches!(refused, Err(ImageError::Refused { .. })),
            "{link:?}: {refused:?}"
        );
    }
    fs::set_permissions(&path, PermissionsExt::from_mode(0o770)).expect("opened up");
    refused("a folder writable by a group", &path);
}

#[test]
fn test_nothing_is_parsed_before_the_signature_is_checked() {
    let host = Host::new();
    let path = host.publish("image");
    fs::write(path.join(MANIFEST_FILE), "not json").expect("written");
    assert!(matches!(
        Image::open(&path, &host.trusted()),
        Err(ImageError::Signature(_))
    ));
    fs::write(path.join(MANIFEST_FILE), vec![b' '; 2 * 1024 * 1024 + 1]).expect("written");
    assert!(matches!(
        Image::open(&path, &host.trusted()),
        Err(ImageError::Manifest { .. })
    ));
    fs::write(path.join(SIGNATURE_FILE), vec![0; SIGNATURE_FILE_LEN]).expect("written");
    fs::write(path.join(MANIFEST_FILE), "not json").expect("written");
    assert!(matches!(
        Image::open(&path, &host.trusted()),
        Err(ImageError::NotAnImage { .. })
    ));
}

#[test]
fn test_image_of_another_host_is_refused_by_its_key() {
    let (host, other) = (Host::new(), Host::new());
    let path = other.publish("image");
    let refused = Image::open(&path, &host.trusted());
    assert!(
        matches!(&refused, Err(ImageError::UntrustedKey { key, .. }) if *key == other.key.public()),
        "{refused:?}"
    );
    let folder = host.path("state").join(TRUSTED_KEYS_FOLDER);
    fs::create_dir(&folder).expect("made");
    fs::write(
        folder.join("other.pub"),
        format!("{}\n", other.key.public()),
    )
    .expect("written");
    open_and_verify(&path, &host).expect("trusted now");
}
