//! Keys that are wrong, and rotations that end half-way.

use std::os::unix::fs::{PermissionsExt, symlink};

use age::secrecy::ExposeSecret;

use super::*;
use crate::keys::FileKey;
use crate::keys::{KeyError, Recipient};

fn filled() -> Place {
    let place = Place::new();
    set(&mut place.store(), "KEY", "a value");
    place
}

fn is_readable(place: &Place) {
    let mut store = place.open().expect("opened");
    assert_eq!(get(&mut store, "KEY").expect("there"), "a value");
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("its mode");
}

/// An identity file of age, and its public key.
fn identity(place: &Place, name: &str) -> (PathBuf, Recipient) {
    let key = age::x25519::Identity::generate();
    let path = place.0.path().join(name);
    fs::write(&path, key.to_string().expose_secret()).expect("written");
    set_mode(&path, 0o600);
    let public = key.to_public().to_string();
    (path, public.parse().expect("a recipient"))
}

fn age(identity: &(PathBuf, Recipient)) -> KeyChoice {
    KeyChoice::Age {
        identity: identity.0.clone(),
        recipients: vec![identity.1.clone()],
    }
}

#[test]
fn test_key_file_that_is_wrong_is_a_distinct_error_and_stays_as_it_is() {
    let cases: [(&[u8], u32, &str); 7] = [
        (&[], 0o600, "is empty"),
        (&[1; 31], 0o600, "has 31 bytes"),
        (&[1; 33], 0o600, "over the limit of 32 bytes"),
        (
            &[1; 32],
            0o600,
            "is not the key that the store was encrypted with",
        ),
        (&[1; 32], 0o640, "open to others"),
        (&[1; 32], 0o604, "open to others"),
        (&[1; 32], 0o620, "open to others"),
    ];
    for (content, mode, expected) in cases {
        let place = filled();
        let path = place.file("master.key");
        fs::write(&path, content).expect("written");
        set_mode(&path, mode);

        let error = place.open().expect_err("refused").to_string();
        let again = Store::open_or_create(&place.path(), requester("alice", None));

        assert!(error.contains(expected), "{error}");
        assert!(error.contains("master.key"), "{error}");
        assert!(again.is_err());
        assert_eq!(fs::read(&path).expect("there"), content);
    }
}

#[test]
fn test_missing_key_file_is_not_made_anew() {
    let place = filled();
    let moved = place.0.path().join("moved");
    fs::rename(place.file("master.key"), &moved).expect("moved");

    for _ in 0..2 {
        let opened = Store::open_or_create(&place.path(), requester("alice", None));
        let error = opened.expect_err("refused").to_string();
        assert!(
            error.contains("master.key") && error.contains("store.db"),
            "{error}"
        );
        assert!(!place.file("master.key").exists());
    }
    symlink(&moved, place.file("master.key")).expect("linked");
    let error = place.open().expect_err("refused").to_string();
    assert!(error.contains("symbolic link"), "{error}");
    fs::rename(&moved, place.file("master.key")).expect("put back");
    is_readable(&place);
}

#[test]
fn test_key_file_that_is_there_first_is_used() {
    let place = Place::new();
    fs::create_dir(place.path()).expect("made");
    fs::write(place.file("master.key"), [7; 32]).expect("written");
    set_mode(&place.file("master.key"), 0o600);
    set(&mut place.store(), "KEY", "a value");
    assert_eq!(fs::read(place.file("master.key")).expect("there"), [7; 32]);
    is_readable(&place);

    let other = Place::new();
    fs::create_dir(other.path()).expect("made");
    fs::write(other.file("master.key"), b"").expect("written");
    set_mode(&other.file("master.key"), 0o600);
    let created = Store::open_or_create(&other.path(), requester("alice", None));
    assert!(
        matches!(created, Err(StoreError::Key(KeyError::Empty(_)))),
        "{created:?}"
    );
    assert!(!other.file(DATABASE).exists());
}

#[test]
fn test_files_that_others_can_reach_are_refused() {
    let place = filled();
    for (name, mode) in [(DATABASE, 0o640), (DATABASE, 0o602), ("", 0o777)] {
        let path = place.file(name);
        let before = fs::metadata(&path).expect("there").permissions();
        set_mode(&path, mode);
        let opened = place.open();
        assert!(
            matches!(opened, Err(StoreError::File(_))),
            "{name} {mode:o}: {opened:?}"
        );
        fs::set_permissions(&path, before).expect("put back");
    }
    let moved = place.0.path().join("moved");
    fs::rename(place.file(DATABASE), &moved).expect("moved");
    symlink(&moved, place.file(DATABASE)).expect("linked");
    let opened = place.open();
    assert!(matches!(opened, Err(StoreError::File(_))), "{opened:?}");
    fs::rename(&moved, place.file(DATABASE)).expect("put back");
    is_readable(&place);
}

#[test]
fn test_rotation_touches_the_wrapping_and_no_value() {
    let place = filled();
    let rows = |place: &Place| -> Vec<Vec<u8>> {
        let sql = place.sql();
        let mut select = sql
            .prepare("SELECT sealed FROM versions")
            .expect("prepared");
        let rows = select.query_map((), |row| row.get(0)).expect("read");
        rows.map(|row| row.expect("a row")).collect()
    };
    let before = (
        rows(&place),
        fs::read(place.file("master.key")).expect("there"),
    );
    let mut open = place.open().expect("opened");

    place
        .store()
        .rotate_key(&KeyChoice::File {})
        .expect("rotated");

    let after = (
        rows(&place),
        fs::read(place.file("master.key")).expect("there"),
    );
    assert_eq!(before.0, after.0);
    assert_ne!(before.1, after.1);
    assert!(!place.file("master.key.next").exists());
    // A store that is open goes on, and so does one that is opened.
    set(&mut open, "OTHER", "x");
    is_readable(&place);
    fs::write(place.file("master.key"), before.1).expect("put back");
    let opened = place.open();
    assert!(
        matches!(opened, Err(StoreError::Key(KeyError::Wrong(_)))),
        "{opened:?}"
    );
}

#[test]
fn test_rotation_between_kinds_of_sources() {
    let place = filled();
    let (one, two) = (identity(&place, "one"), identity(&place, "two"));
    let mut store = place.store();

    store.rotate_key(&age(&one)).expect("rotated");
    assert!(!place.file("master.key").exists());
    is_readable(&place);
    assert_eq!(store.key_status().expect("told").choice, age(&one));

    let add = |recipients: &mut Vec<Recipient>| {
        recipients.push(two.1.clone());
        Ok(())
    };
    store.change_recipients(add).expect("changed");
    is_readable(&place);
    let keep_the_other = |recipients: &mut Vec<Recipient>| {
        recipients.retain(|recipient| *recipient == two.1);
        Ok(())
    };
    let refused = store.change_recipients(keep_the_other);
    assert!(
        matches!(refused, Err(StoreError::Key(KeyError::NotForUs(_)))),
        "{refused:?}"
    );
    is_readable(&place);

    // Another host, with the other identity in the same place.
    fs::copy(&two.0, &one.0).expect("copied");
    is_readable(&place);

    place
        .store()
        .rotate_key(&KeyChoice::File {})
        .expect("rotated");
    fs::remove_file(&one.0).expect("removed");
    is_readable(&place);
    let none = place.store().change_recipients(add);
    assert!(
        matches!(none, Err(StoreError::Key(KeyError::NoRecipients("file")))),
        "{none:?}"
    );
}

/// Stops a rotation at every place where a process can be killed, and opens the store then.
#[test]
fn test_rotation_that_ends_at_any_step_is_finished_or_has_not_begun() {
    let kinds: [fn(&Place) -> KeyChoice; 2] =
        [|_| KeyChoice::File {}, |place| age(&identity(place, "one"))];
    for (kind, steps) in kinds.iter().zip([4, 2]) {
        for step in 0..=steps {
            let place = filled();
            let choice = kind(&place);
            let old_key = fs::read(place.file("master.key")).expect("there");
            let mut store = place.store();
            let next = FileKey::next_of_store(&place.path());
            {
                let transaction = store
                    .connection
                    .transaction_with_behavior(TransactionBehavior::Immediate)
                    .expect("begun");
                if step >= 1 && *kind as usize == kinds[0] as usize {
                    // The key's file is written, the row is not.
                    next.generate(files::Existing::Replace).expect("written");
                }
                if step >= 2 || *kind as usize != kinds[0] as usize && step >= 1 {
                    keyring::begin(
                        &transaction,
                        &store.path,
                        &store.place,
                        &store.root,
                        &choice,
                        1,
                    )
                    .expect("begun");
                    transaction.commit().expect("committed");
                }
            }
            if step >= 3 && *kind as usize == kinds[0] as usize {
                fs::rename(next.path(), place.file("master.key")).expect("renamed");
            }
            if step >= 2 && *kind as usize != kinds[0] as usize {
                fs::remove_file(place.file("master.key")).expect("removed");
            }
            if step == 4 {
                store.finish_rotation().expect("finished");
            }
            drop(store);

            is_readable(&place);
            is_readable(&place);

            let rows: i64 = place
                .sql()
                .query_row("SELECT count(*) FROM keys", (), |row| row.get(0))
                .expect("counted");
            assert_eq!(rows, 1, "step {step}");
            let begun = match choice {
                KeyChoice::File {} => step >= 2,
                _ => step >= 1,
            };
            let same = fs::read(place.file("master.key")).is_ok_and(|key| key == old_key);
            assert_eq!(same, !begun, "step {step}");
            // The next rotation goes as if nothing had been.
            place
                .store()
                .rotate_key(&KeyChoice::File {})
                .expect("rotated");
            is_readable(&place);
            assert!(!place.file("master.key.next").exists());
        }
    }
}

#[test]
fn test_row_of_another_key_does_not_have_the_key_file_removed() {
    let place = filled();
    let store = place.store();
    let (path, folder) = (store.path.clone(), store.place.clone());
    drop(store);
    let key = fs::read(place.file("master.key")).expect("there");
    let other = Key::random().expect("a key");
    let choice = age(&identity(&place, "mine"));
    let mut database = place.sql();
    let transaction = database.transaction().expect("begun");
    keyring::begin(&transaction, &path, &folder, &other, &choice, 1).expect("added");
    transaction.commit().expect("committed");

    place.open().expect_err("sealed with another key");

    assert_eq!(fs::read(place.file("master.key")).expect("there"), key);
    database
        .execute("DELETE FROM keys WHERE id = 2", ())
        .expect("removed");
    is_readable(&place);
}

#[test]
fn test_rotations_and_readers_at_the_same_time() {
    let place = filled();
    let path = place.path();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..15 {
                    let mut store = Store::open(&path, requester("alice", None)).expect("opened");
                    store.rotate_key(&KeyChoice::File {}).expect("rotated");
                }
            });
        }
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..40 {
                    let mut store = Store::open(&path, requester("alice", None)).expect("opened");
                    assert_eq!(get(&mut store, "KEY").expect("there"), "a value");
                }
            });
        }
    });
    is_readable(&place);
}

#[test]
fn test_stores_made_at_the_same_time_are_one() {
    let place = Place::new();
    let path = place.path();
    std::thread::scope(|scope| {
        for number in 0..4 {
            let path = &path;
            scope.spawn(move || {
                let store = Store::open_or_create(path, requester("alice", None));
                set(&mut store.expect("opened"), &format!("KEY_{number}"), "x");
            });
        }
    });
    let mut store = place.open().expect("opened");
    assert_eq!(store.list(false).expect("listed").len(), 4);
    let left = fs::read_dir(place.path()).expect("listed").count();
    assert!(left <= 4, "{left} files");
}
