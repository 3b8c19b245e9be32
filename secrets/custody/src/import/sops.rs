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
    let mut walk = Walk {
        path: Vec::new(),
        found: Vec::new(),
    };
    walk.node(&opened.document)?;
    Ok(walk.found)
}

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
                let from = self.path.join(".");
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
