//! Conformance to agentlab: every row of its bundles' table that is not about the guest.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use cachot_custody::bundle::{BundleError, Document, EditError, Field, Format, Identities};
use cachot_custody::schemes::Bundle;
use cachot_secrets::Scheme;

use super::folder::{Folder, fixture, name};

/// What is in each bundle of the fixtures, with its value.
const VALUES: [(&str, &str); 11] = [
    ("git.username", "x-access-token"),
    ("git.token", "git-token-7c1d0001"),
    (
        "git.ssh_private_key",
        "-----BEGIN OPENSSH PRIVATE KEY-----\nssh-private-7c1d0002\n-----END OPENSSH PRIVATE KEY-----\n",
    ),
    ("git.ssh_public_key", "ssh-ed25519 AAAA test"),
    ("git.known_hosts", "github.com ssh-ed25519 AAAA\n"),
    (
        "claude.settings",
        "{\"model\":\"claude-7c1d0004\",\"max_tokens\":8000,\"ratio\":0.5,\"tools\":[\"bash\",\"read\"]}",
    ),
    ("artifact.endpoint", "http://10.77.0.1:8846/upload"),
    ("artifact.token", "upload-token-7c1d0005"),
    (
        "ssh.deploy",
        "-----BEGIN OPENSSH PRIVATE KEY-----\nssh-key-7c1d0006\n-----END OPENSSH PRIVATE KEY-----\n",
    ),
    ("env.ANTHROPIC_API_KEY", "env-value-7c1d0003"),
    ("env.PORT", "8080"),
];

fn field(text: &str) -> Field {
    text.parse().expect("a field")
}

/// That all fields are there, and nothing else.
pub fn assert_complete(document: &Document) {
    let fields: Vec<_> = document.fields().iter().map(Field::to_string).collect();
    assert_eq!(fields, VALUES.map(|(field, _)| field));
    for (text, value) in VALUES {
        let found = document.value(&field(text)).expect("there");
        assert_eq!(*found, value, "{text}");
    }
}

#[test]
fn test_agentlab_bundle_of_the_age_command_is_read() {
    for (key, bundle) in [
        ("mine.key", "default.age"),
        ("mine.key", "armored.age"),
        ("mine.key", "two.age"),
        ("several.key", "default.age"),
        ("several.key", "others.age"),
    ] {
        let folder = Folder::with_key(key);
        folder.add(bundle, "default.age");

        let opened = folder.bundles().open(&name("default")).expect("read");

        assert_complete(&opened.document);
        assert_eq!(opened.format, Format::Age);
    }
}

#[test]
fn test_agentlab_errors_are_told_apart() {
    let folder = Folder::with_key("mine.key");
    let bundles = folder.bundles();
    let open = |text: &str| bundles.open(&name(text)).err().expect("refused");

    assert!(matches!(open("none"), BundleError::NotFound { .. }));
    assert!(open("none").to_string().starts_with("bundle not found"));

    folder.add("default.yaml", "plain.yaml");
    assert!(
        open("plain")
            .to_string()
            .starts_with("bundle not encrypted")
    );
    folder.add("default.yaml", "misnamed.age");
    assert!(matches!(open("misnamed"), BundleError::NotEncrypted(_)));

    folder.add("others.age", "others.age");
    assert!(
        open("others")
            .to_string()
            .contains("none of the private keys")
    );

    folder.add("default.age", "default.age");
    fs::remove_file(folder.path("age.key")).expect("removed");
    assert!(
        open("default")
            .to_string()
            .starts_with("no age identities found")
    );
    folder.put("age.key", b"# only a comment\n\n");
    assert!(matches!(open("default"), BundleError::NoIdentities(_)));
    folder.put("age.key", b"# one\n\nAGE-SECRET-KEY-1QQ\n");
    assert!(matches!(
        open("default"),
        BundleError::KeyFile { line: 3, .. }
    ));
}

#[test]
fn test_agentlab_plaintext_is_read_only_if_it_is_allowed_and_private() {
    let folder = Folder::with_key("mine.key");
    folder.add("default.yaml", "default.yml");
    let mut bundles = folder.bundles();
    bundles.allow_plaintext = true;

    let opened = bundles.open(&name("default")).expect("read");
    assert_complete(&opened.document);
    assert_eq!(opened.format, Format::Plaintext);

    fs::set_permissions(
        folder.path("default.yml"),
        fs::Permissions::from_mode(0o644),
    )
    .expect("its mode");
    assert!(matches!(
        bundles.open(&name("default")),
        Err(BundleError::File(_))
    ));
}

#[test]
fn test_agentlab_encrypted_bundle_is_found_before_plaintext() {
    let folder = Folder::with_key("mine.key");
    folder.put("default.yaml", b"env: {WRONG: one}");
    folder.add("default.age", "default.age");
    let mut bundles = folder.bundles();
    bundles.allow_plaintext = true;
    assert_complete(&bundles.open(&name("default")).expect("read").document);
}

#[test]
fn test_agentlab_damaged_bundle_is_refused_at_every_byte() {
    let folder = Folder::with_key("mine.key");
    let good = fs::read(fixture("default.age")).expect("a fixture");
    let bundles = folder.bundles();
    for at in (0..good.len()).step_by(37) {
        let mut changed = good.clone();
        changed[at] ^= 1;
        folder.put("default.age", &changed);
        assert!(bundles.open(&name("default")).is_err(), "byte {at}");
        folder.put("default.age", &good[..at]);
        assert!(bundles.open(&name("default")).is_err(), "cut at {at}");
    }
    folder.put("default.age", &good);
    assert_complete(&bundles.open(&name("default")).expect("read").document);
}

#[test]
fn test_agentlab_scheme_resolves_each_field_of_one_state() {
    let folder = Folder::with_key("mine.key");
    folder.add("default.age", "default.age");
    let scheme = Bundle::new(folder.bundles());
    for (field, value) in VALUES {
        let fetched = scheme
            .resolve(&format!("default#{field}"))
            .expect("a value");
        assert_eq!(fetched.value.expose(), value.as_bytes(), "{field}");
    }
    fs::remove_file(folder.path("default.age")).expect("removed");
    assert!(scheme.resolve("default#git.token").is_ok());

    for (locator, expected) in [
        ("default", "write bundle:NAME#section.key"),
        ("../default#git.token", "not the name of a bundle"),
        ("default#git", "no such place"),
        ("default#env.NONE", "no value at env.NONE"),
        ("none#git.token", "bundle not found"),
    ] {
        let error = scheme.resolve(locator).expect_err("refused").to_string();
        assert!(error.contains(expected), "{locator}: {error}");
    }
}

/// What the `age` command makes of a file, where there is one: another implementation.
fn age_decrypts(folder: &Folder, file: &str) -> Option<String> {
    let output = Command::new("age")
        .arg("-d")
        .arg("-i")
        .arg(folder.path("age.key"))
        .arg(folder.path(file))
        .output()
        .ok()?;
    assert!(output.status.success(), "age cannot read {file}");
    Some(String::from_utf8(output.stdout).expect("text"))
}

#[test]
fn test_agentlab_edit_keeps_all_else_and_is_read_by_the_age_command() {
    let folder = Folder::with_key("mine.key");
    folder.add("default.age", "default.age");
    let bundles = folder.bundles();

    let written = bundles.edit(&name("default"), |document| {
        document.set(&field("env.NEW"), "new-value".into());
        document.set(&field("git.token"), "other-token".into());
        Ok(())
    });

    let written = written.expect("changed");
    assert_eq!(written.recipients.len(), 1);
    let mode = fs::metadata(&written.path)
        .expect("there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let document = bundles.open(&name("default")).expect("read").document;
    for (text, value) in VALUES {
        let expected = if text == "git.token" {
            "other-token"
        } else {
            value
        };
        assert_eq!(*document.value(&field(text)).expect("there"), expected);
    }
    assert_eq!(
        *document.value(&field("env.NEW")).expect("there"),
        "new-value"
    );
    assert_eq!(document.unknown_keys(), (vec!["later".to_owned()], 0));
    let text = age_decrypts(&folder, "default.age").expect("the age command, which the tests need");
    assert!(
        text.contains("later:\n  unknown:\n    - 1\n    - 2\n"),
        "{text}"
    );
    assert!(text.contains("    ssh-private-7c1d0002\n"));
}

#[test]
fn test_agentlab_edit_locks_nobody_out() {
    let folder = Folder::with_key("mine.key");
    folder.add("two.age", "default.age");
    let bundles = folder.bundles();
    let change = |document: &mut Document| {
        document.set(&field("env.NEW"), "new-value".into());
        Ok(())
    };

    let refused = bundles.edit(&name("default"), change).expect_err("refused");
    assert!(matches!(
        refused,
        BundleError::Edit {
            error: EditError::RecipientsUnknown(2),
            ..
        }
    ));

    let several = Folder::with_key("several.key");
    let recipients = Identities::load(&several.path("age.key"))
        .expect("keys")
        .recipients();
    bundles
        .reencrypt(&name("default"), &recipients)
        .expect("written");
    let written = bundles.edit(&name("default"), change).expect("changed");
    assert_eq!(written.recipients.len(), 2);
    folder.add("other.key", "age.key");
    let document = bundles.open(&name("default")).expect("read").document;
    assert!(document.value(&field("env.NEW")).is_some());
}

/// A public key of ssh, for which the `age` command encrypts as well.
const SSH_KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAgNdEZVFBxZoKjC0HNoA6Dpj6yhNDinGk3qz7SHHL+1";

#[test]
fn test_agentlab_edit_drops_no_recipient_that_is_not_a_key_of_age() {
    let folder = Folder::with_key("mine.key");
    let bundles = folder.bundles();
    let own = Identities::load(&bundles.key).expect("keys").recipients();
    let status = Command::new("age")
        .args(["-r", &own[0].to_string(), "-r", SSH_KEY, "-o"])
        .args([folder.path("default.age"), fixture("default.yaml")])
        .status();
    assert!(status.expect("the age command").success());
    let before = fs::read(folder.path("default.age")).expect("read");
    let edit = || {
        bundles.edit(&name("default"), |document| {
            document.set(&field("env.NEW"), "new-value".into());
            Ok(())
        })
    };

    let refused = edit().expect_err("refused");

    assert!(matches!(
        refused,
        BundleError::Edit {
            error: EditError::OtherRecipients(1),
            ..
        }
    ));
    assert_eq!(fs::read(folder.path("default.age")).expect("read"), before);
    // What is asked for by name is done, and what our own writer puts in at random is no recipient.
    bundles.reencrypt(&name("default"), &own).expect("written");
    for _ in 0..20 {
        edit().expect("changed");
    }
}

#[test]
fn test_agentlab_edit_believes_no_list_of_keys_that_cannot_be_the_files() {
    let folder = Folder::with_key("mine.key");
    folder.add("other.key", "other.key");
    let bundles = folder.bundles();
    let key_of = |file| {
        let keys = Identities::load(&folder.path(file)).expect("keys");
        keys.recipients()[0].to_string()
    };
    let (own, other) = (key_of("age.key"), key_of("other.key"));
    let edit = |readers: &[&String], named: String| {
        let text = format!("metadata: {{age_recipients: '{named}'}}\n");
        folder.put("plain", text.as_bytes());
        let status = Command::new("age")
            .args(readers.iter().flat_map(|key| ["-r", key.as_str()]))
            .args([
                "-o".into(),
                folder.path("default.age"),
                folder.path("plain"),
            ])
            .status();
        assert!(status.expect("the age command").success());
        bundles.edit(&name("default"), |_| Ok(()))
    };

    for (readers, named) in [
        (&[&own, &other][..], format!("{own},{own}")),
        (&[&own, &other], own.clone()),
        (&[&own, &other], format!("{own},none")),
        (&[&own], other.clone()),
        (&[&own], format!("{own},{other}")),
    ] {
        let refused = edit(readers, named.clone()).expect_err("refused");
        let BundleError::Edit { error, .. } = refused else {
            panic!("{refused}");
        };
        let expected = EditError::RecipientsUnknown(readers.len());
        assert_eq!(error, expected, "{named}");
    }
    let written = edit(&[&own, &other], format!("{other}, {own},{own}")).expect("changed");
    assert_eq!(written.recipients.len(), 2);
}

#[test]
fn test_agentlab_edit_that_fails_leaves_the_bundle_alone() {
    let folder = Folder::with_key("mine.key");
    folder.add("default.age", "default.age");
    let before = fs::read(folder.path("default.age")).expect("read");
    let bundles = folder.bundles();

    let key = "none".parse().expect("a name");
    let failed = bundles.edit(&name("default"), |document| document.remove_ssh_key(&key));

    assert!(failed.is_err());
    assert_eq!(fs::read(folder.path("default.age")).expect("read"), before);
}

#[test]
fn test_agentlab_ssh_keys_are_added_and_removed() {
    let folder = Folder::with_key("mine.key");
    folder.add("default.age", "default.age");
    let bundles = folder.bundles();
    let key = "-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n-----END OPENSSH PRIVATE KEY-----\n";
    let ci = "ci".parse().expect("a name");
    let add = |text: &str| {
        let text = text.into();
        bundles.edit(&name("default"), |document| {
            document.add_ssh_key(&ci, text, Some("ed25519"), None)
        })
    };

    assert!(add("abc").is_err());
    add(key).expect("added");
    assert!(add(key).is_err());
    let document = bundles.open(&name("default")).expect("read").document;
    assert_eq!(*document.value(&field("ssh.ci")).expect("there"), key);

    bundles
        .edit(&name("default"), |document| document.remove_ssh_key(&ci))
        .expect("removed");
    let document = bundles.open(&name("default")).expect("read").document;
    assert!(document.value(&field("ssh.ci")).is_none());
    assert!(document.value(&field("ssh.deploy")).is_some());
}

#[test]
fn test_agentlab_encrypt_makes_a_new_bundle_and_replaces_none_unasked() {
    let folder = Folder::with_key("mine.key");
    let bundles = folder.bundles();
    let document = Document::read_plaintext(&fixture("default.yaml")).expect("a bundle");
    let encrypt = |replace| bundles.encrypt(&name("new"), document.clone(), &[], replace);

    let written = encrypt(false).expect("written");

    assert_complete(&bundles.open(&name("new")).expect("read").document);
    let stored = fs::read(&written.path).expect("read");
    assert!(!stored.windows(8).any(|window| window == b"7c1d0003"));
    assert!(encrypt(false).is_err());
    encrypt(true).expect("written");
}

#[test]
fn test_agentlab_encrypt_hides_no_bundle_of_sops_unasked() {
    for (fixture_name, file) in [
        ("default.sops.yaml", "new.sops.yaml"),
        ("default.sops.yaml", "new.sops.yml"),
        ("default.sops.json", "new.sops.json"),
    ] {
        let folder = Folder::with_key("mine.key");
        folder.add(fixture_name, file);
        folder.add("default.yaml", "plain.yaml");
        let bundles = folder.bundles();
        let document = Document::read_plaintext(&fixture("default.yaml")).expect("a bundle");
        let encrypt =
            |bundle, replace| bundles.encrypt(&name(bundle), document.clone(), &[], replace);

        let refused = encrypt("new", false).expect_err("refused").to_string();

        assert!(refused.contains(file), "{refused}");
        assert!(!folder.path("new.age").exists());
        encrypt("new", true).expect("written");
        encrypt("plain", false).expect("plaintext is what it is made of");
    }
}
