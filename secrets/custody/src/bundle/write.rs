//! From nodes to YAML that a person can read: block style, texts of several lines as they are.

use zeroize::Zeroizing;

use super::node::{Entries, Node, Resolved, Scalar};

/// Spaces a level.
const INDENT: usize = 2;

/// The YAML of a mapping. Read again, it is the same nodes.
#[must_use]
pub fn write(entries: &Entries) -> Zeroizing<String> {
    // Escaped, a byte is ten at most; what a text grows out of is not wiped, so that it must not grow.
    let mut out = Zeroizing::new(String::with_capacity(capacity(entries)));
    if entries.is_empty() {
        out.push_str("{}\n");
    }
    map(entries, 0, &mut out);
    out
}

/// No less than the bytes of a mapping's YAML.
fn capacity(entries: &Entries) -> usize {
    fn of(node: &Node, depth: usize) -> usize {
        let lines = match node {
            Node::Scalar(scalar) => {
                let text = scalar.text.expose();
                text.len() * 10 + (text.matches('\n').count() + 1) * INDENT * (depth + 1)
            }
            Node::List(list) => list.iter().map(|node| of(node, depth + 1)).sum(),
            Node::Map(entries) => entries
                .iter()
                .map(|(key, node)| key.expose().len() * 10 + of(node, depth + 1))
                .sum(),
        };
        // Indentation, punctuation and a line's end.
        lines + INDENT * (depth + 1) + 16
    }
    16 + entries
        .iter()
        .map(|(key, node)| key.expose().len() * 10 + of(node, 1))
        .sum::<usize>()
}

fn indent(depth: usize, out: &mut String) {
    out.extend(std::iter::repeat_n(' ', depth * INDENT));
}

fn map(entries: &Entries, depth: usize, out: &mut String) {
    for (at, (key, node)) in entries.iter().enumerate() {
        // The first entry of a mapping in a list stands behind its hyphen.
        if at > 0 || !out.ends_with("- ") {
            indent(depth, out);
        }
        inline(key.expose(), out);
        out.push(':');
        value(node, depth, out);
    }
}

fn list(nodes: &[Node], depth: usize, out: &mut String) {
    for (at, node) in nodes.iter().enumerate() {
        if at > 0 || !out.ends_with("- ") {
            indent(depth, out);
        }
        out.push('-');
        match node {
            Node::Map(entries) if !entries.is_empty() => {
                out.push(' ');
                map(entries, depth + 1, out);
            }
            Node::List(nodes) if !nodes.is_empty() => {
                out.push(' ');
                list(nodes, depth + 1, out);
            }
            other => value(other, depth, out),
        }
    }
}

/// What stands behind the colon or hyphen of a line of this depth, and the line's end.
fn value(node: &Node, depth: usize, out: &mut String) {
    match node {
        Node::Map(entries) if entries.is_empty() => out.push_str(" {}\n"),
        Node::List(nodes) if nodes.is_empty() => out.push_str(" []\n"),
        Node::Map(entries) => {
            out.push('\n');
            map(entries, depth + 1, out);
        }
        Node::List(nodes) => {
            out.push('\n');
            list(nodes, depth + 1, out);
        }
        Node::Scalar(scalar) => {
            out.push(' ');
            let text = scalar.text.expose();
            if scalar.plain && !matches!(scalar.resolve(), Resolved::Text(_)) {
                out.push_str(if text.is_empty() { "null" } else { text });
            } else if is_block(text) {
                out.push_str(if text.ends_with('\n') { "|" } else { "|-" });
                for line in text.lines() {
                    out.push('\n');
                    if !line.is_empty() {
                        indent(depth + 1, out);
                        out.push_str(line);
                    }
                }
            } else {
                inline(text, out);
            }
            out.push('\n');
        }
    }
}

/// Whether a text can stand in a literal block: several lines of printable ASCII, of which the first begins with a
/// visible character (else the block's indentation would have to be told), and one line's end at most after them.
fn is_block(text: &str) -> bool {
    let printable = |byte: u8| byte == b'\n' || (b' '..=b'~').contains(&byte);
    let body = text.strip_suffix('\n').unwrap_or(text);
    text.contains('\n')
        && !body.ends_with('\n')
        && !body.is_empty()
        && body.starts_with(|first: char| first.is_ascii_graphic())
        && text.bytes().all(printable)
}

/// A text on one line: as it is if it can only be a text, else in quotation marks.
fn inline(text: &str, out: &mut String) {
    if is_word(text) {
        out.push_str(text);
        return;
    }
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            ' '..='~' => out.push(character),
            // Letters of all languages as they are; what YAML does not print, and what it breaks lines at, escaped.
            '\u{a1}'..='\u{d7ff}' if !matches!(character, '\u{2028}' | '\u{2029}') => {
                out.push(character);
            }
            _ => {
                let code = u32::from(character);
                out.push_str("\\U");
                for shift in (0..8).rev() {
                    let digit = (code >> (4 * shift)) & 0xf;
                    out.push(char::from_digit(digit, 16).unwrap_or('0'));
                }
            }
        }
    }
    out.push('"');
}

/// Whether a text needs no quotation marks: a word that begins with a letter and means itself.
fn is_word(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./@+".contains(&byte);
    // What older readers of YAML take for a truth value.
    let ambiguous = ["y", "n", "yes", "no", "on", "off"];
    let scalar = Scalar {
        text: text.into(),
        plain: true,
    };
    text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && text.bytes().all(allowed)
        && scalar.resolve() == Resolved::Text(text)
        && !ambiguous.iter().any(|word| text.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::read::read;
    use super::*;

    fn scalar() -> impl Strategy<Value = Node> {
        let numbers = prop_oneof!["null", "true", "-?[1-9][0-9]{0,5}", "[0-9]\\.[0-9]{1,4}"];
        prop_oneof![
            numbers.prop_map(|text| Node::Scalar(Scalar {
                text: text.into(),
                plain: true
            })),
            "[a-z]{0,6}".prop_map(Node::text),
            "([ -~]{0,12}\n){0,4}[ -~]{0,8}".prop_map(Node::text),
            any::<String>().prop_map(Node::text),
        ]
    }

    fn entries(node: impl Strategy<Value = Node>) -> impl Strategy<Value = Entries> {
        prop::collection::btree_map("[a-z]{0,3}|\\PC{0,5}", node, 0..4).prop_map(|map| {
            map.into_iter()
                .map(|(key, node)| (key.into(), node))
                .collect()
        })
    }

    fn node() -> impl Strategy<Value = Node> {
        scalar().prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Node::List),
                entries(inner).prop_map(Node::Map),
            ]
        })
    }

    /// The same with every text in quotation marks.
    fn quoted(node: Node) -> Node {
        match node {
            Node::Scalar(scalar) => Node::Scalar(Scalar {
                plain: scalar.plain && !matches!(scalar.resolve(), Resolved::Text(_)),
                ..scalar
            }),
            Node::List(nodes) => Node::List(nodes.into_iter().map(quoted).collect()),
            Node::Map(entries) => Node::Map(
                entries
                    .into_iter()
                    .map(|(key, node)| (key, quoted(node)))
                    .collect(),
            ),
        }
    }

    proptest! {
        #[test]
        fn test_write_read_again_is_the_same(entries in entries(node())) {
            let text = write(&entries);
            prop_assert!(text.len() <= capacity(&entries));
            prop_assert_eq!(read(text.as_bytes()).map(quoted), Ok(Node::Map(entries)), "{}", *text);
        }
    }

    #[test]
    fn test_write_is_what_a_person_would_write() {
        let text = "version: 1\ngit:\n  token: \"a b\"\n  known_hosts: |\n    one\n    two\nlist:\n  - a\n  - b: c\n    d: {}\n";
        let Node::Map(entries) = read(text.as_bytes()).expect("nodes") else {
            panic!("a mapping");
        };
        assert_eq!(*write(&entries), text);
    }
}
