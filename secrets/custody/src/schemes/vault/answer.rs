//! What the server says of a secret: `{"data": {"data": {"FIELD": "VALUE", ...}, "metadata": {...}}, ...}`.

use std::collections::BTreeMap;
use std::fmt;

use cachot_secrets::{SecretValue, ValueError};
use serde::Deserialize;
use serde::de::{Deserializer, Error, Visitor};
use serde_json::value::RawValue;

use super::error::VaultError;
use super::place::Place;

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    data: Version<'a>,
}

#[derive(Deserialize)]
struct Version<'a> {
    #[serde(borrow)]
    data: BTreeMap<String, &'a RawValue>,
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

/// The field in the answer. The parser's errors are dropped, as they repeat what they find.
pub(super) fn field(
    answer: &SecretValue,
    place: &Place,
) -> Result<Result<SecretValue, ValueError>, VaultError> {
    let not_key_value = |_| VaultError::NotKeyValue {
        secret: place.secret.clone(),
    };
    let parsed: Answer<'_> = serde_json::from_slice(answer.expose()).map_err(not_key_value)?;
    let raw = parsed.data.data.get(&place.field);
    let raw = raw.ok_or_else(|| VaultError::NoField {
        secret: place.secret.clone(),
        field: place.field.clone(),
    })?;
    let text: Text = serde_json::from_str(raw.get()).map_err(|_| VaultError::NotText {
        secret: place.secret.clone(),
        field: place.field.clone(),
    })?;
    Ok(text.0)
}
