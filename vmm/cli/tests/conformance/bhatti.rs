//! bhatti: secrets of users who do not see each other; the import of its database.

use crate::place::{MARK, Place, said};

#[test]
fn test_bhatti_no_other_user_lists_reads_or_names() {
    let place = Place::new();
    let set = "secret set API_KEY --scope user:alice --secrets-user alice";
    assert!(place.given(set, "value-7c1d0901").status.success());

    let list = place.ok("secret list --all --secrets-user bob");
    assert!(!list.contains("API_KEY"), "{list}");
    let export = "secret export API_KEY --yes --secrets-user bob";
    place.fails(export, 1, "there is no secret API_KEY");
    let (there, not_there) = (
        place.fails(
            "secret export user:alice/API_KEY --yes --secrets-user bob",
            125,
            "not open",
        ),
        place.fails(
            "secret export user:alice/OTHER --yes --secrets-user bob",
            125,
            "not open",
        ),
    );
    assert_eq!(there, not_there);
    for command in ["delete", "history", "rotate --generate"] {
        let line = format!("secret {command} API_KEY --scope user:alice --secrets-user bob");
        place.fails(&line, 125, "not open");
    }
    place.fails(
        "run --secrets-user bob --secret K=store:API_KEY -- true",
        125,
        "K: there is no secret",
    );
    assert_eq!(place.value("alice", "API_KEY"), "value-7c1d0901");
}

#[test]
fn test_bhatti_list_has_names_and_times_and_values_are_replaced_not_read() {
    let place = Place::new();
    assert!(
        place
            .given("secret set API_KEY", "value-7c1d0901")
            .status
            .success()
    );
    assert!(
        place
            .given("secret set API_KEY", "value-7c1d0902")
            .status
            .success()
    );

    let json: serde_json::Value =
        serde_json::from_str(&place.ok("secret list --json")).expect("JSON");
    assert_eq!(json[0]["name"], "API_KEY");
    assert_eq!(json[0]["version"], 2);
    assert!(json[0]["updated"].as_u64() > Some(1_700_000_000), "{json}");
    for command in [
        "list",
        "list --json",
        "list --all",
        "history API_KEY",
        "rollback API_KEY 1",
    ] {
        let text = place.ok(&format!("secret {command}"));
        assert!(!text.contains(MARK), "{command}: {text}");
    }
    // The control, and the one command that shows a value: not without being asked to.
    assert!(place.value("0", "API_KEY").contains(MARK));
    let unasked = place.given("secret export API_KEY", "y\n");
    assert!(!said(&unasked).contains(MARK), "{}", said(&unasked));
}

#[test]
fn test_bhatti_unknown_secret_is_named() {
    let place = Place::new();
    assert!(place.given("secret set OTHER", "x").status.success());
    let line = "run --secret API_KEY=store:API_KEY -- true";
    place.fails(line, 125, "API_KEY: there is no secret API_KEY");
}

#[test]
fn test_bhatti_import_of_all_users() {
    let place = Place::new().with("imports", &["bhatti.db", "bhatti-odd.db", "age.key"]);
    let import = |more: &str| format!("secret import bhatti --db {more}");
    let dry = place.ok(&import("bhatti.db --key age.key --dry-run"));
    assert!(dry.contains("had the path /home/user/.ssh/id"), "{dry}");
    assert!(!dry.contains(MARK) && !place.path("state/secrets").exists());
    let odd = place.fails(
        &import("bhatti-odd.db --key age.key"),
        125,
        "/OLD_KEY: the id",
    );
    assert!(odd.contains("usr_bob/IN_FILE: "), "{odd}");

    place.ok(&import(
        "bhatti-odd.db --key age.key --user =user:old --skip usr_bob/IN_FILE",
    ));

    assert_eq!(place.value("usr_alice", "API_KEY"), "bhatti-7c1d0201");
    assert_eq!(
        place.value("usr_alice", "SSH_KEY"),
        "bhatti-7c1d0202\nof two lines\n"
    );
    assert_eq!(place.value("usr_bob", "API_KEY"), "bhatti-7c1d0203");
    assert_eq!(place.value("old", "OLD_KEY"), "bhatti-7c1d0204");
    let list = place.ok("secret list --secrets-user usr_bob");
    assert!(
        !list.contains("usr_alice") && !list.contains("SSH_KEY"),
        "{list}"
    );
}

#[test]
fn test_bhatti_empty_key_is_refused_and_not_made_anew() {
    let place = Place::new().with("imports", &["bhatti.db", "age.key"]);
    std::fs::write(place.path("age.key"), "").expect("written");
    let line = "secret import bhatti --db bhatti.db --key age.key";
    place.fails(line, 125, "no age identities");
    assert_eq!(std::fs::read(place.path("age.key")).expect("read"), b"");
}
