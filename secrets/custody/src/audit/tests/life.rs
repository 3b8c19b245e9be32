//! What writers, readers and checks do with logs that nobody has changed, and with those that were cut short.

use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;
use crate::FileError;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("there").permissions().mode() & 0o777
}

#[test]
fn test_records_are_read_as_they_were_written_and_verify() {
    let place = Place::new();
    place.write(&["A", "B"]);
    place.write(&["C"]);

    assert_eq!(place.names(), ["A", "B", "C"]);
    let report = place.verify();
    assert!(report.is_good() && report.notes.is_empty(), "{report:?}");
    // Of the making two lines, of the batches one more than they have records.
    assert_eq!((report.lines, report.records, report.files), (7, 3, 1));
    assert_eq!(mode(&place.folder()), 0o700);
    for path in [place.current(), place.head()] {
        assert_eq!(mode(&path), 0o600, "{path:?}");
    }
}

#[test]
fn test_line_has_the_documented_form() {
    let place = Place::new();
    place.write(&["API_KEY"]);
    let text = fs::read_to_string(place.current()).expect("text");
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].contains(r#""kind":"log","format":1,"id":""#));
    assert!(lines[1].contains(r#""kind":"checkpoint","key":""#));
    let expected = concat!(
        r#""kind":"secret","vm":"web","user":"1000","name":"API_KEY","scope":null,"version":1,"#,
        r#""source":"env","access":"materialize","decision":"allow","reason":null,"lineage":[],"prev":""#
    );
    assert!(
        lines[2].starts_with(r#"{"seq":3,"time":"20"#),
        "{}",
        lines[2]
    );
    assert!(lines[2].contains(expected), "{}", lines[2]);
    let prev = blake3::hash(lines[1].as_bytes()).to_hex();
    assert!(lines[2].ends_with(&format!(r#""prev":"{prev}"}}"#)));
    assert_eq!(
        fs::read_to_string(place.head()).expect("text").trim_end(),
        lines[3]
    );
}

#[test]
fn test_files_continue_each_other() {
    let place = Place::new();
    let log = place.log().rotating_at(2000);
    let mut reader = None;
    let mut followed = Vec::new();
    let all: Vec<_> = (0..30).map(|number| format!("N{number}")).collect();
    for name in &all {
        write(&log, &[name]);
        let reader = reader.get_or_insert_with(|| Reader::open(&place.folder()).expect("a log"));
        followed.extend(names(reader));
    }

    let report = place.verify();
    assert!(report.is_good() && report.notes.is_empty(), "{report:?}");
    assert!(report.files > 5, "{report:?}");
    assert_eq!(followed, all);
    assert_eq!(place.names(), all);

    // Controls: a file that is missing, at the front and within.
    for number in [1, 3] {
        let path = layout::full(&place.folder(), number);
        let content = fs::read(&path).expect("read");
        fs::remove_file(&path).expect("removed");
        let flaws = flaws(&place.verify());
        assert_eq!(flaws.first(), Some(&Flaw::MissingFile), "{flaws:?}");
        fs::write(&path, content).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("its mode");
    }
    assert!(place.verify().is_good());
}

#[test]
fn test_file_that_was_renamed_and_not_followed_is_followed_by_the_next_writer() {
    let place = Place::new();
    place.write(&["A"]);
    fs::rename(place.current(), layout::full(&place.folder(), 1)).expect("renamed");
    let report = place.verify();
    assert!(report.is_good(), "{report:?}");
    place.write(&["B"]);
    let report = place.verify();
    assert!(report.is_good() && report.files == 2, "{report:?}");
    assert_eq!(place.names(), ["A", "B"]);
}

#[test]
fn test_writer_that_was_interrupted_anywhere_is_told_from_tampering() {
    let place = Place::new();
    place.write(&["A"]);
    let before = fs::read(place.current()).expect("read");
    let head = fs::read(place.head()).expect("read");
    place.write(&["B", "C"]);
    let after = fs::read(place.current()).expect("read");

    for end in before.len() + 1..after.len() {
        fs::write(place.current(), &after[..end]).expect("written");
        fs::write(place.head(), &head).expect("written");
        let cut = place.verify();
        assert!(cut.is_good() && !cut.notes.is_empty(), "{end}: {cut:?}");

        place.write(&["D"]);

        let report = place.verify();
        assert!(report.is_good(), "{end}: {report:?}");
        let interrupted = |one: &Finding| matches!(one.flaw, Flaw::Interrupted { .. });
        assert!(report.notes.iter().any(interrupted), "{end}: {report:?}");
        let names = place.names().join("");
        assert!(["AD", "ABD", "ABCD"].contains(&&*names), "{end}: {names}");
    }
}

#[test]
fn test_log_that_was_cut_is_not_gone_on_with() {
    let place = Place::new();
    place.write(&["A"]);
    let before = fs::read(place.current()).expect("read");
    place.write(&["B"]);

    fs::write(place.current(), &before).expect("written");

    let refused = place.log().append(&[record("C")]);
    assert!(
        matches!(refused, Err(AuditError::Damaged { .. })),
        "{refused:?}"
    );
    assert!(matches!(flaws(&place.verify())[..], [Flaw::BehindHead(_)]));
    // Nor is one whose head or whose file is gone.
    let head = fs::read(place.head()).expect("read");
    fs::remove_file(place.head()).expect("removed");
    assert!(place.log().append(&[record("C")]).is_err());
    assert_eq!(flaws(&place.verify()), [Flaw::NoHead]);
    fs::write(place.head(), head).expect("written");
    fs::set_permissions(place.head(), fs::Permissions::from_mode(0o600)).expect("its mode");
    fs::remove_file(place.current()).expect("removed");
    assert!(place.log().append(&[record("C")]).is_err());
    assert_eq!(flaws(&place.verify())[0], Flaw::MissingFile);
}

#[test]
fn test_log_that_lost_what_was_written_and_not_closed_is_gone_on_with() {
    let place = Place::new();
    place.write(&["A"]);
    let on_the_disk = fs::read(place.current()).expect("read");
    let head = place.log().append(&[record("B")]).expect("written");
    assert_eq!(place.names(), ["A", "B"]);

    // What a loss of power may leave.
    fs::write(place.current(), &on_the_disk).expect("written");
    assert!(place.verify().is_good());
    place.write(&["C"]);
    assert_eq!(place.names(), ["A", "C"]);

    // Nothing of the lost batch is published any more.
    place.log().close(&head).expect("a later head is there");
    assert!(place.verify().is_good());
}

#[test]
fn test_log_of_which_only_its_beginning_is_left_is_begun_again_under_another_id() {
    let place = Place::new();
    // Whether its maker was killed, or somebody has cut off what was recorded.
    place.write(&["A"]);
    let made = fs::read_to_string(place.current()).expect("text");
    let first: Vec<_> = made.split_inclusive('\n').take(2).collect();
    fs::write(place.current(), first.concat()).expect("written");
    fs::remove_file(place.head()).expect("removed");
    let before = place.verify();
    assert_eq!(flaws(&before), [Flaw::NoHead]);

    place.write(&["B"]);

    let report = place.verify();
    assert!(report.is_good() && report.notes.is_empty(), "{report:?}");
    assert_ne!(report.log.expect("an id"), before.log.expect("an id"));
    assert_eq!(place.names(), ["B"]);
}

#[test]
fn test_log_without_head_is_not_begun_again_unless_it_is_as_it_was_made() {
    let place = Place::new();
    place.write(&["A"]);
    let made = fs::read_to_string(place.current()).expect("text");
    let lines: Vec<_> = made.split_inclusive('\n').collect();
    fs::remove_file(place.head()).expect("removed");
    for content in [
        lines[..1].concat(),
        lines[..3].concat(),
        lines[..2].concat() + "{",
        // As if its last line were its second.
        made.clone() + lines[1],
        lines[..2].concat() + lines[1],
    ] {
        fs::write(place.current(), &content).expect("written");
        let refused = place.log().append(&[record("B")]);
        assert!(
            matches!(refused, Err(AuditError::Damaged { .. })),
            "{refused:?}"
        );
        assert_eq!(fs::read_to_string(place.current()).expect("text"), content);
    }
    // Nor is one whose first files are full.
    fs::write(layout::full(&place.folder(), 1), &made).expect("written");
    fs::write(place.current(), lines[..2].concat()).expect("written");
    assert!(place.log().append(&[record("B")]).is_err());
}

#[test]
fn test_places_that_are_not_to_be_trusted_take_no_record() {
    let place = Place::new();
    place.write(&["A"]);
    let refused = |what: &str| {
        let result = place.log().append(&[record("B")]);
        let is_file_error = matches!(result, Err(AuditError::File(FileError::Refused { .. })));
        assert!(is_file_error, "{what}: {result:?}");
    };
    let set_mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("its mode");
    };
    for path in [place.current(), place.head()] {
        set_mode(&path, 0o640);
        refused("a file that others read");
        set_mode(&path, 0o600);
    }
    set_mode(&place.folder(), 0o770);
    refused("a folder that others write to");
    set_mode(&place.folder(), 0o700);

    let elsewhere = place.above.path().join("elsewhere");
    fs::rename(place.current(), &elsewhere).expect("moved");
    symlink(&elsewhere, place.current()).expect("linked");
    refused("a link");
    fs::remove_file(place.current()).expect("removed");
    fs::create_dir(place.current()).expect("made");
    refused("a folder in the place of a file");
    fs::remove_dir(place.current()).expect("removed");
    fs::rename(&elsewhere, place.current()).expect("moved");
    place.write(&["B"]);
    assert_eq!(place.names(), ["A", "B"]);
}

#[test]
fn test_log_of_another_vm_or_key_is_not_taken_for_this_one() {
    let place = Place::new();
    place.write(&["A"]);
    let other = Log::new(&place.folder(), Some("web"), &place.key);
    assert!(matches!(other.append(&[]), Err(AuditError::Damaged { .. })));
    let report = verify(&place.folder(), &Key::new(2), None).expect("a log");
    let untrusted = |flaw: &Flaw| matches!(flaw, Flaw::UntrustedKey(_));
    assert!(flaws(&report).iter().all(untrusted), "{report:?}");
    assert_eq!(report.wrong.len(), 2);
}

#[test]
fn test_anchor_shows_a_vm_log_that_was_replaced_by_an_older_one_with_its_head() {
    let (host, vm) = (Place::new(), Place::new());
    let log = Log::new(&vm.folder(), Some("web"), &vm.key);
    write(&log, &["A"]);
    let older = [vm.current(), vm.head()].map(|path| (path.clone(), fs::read(path).expect("read")));
    let anchor = write(&log, &["B"]).anchor("web");
    let head = host
        .log()
        .append(&[Entry::Anchor(anchor)])
        .expect("recorded");
    host.log().close(&head).expect("closed");
    let anchors = host.verify().anchors;
    let unknown = verify(&vm.folder(), &vm.key, Some(&BTreeMap::new())).expect("a log");
    assert_eq!(unknown.notes[0].flaw, Flaw::AheadOfAnchor);
    let check = || verify(&vm.folder(), &vm.key, Some(&anchors)).expect("a log");
    assert!(check().is_good() && check().notes.is_empty());

    for (path, content) in older {
        fs::write(path, content).expect("written");
    }

    assert!(vm.verify().is_good(), "it is good in itself");
    assert!(matches!(flaws(&check())[..], [Flaw::BehindAnchor(_)]));
}

#[test]
fn test_lock_that_somebody_keeps_is_not_waited_for_for_ever() {
    let place = Place::new();
    let head = place.write(&["A"]);
    let kept = fs::File::open(place.folder().join(layout::LOCK)).expect("opened");
    kept.lock().expect("locked");
    let is_busy = |error: AuditError| matches!(error, AuditError::File(FileError::Busy(_)));

    std::thread::scope(|scope| {
        let append = scope.spawn(|| place.log().append(&[record("B")]).expect_err("busy"));
        let close = scope.spawn(|| place.log().close(&head).expect_err("busy"));
        let check = scope.spawn(|| verify(&place.folder(), &place.key, None).expect_err("busy"));
        for waiting in [append, close, check] {
            assert!(is_busy(waiting.join().expect("it ends")));
        }
    });

    assert_eq!(place.names(), ["A"]);
    drop(kept);
    place.write(&["B"]);
    assert_eq!(place.names(), ["A", "B"]);
}

#[test]
fn test_reader_waits_for_the_rest_of_a_line() {
    let place = Place::new();
    place.write(&["A"]);
    let before = fs::read(place.current()).expect("read").len();
    place.write(&["B"]);
    let all = fs::read(place.current()).expect("read");
    fs::write(place.current(), &all[..before]).expect("written");

    let mut reader = Reader::open(&place.folder()).expect("a log");
    let mut found = Vec::new();
    let mut file = fs::File::options()
        .append(true)
        .open(place.current())
        .expect("opened");
    for byte in &all[before..] {
        found.extend(names(&mut reader));
        file.write_all(&[*byte]).expect("written");
    }
    found.extend(names(&mut reader));
    assert_eq!(found, ["A", "B"]);
}

#[test]
fn test_no_log_is_told_from_a_damaged_one() {
    let place = Place::new();
    let result = verify(&place.folder(), &place.key, None);
    assert!(matches!(result, Err(AuditError::NoLog(_))));
    assert!(matches!(
        Reader::open(&place.folder()),
        Err(AuditError::NoLog(_))
    ));
}
