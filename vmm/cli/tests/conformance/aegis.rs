//! aegis: set, list, delete; the import of its database. What needs a VM is in `tests/e2e/aegis.sh`.

use crate::place::{MARK, Place, said};

fn place() -> Place {
    Place::new().with(
        "imports",
        &["aegis.db", "aegis-odd.db", "aegis-older.db", "master.key"],
    )
}

#[test]
fn test_aegis_set_list_delete() {
    let place = Place::new();
    let set = place.given("secret set API_KEY value-7c1d0901", "");
    assert!(set.status.success(), "{}", said(&set));
    assert!(!said(&set).contains(MARK), "{}", said(&set));
    assert!(said(&set).contains("WARNING"), "{}", said(&set));

    let list = place.ok("secret list");
    assert!(list.contains("API_KEY") && !list.contains(MARK), "{list}");

    place.ok("secret delete API_KEY");
    assert!(!place.ok("secret list").contains("API_KEY"));
    place.fails("secret delete API_KEY", 1, "there is no secret API_KEY");
}

#[test]
fn test_aegis_key_is_private_and_made_once() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    place.given("secret set API_KEY", "value-7c1d0901");
    let key = place.path("state/secrets/master.key");
    let mode = |path: &std::path::Path| {
        let metadata = std::fs::metadata(path).expect("it is there");
        metadata.permissions().mode() & 0o777
    };
    assert_eq!(std::fs::read(&key).expect("read").len(), 32);
    assert_eq!(mode(&key), 0o600);
    assert_eq!(mode(&place.path("state/secrets")), 0o700);

    std::fs::write(&key, [7; 31]).expect("written");
    place.fails("secret export API_KEY --yes", 125, "31 bytes");
    std::fs::remove_file(&key).expect("removed");
    place.fails("secret set API_KEY --generate", 125, "is missing");
    assert!(!key.exists(), "it is not made anew");
}

#[test]
fn test_aegis_missing_names_fail_closed() {
    let place = Place::new();
    place.given("secret set API_KEY", "value-7c1d0901");
    let line = "run --secret API_KEY=store:API_KEY --secret NONE=store:NONE -- true";
    place.fails(line, 125, "NONE: there is no secret NONE");
}

#[test]
fn test_aegis_import_of_both_schemas() {
    let place = place();
    let dry = place.ok("secret import aegis --db aegis.db --key master.key --dry-run");
    assert!(dry.contains("2 secrets would be stored"), "{dry}");
    assert!(!dry.contains(MARK) && !place.path("state/secrets").exists());

    place.ok("secret import aegis --db aegis.db --key master.key");
    assert_eq!(place.value("anybody", "API_KEY"), "aegis-7c1d0101");
    let older = "secret import aegis --db aegis-older.db --key master.key";
    place.fails(older, 125, "API_KEY in workspace: nothing was stored");
    let dry = place.ok(&format!("{older} --dry-run"));
    assert!(
        dry.contains("is there in version 1: needs --replace"),
        "{dry}"
    );
    place.ok(&format!("{older} --replace --app app-job=instance:job"));
    assert_eq!(place.value("0", "API_KEY"), "aegis-7c1d0104");
    let user = rustix::process::getuid().as_raw().to_string();
    let of_app = place.value(&user, "instance:app-web/API_KEY");
    assert_eq!(of_app, "aegis-7c1d0105");
    assert_eq!(place.value(&user, "instance:job/JOB_KEY"), "aegis-7c1d0106");
}

#[test]
fn test_aegis_import_loses_nothing_silently() {
    let place = place();
    let import = "secret import aegis --db aegis-odd.db --key master.key";
    let text = place.fails(import, 125, "EMPTY: its value is empty");
    assert!(text.contains("my-key: byte 3"), "{text}");
    assert!(!place.path("state/secrets").exists(), "nothing was stored");
    let rest = format!("{import} --skip-empty --rename my-key=MY_KEY --json");
    let json: serde_json::Value = serde_json::from_str(&place.ok(&rest)).expect("JSON");
    assert_eq!(json.as_array().map(Vec::len), Some(4));
    assert_eq!(
        (&json[2]["from"], &json[2]["name"]),
        (&"my-key".into(), &"MY_KEY".into())
    );
    assert_eq!(json[3]["left_out"], "it is empty");
    assert!(!json.to_string().contains(MARK), "{json}");

    let typed = format!("{import} --rename my-key=value-{MARK}");
    place.fails(&typed, 125, "byte 6 of the secret's name");
}
