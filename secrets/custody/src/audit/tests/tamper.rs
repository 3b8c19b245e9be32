//! Logs that somebody has changed, and files that are no logs: what is changed is found, and nothing panics.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

/// One change of a log.
#[derive(Debug, Clone)]
enum Edit {
    Flip(Index, u8),
    /// Another digit for a digit, another letter for a letter: most lines stay lines.
    Alike(Index, u8),
    Delete(Index, Index),
    Insert(Index, Vec<u8>),
    Truncate(Index),
    DeleteLine(Index),
    DuplicateLine(Index, Index),
    SwapLines(Index, Index),
    TruncateLines(Index),
}

/// The content of a log: each file's, by its path.
type Files = BTreeMap<PathBuf, Vec<u8>>;

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z0-9:._-]{0,12}",
        "\\PC{0,8}",
        any::<[char; 2]>().prop_map(|two| two.iter().collect::<String>())
    ]
}

fn any_record() -> impl Strategy<Value = Record> {
    let access = prop_oneof![
        Just(Access::Materialize),
        Just(Access::OnDemand),
        Just(Access::Rehydrate),
        Just(Access::Check),
        Just(Access::Export),
    ];
    let decision = prop_oneof![
        Just(Decision::Allow),
        Just(Decision::Deny),
        Just(Decision::Error),
    ];
    let optional = || proptest::option::of(text());
    (
        (
            optional(),
            text(),
            proptest::option::of("[A-Za-z_][A-Za-z0-9_]{0,9}"),
        ),
        (optional(), any::<Option<u64>>(), optional()),
        (
            access,
            decision,
            optional(),
            proptest::collection::vec(text(), 0..3),
        ),
    )
        .prop_map(|((vm, user, name), (scope, version, source), last)| {
            let (access, decision, reason, lineage) = last;
            Record {
                vm,
                user,
                name: name.map(|name| name.parse().expect("a name")),
                scope,
                version,
                source,
                access,
                decision,
                reason,
                lineage,
            }
        })
}

fn any_edit() -> impl Strategy<Value = Edit> {
    let at = any::<Index>;
    prop_oneof![
        (at(), 1..=u8::MAX).prop_map(|(at, bits)| Edit::Flip(at, bits)),
        (at(), 1..=9u8).prop_map(|(at, by)| Edit::Alike(at, by)),
        (at(), at()).prop_map(|(from, to)| Edit::Delete(from, to)),
        (at(), proptest::collection::vec(any::<u8>(), 1..4))
            .prop_map(|(at, bytes)| Edit::Insert(at, bytes)),
        (at(), "[\\PC\n]{1,4}").prop_map(|(at, text)| Edit::Insert(at, text.into_bytes())),
        at().prop_map(Edit::Truncate),
        at().prop_map(Edit::DeleteLine),
        (at(), at()).prop_map(|(from, to)| Edit::DuplicateLine(from, to)),
        (at(), at()).prop_map(|(one, other)| Edit::SwapLines(one, other)),
        at().prop_map(Edit::TruncateLines),
    ]
}

impl Edit {
    fn apply(&self, content: &[u8]) -> Vec<u8> {
        let mut bytes = content.to_vec();
        let mut lines: Vec<Vec<u8>> = content
            .split_inclusive(|byte| *byte == b'\n')
            .map(<[u8]>::to_vec)
            .collect();
        let count = lines.len();
        match self {
            Self::Flip(at, bits) => bytes[at.index(content.len())] ^= bits,
            Self::Alike(at, by) => {
                let byte = &mut bytes[at.index(content.len())];
                *byte = match *byte {
                    b'0'..=b'9' => b'0' + (*byte - b'0' + by) % 10,
                    b'a'..=b'z' => b'a' + (*byte - b'a' + by) % 26,
                    other => other,
                };
            }
            Self::Delete(one, other) => {
                let (one, other) = (one.index(content.len()), other.index(content.len()));
                bytes.drain(one.min(other)..=one.max(other));
            }
            Self::Insert(at, more) => {
                let at = at.index(content.len() + 1);
                bytes.splice(at..at, more.iter().copied());
            }
            Self::Truncate(at) => bytes.truncate(at.index(content.len())),
            _ => {
                match self {
                    Self::DeleteLine(at) => drop(lines.remove(at.index(count))),
                    Self::DuplicateLine(from, to) => {
                        lines.insert(to.index(count + 1), lines[from.index(count)].clone());
                    }
                    Self::SwapLines(one, other) => lines.swap(one.index(count), other.index(count)),
                    Self::TruncateLines(at) => lines.truncate(at.index(count)),
                    _ => unreachable!("handled above"),
                }
                bytes = lines.concat();
            }
        }
        bytes
    }
}

fn read_files(place: &Place) -> Files {
    let entries = fs::read_dir(place.folder()).expect("listed");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths
        .filter(|path| !path.ends_with(layout::LOCK))
        .map(|path| (path.clone(), fs::read(path).expect("read")))
        .collect()
}

fn put(path: &Path, content: &[u8]) {
    fs::write(path, content).expect("written");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("its mode");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn test_any_single_change_is_found_and_none_is_found_where_there_is_none(
        batches in proptest::collection::vec(proptest::collection::vec(any_record(), 0..4), 1..6),
        rotate_at in prop_oneof![Just(800u64), Just(1500), Just(1 << 20)],
        edits in proptest::collection::vec((any::<Index>(), any_edit()), 40),
    ) {
        let place = Place::new();
        let log = place.log().rotating_at(rotate_at);
        for batch in &batches {
            let entries: Vec<_> = batch.iter().cloned().map(Entry::Record).collect();
            let head = log.append(&entries).expect("recorded");
            log.close(&head).expect("closed");
        }
        let untouched = place.verify();
        prop_assert!(untouched.is_good() && untouched.notes.is_empty(), "{untouched:?}");
        let mut reader = Reader::open(&place.folder()).expect("a log");
        for expected in batches.iter().flatten() {
            match reader.read().expect("read") {
                Some(Read::Record { record, .. }) => prop_assert_eq!(&*record, expected),
                other => prop_assert!(false, "{:?}", other),
            }
        }
        prop_assert_eq!(reader.read().expect("read"), None);

        let files = read_files(&place);
        let paths: Vec<_> = files.keys().collect();
        for (which, edit) in &edits {
            let path = paths[which.index(paths.len())];
            let content = &files[path];
            let changed = edit.apply(content);
            if changed == *content {
                continue;
            }
            put(path, &changed);
            let report = place.verify();
            let more = path.ends_with(layout::CURRENT).then(|| changed.strip_prefix(&content[..])).flatten();
            match more {
                // As if a writer were at work.
                Some(more) if !more.contains(&b'\n') => prop_assert!(!report.notes.is_empty()),
                _ => prop_assert!(!report.is_good(), "{:?} of {:?}: {:?}", edit, path, report),
            }
            put(path, content);
        }
        prop_assert!(place.verify().is_good());

        // Whole files that are gone, or have changed places.
        for (path, content) in &files {
            fs::remove_file(path).expect("removed");
            let found = verify(&place.folder(), &place.key, None).is_ok_and(|report| !report.is_good());
            // Whoever takes all files that a log has but for its head leaves that.
            prop_assert!(found, "{:?}", path);
            let others = files.iter().filter(|(other, _)| *other > path);
            for (other, content_of_other) in others {
                put(path, content_of_other);
                put(other, content);
                prop_assert!(!place.verify().is_good(), "{:?} {:?}", path, other);
                put(other, content_of_other);
            }
            put(path, content);
        }
        prop_assert!(place.verify().is_good());
    }

    #[test]
    fn test_files_that_are_no_logs_are_refused_without_panic(
        current in nonsense(),
        full in proptest::option::of(nonsense()),
        head in proptest::option::of(nonsense()),
    ) {
        let place = Place::new();
        place.write(&["A"]);
        put(&place.current(), &current);
        if let Some(full) = full {
            put(&layout::full(&place.folder(), 1), &full);
        }
        if let Some(head) = head {
            put(&place.head(), &head);
        }
        prop_assert!(!place.verify().is_good());
        prop_assert!(place.log().append(&[record("B")]).is_err());
        let mut reader = Reader::open(&place.folder()).expect("files");
        for _ in 0..1000 {
            if reader.read().expect("read").is_none() {
                break;
            }
        }
    }
}

/// What a hostile file may hold.
fn nonsense() -> impl Strategy<Value = Vec<u8>> {
    let deep = |depth: usize| "[".repeat(depth).into_bytes();
    let piece = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..40),
        "\\PC{0,30}".prop_map(String::into_bytes),
        Just(br#"{"seq":1,"time":"2026-01-01T00:00:00Z","kind":"log","format":1}"#.to_vec()),
        Just(br#"{"seq":18446744073709551615,"time":"9999-12-31T23:59:59.999999999Z","kind":"recovered","bytes":18446744073709551615,"hash":null,"prev":"0000000000000000000000000000000000000000000000000000000000000000"}"#.to_vec()),
        Just(br#"{"seq":1e999,"kind":"checkpoint","key":"","signature":""}"#.to_vec()),
        (0usize..300).prop_map(deep),
        (0usize..40_000).prop_map(|length| vec![b'x'; length]),
    ];
    proptest::collection::vec(piece, 0..6).prop_map(|pieces| pieces.join(&b'\n'))
}

#[test]
fn test_line_of_any_length_takes_bounded_memory() {
    let place = Place::new();
    place.write(&["A"]);
    let whole = fs::read(place.current()).expect("read");
    let mut long = whole.clone();
    long.extend(std::iter::repeat_n(b'{', 8 << 20));
    long.push(b'\n');
    put(&place.current(), &long);
    let report = place.verify();
    assert_eq!(flaws(&report), [Flaw::NotALine]);
    let mut reader = std::io::BufReader::new(&long[whole.len()..]);
    assert_eq!(
        lines::next(&mut reader).expect("read"),
        Some(lines::Piece::TooLong)
    );
}

#[test]
fn test_lines_that_nobody_signed_are_never_signed_later_without_a_word() {
    let place = Place::new();
    place.write(&["A"]);
    let content = fs::read(place.current()).expect("read");
    // Whoever can write to the file can continue its chain; the key is what is lacking.
    let last = content
        .split(|byte| *byte == b'\n')
        .rev()
        .nth(1)
        .expect("a line");
    let mut chain = chain::Chain::after(&line::Line::parse(last).expect("a line"), last);
    let Entry::Record(forged) = record("FORGED") else {
        unreachable!("a record");
    };
    let mut more = content.clone();
    chain
        .push(line::Body::Secret(forged), &mut more)
        .expect("a line");
    put(&place.current(), &more);
    assert_eq!(place.verify().notes[0].flaw, Flaw::Unsigned(1));

    place.write(&["B"]);

    let notes = place.verify().notes;
    assert_eq!(notes[0].flaw, Flaw::Interrupted { lines: 1, bytes: 0 });
    // An empty line in front of the mark is no torn one.
    let text = fs::read_to_string(place.current()).expect("text");
    let mark = text
        .lines()
        .find(|line| line.contains("recovered"))
        .expect("a mark");
    put(
        &place.current(),
        text.replace(mark, &format!("\n{mark}")).as_bytes(),
    );
    assert_eq!(flaws(&place.verify()), [Flaw::NotALine]);
}

/// A log without its last lines, and as many others behind it as were cut off and one more, chained and not signed.
fn cut_and_continued(place: &Place, more: usize) -> Vec<u8> {
    let last_line = |content: &[u8]| {
        let lines = content.strip_suffix(b"\n").expect("whole lines");
        let last = lines.rsplit(|byte| *byte == b'\n').next();
        last.expect("a line").to_vec()
    };
    place.write(&["A"]);
    let mut content = fs::read(place.current()).expect("read");
    place.write(&["B", "C"]);
    let last = last_line(&content);
    let mut chain = chain::Chain::after(&line::Line::parse(&last).expect("a line"), &last);
    for _ in 0..more {
        let Entry::Record(forged) = record("FORGED") else {
            unreachable!("a record");
        };
        chain
            .push(line::Body::Secret(forged), &mut content)
            .expect("a line");
    }
    content
}

#[test]
fn test_log_that_was_cut_and_continued_without_the_key_is_not_gone_on_with() {
    // 300 lines are more than what is read first of a file.
    for more in [1, 4, 300] {
        let place = Place::new();
        let content = cut_and_continued(&place, more);
        let whole = fs::read(place.current()).expect("read");
        put(&place.current(), &content);

        let refused = place.log().append(&[record("D")]);

        assert!(
            matches!(refused, Err(AuditError::Damaged { .. })),
            "{more}: {refused:?}"
        );
        assert_eq!(fs::read(place.current()).expect("read"), content);
        assert!(matches!(flaws(&place.verify())[..], [Flaw::BehindHead(_)]));
        // Control: what was not cut is gone on with, whatever is behind it.
        put(&place.current(), &whole);
        place.write(&["D"]);
        assert_eq!(place.names(), ["A", "B", "C", "D"]);
    }
}

#[test]
fn test_log_that_was_cut_and_ends_with_a_checkpoint_that_nobody_signed_is_not_gone_on_with() {
    let place = Place::new();
    let content = cut_and_continued(&place, 4);
    for key in [place.key.key(), Key::new(2).key()] {
        let mut content = content.clone();
        let lines = content.strip_suffix(b"\n").expect("whole lines");
        let last = lines.rsplit(|byte| *byte == b'\n').next().expect("a line");
        let mut chain = chain::Chain::after(&line::Line::parse(last).expect("a line"), last);
        let forged = line::Checkpoint {
            key,
            signature: [7; 64],
        };
        chain
            .push(line::Body::Checkpoint(forged), &mut content)
            .expect("a line");
        put(&place.current(), &content);

        match place.log().append(&[record("D")]) {
            Err(AuditError::Damaged { .. }) if key == place.key.key() => {}
            Err(AuditError::OtherKey { .. }) if key != place.key.key() => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn test_lines_of_an_interrupted_writer_of_any_number_are_gone_on_with() {
    let place = Place::new();
    place.write(&["A"]);
    let many: Vec<_> = (0..400)
        .map(|number| record(&format!("N{number}")))
        .collect();
    place.log().append(&many).expect("written");
    let content = fs::read(place.current()).expect("read");
    let end = content.len() - 100;
    put(&place.current(), &content[..end]);

    place.write(&["B"]);

    let report = place.verify();
    assert!(report.is_good(), "{report:?}");
    assert_eq!(place.names().len(), 402);
}

#[test]
fn test_log_that_another_key_has_signed_is_not_gone_on_with() {
    let place = Place::new();
    place.write(&["A"]);
    let other = Key::new(2);
    let log = Log::new(&place.folder(), None, &other);
    let refused = log.append(&[record("B")]);
    let text = refused.expect_err("refused").to_string();
    assert!(text.contains(&hex::encode(place.key.key())), "{text}");
    place.write(&["B"]);
}

/// Trusts two keys, of which the first is this host's own.
struct Two<'a>(&'a Key, &'a Key);

impl Verifier for Two<'_> {
    fn check(&self, key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> Trust {
        match (
            self.0.check(key, message, signature),
            self.1.check(key, message, signature),
        ) {
            (Trust::UntrustedKey, Trust::Good) => Trust::Other,
            (own, _) => own,
        }
    }
}

#[test]
fn test_trusted_key_that_is_not_this_hosts_is_named_once_in_a_note() {
    let place = Place::new();
    place.write(&["A"]);
    place.write(&["B"]);
    let own = Key::new(2);
    let report = verify(&place.folder(), &Two(&own, &place.key), None).expect("a log");
    assert!(report.is_good());
    let notes: Vec<_> = report.notes.iter().map(|one| &one.flaw).collect();
    assert_eq!(notes, [&Flaw::OtherKey(hex::encode(place.key.key()))]);
    // Control: of its own key nothing is said.
    let report = verify(&place.folder(), &Two(&place.key, &own), None).expect("a log");
    assert!(report.is_good() && report.notes.is_empty());
}

#[test]
fn test_report_of_a_log_of_nonsense_is_bounded() {
    let place = Place::new();
    place.write(&["A"]);
    put(&place.current(), &b"nonsense\n".repeat(10_000));
    let report = place.verify();
    assert!(
        report.more && report.wrong.len() < 200,
        "{}",
        report.wrong.len()
    );
}

#[test]
fn test_chain_that_is_made_anew_without_the_key_is_found() {
    let place = Place::new();
    place.write(&["A"]);
    place.write(&["B"]);
    let content = fs::read_to_string(place.current()).expect("text");
    let remade = |signer: Option<&Key>| {
        let (mut chain, mut output, mut id) = (chain::Chain::EMPTY, Vec::new(), None);
        for text in content.lines() {
            let mut body = line::Line::parse(text.as_bytes()).expect("a line").body;
            match &mut body {
                line::Body::Log(opening) => id = Some(opening.id),
                line::Body::Secret(record) => record.user = "somebody else".into(),
                _ => {}
            }
            let (log, is_checkpoint) = (
                id.expect("a log"),
                matches!(body, line::Body::Checkpoint(_)),
            );
            match signer.filter(|_| is_checkpoint) {
                Some(signer) => checkpoint::push(&mut chain, log, signer, &mut output),
                None => chain.push(body, &mut output),
            }
            .expect("a line");
        }
        let text = String::from_utf8(output).expect("text");
        put(&place.current(), text.as_bytes());
        put(
            &place.head(),
            format!("{}\n", text.lines().last().expect("a line")).as_bytes(),
        );
        flaws(&place.verify())
    };
    // Control: with the key anybody makes any log.
    assert_eq!(remade(Some(&place.key)), []);
    assert_eq!(
        remade(None),
        [Flaw::Signature, Flaw::Signature, Flaw::Signature]
    );
    assert!(matches!(
        remade(Some(&Key::new(2)))[..],
        [Flaw::UntrustedKey(_), ..]
    ));
}
