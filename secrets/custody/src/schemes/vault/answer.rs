//! What the server says of a secret: `{"data": {"data": {"FIELD": "VALUE", ...}, "metadata": {...}}, ...}`.

use std::collections::BTreeMap;
use std::fmt;

use cachot_secrets::{SecretValue, ValueError};
use serde::Deserialize;
use serde::de::{Deserializer, Error, Visitor};
use serde_json::value::RawValue;

use super::error::VaultError;
use super::place::Place;

/// The fields of a JSON object, each as it stands there; of two with one name the last one counts.
fn object(text: &RawValue) -> Option<BTreeMap<String, &RawValue>> {
    serde_json::from_str(text.get()).ok()
}

/// The bytes of a JSON string, copied from where the parser has them into locked memory.
struct Text(Result<SecretValue, ValueError>);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Copy;

        impl Visitor<'_> for Copy {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Text, E> {
                Ok(Text(SecretValue::copy_of(text.as_bytes())))
            }
        }

        deserializer.deserialize_str(Copy)
    }
}

/// A field of a secret.
pub(super) struct Field {
    /// Its value, or why it is none.
    pub value: Result<SecretValue, ValueError>,
    /// The secret's version, if the server says it.
    pub version: Option<u64>,
}

/// The field in the answer. The parser's errors are dropped, as they repeat what they find.
pub(super) fn field(answer: &SecretValue, place: &Place) -> Result<Field, VaultError> {
    let parse = || {
        let answer = serde_json::from_slice(answer.expose()).ok()?;
        let version = object(object(answer)?.get("data")?)?;
        let fields = object(version.get("data")?)?;
        Some((fields, version.get("metadata").copied().and_then(number)))
    };
    let (fields, version) = parse().ok_or_else(|| VaultError::NotKeyValue {
        secret: place.secret.clone(),
    })?;
    let raw = fields.get(&place.field);
    let raw = raw.ok_or_else(|| VaultError::NoField {
        secret: place.secret.clone(),
        field: place.field.clone(),
    })?;
    let text: Text = serde_json::from_str(raw.get()).map_err(|_| VaultError::NotText {
        secret: place.secret.clone(),
        field: place.field.clone(),
    })?;
    Ok(Field {
        value: text.0,
        version,
    })
}

/// The version in a secret's metadata, from 1.
fn number(metadata: &RawValue) -> Option<u64> {
    let version = object(metadata)?.get("version")?.get().parse();
    version.ok().filter(|version| *version > 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn place() -> Place {
        "kv/data/a#f".parse().expect("a place")
    }

    fn answer(text: &str) -> SecretValue {
        SecretValue::copy_of(text.as_bytes()).expect("some text")
    }

    /// The field as a parser finds it that keeps copies of everything.
    fn naive(text: &str) -> Option<String> {
        let parsed: Value = serde_json::from_str(text).ok()?;
        let version = parsed.as_object()?.get("data")?.as_object()?;
        let field = version.get("data")?.as_object()?.get("f")?.as_str()?;
        (!field.is_empty()).then(|| field.to_owned())
    }

    fn check(text: &str) {
        let field = field(&answer(text), &place());
        let got = field.ok().and_then(|field| field.value.ok());
        let got = got.map(|value| String::from_utf8_lossy(value.expose()).into_owned());
        assert_eq!(got, naive(text), "{text}");
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            let name = prop_oneof![
                Just("data".to_owned()),
                Just("f".to_owned()),
                any::<String>()
            ];
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map(name, inner, 0..4).prop_map(|fields| json!(fields)),
            ]
        })
    }

    proptest! {
        #[test]
        fn test_field_is_what_a_naive_parser_finds(text in any::<String>(), other in value()) {
            check(&json!({"data": {"data": {"f": text, "g": other}, "metadata": other}}).to_string());
            check(&json!({"data": {"data": {"f": other}}}).to_string());
            check(&json!({"data": {"data": other}}).to_string());
            check(&json!({"data": other}).to_string());
        }

        #[test]
        fn test_field_of_a_damaged_answer(
            text in any::<String>(),
            at in any::<prop::sample::Index>(),
            byte in 0x20_u8..0x7f,
        ) {
            let whole = json!({"data": {"data": {"f": text}}}).to_string();
            let mut damaged = whole.clone().into_bytes();
            let at = at.index(damaged.len());
            damaged[at] = byte;
            if let Ok(damaged) = String::from_utf8(damaged) {
                check(&damaged);
            }
            if let Some(cut) = whole.get(..at).filter(|cut| !cut.is_empty()) {
                check(cut);
            }
        }
    }

    #[test]
    fn test_field_has_the_version_of_the_metadata_if_that_is_one() {
        for (metadata, expected) in [
            ("{\"created_time\":\"x\",\"version\":12}", Some(12)),
            ("{\"version\":18446744073709551615}", Some(u64::MAX)),
            ("{\"version\":18446744073709551616}", None),
            ("{\"version\":0}", None),
            ("{\"version\":-1}", None),
            ("{\"version\":1.0}", None),
            ("{\"version\":\"1\"}", None),
            ("{}", None),
            ("null", None),
            ("[3]", None),
        ] {
            let text = format!("{{\"data\":{{\"data\":{{\"f\":\"v\"}},\"metadata\":{metadata}}}}}");
            let field = field(&answer(&text), &place()).expect("a field");
            assert_eq!(field.version, expected, "{metadata}");
            assert_eq!(field.value.expect("a value").expose(), b"v");
        }
    }

    #[test]
    fn test_field_of_deep_or_repeated_objects() {
        let deep = format!("{{\"data\":{{\"data\":{{\"g\":{}", "[".repeat(100_000));
        assert!(field(&answer(&deep), &place()).is_err());
        // As with the naive parser, the last one counts.
        check(r#"{"data":{"data":{"f":"first","f":"last"}}}"#);
    }
}
