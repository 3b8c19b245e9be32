//! Conformance to agentlab: bundles that sops has encrypted, and everything that can be done to one without its key.

use cachot_custody::bundle::{BundleError, Field, Format, SopsError};

use super::agentlab::assert_complete;
use super::folder::{Folder, fixture, name};

/// How the bundle `bundle.sops.yaml` of this text fares.
fn open(text: &str) -> Result<cachot_custody::bundle::Opened, BundleError> {
    let folder = Folder::with_key("mine.key");
    folder.put("bundle.sops.yaml", text.as_bytes());
    folder.bundles().open(&name("bundle"))
}

fn text(name: &str) -> String {
    std::fs::read_to_string(fixture(name)).expect("a fixture")
}

fn refused(text: &str) -> SopsError {
    match open(text) {
        Err(BundleError::Sops { error, .. }) => error,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("read"),
    }
}

/// The first line that begins so, without what is in front of it.
fn line<'a>(text: &'a str, start: &str) -> &'a str {
    let mut lines = text.lines();
    let found = lines.find(|line| line.trim_start().starts_with(start));
    found.expect("a line")
}

#[test]
fn test_agentlab_bundle_of_sops_is_read_under_every_rule() {
    for bundle in [
        "default.sops.yaml",
        "two.sops.yaml",
        "default.sops.json",
        "encrypted_regex.sops.yaml",
        "unencrypted_regex.sops.yaml",
        "encrypted_suffix.sops.yaml",
        "mac_only_encrypted.sops.yaml",
    ] {
        let folder = Folder::with_key("mine.key");
        let (_, extension) = bundle.split_once(".").expect("an extension");
        folder.add(bundle, &format!("bundle.{extension}"));

        let opened = folder.bundles().open(&name("bundle"));

        let opened = opened.unwrap_or_else(|error| panic!("{bundle}: {error}"));
        assert_complete(&opened.document);
        assert_ne!(opened.format, Format::Age);
        let only_encrypted = bundle.starts_with("mac_only");
        assert_eq!(opened.unauthenticated > 0, only_encrypted, "{bundle}");
    }
}

#[test]
fn test_agentlab_bundle_of_sops_is_found_under_both_extensions_of_yaml() {
    let folder = Folder::with_key("mine.key");
    folder.add("default.sops.yaml", "bundle.sops.yml");
    let opened = folder.bundles().open(&name("bundle")).expect("read");
    assert_eq!(opened.format, Format::SopsYaml);
}

#[test]
fn test_sops_errors_are_told_apart() {
    assert_eq!(refused(&text("others.sops.yaml")), SopsError::WrongKey);
    let plain = open(&text("default.yaml")).err().expect("refused");
    assert!(matches!(plain, BundleError::NotEncrypted(_)));
    let good = text("default.sops.yaml");
    for (line, expected) in [
        ("key_groups: [{}]", SopsError::KeyGroups),
        ("shamir_threshold: 2", SopsError::KeyGroups),
        ("encrypted_comment_regex: x", SopsError::CommentRule),
        ("encrypted_regex: x", SopsError::Rules),
    ] {
        assert_eq!(refused(&format!("{good}  {line}\n")), expected);
    }
    let suffix = "unencrypted_suffix: _unencrypted";
    let regex = good.replace(suffix, "encrypted_regex: '('");
    assert_eq!(refused(&regex), SopsError::Regex("encrypted_regex"));
    let none = good.replace("\n  age:", "\n  pgp_:");
    assert_eq!(refused(&none), SopsError::NoAge);
}

#[test]
fn test_sops_value_that_was_changed_is_refused() {
    let good = text("default.sops.yaml");
    let token = line(&good, "token:");
    let at = good.find(token).expect("there") + token.find("data:").expect("data") + 5;
    let mut changed = good.clone().into_bytes();
    changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };

    let changed = refused(&String::from_utf8(changed).expect("text"));

    assert_eq!(changed, SopsError::Value("git.token".to_owned()));
}

#[test]
fn test_sops_value_at_the_place_of_another_is_refused() {
    let good = text("default.sops.yaml");
    let value = |start: &str| line(&good, start).split_once(": ").expect("a value").1;
    let (one, other) = (value("token:"), value("ANTHROPIC_API_KEY:"));
    let swapped = good
        .replacen(one, "@", 1)
        .replacen(other, one, 1)
        .replacen('@', other, 1);
    assert_ne!(swapped, good);
    assert_eq!(refused(&swapped), SopsError::Value("git.token".to_owned()));
}

#[test]
fn test_sops_values_removed_emptied_reordered_or_retyped_are_refused() {
    let good = text("default.sops.yaml");
    let port = line(&good, "PORT:");
    let key = line(&good, "ANTHROPIC_API_KEY:");
    let removed = good.replace(&format!("{port}\n"), "");
    let emptied = good.replace(port, "  PORT: ''");
    let nulled = good.replace(port, "  PORT: null");
    let reordered = good
        .replace(&format!("{port}\n"), "")
        .replace(&format!("{key}\n"), &format!("{port}\n{key}\n"));
    for changed in [removed, emptied, nulled, reordered] {
        assert_ne!(changed, good);
        assert_eq!(refused(&changed), SopsError::MacMismatch);
    }
    // Every type but text has one notation for a value; `8080` as a text is the same bytes, and no harm.
    let retyped = good.replace(port, &port.replace("type:int", "type:bool"));
    assert_eq!(refused(&retyped), SopsError::Form("env.PORT".to_owned()));
}

#[test]
fn test_sops_readable_value_that_was_changed_or_added_is_refused() {
    let good = text("encrypted_regex.sops.yaml");
    for (from, to) in [
        ("owner: platform", "owner: Platform"),
        ("port_unencrypted: 8080", "port_unencrypted: 8081"),
        ("ratio_unencrypted: 1.5", "ratio_unencrypted: 1.25"),
        ("on_unencrypted: true", "on_unencrypted: false"),
        ("day_unencrypted: 2024-01-30", "day_unencrypted: 2024-01-31"),
        ("endpoint: http://10", "endpoint: http://11"),
        ("metadata:\n", "metadata:\n  added: more\n"),
    ] {
        let changed = good.replace(from, to);
        assert_ne!(changed, good, "{from}");
        assert_eq!(refused(&changed), SopsError::MacMismatch, "{from}");
    }
    // A value in plaintext where an encrypted one belongs.
    let key = line(&good, "ANTHROPIC_API_KEY:");
    let changed = good.replace(key, "  ANTHROPIC_API_KEY: mine");
    assert_eq!(
        refused(&changed),
        SopsError::Form("env.ANTHROPIC_API_KEY".to_owned())
    );
}

#[test]
fn test_sops_readable_number_is_delivered_in_one_spelling() {
    let good = text("encrypted_regex.sops.yaml");
    let document = open(&good).expect("read").document.to_yaml();
    for (from, to) in [
        ("port_unencrypted: 8080", "port_unencrypted: 0x1F90"),
        ("ratio_unencrypted: 1.5", "ratio_unencrypted: 15e-1"),
        ("on_unencrypted: true", "on_unencrypted: TRUE"),
    ] {
        let changed = good.replace(from, to);
        assert_ne!(changed, good, "{from}");
        let opened = open(&changed).expect("the same to the MAC").document;
        assert_eq!(*opened.to_yaml(), *document, "{from}");
    }
}

#[test]
fn test_sops_mac_and_its_time_are_bound_to_the_file() {
    let good = text("default.sops.yaml");
    let other = text("two.sops.yaml");
    let mac = line(&good, "mac:");
    for changed in [
        good.replace("2026-01-30T12:00:00Z", "2026-01-30T12:00:01Z"),
        good.replace(mac, line(&other, "mac:")),
        good.replace(
            mac,
            &format!(
                "  mac: {}",
                line(&good, "owner:").split_once(": ").expect("a value").1
            ),
        ),
    ] {
        assert_ne!(changed, good);
        assert_eq!(refused(&changed), SopsError::Mac);
    }
    let none = good.replace(&format!("{mac}\n"), "");
    assert_eq!(refused(&none), SopsError::Metadata("mac"));
    let only = format!("{good}  mac_only_encrypted: true\n");
    assert_eq!(refused(&only), SopsError::MacMismatch);
}

#[test]
fn test_sops_data_key_of_another_file_is_refused() {
    let good = text("default.sops.yaml");
    let other = text("encrypted_regex.sops.yaml");
    let enc = |text: &str| {
        let start = text.find("    enc: |").expect("a key");
        let end = text.find("-----END AGE").expect("its end");
        text[start..end].to_owned()
    };
    let changed = good.replace(&enc(&good), &enc(&other));
    assert_ne!(changed, good);
    assert!(matches!(refused(&changed), SopsError::Value(_)));
}

#[test]
fn test_sops_bundle_is_not_edited() {
    let folder = Folder::with_key("mine.key");
    folder.add("default.sops.yaml", "bundle.sops.yaml");
    let field: Field = "env.NEW".parse().expect("a field");
    let edited = folder.bundles().edit(&name("bundle"), |document| {
        document.set(&field, "x".into());
        Ok(())
    });
    assert!(
        edited
            .expect_err("refused")
            .to_string()
            .contains("sops edit")
    );
}
