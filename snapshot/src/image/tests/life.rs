//! Written, published or not, listed, deleted.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use rustix::fs::SealFlags;

use super::*;
use crate::image::example::{MEMORY_LEN, contents, fill};

/// Folders with a temporary name in the host's folder.
fn temporary(host: &Host) -> Vec<PathBuf> {
    let mut found = files(host.folder.path());
    found.retain(|path| {
        let name = path.file_name().expect("a name").to_string_lossy();
        name.starts_with(".cachot-image-")
    });
    found
}

#[test]
fn test_image_is_private() {
    let host = Host::new();
    let path = host.publish("image");
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o7777;
    assert_eq!(mode(&path), 0o700);
    let files = files(&path);
    assert_eq!(files.len(), 8);
    for file in files {
        assert_eq!(mode(&file), 0o600, "{file:?}");
    }
}

#[test]
fn test_memory_stays_sparse_on_disk_and_in_memory() {
    let host = Host::new();
    let path = host.publish("image");
    let used = |file: &File| file.metadata().expect("there").blocks() * 512;
    let stored = File::open(path.join("memory")).expect("open");
    assert!(
        used(&stored) < MEMORY_LEN - CHUNK_LEN as u64 / 2,
        "{}",
        used(&stored)
    );
    let image = Image::open(&path, &host.trusted()).expect("opened");
    // Three pages have a byte that is not zero.
    assert_eq!(used(&image.load_memory().expect("loaded").into()), 3 * 4096);
}

#[test]
fn test_loaded_memory_can_be_mapped_but_not_changed() {
    let host = Host::new();
    let image = Image::open(&host.publish("image"), &host.trusted()).expect("opened");
    let memory = image.load_memory().expect("loaded");
    let seals = rustix::fs::fcntl_get_seals(&memory).expect("seals");
    assert!(
        seals.contains(SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)
    );
    assert!(rustix::io::pwrite(&memory, b"x", 0).is_err());
}

#[test]
fn test_digests_of_memory_are_computed_if_none_are_given() {
    let host = Host::new();
    let path = host.path("image");
    let (writer, contents) = host.begin(&path);
    writer.digests().set_len(0).expect("emptied");
    writer.publish(contents, &host.key).expect("published");
    open_and_verify(&path, &host).expect("whole");
}

#[test]
fn test_part_digests_of_memory_are_refused() {
    let host = Host::new();
    let path = host.path("image");
    let (writer, contents) = host.begin(&path);
    writer.digests().set_len(DIGEST_LEN as u64).expect("cut");
    let refused = writer.publish(contents, &host.key);
    assert!(
        matches!(refused, Err(ImageError::Manifest { .. })),
        "{refused:?}"
    );
    assert!(!path.exists());
}

#[test]
fn test_digests_that_are_not_those_of_memory_make_an_image_that_is_refused() {
    let host = Host::new();
    let path = host.path("image");
    let (writer, contents) = host.begin(&path);
    writer.digests().write_all_at(b"x", 3).expect("written");
    writer.publish(contents, &host.key).expect("published");
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
fn test_contents_that_the_files_contradict_are_not_published() {
    type Change = fn(&mut Contents);
    let changes: [Change; 8] = [
        |contents| contents.machine.memory[1].length += 4096,
        |contents| contents.machine.memory[1].guest_start = 4096,
        |contents| contents.machine.memory[1].file_offset = 0,
        |contents| contents.machine.cpus = 0,
        |contents| contents.receipt.needles = 3,
        |contents| contents.receipt.residue.clone_from(&contents.receipt.hits),
        |contents| contents.guest.disks.clear(),
        |contents| contents.secrets[1] = contents.secrets[0].clone(),
    ];
    let host = Host::new();
    for (number, change) in changes.into_iter().enumerate() {
        let path = host.path("image");
        let (writer, mut contents) = host.begin(&path);
        change(&mut contents);
        let refused = writer.publish(contents, &host.key);
        assert!(
            matches!(refused, Err(ImageError::Manifest { .. })),
            "{number}: {refused:?}"
        );
        assert!(!path.exists());
        assert!(temporary(&host).is_empty());
    }
}

#[test]
fn test_images_over_a_limit_that_nobody_could_open_are_not_published() {
    type Change = fn(&ImageWriter, &mut Contents);
    fn lengthen(writer: &ImageWriter, name: PartName) {
        let part = writer.part(name).expect("a part");
        part.set_len(name.limit() + 1).expect("a long hole");
    }
    let changes: [Change; 6] = [
        |writer, _| lengthen(writer, PartName::State),
        |writer, _| lengthen(writer, PartName::Plan),
        |writer, _| lengthen(writer, PartName::Needles),
        |_, contents| contents.lineage = vec![[7; 16].into(); MAX_LINEAGE + 1],
        |_, contents| {
            let secret = contents.secrets[0].clone();
            let numbered = |number| Secret {
                name: format!("A{number}").parse().expect("a name"),
                ..secret.clone()
            };
            contents.secrets = (0..=MAX_NEEDLES).map(numbered).collect();
        },
        |_, contents| {
            let len = usize::try_from(MAX_MANIFEST_LEN).expect("small");
            contents.guest.keeper = "x".repeat(len).into();
        },
    ];
    let host = Host::new();
    for (number, change) in changes.into_iter().enumerate() {
        let path = host.path("image");
        let (writer, mut contents) = host.begin(&path);
        change(&writer, &mut contents);
        let refused = writer.publish(contents, &host.key);
        assert!(
            matches!(refused, Err(ImageError::Manifest { .. })),
            "{number}: {refused:?}"
        );
        assert!(!path.exists());
        assert!(temporary(&host).is_empty());
    }
}

#[test]
fn test_dropped_writer_leaves_nothing() {
    let host = Host::new();
    let path = host.path("image");
    let (writer, _) = host.begin(&path);
    assert_eq!(temporary(&host).len(), 1);
    drop(writer);
    assert!(temporary(&host).is_empty());
    assert!(!path.exists());
}

#[test]
fn test_existing_target_is_not_replaced() {
    let host = Host::new();
    let path = host.publish("image");
    let refused = ImageWriter::create(&path, vec![]).map(|_| ());
    assert!(matches!(refused, Err(ImageError::Exists(_))), "{refused:?}");

    let taken = host.path("taken");
    let (writer, contents) = host.begin(&taken);
    fs::write(&taken, "a file").expect("written");
    let refused = writer.publish(contents, &host.key);
    assert!(matches!(refused, Err(ImageError::Exists(_))), "{refused:?}");
    assert_eq!(fs::read(&taken).expect("read"), b"a file");
    assert!(temporary(&host).is_empty());
}

#[test]
fn test_of_two_writers_of_one_image_the_second_is_refused() {
    let host = Host::new();
    let path = host.path("image");
    let (first, contents) = host.begin(&path);
    // A writer that begins while another writes does not take its files for rubbish.
    let (second, same) = host.begin(&path);
    assert_eq!(temporary(&host).len(), 2);
    let first_id = *first.id();
    first.publish(contents, &host.key).expect("published");
    let refused = second.publish(same, &host.key);
    assert!(matches!(refused, Err(ImageError::Exists(_))), "{refused:?}");
    let image = Image::open(&path, &host.trusted()).expect("opened");
    image.verify_all().expect("whole");
    assert_eq!(image.manifest().id, first_id);
    assert!(temporary(&host).is_empty());
}

#[test]
fn test_many_writers_and_sweepers_do_not_disturb_each_other() {
    let host = Host::new();
    let trusted = host.trusted();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (host, trusted) = (&host, &trusted);
            scope.spawn(move || {
                for round in 0..5 {
                    let path = host.path(&format!("image-{thread}-{round}"));
                    let mut contents = contents();
                    contents.guest.disks.clear();
                    let writer = ImageWriter::create(&path, vec![]).expect("begun");
                    fill(&writer, &host.key).expect("filled");
                    writer.publish(contents, &host.key).expect("published");
                    let image = Image::open(&path, trusted).expect("opened");
                    image.verify_all().expect("whole");
                }
            });
        }
    });
    assert_eq!(
        list(host.folder.path(), &trusted).expect("listed").len(),
        40
    );
    assert!(temporary(&host).is_empty());
}

#[test]
fn test_sweep_leaves_what_is_not_a_dead_writers() {
    let host = Host::new();
    let left = host.path(".cachot-image-dead");
    fs::create_dir(&left).expect("made");
    fs::set_permissions(&left, PermissionsExt::from_mode(0o700)).expect("private");
    fs::write(left.join("memory"), "x").expect("written");
    let kept = [".cachot-image-public", ".other", "image"].map(|name| host.path(name));
    for path in &kept {
        fs::create_dir(path).expect("made");
        fs::set_permissions(path, PermissionsExt::from_mode(0o755)).expect("public");
    }
    let link = host.path(".cachot-image-link");
    std::os::unix::fs::symlink(&kept[2], &link).expect("linked");

    assert_eq!(sweep(&host.path("image")).expect("swept"), 1);

    assert!(!left.exists());
    assert!(kept.iter().chain([&link]).all(|path| path.exists()));
}

#[test]
fn test_list_tells_images_from_other_folders() {
    let host = Host::new();
    let good = host.publish("b");
    let bad = host.publish("a");
    fs::write(bad.join(MANIFEST_FILE), "{}").expect("written");
    fs::create_dir(host.path("c")).expect("made");
    let (_writer, _) = host.begin(&host.path("d"));

    let listed = list(host.folder.path(), &host.trusted()).expect("listed");

    let paths: Vec<_> = listed.iter().map(|listed| &listed.path).collect();
    assert_eq!(paths, [&bad, &good]);
    let usage: Vec<_> = listed.iter().map(|listed| listed.disk_usage).collect();
    assert!(
        usage
            .iter()
            .all(|bytes| (8 * 512..MEMORY_LEN).contains(bytes)),
        "{usage:?}"
    );
    assert!(matches!(listed[0].manifest, Err(ImageError::Signature(_))));
    assert_eq!(
        listed[1].manifest.as_ref().expect("good").guest.name,
        "example"
    );
}

#[test]
fn test_inspect_says_what_is_in_an_image() {
    let host = Host::new();
    let path = host.publish("image");
    let inspection = inspect(&path, &host.trusted()).expect("inspected");
    assert_eq!(inspection.manifest.host_key, host.key.public());
    assert!(
        (8 * 512..MEMORY_LEN).contains(&inspection.disk_usage),
        "{inspection:?}"
    );
    let json = serde_json::to_string(&inspection).expect("json");
    assert!(json.contains("\"residue_kept\":false"));
}

#[test]
fn test_delete_removes_whole_and_damaged_images_and_nothing_else() {
    let host = Host::new();
    let (whole, damaged, more) = (host.publish("a"), host.publish("b"), host.publish("c"));
    fs::remove_file(damaged.join("memory")).expect("removed");
    fs::write(damaged.join(MANIFEST_FILE), "").expect("written");
    fs::write(more.join("notes.txt"), "mine").expect("written");
    let other = host.path("other");
    fs::create_dir(&other).expect("made");
    fs::write(other.join("memory"), "mine").expect("written");
    let link = host.path("link");
    std::os::unix::fs::symlink(&more, &link).expect("linked");

    delete(&whole).expect("deleted");
    delete(&damaged).expect("deleted");
    for path in [&more, &other] {
        let refused = delete(path);
        assert!(
            matches!(refused, Err(ImageError::NotAnImage { .. })),
            "{refused:?}"
        );
    }
    assert!(matches!(delete(&link), Err(ImageError::Refused { .. })));
    assert!(matches!(delete(&whole), Err(ImageError::System { .. })));

    assert!(!whole.exists() && !damaged.exists());
    assert_eq!(files(&more).len(), 9);
    assert_eq!(files(&other).len(), 1);
    assert!(temporary(&host).is_empty());
}

#[test]
fn test_memory_of_a_deleted_image_can_still_be_loaded() {
    let host = Host::new();
    let path = host.publish("image");
    let image = Image::open(&path, &host.trusted()).expect("opened");
    delete(&path).expect("deleted");
    assert!(content(image.load_memory().expect("loaded")) == memory());
}
