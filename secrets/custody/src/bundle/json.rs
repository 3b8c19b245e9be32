//! From nodes to JSON: the settings of a program that reads nothing else.

use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};
use zeroize::Zeroizing;

use super::node::{Entries, Node, Resolved};

/// A mapping as JSON, in its order. What JSON has no number for is `null`.
#[must_use]
pub fn write(entries: &Entries) -> Zeroizing<String> {
    // Keys are texts and nothing here fails, so that serde_json has nothing to refuse.
    Zeroizing::new(serde_json::to_string(&Map(entries)).unwrap_or_default())
}

struct Map<'a>(&'a Entries);

impl Serialize for Map<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(Some(self.0.len()))?;
        for (key, value) in self.0 {
            map.serialize_entry(key.expose(), &Value(value))?;
        }
        map.end()
    }
}

struct Value<'a>(&'a Node);

impl Serialize for Value<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Node::Map(entries) => Map(entries).serialize(to),
            Node::List(nodes) => {
                let mut list = to.serialize_seq(Some(nodes.len()))?;
                for node in nodes {
                    list.serialize_element(&Value(node))?;
                }
                list.end()
            }
            Node::Scalar(scalar) => match scalar.resolve() {
                Resolved::Null => to.serialize_unit(),
                Resolved::Bool(value) => to.serialize_bool(value),
                Resolved::Int(value) => to.serialize_i64(value),
                Resolved::Float(value) => to.serialize_f64(value),
                Resolved::Text(text) => to.serialize_str(text),
            },
        }
    }
}
