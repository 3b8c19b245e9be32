//! `list`, `inspect`, `delete`.

use std::fs;

use cachot_snapshot::image::HostKey;

use crate::place::{MEMORY_LEN, Place, Special, flip};

#[test]
fn test_list_shows_images_by_name_and_why_one_is_not_usable() {
    let place = Place::new();
    place.folder("images/no-image");
    let changed = place.publish("images/changed");
    flip(&changed.join("manifest.json"), 100);
    let other = place.path("other-state");
    place.publish_special(
        "images/foreign",
        Special {
            host: Some(&other),
            ..Special::default()
        },
    );
    place.publish("images/good one");
    place.publish_special(
        "images/kept",
        Special {
            residue_kept: true,
            ..Special::default()
        },
    );

    let out = place.cachot(&["list", "images"]).ended(0);

    let rows: Vec<_> = out.lines().collect();
    assert_eq!(rows.len(), 5, "{out}");
    let header: Vec<_> = rows[0].split_whitespace().collect();
    assert_eq!(
        header,
        [
            "NAME", "CREATED", "VM", "MEMORY", "VCPUS", "SECRETS", "SIZE", "STATUS"
        ]
    );
    assert!(rows[1].starts_with("changed "), "{out}");
    assert!(rows[1].contains("changed after it was signed"), "{out}");
    let key = HostKey::load_or_create(&other).expect("a key").public();
    assert!(rows[2].starts_with("foreign "), "{out}");
    assert!(rows[2].contains(&key.to_string()), "{out}");
    assert!(rows[3].starts_with("\"good one\" "), "{out}");
    let cells: Vec<_> = rows[3]
        .split("  ")
        .filter(|cell| !cell.is_empty())
        .collect();
    assert!(cells[1].ends_with("ago"), "{out}");
    assert_eq!(
        [cells[2], cells[3], cells[4], cells[5], cells[7]].map(str::trim),
        ["example", "772 KiB", "2", "2", "ok"]
    );
    assert!(rows[4].ends_with("residue kept"), "{out}");
}

#[test]
fn test_list_as_json_has_the_manifest_or_the_error() {
    let place = Place::new();
    place.publish("good");
    let damaged = place.publish("damaged");
    fs::write(damaged.join("digests"), "x").expect("written");
    let json = place.cachot(&["list", "--json"]).json(0);
    let list = json.as_array().expect("an array");
    assert_eq!(list.len(), 2);
    assert_eq!(list[0]["path"], "./damaged");
    assert!(list[0]["error"].as_str().expect("why").contains("digests"));
    assert!(list[0].get("manifest").is_none());
    assert_eq!(list[1]["manifest"]["guest"]["name"], "example");
    assert_eq!(list[1]["manifest"]["secrets"][0]["name"], "API_KEY");
    assert!(list[1]["disk_usage"].as_u64() < Some(MEMORY_LEN));
    assert!(list[1].get("error").is_none());
}

#[test]
fn test_list_of_nothing_is_a_header_or_an_empty_array() {
    let place = Place::new();
    assert_eq!(place.cachot(&["list"]).ended(0).lines().count(), 1);
    assert_eq!(place.cachot(&["list", "--json"]).ended(0), "[]\n");
    let error = place.cachot(&["list", "missing"]).refused(125);
    assert!(error.contains("missing"), "{error}");
}

#[test]
fn test_inspect_says_what_is_in_an_image_and_what_was_not_proved() {
    let place = Place::new();
    place.publish("image");
    let out = place.cachot(&["inspect", "image"]).ended(0);
    for expected in [
        "signed by",
        "(this host)",
        "encrypted  no",
        "2 vCPUs (AuthenticAMD), 772 KiB of memory, devices: secrets, vsock",
        "/srv/data.img, 97.7 KiB, its copy is in the image",
        "restored from abababababababababababababababab",
        "env:API_TOKEN",
        "0440  1000:0  no   3        reissue",
        "cachot 0.1.0 searched 123 MiB for 2 values in all encodings (--on-residue redact)",
        "Found before it was written:\n  ram  base64  3\n",
        "Removed:\n  attached_page  2 ranges  8 KiB\n",
        "Still found in the image: nothing.",
        "4 windows of values that every program has",
        "PIN has a value too short",
        "what was computed from a value was not searched for",
    ] {
        assert!(out.contains(expected), "{expected}: {out}");
    }
    assert!(!out.contains("MAY HOLD"), "{out}");

    let json = place.cachot(&["inspect", "image", "--json"]).json(0);
    assert_eq!(
        (&json["own"], &json["encrypted"]),
        (&true.into(), &false.into())
    );
    assert_eq!(json["manifest"]["receipt"]["redactions"][0]["bytes"], 8192);
}

#[test]
fn test_inspect_image_with_kept_residue_says_so() {
    let place = Place::new();
    place.publish_special(
        "image",
        Special {
            residue_kept: true,
            ..Special::default()
        },
    );
    let out = place.cachot(&["inspect", "image"]).ended(0);
    assert!(out.contains("IT MAY HOLD VALUES OF SECRETS"), "{out}");
}

#[test]
fn test_inspect_untrusted_image_names_the_key_and_what_to_do() {
    let place = Place::new();
    let other = place.path("other-state");
    place.publish_special(
        "image",
        Special {
            host: Some(&other),
            ..Special::default()
        },
    );
    let key = HostKey::load_or_create(&other).expect("a key").public();
    let error = place.cachot(&["inspect", "image"]).refused(1);
    assert!(error.contains(&key.to_string()), "{error}");
    assert!(error.contains("trusted-keys"), "{error}");
}

#[test]
fn test_what_is_no_image_is_neither_inspected_nor_deleted() {
    let place = Place::new();
    place.folder("folder");
    place.file("folder/mine", b"precious");
    let link = place.path("link");
    std::os::unix::fs::symlink(place.publish("image"), &link).expect("linked");
    for command in ["inspect", "verify", "delete"] {
        for (path, expected) in [
            ("folder", "not a cachot image"),
            ("folder/mine", "refused"),
            ("link", "symbolic link"),
            ("missing", "No such file"),
        ] {
            let error = place.cachot(&[command, path]).refused(125);
            assert!(error.contains(expected), "{command} {path}: {error}");
        }
    }
    assert!(place.path("folder/mine").exists());
    assert!(link.join("memory").exists());
}

#[test]
fn test_delete_removes_an_image_whole_or_damaged() {
    let place = Place::new();
    let whole = place.publish("whole");
    let damaged = place.publish("damaged");
    fs::remove_file(damaged.join("memory")).expect("removed");
    assert_eq!(
        place.cachot(&["delete", "whole"]).ended(0),
        "whole is deleted\n"
    );
    place.cachot(&["delete", "damaged"]).ended(0);
    assert!(!whole.exists() && !damaged.exists());
}

#[test]
fn test_help_has_examples_and_exit_codes() {
    let place = Place::new();
    for command in ["list", "inspect", "verify", "scan", "delete"] {
        let help = place.cachot(&[command, "--help"]).ended(0);
        for expected in ["Examples:", "Exit codes:"] {
            assert!(help.contains(expected), "{command}: {help}");
        }
    }
}
