//! `dotenv:PATH#KEY`, and all keys of such a file: lines of `KEY=value`.
//!
//! The format's rules stand at [`Dotenv`]. Lines are read into locked memory and values copied out
//! of it into locked memory, so no value is ever in a string.

use std::io::{self, Read};
use std::path::Path;

use super::{Fetched, ResolveError, Scheme, file};
use crate::locked::LockedBuffer;
use crate::value::SecretValue;

/// Longest line of a dotenv file, in bytes, without its line feed: 1 MiB.
pub const MAX_LINE_LEN: usize = 1 << 20;

/// Largest dotenv file, in bytes: 16 MiB, so that reading an endless pipe ends.
pub const MAX_DOTENV_LEN: usize = 16 << 20;

/// `dotenv:PATH#KEY`: the value of one key. The key is what follows the last `#`.
///
/// Every line is, after white space around it is dropped,
/// - empty, or a comment that begins with `#`; or
/// - `KEY=value`, with `export ` before it if you like. White space around key and value is
///   dropped, then one pair of quotes, `"..."` or `'...'`, around the value. What is left is the
///   value as it is: nothing is unescaped or substituted, and `#` begins no comment in it.
///
/// Any other line is an error. Of a key that occurs more than once the last line counts. White
/// space is ASCII white space; lines end with a line feed, with or without a carriage return; a
/// byte order mark before the first line is passed over. A line has at most [`MAX_LINE_LEN`]
/// bytes, the file [`MAX_DOTENV_LEN`].
pub struct Dotenv;

impl Dotenv {
    /// Calls `visit` with the number of the line, the key and the value of every entry of a file, from the first to the
    /// last. Keys may be any bytes, and values empty.
    ///
    /// # Errors
    /// What `visit` says, or why the file cannot be read.
    pub fn for_each_entry<E: From<ResolveError>>(
        path: &Path,
        mut visit: impl FnMut(usize, &[u8], &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        for_each_entry(path, |line, entry| visit(line, entry.key, entry.value))
    }
}

impl Scheme for Dotenv {
    fn name(&self) -> &'static str {
        "dotenv"
    }

    fn is_plaintext(&self) -> bool {
        true
    }

    fn resolve(&self, locator: &str) -> Result<Fetched, ResolveError> {
        let (path, key) = locator
            .rsplit_once('#')
            .filter(|(path, key)| !path.is_empty() && !key.is_empty())
            .ok_or(ResolveError::NoKeyNamed)?;
        let path = Path::new(path);
        let mut found = None;
        // To the end of the file: a later line replaces an earlier one, and a broken line is an
        // error wherever it stands.
        for_each_entry(path, |_, entry| {
            if entry.key == key.as_bytes() {
                found = Some(value_of(path, &entry));
            }
            Ok::<(), ResolveError>(())
        })?;
        let value = found.unwrap_or_else(|| {
            Err(ResolveError::NoKey {
                path: path.into(),
                key: key.to_owned(),
            })
        });
        value.map(Fetched::from)
    }
}

/// The key and the value of one line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry<'line> {
    pub(crate) key: &'line [u8],
    pub(crate) value: &'line [u8],
}

/// Copies an entry's value into locked memory of its own.
pub(crate) fn value_of(path: &Path, entry: &Entry<'_>) -> Result<SecretValue, ResolveError> {
    SecretValue::copy_of(entry.value).map_err(|error| {
        let key = String::from_utf8_lossy(entry.key);
        ResolveError::of_value(format_args!("the key {key:?} of {path:?}"), path, error)
    })
}

/// Calls `visit` with line number and content of every entry of a dotenv file, from the first to
/// the last.
pub(crate) fn for_each_entry<E: From<ResolveError>>(
    path: &Path,
    mut visit: impl FnMut(usize, Entry<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let file = file::open(path)?;
    let mut lines = Lines::new(file).map_err(|error| error.into_resolve(path))?;
    while let Some((line, text)) = lines.next().map_err(|error| error.into_resolve(path))? {
        let path = || path.into();
        match parse_line(text) {
            Ok(None) => {}
            Ok(Some(entry)) => visit(line, entry)?,
            Err(Malformed::NotKeyValue) => {
                return Err(ResolveError::NotKeyValue { path: path(), line }.into());
            }
            Err(Malformed::EmptyKey) => {
                return Err(ResolveError::EmptyKey { path: path(), line }.into());
            }
        }
    }
    Ok(())
}

/// Why a line is not an entry.
#[derive(Debug, PartialEq, Eq)]
enum Malformed {
    NotKeyValue,
    EmptyKey,
}

/// One line, with or without its end; `None` for blank lines and comments.
fn parse_line(line: &[u8]) -> Result<Option<Entry<'_>>, Malformed> {
    let text = line.trim_ascii();
    if text.is_empty() || text.starts_with(b"#") {
        return Ok(None);
    }
    let text = text.strip_prefix(b"export ").unwrap_or(text);
    let equals = text
        .iter()
        .position(|byte| *byte == b'=')
        .ok_or(Malformed::NotKeyValue)?;
    let key = text[..equals].trim_ascii();
    if key.is_empty() {
        return Err(Malformed::EmptyKey);
    }
    let value = match text[equals + 1..].trim_ascii() {
        [b'"', inner @ .., b'"'] | [b'\'', inner @ .., b'\''] => inner,
        plain => plain,
    };
    Ok(Some(Entry { key, value }))
}

/// Why lines cannot be read on.
enum LineError {
    Read(io::Error),
    Lock(crate::locked::LockError),
    LineTooLong(usize),
    FileTooLong,
}

impl LineError {
    fn into_resolve(self, path: &Path) -> ResolveError {
        match self {
            Self::Read(error) => ResolveError::of_file(path, error),
            Self::Lock(error) => ResolveError::Lock(error),
            Self::LineTooLong(line) => ResolveError::LineTooLong {
                path: path.into(),
                line,
            },
            Self::FileTooLong => ResolveError::DotenvTooLong { path: path.into() },
        }
    }
}

/// Lines of a reader, in one locked buffer that is as large as the longest of them.
struct Lines<R> {
    reader: R,
    buffer: LockedBuffer,
    /// Where the next line begins in `buffer`.
    start: usize,
    /// Where the bytes read so far end in `buffer`.
    end: usize,
    /// Number of the line last returned.
    line: usize,
    /// Bytes read so far.
    total: usize,
    /// Whether the reader has ended.
    ended: bool,
}

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

impl<R: Read> Lines<R> {
    fn new(reader: R) -> Result<Self, LineError> {
        Ok(Self {
            reader,
            buffer: LockedBuffer::new(64 << 10).map_err(LineError::Lock)?,
            start: 0,
            end: 0,
            line: 0,
            total: 0,
            ended: false,
        })
    }

    /// Number, counted from 1, and content of the next line, without its line feed.
    fn next(&mut self) -> Result<Option<(usize, &[u8])>, LineError> {
        let mut searched = self.start;
        let (from, to) = loop {
            let fresh = &self.buffer[searched..self.end];
            if let Some(at) = fresh.iter().position(|byte| *byte == b'\n') {
                let to = searched + at;
                let from = std::mem::replace(&mut self.start, to + 1);
                break (from, to);
            }
            if self.ended {
                if self.start == self.end {
                    return Ok(None);
                }
                let from = std::mem::replace(&mut self.start, self.end);
                break (from, self.end);
            }
            if self.end - self.start > MAX_LINE_LEN {
                return Err(LineError::LineTooLong(self.line + 1));
            }
            let pending = self.end - self.start;
            self.fill()?;
            searched = self.start + pending;
        };
        if to - from > MAX_LINE_LEN {
            return Err(LineError::LineTooLong(self.line + 1));
        }
        self.line += 1;
        let text = &self.buffer[from..to];
        let text = match self.line {
            1 => text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text),
            _ => text,
        };
        Ok(Some((self.line, text)))
    }

    /// Reads more behind the bytes that are there, making room first.
    fn fill(&mut self) -> Result<(), LineError> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.buffer.len() {
            // One byte over the limit is enough to know that it is exceeded.
            let larger = (2 * self.buffer.len()).min(MAX_LINE_LEN + 1);
            self.buffer.grow(larger).map_err(LineError::Lock)?;
        }
        loop {
            match self.reader.read(&mut self.buffer[self.end..]) {
                Ok(0) => self.ended = true,
                Ok(read) => {
                    self.end += read;
                    self.total += read;
                    if self.total > MAX_DOTENV_LEN {
                        return Err(LineError::FileTooLong);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(LineError::Read(error)),
            }
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::locked::tests::one_at_a_time;

    fn entry(line: &str) -> Result<Option<(&str, &str)>, Malformed> {
        let text = |bytes| std::str::from_utf8(bytes).expect("a part of a text, cut at ASCII");
        let entry = parse_line(line.as_bytes())?;
        Ok(entry.map(|entry| (text(entry.key), text(entry.value))))
    }

    /// A dotenv file, and what the scheme makes of one key of it.
    fn resolve(content: &[u8], key: &str) -> Result<Vec<u8>, ResolveError> {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(&file, content).expect("written");
        let fetched = Dotenv.resolve(&format!("{}#{key}", file.path().display()))?;
        Ok(fetched.value.expose().to_vec())
    }

    /// One byte a call, so that every line is cut everywhere.
    struct Drip<'a>(&'a [u8]);

    impl Read for Drip<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let Some((first, rest)) = self.0.split_first() else {
                return Ok(0);
            };
            into[0] = *first;
            self.0 = rest;
            Ok(1)
        }
    }

    fn lines(reader: impl Read) -> Vec<Vec<u8>> {
        let mut lines = Lines::new(reader).unwrap_or_else(|_| panic!("memory"));
        let mut all = Vec::new();
        while let Some((number, line)) = lines.next().unwrap_or_else(|_| panic!("a line")) {
            all.push(line.to_vec());
            assert_eq!(number, all.len());
        }
        all
    }

    #[test]
    fn test_line_that_is_no_entry() {
        for line in ["", "   ", "\t\r", "#", "# A=b", "   # A=b", "#A=b"] {
            assert_eq!(entry(line), Ok(None), "{line:?}");
        }
    }

    #[test]
    fn test_line_entry_and_quotes() {
        let cases = [
            ("A=b", ("A", "b")),
            ("  A  =  b  ", ("A", "b")),
            ("A=b\r", ("A", "b")),
            ("export A=b", ("A", "b")),
            ("export   A=b", ("A", "b")),
            ("exportA=b", ("exportA", "b")),
            ("export=b", ("export", "b")),
            ("export\tA=b", ("export\tA", "b")),
            ("A=", ("A", "")),
            ("A=b=c==", ("A", "b=c==")),
            ("A=b # c", ("A", "b # c")),
            ("A=\"b c\"", ("A", "b c")),
            ("A='b c'", ("A", "b c")),
            ("A=\" b \"", ("A", " b ")),
            ("A=\"\"", ("A", "")),
            ("A=\"", ("A", "\"")),
            ("A=\"b", ("A", "\"b")),
            ("A=\"b'", ("A", "\"b'")),
            ("A=\"\"b\"\"", ("A", "\"b\"")),
            ("A='\"b\"'", ("A", "\"b\"")),
            ("A=\"b\\n$C\"", ("A", "b\\n$C")),
            ("a.b-c=é", ("a.b-c", "é")),
        ];
        for (line, expected) in cases {
            assert_eq!(entry(line), Ok(Some(expected)), "{line:?}");
        }
    }

    #[test]
    fn test_line_malformed() {
        assert_eq!(entry("A"), Err(Malformed::NotKeyValue));
        assert_eq!(entry("export A"), Err(Malformed::NotKeyValue));
        assert_eq!(entry("=b"), Err(Malformed::EmptyKey));
        assert_eq!(entry("export =b"), Err(Malformed::EmptyKey));
    }

    #[test]
    fn test_dotenv_file_of_every_kind_of_line() {
        let content = b"\xef\xbb\xbf# a comment\n\nFOO=bar\r\nexport BAZ='qux'\nQUOTED=\"with space\"\nEMPTY=\nLAST=\xff\x00\xfe";
        assert_eq!(resolve(content, "FOO").expect("a value"), b"bar");
        assert_eq!(resolve(content, "BAZ").expect("a value"), b"qux");
        assert_eq!(resolve(content, "QUOTED").expect("a value"), b"with space");
        assert_eq!(resolve(content, "LAST").expect("a value"), b"\xff\x00\xfe");
        assert!(matches!(
            resolve(content, "EMPTY"),
            Err(ResolveError::Empty { place }) if place.contains("EMPTY")
        ));
        assert!(matches!(
            resolve(content, "foo"),
            Err(ResolveError::NoKey { key, .. }) if key == "foo"
        ));
        assert_eq!(resolve(b"\xef\xbb\xbfA=b", "A").expect("a value"), b"b");
    }

    #[test]
    fn test_dotenv_repeated_key_last_line_counts() {
        assert_eq!(resolve(b"A=1\nB=2\nA=3\n", "A").expect("a value"), b"3");
        let emptied = resolve(b"A=1\nA=\n", "A");
        assert!(matches!(emptied, Err(ResolveError::Empty { .. })));
        assert_eq!(resolve(b"A=\nA=1\n", "A").expect("a value"), b"1");
    }

    #[test]
    fn test_dotenv_broken_line_is_an_error_wherever_it_is() {
        for content in ["secret\nA=b", "\n\nA=b\nsecret"] {
            let line = content.lines().position(|l| l == "secret").expect("there") + 1;
            let error = resolve(content.as_bytes(), "A").expect_err("broken");
            assert!(!error.to_string().contains("secret"), "{error}");
            assert!(matches!(error, ResolveError::NotKeyValue { line: l, .. } if l == line));
        }
        let error = resolve(b"A=b\n = c", "A");
        assert!(matches!(error, Err(ResolveError::EmptyKey { line: 2, .. })));
    }

    #[test]
    fn test_dotenv_locator_without_key_is_an_error() {
        for locator in ["/a", "/a#", "#A", "#"] {
            let error = Dotenv.resolve(locator);
            assert!(matches!(error, Err(ResolveError::NoKeyNamed)), "{locator}");
        }
        // The last # is the one that counts.
        let missing = Dotenv.resolve("/missing#a#K");
        assert!(
            matches!(missing, Err(ResolveError::NoFile(path)) if path == Path::new("/missing#a"))
        );
    }

    #[test]
    fn test_dotenv_line_at_and_over_the_limit() {
        let _turn = one_at_a_time();
        let mut content = b"A=".to_vec();
        content.resize(MAX_LINE_LEN, b'x');
        content.extend(b"\nB=c\n");
        assert_eq!(resolve(&content, "B").expect("a value"), b"c");
        assert_eq!(
            resolve(&content, "A").expect("a value").len(),
            MAX_LINE_LEN - 2
        );

        content.insert(2, b'x');

        let error = resolve(&content, "B");
        assert!(matches!(
            error,
            Err(ResolveError::LineTooLong { line: 1, .. })
        ));
    }

    #[test]
    fn test_lines_of_an_endless_source_end_with_an_error() {
        let _turn = one_at_a_time();
        let mut lines = Lines::new(io::repeat(b'\n')).unwrap_or_else(|_| panic!("memory"));
        let error = loop {
            match lines.next() {
                Ok(line) => assert!(line.is_some()),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, LineError::FileTooLong));
        assert!(lines.total <= MAX_DOTENV_LEN + lines.buffer.len());

        let mut lines = Lines::new(io::repeat(b'x')).unwrap_or_else(|_| panic!("memory"));
        assert!(matches!(lines.next(), Err(LineError::LineTooLong(1))));
        assert!(lines.total <= MAX_LINE_LEN + 4096);
    }

    #[test]
    fn test_lines_longer_than_the_buffer_are_whole() {
        let long = vec![b'x'; 200_000];
        let content = [b"a", &long[..], b"b", &long[..150_000]].join(&b'\n');
        let expected: Vec<_> = content.split(|byte| *byte == b'\n').collect();
        assert_eq!(lines(&content[..]), expected);
    }

    proptest! {
        #[test]
        fn test_lines_agree_with_split(content in prop::collection::vec(
            prop::sample::select(b"\n\r=a# '\xef\xbb\xbf".to_vec()), 0..200,
        )) {
            let text = content.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&content);
            let mut expected: Vec<_> = text.split(|byte| *byte == b'\n').collect();
            // A line feed ends a line; it does not begin another one.
            if expected.last().is_some_and(|line| line.is_empty())
                && (text.len() == content.len() || expected.len() > 1)
            {
                expected.pop();
            }
            prop_assert_eq!(&lines(&content[..]), &expected);
            prop_assert_eq!(&lines(Drip(&content)), &expected);
        }

        #[test]
        fn test_line_arbitrary_bytes_never_panic(line in prop::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(Some(entry)) = parse_line(&line) {
                prop_assert!(!entry.key.is_empty());
                prop_assert!(!entry.key.contains(&b'='));
                prop_assert!(entry.key.len() + entry.value.len() < line.len());
            }
        }

        #[test]
        fn test_line_round_trip(
            key in "[A-Za-z_][A-Za-z0-9_]{0,10}",
            value in "[ -~]{0,30}",
            quote in prop::sample::select(vec!["\"", "'"]),
        ) {
            let line = format!("{key}={quote}{value}{quote}");
            prop_assert_eq!(entry(&line), Ok(Some((key.as_str(), value.as_str()))));
        }
    }
}
