//! Images whose parts are encrypted.

use age::secrecy::ExposeSecret;
use age::x25519::Identity;
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::image::cipher;
use crate::image::example::{add_disk, contents, fill};

/// Text that is in the plain state of an encrypted image.
const MARK: &[u8] = b"a mark that only the plain text has";

/// A key pair: what images are encrypted to, and the file that they are decrypted with.
pub(super) fn key_pair(host: &Host, name: &str) -> (Recipient, Identities) {
    let identity = Identity::generate();
    let path = host.path(name);
    fs::write(&path, identity.to_string().expose_secret()).expect("written");
    fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).expect("private");
    let recipient = identity
        .to_public()
        .to_string()
        .parse()
        .expect("a recipient");
    (recipient, Identities::load(&path).expect("identities"))
}

/// Publishes the example image, encrypted.
pub(super) fn publish(host: &Host, recipients: Vec<Recipient>) -> PathBuf {
    let path = host.path("image");
    let mut writer = ImageWriter::create(&path, recipients).expect("begun");
    let disk = host.path("source-disk");
    fs::write(&disk, vec![7; 100_000]).expect("a disk");
    add_disk(&mut writer, &File::open(&disk).expect("a disk")).expect("copied");
    fill(&writer, &host.key).expect("filled");
    let state = writer.part(PartName::State).expect("a part");
    state
        .write_all_at(MARK, STATE.len() as u64)
        .expect("written");
    writer.publish(contents(), &host.key).expect("published");
    path
}

/// How many of an image's files have these bytes.
fn files_with(path: &Path, bytes: &[u8]) -> usize {
    let has = |file: &PathBuf| {
        let content = fs::read(file).expect("read");
        content.windows(bytes.len()).any(|window| window == bytes)
    };
    files(path).iter().filter(|file| has(file)).count()
}

#[test]
fn test_encrypted_image_gives_back_what_was_written() {
    let host = Host::new();
    let (recipient, identities) = key_pair(&host, "key");
    let path = publish(&host, vec![recipient]);

    let mut image = Image::open(&path, &host.trusted()).expect("opened");
    image.verify_all().expect("whole, which needs no key");
    image.set_identities(identities);

    let loaded = File::from(image.load_memory().expect("loaded"));
    assert!(content(loaded.try_clone().expect("again")) == memory());
    let used = std::os::unix::fs::MetadataExt::blocks(&loaded.metadata().expect("there")) * 512;
    assert_eq!(used, 3 * 4096);
    assert_eq!(
        image.read(PartName::State).expect("read"),
        [STATE, MARK].concat()
    );
    assert_eq!(image.read(PartName::Plan).expect("read"), PLAN);
    let disk = tempfile::tempfile().expect("a file");
    image.copy_disk(PartName::Disk(0), &disk).expect("copied");
    assert!(content(disk) == vec![7; 100_000]);
    assert!(matches!(
        image.trusted_memory(),
        Err(ImageError::Encrypted(_))
    ));
    let manifest = image.manifest();
    assert!(manifest.is_encrypted());
    assert!(manifest.parts[0].stored < manifest.parts[0].length);
}

#[test]
fn test_no_file_has_plain_text_at_any_time() {
    let host = Host::new();
    let (recipient, _) = key_pair(&host, "key");
    let path = publish(&host, vec![recipient]);
    assert_eq!(files_with(&path, MARK), 0);
    fs::remove_dir_all(&path).expect("removed");
    let path = publish(&host, vec![]);
    // So the search finds it where it is.
    assert_eq!(files_with(&path, MARK), 1);

    let other = host.path("other");
    let (recipient, _) = key_pair(&host, "key");
    let writer = ImageWriter::create(&other, vec![recipient]).expect("begun");
    fill(&writer, &host.key).expect("filled");
    let mut left = files(host.folder.path());
    left.retain(|path| path.to_string_lossy().contains(".cachot-image-"));
    assert_eq!(left.len(), 1);
    assert_eq!(files(&left[0]).len(), 0);
}

#[test]
fn test_any_of_the_recipients_can_read_the_image_and_nobody_else() {
    let host = Host::new();
    let (pairs, stranger) = (
        ["a", "b"].map(|name| key_pair(&host, name)),
        key_pair(&host, "c"),
    );
    let path = publish(
        &host,
        pairs
            .iter()
            .map(|(recipient, _)| recipient.clone())
            .collect(),
    );
    let mut image = Image::open(&path, &host.trusted()).expect("opened");
    assert!(matches!(
        image.read(PartName::State),
        Err(ImageError::Encrypted(_))
    ));
    for (_, identities) in pairs {
        image.set_identities(identities);
        image.read(PartName::State).expect("read");
    }
    image.set_identities(stranger.1);
    for refused in [
        image.read(PartName::State).map(|_| ()),
        image.load_memory().map(|_| ()),
    ] {
        assert!(
            matches!(refused, Err(ImageError::Decrypt { .. })),
            "{refused:?}"
        );
    }
}

#[test]
fn test_changed_ciphertext_is_refused_with_part_and_chunk_before_it_is_decrypted() {
    let host = Host::new();
    let (recipient, identities) = key_pair(&host, "key");
    let path = publish(&host, vec![recipient]);
    let mut image = Image::open(&path, &host.trusted()).expect("opened");
    image.set_identities(identities);
    for part in image.manifest().parts.clone() {
        let file = File::options()
            .read(true)
            .write(true)
            .open(path.join(part.name.to_string()))
            .expect("open");
        for at in [0, part.stored / 2, part.stored - 1] {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).expect("read");
            file.write_all_at(&[byte[0] ^ 1], at).expect("written");
            let refused = match part.name {
                PartName::Memory | PartName::Disk(_) => {
                    image.load_memory().map(|_| ()).and_then(|()| {
                        image.copy_disk(part.name, &tempfile::tempfile().expect("a file"))
                    })
                }
                _ => image.read(part.name).map(|_| ()),
            };
            let expected = at / CHUNK_LEN as u64;
            assert!(
                matches!(refused, Err(ImageError::Damaged { part: name, chunk, .. })
                    if name == part.name && chunk == expected),
                "byte {at} of {}: {refused:?}",
                part.name
            );
            file.write_all_at(&byte, at).expect("written");
        }
    }
    image.load_memory().expect("as it was");
}

#[test]
fn test_extents_that_make_no_sense_are_refused() {
    let host = Host::new();
    let (recipient, identities) = key_pair(&host, "key");
    let stored = |plain: &[u8]| {
        let file = tempfile::tempfile().expect("a file");
        let keys = std::iter::once(&recipient.0 as &dyn age::Recipient);
        let encryptor = age::Encryptor::with_recipients(keys).expect("a recipient");
        let mut output = encryptor.wrap_output(&file).expect("a header");
        std::io::Write::write_all(&mut output, plain).expect("written");
        output.finish().expect("finished");
        std::io::Seek::rewind(&mut &file).expect("rewound");
        file
    };
    let extent =
        |at: u64, len: u64, bytes: &[u8]| [&at.to_le_bytes(), &len.to_le_bytes(), bytes].concat();
    let end = extent(100, 0, b"");
    let decrypt = |plain: &[u8]| cipher::decrypt(stored(plain), 100, &identities, |_, _| Ok(()));
    let good = [extent(5, 3, b"abc"), extent(99, 1, b"d"), end.clone()].concat();
    decrypt(&good).expect("good");
    for bad in [
        vec![],
        good[..good.len() - 1].to_vec(),
        [good.clone(), vec![0]].concat(),
        [extent(5, 3, b"abc"), extent(7, 1, b"d"), end.clone()].concat(),
        [extent(98, 3, b"abc"), end.clone()].concat(),
        [extent(u64::MAX, 3, b"abc"), end.clone()].concat(),
        [extent(0, u64::MAX, b"abc"), end.clone()].concat(),
        extent(50, 0, b""),
        extent(101, 0, b""),
    ] {
        assert!(decrypt(&bad).is_err(), "{bad:?}");
    }
}

#[test]
fn test_keys_that_are_none_are_refused_and_not_repeated() {
    let host = Host::new();
    let identity = Identity::generate();
    let private = identity.to_string();
    let refused = private
        .expose_secret()
        .parse::<Recipient>()
        .expect_err("not public")
        .to_string();
    assert!(!refused.contains("AGE-SECRET-KEY-1"), "{refused}");
    assert!("age1short".parse::<Recipient>().is_err());

    let path = host.path("key");
    for text in ["", "nothing", "# only a comment\n"] {
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).expect("private");
        let refused = Identities::load(&path);
        assert!(
            matches!(refused, Err(ImageError::Refused { .. })),
            "{text:?}: {refused:?}"
        );
    }
    fs::write(&path, private.expose_secret()).expect("written");
    Identities::load(&path).expect("a key");
    fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).expect("opened up");
    let refused = Identities::load(&path);
    assert!(
        matches!(refused, Err(ImageError::Refused { .. })),
        "{refused:?}"
    );
}
