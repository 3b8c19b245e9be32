//! Databases and keys that are not as they should be: refused, with the reason, and never with a value.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use cachot_custody::import::{self, Found, ImportError, Plan};
use proptest::prelude::*;

use super::{Place, refused, rules};

/// Lets the `sqlite3` command change a database.
fn sqlite(path: &Path, script: &str) {
    let output = Command::new("sqlite3").arg(path).arg(script).output();
    let output = output.expect("`sqlite3` is there");
    assert!(output.status.success(), "{output:?}");
}

#[track_caller]
fn fails(read: Result<Vec<Found>, ImportError>, expected: &str) {
    let error = read.expect_err("refused");
    let text = std::iter::successors(Some(&error as &dyn std::error::Error), |error| {
        error.source()
    })
    .map(ToString::to_string)
    .collect::<Vec<_>>()
    .join(": ");
    assert!(text.contains(expected), "{text}");
    assert!(!text.contains("7c1d"), "{text}");
}

/// aegis.db after a script.
fn changed(script: &str) -> Result<Vec<Found>, ImportError> {
    let place = Place::new();
    let path = place.file("aegis.db");
    sqlite(&path, script);
    import::aegis(&path, &place.file("master.key"))
}

#[test]
fn test_tables_that_are_not_those_of_the_system_are_refused() {
    for (script, expected) in [
        ("DROP TABLE secrets", "no table `secrets`"),
        (
            "ALTER TABLE secrets RENAME TO s; CREATE VIEW secrets AS SELECT * FROM s",
            "no table `secrets`",
        ),
        (
            "ALTER TABLE secrets RENAME TO s; CREATE VIRTUAL TABLE secrets USING fts5(id, name, value, created_at)",
            "no table `secrets`",
        ),
        (
            "ALTER TABLE secrets ADD COLUMN key_id TEXT",
            "neither the columns id, name",
        ),
        (
            "ALTER TABLE secrets RENAME COLUMN value TO data",
            "neither the columns",
        ),
        (
            "ALTER TABLE secrets ADD COLUMN more AS (value || value)",
            "computed",
        ),
    ] {
        fails(changed(script), expected);
    }
    let place = Place::new();
    fails(place.bhatti("aegis.db"), "is not a database of bhatti");
    fails(place.aegis("bhatti.db"), "is not a database of aegis");
}

#[test]
fn test_rows_with_other_content_are_refused_by_name() {
    let found = changed(
        "INSERT INTO secrets VALUES \
         ('1', 'TEXT', 'aegis-7c1d', ''), ('2', 'NUMBER', 7, ''), ('3', X'41ff', X'00', ''), \
         ('4', CAST(X'41ff' AS TEXT), X'00', ''), ('5', 'SHORT', zeroblob(27), ''), \
         ('6', 'ZEROS', zeroblob(40), ''), ('7', 'HUGE', zeroblob(1048605), ''), \
         ('8', CAST(X'410042' AS TEXT), (SELECT value FROM secrets LIMIT 1), ''), \
         ('9', '', (SELECT value FROM secrets LIMIT 1), ''), \
         ('10', '../up', (SELECT value FROM secrets LIMIT 1), '')",
    );
    let lines = refused(Plan::new(found.expect("read"), &rules()));
    let expected = [
        "TEXT: its column value is not bytes",
        "NUMBER: its column value is not bytes",
        "row 5: its column name is not text",
        "row 6: its column name is not text",
        "SHORT: its value is cut short",
        "ZEROS: its value was encrypted with another key",
        "HUGE: ",
        "\"A\\0B\": byte 2 of",
        "\"\": the secret's name is empty",
        "../up: byte 1 of",
    ];
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line.starts_with(expected), "{line}");
        assert!(!line.contains("7c1d"), "{line}");
    }
    // What is in a column that is not read makes no difference.
    let found = changed("UPDATE secrets SET created_at = X'ff'").expect("read");
    assert!(Plan::new(found, &rules()).is_ok());
}

#[test]
fn test_keys_that_are_not_those_of_the_database_are_refused() {
    let place = Place::new();
    let database = place.file("aegis.db");
    for (bytes, expected) in [
        (&[7; 32][..], "no value of"),
        (b"", "is empty"),
        (&[7; 31], "has 31 bytes"),
        (&[7; 33], "over the limit of 32 bytes"),
    ] {
        fails(
            import::aegis(&database, &place.put("other", bytes)),
            expected,
        );
    }
    let key = place.file("master.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).expect("its mode");
    fails(import::aegis(&database, &key), "open to others");

    let database = place.file("bhatti.db");
    fails(
        import::bhatti(&database, &place.put("other", b"")),
        "no age identities",
    );
    fails(
        import::bhatti(&database, &place.put("other", b"AGE-SECRET-KEY-1QQ")),
        "line 1",
    );
    let output = Command::new("age-keygen")
        .output()
        .expect("`age-keygen` is there");
    fails(
        import::bhatti(&database, &place.put("other", &output.stdout)),
        "no value of",
    );
}

#[test]
fn test_bhatti_value_that_is_no_age_file_is_refused_by_name() {
    let place = Place::new();
    let path = place.file("bhatti.db");
    sqlite(
        &path,
        "UPDATE secrets SET value_encrypted = substr(value_encrypted, 1, length(value_encrypted) - 3) \
         WHERE name = 'SSH_KEY'; \
         INSERT INTO secrets(user_id, name, value_encrypted) VALUES ('usr_bob', 'PLAIN', X'3763316431'), \
         ('usr_bob', 'NONE', NULL)",
    );
    let found = import::bhatti(&path, &place.file("age.key")).expect("read");
    let mut lines = refused(Plan::new(found, &rules()));
    lines.sort();
    assert_eq!(lines.len(), 3, "{lines:#?}");
    assert!(
        lines[0].starts_with("usr_alice/SSH_KEY: its value cannot be decrypted: it is damaged"),
        "{lines:#?}"
    );
    assert!(
        lines[1].starts_with("usr_bob/NONE: its column value_encrypted"),
        "{lines:#?}"
    );
    assert!(
        lines[2].starts_with("usr_bob/PLAIN: its value cannot be decrypted: it is not encrypted"),
        "{lines:#?}"
    );
}

#[test]
fn test_database_in_use_is_refused_and_left_as_it_is() {
    let place = Place::new();
    let (path, key) = (place.file("aegis.db"), place.file("master.key"));
    let before = fs::read(&path).expect("read");
    assert!(import::aegis(&path, &key).is_ok());
    assert_eq!(fs::read(&path).expect("read"), before);
    assert!(!place.path("aegis.db-shm").exists() && !place.path("aegis.db-wal").exists());

    for suffix in ["-wal", "-journal"] {
        let log = place.put(&format!("aegis.db{suffix}"), b"");
        assert!(
            import::aegis(&path, &key).is_ok(),
            "an empty log has nothing"
        );
        fs::write(&log, b"something").expect("written");
        fails(
            import::aegis(&path, &key),
            "changes that are not in the database yet",
        );
        fs::remove_file(log).expect("removed");
    }

    // Another process in the middle of a change.
    let path = place.file("aegis-odd.db");
    let mut writer = Command::new("sqlite3")
        .arg(&path)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("`sqlite3` is there");
    let mut input = writer.stdin.take().expect("a pipe");
    let mut output = std::io::BufReader::new(writer.stdout.take().expect("a pipe"));
    use std::io::{BufRead, Write};
    writeln!(input, "BEGIN EXCLUSIVE; SELECT 'begun';").expect("written");
    output.read_line(&mut String::new()).expect("begun");
    fails(import::aegis(&path, &key), "is being written to");
    writeln!(input, "COMMIT;").expect("written");
    drop(input);
    writer.wait().expect("it ends");
    assert!(import::aegis(&path, &key).is_ok());
}

#[test]
fn test_files_that_are_no_databases_are_refused() {
    let place = Place::new();
    let key = place.file("master.key");
    let of = |bytes: &[u8]| import::aegis(&place.put("some.db", bytes), &key);
    fails(of(b""), "no database of SQLite");
    fails(of(&[b'x'; 4096]), "cannot read");
    let whole = fs::read(place.file("aegis.db")).expect("read");
    fails(of(&whole[..100]), "");
    fails(of(&whole[..4096]), "");
    let link = place.path("link.db");
    std::os::unix::fs::symlink(place.file("aegis.db"), &link).expect("linked");
    fails(import::aegis(&link, &key), "a symbolic link");
    fails(import::aegis(&place.path("none.db"), &key), "there is no");
    fails(import::aegis(&place.path(""), &key), "not a regular file");
}

#[test]
fn test_more_secrets_than_the_limit_are_refused() {
    fails(
        changed(
            "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 10001) \
             INSERT INTO secrets SELECT i, 'N' || i, X'00', '' FROM n",
        ),
        "more than 10000 secrets",
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Names and apps are not bound to their values, but a value that opens is one that was encrypted.
    #[test]
    fn test_damaged_database_gives_no_value_that_was_not_there(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let place = Place::new();
        let path = place.file("aegis-older.db");
        let key = place.file("master.key");
        let mut bytes = fs::read(&path).expect("read");
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        fs::write(&path, &bytes).expect("written");

        match import::aegis(&path, &key).and_then(|found| Plan::new(found, &rules())) {
            Ok(plan) => {
                prop_assert!(plan.planned.iter().all(|planned| planned.bytes() == 14));
            }
            Err(error) => prop_assert!(!error.to_string().contains("7c1d"), "{}", error),
        }
    }
}
