//! Images that are signed, but by a version that says something else.

use serde_json::{Value, json};

use super::super::example::MEMORY_LEN;
use super::*;

/// Changes the manifest of an image and signs it again, as another version of cachot could.
fn sign_again(host: &Host, path: &Path, change: impl FnOnce(&mut Value)) {
    let file = path.join(MANIFEST_FILE);
    let mut manifest = serde_json::from_slice(&fs::read(&file).expect("read")).expect("json");
    change(&mut manifest);
    let json = serde_json::to_vec(&manifest).expect("json");
    fs::write(path.join(SIGNATURE_FILE), host.key.sign(&json)).expect("written");
    fs::write(file, json).expect("written");
}

fn refused(change: impl FnOnce(&mut Value)) -> String {
    let host = Host::new();
    let path = host.publish("image");
    sign_again(&host, &path, change);
    said(&Image::open(&path, &host.trusted()).expect_err("refused"))
}

#[test]
fn test_manifest_signed_again_unchanged_is_accepted() {
    let host = Host::new();
    let path = host.publish("image");
    sign_again(&host, &path, |_| {});
    open_and_verify(&path, &host).expect("whole");
}

#[test]
fn test_another_version_is_refused_whatever_else_it_says() {
    for version in [0, 2, 77] {
        let refused = refused(|manifest| *manifest = json!({ "format": version, "new": [] }));
        assert!(refused.contains(&format!("version {version}")), "{refused}");
    }
}

#[test]
fn test_unknown_required_feature_is_refused_by_name() {
    let refused = refused(|manifest| {
        manifest["required_features"] = json!(["lazy-memory"]);
        manifest["new"] = json!(1);
    });
    assert!(refused.contains("\"lazy-memory\""), "{refused}");
}

#[test]
fn test_unknown_field_is_refused_unless_an_unknown_optional_feature_explains_it() {
    let text = refused(|manifest| manifest["receipt"]["extra"] = json!(1));
    assert!(text.contains("unknown field \"receipt.extra\""), "{text}");

    let host = Host::new();
    let path = host.publish("image");
    sign_again(&host, &path, |manifest| {
        manifest["receipt"]["extra"] = json!(1);
        manifest["optional_features"] = json!(["more-receipt"]);
    });
    open_and_verify(&path, &host).expect("whole");
}

#[test]
fn test_manifest_that_names_another_key_is_refused() {
    let other = Host::new();
    let refused = refused(|manifest| manifest["host_key"] = json!(other.key.public()));
    assert!(refused.contains("another host key"), "{refused}");
}

#[test]
fn test_repeated_and_missing_fields_are_refused() {
    let text = refused(|manifest| {
        manifest
            .as_object_mut()
            .expect("an object")
            .remove("receipt");
    });
    assert!(text.contains("missing field `receipt`"), "{text}");
    let refused = parse(br#"{"format":1,"format":1}"#);
    assert!(
        matches!(refused, Err(ManifestError::Json(_))),
        "{refused:?}"
    );
}

#[test]
fn test_parts_by_other_names_are_refused() {
    for name in [
        "../memory",
        "disk-00",
        "disk-256",
        "manifest.json",
        "/etc/passwd",
        "",
    ] {
        let refused = refused(|manifest| manifest["parts"][4]["name"] = json!(name));
        assert!(refused.contains("not the name of a part"), "{refused}");
    }
    for (part, name) in [(4, "disk-1"), (4, "memory"), (0, "state")] {
        let refused = refused(|manifest| manifest["parts"][part]["name"] = json!(name));
        assert!(refused.contains("not consistent"), "{refused}");
    }
}

#[test]
fn test_lengths_that_cannot_be_are_refused() {
    for length in [0, 1, 1u64 << 41, u64::MAX] {
        for field in ["length", "stored"] {
            let refused = refused(|manifest| manifest["parts"][0][field] = json!(length));
            assert!(refused.contains("not consistent"), "{refused}");
        }
        let refused =
            refused(|manifest| manifest["machine"]["memory"][1]["length"] = json!(length));
        assert!(refused.contains("not consistent"), "{refused}");
    }
    let refused = refused(|manifest| manifest["digests"]["length"] = json!(u64::MAX));
    assert!(refused.contains("not consistent"), "{refused}");
}

#[test]
fn test_memory_regions_that_cannot_be_are_refused() {
    let page = 4096u64;
    let last = u64::MAX - page + 1;
    for (field, number) in [
        ("guest_start", page),
        ("guest_start", 0),
        ("guest_start", last),
        ("guest_start", (1 << 32) + 1),
        ("length", last),
        ("file_offset", 0),
        ("file_offset", u64::MAX),
    ] {
        let refused = refused(|manifest| manifest["machine"]["memory"][1][field] = json!(number));
        assert!(refused.contains("not consistent"), "{refused}");
    }
    let text = refused(|manifest| manifest["machine"]["memory"] = json!([]));
    assert!(text.contains("not consistent"), "{text}");
    let region = json!({ "guest_start": 0, "length": page, "file_offset": 0 });
    let many = vec![region; 10_000];
    let refused = refused(|manifest| manifest["machine"]["memory"] = json!(many));
    assert!(refused.contains("overlap"), "{refused}");
}

#[test]
fn test_secrets_and_numbers_that_cannot_be_are_refused() {
    for (field, value) in [
        ("name", json!("DB_PASSWORD")),
        ("mode", json!(0o644)),
        ("mode", json!(0o4400)),
        ("reference", json!("")),
        ("reference", json!("the-value-itself")),
    ] {
        let refused = refused(|manifest| manifest["secrets"][0][field] = value);
        assert!(refused.contains("not consistent"), "{refused}");
        assert!(!refused.contains("the-value-itself"), "{refused}");
    }
    let text = refused(|manifest| manifest["secrets"][0]["name"] = json!("../../etc/shadow"));
    assert!(text.contains("cannot be read"), "{text}");
    for needles in [0, 1, u64::MAX] {
        let refused = refused(|manifest| manifest["receipt"]["needles"] = json!(needles));
        assert!(refused.contains("not consistent"), "{refused}");
    }
    for cpus in [0, 256] {
        let refused = refused(|manifest| manifest["machine"]["cpus"] = json!(cpus));
        let known = ["no vCPU", "cannot be read"];
        assert!(known.iter().any(|why| refused.contains(why)), "{refused}");
    }
}

/// Says that the image has `count` writable disks of `length` bytes, and as many digests as that takes.
fn claim_disks(manifest: &mut Value, count: usize, length: u64) {
    let disk = |number| {
        let mut disk = manifest["guest"]["disks"][0].clone();
        disk["part"] = json!(format!("disk-{number}"));
        disk["length"] = json!(length);
        disk
    };
    let disks: Vec<_> = (0..count).map(disk).collect();
    let parts = manifest["parts"].as_array_mut().expect("an array");
    parts.truncate(4);
    parts.extend((0..count).map(
        |number| json!({ "name": format!("disk-{number}"), "length": length, "stored": length }),
    ));
    let stored = parts.iter().filter_map(|part| part["stored"].as_u64());
    let chunks: u64 = stored.map(chunk_count).sum();
    manifest["guest"]["disks"] = json!(disks);
    manifest["digests"]["length"] = json!(chunks * DIGEST_LEN as u64);
}

#[test]
fn test_disks_that_cannot_be_are_refused() {
    for (count, length) in [
        (17, 512),
        (300, 512),
        (1, MAX_DISK_LEN + 1),
        (1, u64::MAX / 32),
    ] {
        let refused = refused(|manifest| claim_disks(manifest, count, length));
        assert!(refused.contains("not "), "{refused}");
    }
    let refused = refused(|manifest| manifest["guest"]["disks"][0]["read_only"] = json!(true));
    assert!(refused.contains("exactly the writable disks"), "{refused}");
}

#[test]
fn test_disks_of_which_no_memory_holds_the_digests_are_refused_before_those_are_read() {
    let host = Host::new();
    let path = host.publish("image");
    sign_again(&host, &path, |manifest| {
        claim_disks(manifest, MAX_DISKS, MAX_DISK_LEN)
    });
    let digests = File::options().write(true).open(path.join(DIGESTS_FILE));
    let chunks = chunk_count(MAX_DISK_LEN) * MAX_DISKS as u64;
    // Holes, which take no room on the disk, and 32 GiB in memory.
    digests
        .expect("opened")
        .set_len(chunks * DIGEST_LEN as u64)
        .expect("holes");

    let refused = said(&Image::open(&path, &host.trusted()).expect_err("refused"));

    assert!(refused.contains("together are longer"), "{refused}");
}

#[test]
fn test_disks_that_are_not_there_are_refused() {
    let host = Host::new();
    let path = host.publish("image");
    // The positive control of the tests above: as many and as long as there can be.
    for (count, length) in [(MAX_DISKS, 512), (1, MAX_DISK_LEN - MEMORY_LEN)] {
        sign_again(&host, &path, |manifest| {
            claim_disks(manifest, count, length)
        });
        let refused = Image::open(&path, &host.trusted());
        assert!(
            matches!(refused, Err(ImageError::Digests(_))),
            "{refused:?}"
        );
    }
}

#[test]
fn test_image_with_residue_is_restorable_only_with_the_flag() {
    let host = Host::new();
    let path = host.path("image");
    let (writer, mut contents) = host.begin(&path);
    contents.receipt.residue_kept = true;
    contents.receipt.residue.clone_from(&contents.receipt.hits);
    let cpu = contents.machine.cpu.clone();
    writer.publish(contents, &host.key).expect("published");
    let image = Image::open(&path, &host.trusted()).expect("opened");
    let refused = image.check_restorable(&cpu, Residue::Refuse);
    assert!(
        matches!(refused, Err(ImageError::ResidueKept(_))),
        "{refused:?}"
    );
    image
        .check_restorable(&cpu, Residue::Accept)
        .expect("accepted");
}

#[test]
fn test_image_of_a_better_cpu_is_refused_with_what_is_missing() {
    let host = Host::new();
    let image = Image::open(&host.publish("image"), &host.trusted()).expect("opened");
    let same = image.manifest().machine.cpu.clone();
    let check = |cpu: &CpuBaseline| image.check_restorable(cpu, Residue::Refuse);
    check(&same).expect("fits");
    let mut better = same.clone();
    better.features.insert("avx512f".into());
    check(&better).expect("fits");
    let mut worse = same.clone();
    worse.features.remove("avx2");
    let refused = check(&worse).expect_err("refused").to_string();
    assert!(refused.ends_with("this one has no avx2"), "{refused}");
    let intel = CpuBaseline {
        vendor: "GenuineIntel".into(),
        ..same
    };
    let refused = check(&intel).expect_err("refused").to_string();
    assert!(refused.contains("AuthenticAMD"), "{refused}");
}
