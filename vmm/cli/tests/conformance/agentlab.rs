//! agentlab: the errors of a look-up, and bundles put into the store. Its commands are in `tests/bundle.rs`.

use crate::place::{MARK, Place};

const PLACE: &str = "--secrets-dir . --identity mine.key";

fn place() -> Place {
    let files = [
        "mine.key",
        "default.age",
        "two.age",
        "others.age",
        "default.yaml",
    ];
    Place::new().with("bundles", &files)
}

#[test]
fn test_agentlab_errors_of_a_look_up() {
    let place = place();
    let show = |name: &str| format!("bundle show {name} --secrets-dir . --identity");
    place.fails(
        &format!("{} mine.key", show("none")),
        125,
        "bundle not found",
    );
    std::fs::remove_file(place.path("default.age")).expect("removed");
    place.fails(
        &format!("{} mine.key", show("default")),
        125,
        "bundle not encrypted",
    );
    place.fails(
        &format!("{} no.key", show("two")),
        125,
        "no age identities found",
    );
    std::fs::write(place.path("default.yaml"), "version: 2").expect("written");
    let line = format!("{} mine.key --allow-plaintext", show("default"));
    place.fails(&line, 125, "unsupported bundle version 2");
}

#[test]
fn test_agentlab_import_has_the_names_of_run() {
    let place = place();
    let import = format!("secret import agentlab default {PLACE} --scope instance:ci");
    let dry = place.ok(&format!("{import} --dry-run"));
    assert!(
        dry.contains("8 secrets would be stored, 4 left out"),
        "{dry}"
    );
    assert!(dry.contains("left out: it is no secret"), "{dry}");
    assert!(!dry.contains(MARK), "{dry}");

    place.ok(&import);

    let user = rustix::process::getuid().as_raw().to_string();
    for (name, value) in [
        ("GIT_TOKEN", "git-token-7c1d0001"),
        ("ANTHROPIC_API_KEY", "env-value-7c1d0003"),
        ("ARTIFACT_TOKEN", "upload-token-7c1d0005"),
        ("PORT", "8080"),
    ] {
        let selector = format!("instance:ci/{name}");
        assert_eq!(place.value(&user, &selector), value);
    }
    let key = place.value(&user, "instance:ci/SSH_KEY_DEPLOY");
    assert!(key.contains("ssh-key-7c1d0006") && key.ends_with("-----\n"));
}

#[test]
fn test_agentlab_import_of_a_folder_is_all_or_nothing() {
    let place = place();
    let import = format!("secret import agentlab --all {PLACE}");
    // One bundle is encrypted to others.
    place.fails(&import, 125, "others.age");
    std::fs::remove_file(place.path("others.age")).expect("removed");
    let text = place.fails(
        &import,
        125,
        "two#git.token: it would be the same secret as default#git.token",
    );
    assert!(text.contains("--rename"), "{text}");
    assert!(!place.path("state/secrets").exists(), "nothing was stored");
}
