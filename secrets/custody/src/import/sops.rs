//! Any file of sops: each of its values becomes a secret, named after the keys that lead to it.

use std::path::Path;

use super::found::{Content, Found, Owner};
use super::{ImportError, MAX_FOUND};
use crate::bundle::{Node, read_sops};

/// Reads all values of the file, with the private keys of age in the file `key`.
///
/// The name of `a: {b-c: [x, y]}` is `a_b_c_0` and `a_b_c_1`: keys, and places in lists, counted from 0, joined by
/// underscores, which hyphens and dots become as well.
///
/// # Errors
/// See [`ImportError`].
pub fn read(path: &Path, key: &Path) -> Result<Vec<Found>, ImportError> {
    let opened = read_sops(path, key)?;
    let mut walk = Walk::default();
    walk.node(&opened.document)?;
    Ok(walk.found)
}

#[derive(Default)]
struct Walk {
    path: Vec<String>,
    found: Vec<Found>,
}

impl Walk {
    /// No deeper than the reader of the text goes.
    fn node(&mut self, node: &Node) -> Result<(), ImportError> {
        match node {
            Node::Map(entries) => {
                for (key, node) in entries {
                    self.below(key.expose().to_owned(), node)?;
                }
                Ok(())
            }
            Node::List(nodes) => {
                for (at, node) in nodes.iter().enumerate() {
                    self.below(at.to_string(), node)?;
                }
                Ok(())
            }
            Node::Scalar(scalar) => {
                if self.found.len() == MAX_FOUND {
                    return Err(ImportError::TooMany);
                }
                let content = match node.is_null() {
                    true => Content::Empty,
                    false => Content::of(scalar.text.expose().as_bytes())?,
                };
                let name = self.path.join("_").replace(['-', '.'], "_");
                let from: Vec<String> = self.path.iter().map(|key| quoted(key)).collect();
                let from = from.join(".");
                self.found
                    .push(Found::new(from, name, Owner::Nobody, content));
                Ok(())
            }
        }
    }

    fn below(&mut self, key: String, node: &Node) -> Result<(), ImportError> {
        self.path.push(key);
        self.node(node)?;
        self.path.pop();
        Ok(())
    }
}

/// A key as it is, or in quotation marks if it could be taken for more than one.
fn quoted(key: &str) -> String {
    match key.contains(['.', '"']) || key.is_empty() {
        true => format!("{key:?}"),
        false => key.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// A document of few different keys, so that many look alike.
    fn node() -> impl Strategy<Value = Node> {
        let leaf = Just(Node::text("value"));
        leaf.prop_recursive(4, 24, 4, |inner| {
            let key = prop::sample::select(vec!["a", "b", "a.b", "a\"", "\"a", "0", ""]);
            let map = prop::collection::btree_map(key, inner.clone(), 0..4);
            prop_oneof![
                map.prop_map(|map| {
                    Node::Map(map.into_iter().map(|(k, v)| (k.into(), v)).collect())
                }),
                prop::collection::vec(inner, 0..4).prop_map(Node::List),
            ]
        })
    }

    fn count(node: &Node) -> usize {
        match node {
            Node::Scalar(_) => 1,
            Node::List(nodes) => nodes.iter().map(count).sum(),
            Node::Map(entries) => entries.iter().map(|(_, node)| count(node)).sum(),
        }
    }

    fn walked(node: &Node) -> Vec<Found> {
        let mut walk = Walk::default();
        walk.node(node).expect("few values");
        walk.found
    }

    proptest! {
        #[test]
        fn test_every_value_is_found_once_and_told_apart(node in node()) {
            let found = walked(&node);
            let from: BTreeSet<_> = found.iter().map(|found| &found.from).collect();
            prop_assert_eq!(found.len(), count(&node));
            prop_assert_eq!(from.len(), found.len(), "{:?}", from);
        }
    }

    #[test]
    fn test_keys_that_look_alike_are_told_apart() {
        let inner = Node::Map(vec![("b".into(), Node::text("1"))]);
        let document = Node::Map(vec![("a".into(), inner), ("a.b".into(), Node::text("2"))]);
        let found = walked(&document);
        let both: Vec<_> = found
            .iter()
            .map(|found| (found.from.as_str(), found.name.as_str()))
            .collect();
        assert_eq!(both, [("a.b", "a_b"), ("\"a.b\"", "a_b")]);
    }
}
