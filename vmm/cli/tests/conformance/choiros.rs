//! choiros: ids that stay while values change, and an audit that has no value. Its policy and broker come later.

use crate::place::{MARK, Place};

#[test]
fn test_choiros_ids_are_stable_and_values_rotate() {
    let place = Place::new();
    let of = "--scope user:alice --secrets-user alice";
    for value in ["value-7c1d0901", "value-7c1d0902"] {
        let set = place.given(&format!("secret set API_KEY {of}"), value);
        assert!(set.status.success());
    }
    place.ok(&format!("secret rotate API_KEY --generate {of}"));
    let history = place.ok(&format!("secret history API_KEY --json {of}"));
    let history: serde_json::Value = serde_json::from_str(&history).expect("JSON");
    assert_eq!(history.as_array().map(Vec::len), Some(3));
    assert_eq!(place.value("alice", "API_KEY@2"), "value-7c1d0902");

    // What is deleted does not give its versions to another value.
    place.ok(&format!("secret delete API_KEY {of}"));
    let set = place.given(&format!("secret set API_KEY {of}"), "value-7c1d0903");
    assert!(set.status.success());
    assert_eq!(place.value("alice", "API_KEY@4"), "value-7c1d0903");
}

#[test]
fn test_choiros_audit_has_user_name_time_and_decision_and_no_value() {
    let place = Place::new();
    let set = "secret set API_KEY --scope user:alice --secrets-user alice";
    assert!(place.given(set, "value-7c1d0901").status.success());
    let check = |user: &str| format!("secret check KEY=store:API_KEY --secrets-user {user}");
    place.ok(&check("alice"));
    place.fails(&check("bob"), 1, "there is no secret");
    assert!(place.value("alice", "API_KEY").contains(MARK), "control");

    let audit = place.ok("secret audit --json");

    let records: Vec<serde_json::Value> = audit
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let fields = |at: usize| {
        let record = &records[at];
        let text = |key: &str| record[key].as_str().map(str::to_owned);
        assert!(text("time").is_some(), "{record}");
        (text("user"), text("name"), text("access"), text("decision"))
    };
    let expected = |user: &str, name: &str, access: &str, decision: &str| {
        let some = |text: &str| Some(text.to_owned());
        (some(user), some(name), some(access), some(decision))
    };
    assert_eq!(fields(0), expected("alice", "KEY", "check", "allow"));
    assert_eq!(fields(1), expected("bob", "KEY", "check", "error"));
    assert_eq!(fields(2), expected("alice", "API_KEY", "export", "allow"));
    assert!(!audit.contains(MARK), "{audit}");
}
