//! Rows that somebody else has changed, moved or put back.

use proptest::prelude::*;

use super::*;

/// A store with secrets in several scopes and versions.
fn filled() -> Place {
    let place = Place::new();
    let mut store = place.store();
    for number in 1..=3 {
        for to in ["A", "B", "user:alice/A", "instance:web/A"] {
            set(&mut store, to, &format!("{to} {number}"));
        }
    }
    place
}

/// Whether every secret can be read, and is what was stored last.
fn is_whole(place: &Place) -> Result<(), StoreError> {
    let mut store = place.open()?;
    for selector in ["workspace/A", "B", "user:alice/A", "instance:web/A"] {
        let to = selector.strip_prefix("workspace/").unwrap_or(selector);
        assert_eq!(get(&mut store, selector)?, format!("{to} 3"));
        for version in 1..=3 {
            let text = get(&mut store, &format!("{selector}@{version}"))?;
            assert_eq!(text, format!("{to} {version}"));
        }
        let (in_scope, of) = selector.split_once('/').unwrap_or(("workspace", selector));
        store.history(&scope(in_scope), &name(of))?;
    }
    Ok(())
}

/// What changes of a database come to.
fn refused(place: &Place, sql: &str) {
    place.sql().execute_batch(sql).expect("changed");
    let result = is_whole(place);
    assert!(
        matches!(result, Err(StoreError::Damaged { .. })),
        "{sql}: {result:?}"
    );
}

#[test]
fn test_store_that_nobody_touched_is_whole() {
    let place = filled();
    is_whole(&place).expect("whole");
    place
        .sql()
        .execute_batch("VACUUM")
        .expect("changed nothing");
    is_whole(&place).expect("whole");
}

#[test]
fn test_values_moved_between_names_scopes_and_versions_are_refused() {
    let columns = ["salt", "nonce", "sealed"];
    let places = [
        ("workspace", "A", 3),
        ("workspace", "A", 2),
        ("workspace", "B", 3),
        ("user:alice", "A", 3),
        ("instance:alice/web", "A", 3),
    ];
    for (index, (to_scope, to_name, to_version)) in places.iter().enumerate() {
        let (scope, name, version) = places[(index + 1) % places.len()];
        let all = columns.map(|column| {
            format!(
                "{column} = (SELECT {column} FROM versions WHERE scope = '{scope}' AND name = '{name}' \
                 AND version = {version})"
            )
        });
        let wheres =
            format!("WHERE scope = '{to_scope}' AND name = '{to_name}' AND version = {to_version}");
        refused(
            &filled(),
            &format!("UPDATE versions SET {} {wheres}", all.join(", ")),
        );
    }
}

#[test]
fn test_changed_columns_are_refused() {
    for set in [
        "salt = zeroblob(16)",
        "salt = zeroblob(15)",
        "nonce = zeroblob(12)",
        "nonce = zeroblob(0)",
        "sealed = zeroblob(40)",
        "sealed = zeroblob(16)",
        "sealed = zeroblob(0)",
        "created = created + 1",
        "version = version + 10",
        "name = 'C'",
        "scope = 'user:bob'",
    ] {
        refused(
            &filled(),
            &format!("UPDATE versions SET {set} WHERE scope = 'user:alice' AND version = 3"),
        );
    }
}

#[test]
fn test_heads_changed_removed_added_or_put_back_are_refused() {
    for sql in [
        "UPDATE heads SET version = 2 WHERE scope = 'workspace' AND name = 'A'",
        "UPDATE heads SET version = 4 WHERE scope = 'workspace' AND name = 'A'",
        "UPDATE heads SET version = 0",
        "UPDATE heads SET oldest = 4 WHERE name = 'B'",
        "UPDATE heads SET oldest = -1 WHERE name = 'B'",
        "UPDATE heads SET version = 9223372036854775807 WHERE name = 'B'",
        "UPDATE heads SET updated = 0 WHERE name = 'B'",
        "UPDATE heads SET name = 'not a name' WHERE name = 'B'",
        "DELETE FROM heads WHERE scope = 'user:alice'",
        "INSERT INTO heads VALUES('instance:alice/db', 'B', 3, 1, 0)",
        "DELETE FROM heads",
        "DELETE FROM state",
        "UPDATE state SET generation = generation - 1",
        "UPDATE state SET mac = zeroblob(32)",
        "UPDATE state SET mac = zeroblob(0)",
        "DELETE FROM versions WHERE version = 1",
        "INSERT INTO versions SELECT scope, name, 7, created, salt, nonce, sealed FROM versions WHERE version = 1",
    ] {
        refused(&filled(), sql);
    }
}

#[test]
fn test_secret_put_back_with_its_values_is_refused() {
    let place = filled();
    let old = place.0.path().join("old.db");
    place
        .sql()
        .execute("VACUUM INTO ?1", [old.to_str()])
        .expect("copied");
    let mut store = place.store();
    store
        .delete(&Scope::Workspace, &name("B"))
        .expect("deleted");
    set(&mut store, "A", "A 4");
    drop(store);
    let attach = format!("ATTACH '{}' AS old;", old.display());
    for of in ["A", "B"] {
        let copy = |table: &str| {
            format!(
                "DELETE FROM main.{table} WHERE name = '{of}' AND scope = 'workspace'; \
                 INSERT INTO main.{table} SELECT * FROM old.{table} WHERE name = '{of}' AND scope = 'workspace';"
            )
        };
        let sql = format!("{attach}{}{}", copy("heads"), copy("versions"));
        place.sql().execute_batch(&sql).expect("changed");
        let opened = place.open();
        assert!(
            matches!(opened, Err(StoreError::Damaged { .. })),
            "{of}: {opened:?}"
        );
    }
}

#[test]
fn test_change_is_noticed_by_a_store_that_is_open() {
    let place = filled();
    let mut store = place.open().expect("opened");
    assert_eq!(get(&mut store, "B").expect("there"), "B 3");
    place
        .sql()
        .execute_batch("UPDATE heads SET version = 2 WHERE name = 'B'")
        .expect("changed");
    let result = get(&mut store, "B");
    assert!(
        matches!(result, Err(StoreError::Damaged { .. })),
        "{result:?}"
    );
}

#[test]
fn test_wrapped_key_changed_is_refused() {
    for sql in [
        "UPDATE keys SET created = 0",
        "UPDATE keys SET wrapped = zeroblob(76)",
        "UPDATE keys SET wrapped = substr(wrapped, 1, 75)",
        "UPDATE keys SET mac = zeroblob(32)",
        "UPDATE keys SET source = '{\"source\":\"file\",\"more\":1}'",
        "UPDATE keys SET source = '{'",
        "DELETE FROM keys",
        "INSERT INTO keys SELECT id + 1, source, created, wrapped, mac FROM keys; \
         INSERT INTO keys SELECT id + 2, source, created, wrapped, mac FROM keys",
    ] {
        let place = filled();
        place.sql().execute_batch(sql).expect("changed");
        let opened = place.open();
        assert!(
            matches!(opened, Err(StoreError::Damaged { .. } | StoreError::Key(_))),
            "{sql}: {opened:?}"
        );
    }
}

#[test]
fn test_database_of_another_kind_is_refused() {
    let open = |sql: &str| {
        let place = filled();
        place.sql().execute_batch(sql).expect("changed");
        place.open().expect_err("refused")
    };
    for sql in [
        "CREATE TRIGGER t AFTER INSERT ON heads BEGIN DELETE FROM versions; END",
        "CREATE VIEW v AS SELECT 1",
        "CREATE TABLE t(a)",
        "CREATE INDEX i ON heads(version)",
        "DROP TABLE versions",
        "ALTER TABLE heads ADD COLUMN more TEXT",
    ] {
        let error = open(sql);
        assert!(
            matches!(error, StoreError::Damaged { .. }),
            "{sql}: {error}"
        );
    }
    assert!(matches!(
        open("PRAGMA user_version = 2"),
        StoreError::Future { version: 2, .. }
    ));
    assert!(matches!(
        open("PRAGMA user_version = 0"),
        StoreError::Foreign(_)
    ));
    assert!(matches!(
        open("PRAGMA application_id = 1"),
        StoreError::Foreign(_)
    ));
}

#[test]
fn test_file_that_is_no_database_is_refused() {
    for content in [&b""[..], b"x", b"SQLite format 3\0", &[0xff; 8192]] {
        let place = filled();
        fs::remove_file(place.file("store.db-wal")).ok();
        fs::write(place.file(DATABASE), content).expect("written");
        let opened = place.open();
        assert!(
            matches!(
                opened,
                Err(StoreError::Foreign(_) | StoreError::Damaged { .. })
            ),
            "{} bytes: {opened:?}",
            content.len()
        );
    }
}

/// Bytes of a database that are changed: where, and to what.
fn damage(
    content: &mut Vec<u8>,
    changes: &[(prop::sample::Index, u8)],
    cut: Option<prop::sample::Index>,
) {
    for (at, byte) in changes {
        let at = at.index(content.len());
        content[at] = *byte;
    }
    if let Some(cut) = cut {
        content.truncate(cut.index(content.len()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Whatever is in the file, what is read of it is what was stored.
    #[test]
    fn test_damaged_file_gives_what_was_stored_or_nothing(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        thread_local! {
            static WHOLE: (Place, Vec<u8>) = {
                let place = filled();
                place.sql().execute_batch("VACUUM; PRAGMA wal_checkpoint(TRUNCATE)").expect("changed nothing");
                let content = fs::read(place.file(DATABASE)).expect("read");
                (place, content)
            };
        }
        WHOLE.with(|(place, content)| {
            let mut content = content.clone();
            damage(&mut content, &changes, cut);
            for sidecar in ["store.db-wal", "store.db-shm"] {
                fs::remove_file(place.file(sidecar)).ok();
            }
            fs::write(place.file(DATABASE), content).expect("written");
            // Asserts that each value which is read is the one that was stored.
            is_whole(place).ok();
        });
    }
}
