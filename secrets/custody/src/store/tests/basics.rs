//! What the store does when nothing is in its way.

use std::os::unix::fs::PermissionsExt;

use cachot_secrets::MAX_VALUE_LEN;

use super::*;

#[test]
fn test_set_and_get_at_every_size() {
    let place = Place::new();
    let mut store = place.store();
    for len in [1, 15, 16, 17, 4095, 4096, 4097, MAX_VALUE_LEN] {
        let bytes: Vec<u8> = (0..=255).cycle().take(len).collect();
        let value = SecretValue::copy_of(&bytes).expect("a value");

        store
            .set(&Scope::Workspace, &name("KEY"), &value)
            .expect("stored");

        let fetched = store
            .get(&"KEY".parse().expect("a selector"))
            .expect("there");
        assert!(fetched.value.expose() == bytes, "differs at length {len}");
    }
}

#[test]
fn test_store_opened_again_has_what_was_stored() {
    let place = Place::new();
    assert_eq!(set(&mut place.store(), "KEY", "one"), 1);
    assert_eq!(set(&mut place.store(), "KEY", "two"), 2);
    let mut store = place.open().expect("opened");
    assert_eq!(get(&mut store, "KEY").expect("there"), "two");
    assert_eq!(get(&mut store, "KEY@1").expect("there"), "one");
}

#[test]
fn test_every_file_of_the_store_is_private() {
    let place = Place::new();
    let mut store = place.store();
    set(&mut store, "KEY", "one");
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(&place.path()), 0o700);
    let mut names: Vec<_> = fs::read_dir(place.path())
        .expect("listed")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    names.sort();
    assert_eq!(
        names,
        ["master.key", "store.db", "store.db-shm", "store.db-wal"]
    );
    for name in names {
        assert_eq!(mode(&place.path().join(&name)), 0o600, "{name:?}");
    }
}

#[test]
fn test_narrower_scope_wins_and_a_deleted_one_does_not() {
    let place = Place::new();
    let mut store = place.store();
    set(&mut store, "KEY", "all");
    set(&mut store, "user:alice/KEY", "alice's");
    set(&mut store, "instance:web/KEY", "web's");

    let mut web = place.store_of("alice", Some("web"));
    assert_eq!(get(&mut web, "KEY").expect("there"), "web's");
    assert_eq!(get(&mut web, "user:alice/KEY").expect("there"), "alice's");
    assert_eq!(get(&mut store, "KEY").expect("there"), "alice's");
    assert_eq!(
        get(&mut place.store_of("alice", Some("db")), "KEY").expect("there"),
        "alice's"
    );
    assert_eq!(
        get(&mut place.store_of("bob", Some("web")), "KEY").expect("there"),
        "all"
    );

    store
        .delete(&scope("instance:web"), &name("KEY"))
        .expect("deleted");
    assert_eq!(get(&mut web, "KEY").expect("there"), "alice's");
}

#[test]
fn test_store_is_not_made_beside_what_another_one_has_left() {
    for left_over in ["store.db-wal", "store.db-shm", "store.db-journal"] {
        let place = Place::new();
        place.store();
        fs::remove_file(place.file(DATABASE)).expect("moved away");
        for file in ["store.db-wal", "store.db-shm"] {
            fs::remove_file(place.file(file)).ok();
        }
        fs::write(place.file(left_over), b"x").expect("written");
        fs::set_permissions(
            place.file(left_over),
            std::os::unix::fs::PermissionsExt::from_mode(0o600),
        )
        .expect("private");
        let made = || Store::open_or_create(&place.path(), requester("alice", None));

        assert!(matches!(made(), Err(StoreError::LeftOver(_))));

        fs::remove_file(place.file(left_over)).expect("moved away");
        made().expect("made");
    }
}

#[test]
fn test_names_are_those_that_a_reference_would_find() {
    let place = Place::new();
    let mut store = place.store_of("alice", Some("web"));
    for stored in [
        "A",
        "B",
        "user:alice/B",
        "user:alice/C",
        "instance:web/D",
        "GONE",
    ] {
        set(&mut store, stored, "x");
    }
    store
        .delete(&scope("workspace"), &name("GONE"))
        .expect("deleted");

    let names = |user: &str, instance: Option<&str>| {
        let names = place.store_of(user, instance).names().expect("read");
        names.iter().map(Name::to_string).collect::<String>()
    };

    assert_eq!(names("alice", Some("web")), "ABCD");
    assert_eq!(names("alice", Some("db")), "ABC");
    assert_eq!(names("bob", Some("web")), "AB");
}

#[test]
fn test_scope_of_another_user_is_refused_whether_it_has_the_secret_or_not() {
    let place = Place::new();
    set(&mut place.store(), "user:alice/KEY", "alice's");
    set(&mut place.store(), "instance:web/KEY", "web's");
    let mut bob = place.store_of("bob", Some("db"));
    for (there, absent) in [
        ("user:alice/KEY", "user:alice/NONE"),
        ("instance:web/KEY", "instance:web/NONE"),
    ] {
        let [there, absent] = [there, absent].map(|text| get(&mut bob, text).expect_err("refused"));
        assert!(matches!(there, StoreError::NotYours(_)), "{there}");
        assert_eq!(there.to_string(), absent.to_string());
    }
    assert!(bob.list(true).expect("listed").is_empty());
    let (alice, key) = (scope("user:alice"), name("KEY"));
    let refused = [
        bob.set(&alice, &key, &value("x")).err(),
        bob.rotate(&alice, &key, &value("x")).err(),
        bob.rollback(&alice, &key, 1).err(),
        bob.delete(&alice, &key).err(),
        bob.history(&alice, &key).err(),
    ];
    for error in refused {
        assert!(matches!(error, Some(StoreError::NotYours(_))), "{error:?}");
    }
}

#[test]
fn test_versions_only_rise() {
    let place = Place::new();
    let mut store = place.store();
    let (all, key) = (Scope::Workspace, name("KEY"));
    let rotated = store.rotate(&all, &key, &value("x"));
    assert!(
        matches!(rotated, Err(StoreError::NoSecret { .. })),
        "{rotated:?}"
    );
    set(&mut store, "KEY", "one");
    assert_eq!(store.rotate(&all, &key, &value("two")).expect("stored"), 2);
    assert_eq!(store.rollback(&all, &key, 1).expect("stored"), 3);
    assert_eq!(get(&mut store, "KEY").expect("there"), "one");
    let versions: Vec<_> = store
        .history(&all, &key)
        .expect("listed")
        .iter()
        .map(|version| (version.version, version.current))
        .collect();
    assert_eq!(versions, [(3, true), (2, false), (1, false)]);

    assert_eq!(store.delete(&all, &key).expect("deleted"), 3);

    let gone = get(&mut store, "KEY");
    assert!(matches!(gone, Err(StoreError::NoSecret { .. })), "{gone:?}");
    let again = store.delete(&all, &key);
    assert!(
        matches!(again, Err(StoreError::NoSecret { .. })),
        "{again:?}"
    );
    assert!(store.list(false).expect("listed").is_empty());
    assert_eq!(store.list(true).expect("listed").len(), 1);
    assert_eq!(set(&mut store, "KEY", "four"), 4);
    let gone = get(&mut store, "KEY@1");
    assert!(
        matches!(gone, Err(StoreError::NoVersion { .. })),
        "{gone:?}"
    );
}

#[test]
fn test_versions_that_are_too_many_go_the_oldest_first() {
    let place = Place::new();
    let mut store = place.store();
    for number in 1..=MAX_VERSIONS + 2 {
        assert_eq!(set(&mut store, "KEY", &number.to_string()), number);
    }
    let kept = store
        .history(&Scope::Workspace, &name("KEY"))
        .expect("listed");
    assert_eq!(kept.len() as u64, MAX_VERSIONS);
    assert_eq!(kept.last().map(|version| version.version), Some(3));
    let gone = get(&mut store, "KEY@2");
    assert!(
        matches!(gone, Err(StoreError::NoVersion { .. })),
        "{gone:?}"
    );
    assert_eq!(get(&mut store, "KEY@3").expect("there"), "3");
}

#[test]
fn test_another_process_is_seen_at_once() {
    let place = Place::new();
    let (mut one, mut other) = (place.store(), place.store());
    set(&mut one, "KEY", "one");
    assert_eq!(get(&mut other, "KEY").expect("there"), "one");
    assert_eq!(set(&mut other, "KEY", "two"), 2);
    assert_eq!(get(&mut one, "KEY").expect("there"), "two");
    assert_eq!(set(&mut one, "KEY", "three"), 3);
}

#[test]
fn test_set_all_stores_all_or_none() {
    let place = Place::new();
    let mut store = place.store();
    let (mine, theirs) = (scope("workspace"), scope("user:bob"));
    let names = ["A", "B", "A"].map(name);
    let values = ["one", "two", "three"].map(value);

    let all = names
        .iter()
        .zip(&values)
        .map(|(name, value)| (&mine, name, value));
    store.set_all(all).expect("stored");
    assert_eq!(get(&mut store, "A").expect("there"), "three");
    assert_eq!(get(&mut store, "B").expect("there"), "two");

    let scopes = [&mine, &mine, &theirs];
    let some = scopes.into_iter().zip(&names).zip(&values);
    let refused = store.set_all(some.map(|((scope, name), value)| (scope, name, value)));
    assert!(
        matches!(refused, Err(StoreError::NotYours(_))),
        "{refused:?}"
    );
    for mut store in [store, place.open().expect("opened")] {
        let versions: Vec<_> = store
            .list(true)
            .expect("listed")
            .iter()
            .map(|one| one.version)
            .collect();
        assert_eq!(versions, [2, 1]);
    }
}

#[test]
fn test_full_disk_is_told_and_changes_nothing() {
    let place = Place::new();
    let mut store = place.store();
    set(&mut store, "KEY", "one");
    let pages: i64 = store
        .connection
        .query_row("PRAGMA page_count", (), |row| row.get(0))
        .expect("counted");
    store
        .connection
        .query_row(&format!("PRAGMA max_page_count = {pages}"), (), |_| Ok(()))
        .expect("limited");

    let full = store.set(
        &Scope::Workspace,
        &name("KEY"),
        &value(&"x".repeat(100_000)),
    );

    assert!(matches!(full, Err(StoreError::Full(_))), "{full:?}");
    assert_eq!(get(&mut store, "KEY").expect("there"), "one");
    assert_eq!(set(&mut store, "KEY", "two"), 2);
    assert_eq!(
        get(&mut place.open().expect("opened"), "KEY").expect("there"),
        "two"
    );
}
