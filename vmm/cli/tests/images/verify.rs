//! `verify`: what is whole and clean is said to be, and nothing else.

use std::fs;
use std::path::PathBuf;

use age::secrecy::ExposeSecret;
use age::x25519::Identity;
use cachot_snapshot::image::{CHUNK_LEN, HostKey, TRUSTED_KEYS_FOLDER};

use crate::place::{DB_VALUE, Place, Ran, Special, VALUE, flip, private};

/// With the value in RAM, at a place that ends in another chunk.
fn kept() -> Special<'static> {
    const MEMORY: &[(u64, &[u8])] = &[(2 * CHUNK_LEN as u64 - 20, VALUE.as_bytes())];
    Special {
        memory: MEMORY,
        residue_kept: true,
        ..Special::default()
    }
}

#[test]
fn test_verify_clean_image_says_what_was_searched_for() {
    let place = Place::new();
    place.publish("image");
    let ran = place.cachot(&["verify", "image"]);
    assert_eq!(ran.err, "");
    let out = ran.ended(0);
    for expected in [
        "image: signed by ",
        " in 5 parts as they were signed\n",
        "API_KEY: the value that was searched for\n",
        "DB: the value that was searched for\n",
        "in 6 files for 2 values in all encodings: nothing found\n",
        "searched for again: 2 of 2 values ",
    ] {
        assert!(out.contains(expected), "{expected}: {out}");
    }
    let json = place.cachot(&["verify", "image", "--json"]).json(0);
    assert_eq!(json["ok"], true);
    assert_eq!(json["needles_again"], 2);
    assert_eq!(json["secrets"][1]["status"], "searched");
    assert_eq!(json["search"]["hits"], 0);
}

#[test]
fn test_verify_image_with_kept_residue_hits_and_says_so() {
    let place = Place::new();
    place.publish_special("image", kept());
    let out = place.cachot(&["verify", "image"]).ended(1);
    for expected in [
        "image/memory offset=0x7ffec length=40 secret=API_KEY encoding=raw\n",
        ": 1 hit\n",
        "made with --dangerously-keep-residue: it may hold values",
    ] {
        assert!(out.contains(expected), "{expected}: {out}");
    }
    let json = place.cachot(&["verify", "image", "--json"]).json(1);
    assert_eq!(
        (&json["ok"], &json["residue_kept"]),
        (&false.into(), &true.into())
    );
    assert_eq!(json["search"]["found"][0]["shown"][0]["offset"], 0x7ffec);
}

#[test]
fn test_verify_finds_values_in_every_part_once() {
    let place = Place::new();
    place.publish_special(
        "image",
        Special {
            memory: &[
                (CHUNK_LEN as u64 - 3, VALUE.as_bytes()),
                (CHUNK_LEN as u64 + 4096 - 5, DB_VALUE.as_bytes()),
            ],
            state: DB_VALUE.as_bytes(),
            disk: VALUE.as_bytes(),
            ..Special::default()
        },
    );
    let out = place.cachot(&["verify", "image"]).ended(1);
    let hits: Vec<_> = out
        .lines()
        .filter(|line| line.contains("offset="))
        .collect();
    assert_eq!(
        hits,
        [
            "image/memory offset=0x3fffd length=40 secret=API_KEY encoding=raw",
            "image/memory offset=0x40ffb length=28 secret=DB encoding=raw",
            "image/state offset=0x14 length=28 secret=DB encoding=raw",
            "image/disk-0 offset=0x186a0 length=40 secret=API_KEY encoding=raw",
        ]
    );
}

#[test]
fn test_verify_value_that_is_another_by_now_is_told_and_searched_for() {
    let place = Place::new();
    place.publish("image");
    place.file("db", b"another value by now");
    let out = place.cachot(&["verify", "image"]).ended(0);
    for expected in [
        "API_KEY: the value that was searched for\n",
        "DB: another value than the one that was searched for\n",
        "for 2 values",
        "searched for again: 1 of 2 values ",
    ] {
        assert!(out.contains(expected), "{expected}: {out}");
    }
}

#[test]
fn test_verify_secret_without_a_value_is_not_checked_unless_it_was_given() {
    let place = Place::new();
    place.publish("image");
    let mut command = place.command(&["verify", "image"]);
    let out = Ran::of(command.env_remove("API_TOKEN")).ended(0);
    assert!(
        out.contains("API_KEY: not checked: the environment variable \"API_TOKEN\" is not set"),
        "{out}"
    );
    assert!(out.contains("for 1 value "), "{out}");
    assert!(out.contains("searched for again: 1 of 2 values "), "{out}");

    let words = ["verify", "image", "--secret", "API_KEY=env:NONE"];
    let error = place.cachot(&words).refused(125);
    assert!(
        error.contains("API_KEY") && error.contains("NONE"),
        "{error}"
    );

    place.file("token", VALUE.as_bytes());
    let mut command = place.command(&["verify", "image", "--secret", "API_KEY=file:token"]);
    let out = Ran::of(command.env_remove("API_TOKEN")).ended(0);
    assert!(
        out.contains("API_KEY: the value that was searched for"),
        "{out}"
    );

    let words = ["verify", "image", "--secret", "APIKEY=env:API_TOKEN"];
    let error = place.cachot(&words).refused(125);
    assert!(
        error.contains("no secret APIKEY: it has API_KEY, DB"),
        "{error}"
    );
}

#[test]
fn test_verify_without_any_value_says_that_nothing_was_searched() {
    let place = Place::new();
    place.publish("image");
    place.file("db", b"short");
    let mut command = place.command(&["verify", "image"]);
    let out = Ran::of(command.env_remove("API_TOKEN")).ended(0);
    assert!(
        out.contains("DB: not checked: its value is too short"),
        "{out}"
    );
    assert!(out.contains("not searched: there is no value"), "{out}");
    assert!(out.contains("searched for again: 0 of 2 values "), "{out}");
}

/// A key pair of age: what images are encrypted to, and the file that they are decrypted with.
fn key_pair(place: &Place, name: &str) -> (cachot_snapshot::image::Recipient, PathBuf) {
    let identity = Identity::generate();
    let path = place.file(name, identity.to_string().expose_secret().as_bytes());
    private(&path);
    let recipient = identity.to_public().to_string();
    (recipient.parse().expect("a recipient"), path)
}

#[test]
fn test_verify_encrypted_image_reads_it_with_the_key_only() {
    let place = Place::new();
    let (recipient, _) = key_pair(&place, "key");
    key_pair(&place, "wrong");
    place.publish_special(
        "kept",
        Special {
            recipients: vec![recipient.clone()],
            ..kept()
        },
    );
    place.publish_special(
        "clean",
        Special {
            recipients: vec![recipient],
            ..Special::default()
        },
    );

    let error = place.cachot(&["verify", "kept"]).refused(125);
    assert!(error.contains("--identity"), "{error}");
    let words = ["verify", "kept", "--identity", "wrong"];
    let error = place.cachot(&words).refused(125);
    assert!(error.contains("cannot decrypt"), "{error}");
    let words = ["verify", "kept", "--identity", "wrong", "--identity", "key"];
    let out = place.cachot(&words).ended(1);
    assert!(
        out.contains("kept/memory offset=0x7ffec length=40 secret=API_KEY encoding=raw\n"),
        "{out}"
    );
    let words = ["verify", "clean", "--identity", "key"];
    let out = place.cachot(&words).ended(0);
    assert!(out.contains("nothing found"), "{out}");
}

#[test]
fn test_verify_image_of_another_host_is_searched_if_its_key_is_trusted() {
    let place = Place::new();
    let other = place.path("other-state");
    place.publish_special(
        "image",
        Special {
            host: Some(&other),
            ..kept()
        },
    );
    let key = HostKey::load_or_create(&other).expect("a key").public();

    let error = place.cachot(&["verify", "image"]).refused(1);
    assert!(error.contains(&key.to_string()), "{error}");
    assert!(error.contains(TRUSTED_KEYS_FOLDER), "{error}");

    place.folder("state");
    private_folder(&place, "state");
    place.folder("state/trusted-keys");
    private_folder(&place, "state/trusted-keys");
    place.file("state/trusted-keys/other", format!("{key}\n").as_bytes());
    let out = place.cachot(&["verify", "image"]).ended(1);
    for expected in [
        "API_KEY: a value; which one was searched for is not known\n",
        "another host made the image",
        "image/memory offset=0x7ffec ",
    ] {
        assert!(out.contains(expected), "{expected}: {out}");
    }
    assert!(!out.contains("searched for again"), "{out}");
}

fn private_folder(place: &Place, name: &str) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(place.path(name), PermissionsExt::from_mode(0o700)).expect("private");
}

#[test]
fn test_verify_image_that_is_not_what_was_signed_is_refused() {
    let place = Place::new();
    let refused = |damage: &dyn Fn(PathBuf), code, expected: &[&str]| {
        let path = place.publish("image");
        damage(path);
        let error = place.cachot(&["verify", "image"]).refused(code);
        for text in expected {
            assert!(error.contains(text), "{text}: {error}");
        }
        fs::remove_dir_all(place.path("image")).expect("removed");
    };
    let at = 2 * CHUNK_LEN as u64 + 77;
    refused(
        &|image| flip(&image.join("memory"), at),
        1,
        &["memory", "chunk 2", "damaged"],
    );
    refused(
        &|image| {
            let file = fs::File::options().write(true).open(image.join("memory"));
            file.expect("open").set_len(CHUNK_LEN as u64).expect("cut");
        },
        1,
        &["memory", "truncated"],
    );
    refused(
        &|image| flip(&image.join("manifest.json"), 100),
        1,
        &["changed after it was signed"],
    );
    refused(&|image| flip(&image.join("digests"), 0), 1, &["digests"]);
    refused(
        &|image| fs::remove_file(image.join("state")).expect("removed"),
        125,
        &["no state"],
    );
    refused(
        &|image| {
            fs::rename(image.join("memory"), place.path("elsewhere")).expect("moved");
            std::os::unix::fs::symlink(place.path("elsewhere"), image.join("memory"))
                .expect("linked");
        },
        125,
        &["memory", "refused"],
    );
}
