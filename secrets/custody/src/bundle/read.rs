//! From the text of a bundle to its nodes. What is said of a text that cannot be read is a line number: the
//! text itself may be a secret.

use std::fmt;

use granit_parser::{Event, Parser, ScalarStyle};
use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::node::{Entries, Node, Scalar, SecretText};

/// Most bytes of a bundle before its encryption: four of the largest values.
pub const MAX_TEXT_LEN: usize = 4 << 20;

/// Most mappings and lists inside one another. Bundles have four; what settings of a program have is more.
const MAX_DEPTH: usize = 32;

/// Most scalars, lists and mappings together: a hundred times what a bundle has.
const MAX_NODES: usize = 1 << 14;

/// Why a text is not the text of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// Over [`MAX_TEXT_LEN`].
    #[error("it is over the limit of {MAX_TEXT_LEN} bytes: put what is large elsewhere")]
    TooLong,
    /// Not UTF-8.
    #[error("it is not text in UTF-8: a bundle is YAML or JSON before it is encrypted")]
    NotText,
    /// Neither YAML nor JSON.
    #[error("line {0} is not YAML: correct its indentation, quotation marks and colons")]
    NotYaml(usize),
    /// A JSON file with something else in it.
    #[error("line {0} is not JSON: correct its quotation marks, commas and braces")]
    NotJson(usize),
    /// An anchor or an alias.
    #[error("line {0} has an anchor or an alias: write the value itself where it belongs")]
    Alias(usize),
    /// A tag such as `!!binary`.
    #[error("line {0} has a tag: write the value without it")]
    Tag(usize),
    /// A key that is no scalar.
    #[error("line {0} has a key that is not a word: write KEY: value")]
    Key(usize),
    /// A key that is there already.
    #[error("line {0} repeats a key of the same mapping: keep one of the two")]
    Repeated(usize),
    /// Over [`MAX_DEPTH`].
    #[error("line {0} is more than {MAX_DEPTH} levels deep: flatten it")]
    TooDeep(usize),
    /// Over [`MAX_NODES`].
    #[error("it has more than {MAX_NODES} values: split it")]
    TooMany,
    /// More than one document.
    #[error("line {0} begins a second document: a bundle is one")]
    Several(usize),
}

/// Reads YAML, of which JSON is a part.
///
/// # Errors
/// See [`TextError`].
pub fn read(bytes: &[u8]) -> Result<Node, TextError> {
    let text = check(bytes)?;
    // What JSON allows in strings and between tokens is more than readers of YAML do.
    if text.trim_start().starts_with('{')
        && let Ok(node) = read_json(bytes)
    {
        return Ok(node);
    }
    Builder {
        parser: Parser::new_from_str(text),
        nodes: 0,
        line: 1,
    }
    .document()
}

/// Reads JSON and nothing else.
///
/// # Errors
/// See [`TextError`].
pub fn read_json(bytes: &[u8]) -> Result<Node, TextError> {
    let text = check(bytes)?;
    let mut limits = Limits::default();
    let mut json = serde_json::Deserializer::from_str(text);
    let node = Seed {
        limits: &mut limits,
        depth: 0,
    }
    .deserialize(&mut json);
    let node = node.and_then(|node| json.end().map(|()| node));
    node.map_err(|error| match limits.exceeded {
        Some(of_line) => of_line(error.line()),
        None => TextError::NotJson(error.line()),
    })
}

fn check(bytes: &[u8]) -> Result<&str, TextError> {
    if bytes.len() > MAX_TEXT_LEN {
        return Err(TextError::TooLong);
    }
    std::str::from_utf8(bytes).map_err(|_| TextError::NotText)
}

/// Adds an entry with a new key.
fn insert(entries: &mut Entries, key: SecretText, node: Node) -> bool {
    let fresh = super::node::get(entries, key.expose()).is_none();
    if fresh {
        entries.push((key, node));
    }
    fresh
}

struct Builder<'a> {
    parser: Parser<'a, granit_parser::StrInput<'a>>,
    nodes: usize,
    line: usize,
}

impl<'a> Builder<'a> {
    fn next(&mut self) -> Result<Event<'a>, TextError> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => {
                self.line = span.start.line();
                Ok(event)
            }
            Some(Err(error)) => Err(TextError::NotYaml(error.marker().line())),
            None => Ok(Event::StreamEnd),
        }
    }

    fn document(mut self) -> Result<Node, TextError> {
        let mut root = None;
        loop {
            match self.next()? {
                Event::StreamEnd => break,
                Event::DocumentStart(..) if root.is_some() => {
                    return Err(TextError::Several(self.line));
                }
                Event::DocumentStart(..) => {
                    let first = self.next()?;
                    root = Some(self.node(first, 0)?);
                }
                _ => {}
            }
        }
        Ok(root.unwrap_or_else(|| {
            Node::Scalar(Scalar {
                text: "".into(),
                plain: true,
            })
        }))
    }

    /// The node that begins with this event.
    fn node(&mut self, event: Event<'a>, depth: usize) -> Result<Node, TextError> {
        let line = self.line;
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(TextError::TooMany);
        }
        if depth > MAX_DEPTH {
            return Err(TextError::TooDeep(line));
        }
        let (anchor, tag) = match &event {
            Event::Scalar(_, _, anchor, tag)
            | Event::SequenceStart(_, anchor, tag)
            | Event::MappingStart(_, anchor, tag) => (*anchor, tag.as_deref()),
            _ => (1, None),
        };
        if anchor != 0 {
            return Err(TextError::Alias(line));
        }
        let is_text = tag.is_some_and(|tag| tag.core_suffix() == Some("str"));
        if tag.is_some() && !is_text {
            return Err(TextError::Tag(line));
        }
        match event {
            Event::Scalar(text, style, _, _) => Ok(Node::Scalar(Scalar {
                text: text.into_owned().into(),
                plain: style == ScalarStyle::Plain && !is_text,
            })),
            Event::SequenceStart(..) => {
                let mut list = Vec::new();
                loop {
                    match self.next()? {
                        Event::SequenceEnd => return Ok(Node::List(list)),
                        event => list.push(self.node(event, depth + 1)?),
                    }
                }
            }
            Event::MappingStart(..) => {
                let mut entries = Entries::new();
                loop {
                    let key = match self.next()? {
                        Event::MappingEnd => return Ok(Node::Map(entries)),
                        event => self.node(event, depth + 1)?,
                    };
                    let line = self.line;
                    let Node::Scalar(key) = key else {
                        return Err(TextError::Key(line));
                    };
                    let value = self.next()?;
                    let value = self.node(value, depth + 1)?;
                    if !insert(&mut entries, key.text, value) {
                        return Err(TextError::Repeated(line));
                    }
                }
            }
            _ => Err(TextError::NotYaml(line)),
        }
    }
}

/// What is found while JSON is read that serde's errors, which may quote the text, would have to carry.
#[derive(Default)]
struct Limits {
    nodes: usize,
    exceeded: Option<fn(usize) -> TextError>,
}

impl Limits {
    fn exceed<E: de::Error>(&mut self, error: fn(usize) -> TextError) -> E {
        self.exceeded = Some(error);
        E::custom("")
    }
}

/// Reads one node of JSON.
struct Seed<'l> {
    limits: &'l mut Limits,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Node, D::Error> {
        self.limits.nodes += 1;
        if self.limits.nodes > MAX_NODES {
            return Err(self.limits.exceed(|_| TextError::TooMany));
        }
        if self.depth > MAX_DEPTH {
            return Err(self.limits.exceed(TextError::TooDeep));
        }
        from.deserialize_any(self)
    }
}

fn plain<E>(text: impl fmt::Display) -> Result<Node, E> {
    Ok(Node::Scalar(Scalar {
        text: text.to_string().into(),
        plain: true,
    }))
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        plain("null")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        plain(value)
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        plain(value)
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        plain(value)
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        // As JSON writes it: never without a point or an exponent.
        match serde_json::Number::from_f64(value) {
            Some(number) => plain(number),
            None => plain("null"),
        }
    }

    fn visit_str<E>(self, text: &str) -> Result<Node, E> {
        Ok(Node::text(text))
    }

    fn visit_string<E>(self, text: String) -> Result<Node, E> {
        Ok(Node::text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(node) = from.next_element_seed(Seed {
            limits: &mut *self.limits,
            depth: self.depth + 1,
        })? {
            list.push(node);
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Node, A::Error> {
        let mut entries = Entries::new();
        while let Some(Key(key)) = from.next_key()? {
            let node = from.next_value_seed(Seed {
                limits: &mut *self.limits,
                depth: self.depth + 1,
            })?;
            if !insert(&mut entries, key, node) {
                return Err(self.limits.exceed(TextError::Repeated));
            }
        }
        Ok(Node::Map(entries))
    }
}

struct Key(SecretText);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(Self(String::deserialize(from)?.into()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Document, DocumentError};
    use super::*;

    fn text(node: Node, key: &str) -> String {
        match node {
            Node::Map(entries) => match super::super::node::get(&entries, key) {
                Some(Node::Scalar(scalar)) => scalar.text.expose().to_owned(),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn test_read_json_is_read_as_json_and_as_yaml() {
        let json = b"{\n\t\"a\": \"\\ud83d\\ude00 \\/\",\n\t\"n\": 12,\n\t\"f\": 1.0\n}\n";
        for read in [read, read_json] {
            let node = read(json).expect("nodes");
            assert_eq!(text(node.clone(), "a"), "\u{1f600} /");
            assert_eq!(text(node.clone(), "n"), "12");
            assert_eq!(text(node, "f"), "1.0");
        }
        // Flow style of YAML is not JSON.
        assert_eq!(text(read(b"{a: b}").expect("nodes"), "a"), "b");
        assert_eq!(read_json(b"{a: b}"), Err(TextError::NotJson(1)));
    }

    #[test]
    fn test_read_what_could_grow_or_hide_is_refused_with_its_line() {
        let bomb = "a: &a [x, x]\nb: &b [*a, *a]\n";
        let deep = format!("{}{}", "[".repeat(60), "]".repeat(60));
        let deep_json = format!("{{\"a\":{deep}}}");
        let wide = format!("[{}]", "1,".repeat(MAX_NODES));
        let cases: [(&str, TextError); 10] = [
            (bomb, TextError::Alias(1)),
            ("a: b\nc: *none\n", TextError::NotYaml(2)),
            ("a: 1\nb: !!binary aGk=\n", TextError::Tag(2)),
            ("a: 1\n? [x]\n: 2\n", TextError::Key(2)),
            ("a: 1\nb: 2\na: 3\n", TextError::Repeated(3)),
            ("{\"a\": 1,\n\"a\": 2}", TextError::Repeated(2)),
            ("a: 1\n---\nb: 2\n", TextError::Several(2)),
            (&deep, TextError::TooDeep(1)),
            (&deep_json, TextError::TooDeep(1)),
            (&wide, TextError::TooMany),
        ];
        for (text, expected) in cases {
            let shown = text.get(..40).unwrap_or(text);
            assert_eq!(read(text.as_bytes()), Err(expected), "{shown}");
        }
        assert_eq!(read(b"a: \xff"), Err(TextError::NotText));
        assert_eq!(read(&vec![b' '; MAX_TEXT_LEN + 1]), Err(TextError::TooLong));
    }

    proptest! {
        #[test]
        fn test_read_of_any_bytes_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            read(&bytes).ok();
            read_json(&bytes).ok();
        }

        /// Errors of texts that are nearly bundles say nothing of them.
        #[test]
        fn test_errors_never_quote_the_text(
            pieces in prop::collection::vec(
                prop_oneof![
                    Just("qzx7c1d"), Just("env:"), Just("git:"), Just("\n"), Just("\n  "), Just("\n\t"),
                    Just(": "), Just("- "), Just("\""), Just("'"), Just("{"), Just("}"), Just("["), Just("]"),
                    Just(","), Just("&"), Just("*"), Just("!"), Just("|"), Just("#"), Just("?"), Just("%"),
                ],
                0..24,
            ),
        ) {
            let text = pieces.concat();
            for error in [
                Document::parse(text.as_bytes()).err(),
                read_json(text.as_bytes()).err().map(DocumentError::from),
            ].into_iter().flatten() {
                let said = format!("{error} {error:?}");
                prop_assert!(!said.contains("qzx7c1d"), "{}", said);
            }
        }
    }
}
