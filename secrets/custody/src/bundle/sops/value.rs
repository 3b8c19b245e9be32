//! One value as sops encrypts it: `ENC[AES256_GCM,data:...,iv:...,tag:...,type:...]`.

use aes_gcm::aead::consts::U32;
use aes_gcm::aead::{AeadInPlace, KeyInit};
use aes_gcm::aes::Aes256;
use aes_gcm::{AesGcm, Nonce, Tag};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::super::node::{Resolved, Scalar};

/// What a value was before it was encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `str` and `bytes`
    Text,
    /// `int`
    Int,
    /// `float`
    Float,
    /// `bool`
    Bool,
    /// `time`
    Time,
}

/// Why a value is not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenError {
    /// It is not of the form.
    Form,
    /// It was changed, or stood elsewhere.
    NotAuthentic,
}

/// AES-256 in GCM with the nonces of 32 bytes that sops makes.
pub struct Cipher(AesGcm<Aes256, U32>);

impl Cipher {
    /// With a data key, of 32 bytes.
    pub fn new(key: &[u8]) -> Option<Self> {
        AesGcm::new_from_slice(key).ok().map(Self)
    }

    /// Opens a value that stands at a place.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(
        &self,
        text: &str,
        associated: &str,
    ) -> Result<(Zeroizing<Vec<u8>>, Kind), OpenError> {
        let (data, iv, tag, kind) = split(text).ok_or(OpenError::Form)?;
        let decode = |text: &str| STANDARD.decode(text).map_err(|_| OpenError::Form);
        let mut bytes = Zeroizing::new(decode(data)?);
        let (iv, tag) = (decode(iv)?, decode(tag)?);
        if iv.len() != 32 || tag.len() != 16 {
            return Err(OpenError::Form);
        }
        let (nonce, tag) = (Nonce::from_slice(&iv), Tag::from_slice(&tag));
        self.0
            .decrypt_in_place_detached(nonce, associated.as_bytes(), &mut bytes, tag)
            .map_err(|_| OpenError::NotAuthentic)?;
        Ok((bytes, kind))
    }
}

fn split(text: &str) -> Option<(&str, &str, &str, Kind)> {
    let inner = text.strip_prefix("ENC[AES256_GCM,")?.strip_suffix(']')?;
    let mut parts = inner.split(',');
    let mut part = |name| parts.next()?.strip_prefix(name);
    let (data, iv) = (part("data:")?, part("iv:")?);
    let (tag, kind) = (part("tag:")?, part("type:")?);
    let kind = match kind {
        "str" | "bytes" => Kind::Text,
        "int" => Kind::Int,
        "float" => Kind::Float,
        "bool" => Kind::Bool,
        "time" => Kind::Time,
        _ => return None,
    };
    parts.next().is_none().then_some((data, iv, tag, kind))
}

impl Kind {
    /// The value as a scalar; `None` if its text is not of the kind. The kind itself is not authentic, but what is made of
    /// it, the MAC covers.
    pub fn scalar(self, bytes: Zeroizing<Vec<u8>>) -> Option<Scalar> {
        let text = std::str::from_utf8(&bytes).ok()?;
        let scalar = |plain| Scalar {
            text: text.into(),
            plain,
        };
        let scalar = scalar(self != Self::Text);
        let good = match self {
            Self::Text | Self::Time => true,
            Self::Bool => matches!(scalar.resolve(), Resolved::Bool(_)),
            Self::Int => matches!(scalar.resolve(), Resolved::Int(_)),
            Self::Float => matches!(scalar.resolve(), Resolved::Int(_) | Resolved::Float(_)),
        };
        good.then_some(scalar)
    }
}

/// The bytes of a value that is not null in the MAC.
pub fn canonical(scalar: &Scalar) -> Zeroizing<Vec<u8>> {
    let bytes = match scalar.resolve() {
        Resolved::Null => Vec::new(),
        Resolved::Bool(true) => b"True".to_vec(),
        Resolved::Bool(false) => b"False".to_vec(),
        Resolved::Int(value) => value.to_string().into_bytes(),
        Resolved::Float(value) if value == f64::INFINITY => b"+Inf".to_vec(),
        Resolved::Float(value) if value == f64::NEG_INFINITY => b"-Inf".to_vec(),
        // Shortest, without an exponent.
        Resolved::Float(value) => value.to_string().into_bytes(),
        Resolved::Text(text) if scalar.plain && is_date(text) => {
            format!("{text}T00:00:00Z").into_bytes()
        }
        Resolved::Text(text) => text.as_bytes().to_vec(),
    };
    Zeroizing::new(bytes)
}

/// The one spelling of a number or truth value; `None` of all else.
pub fn spelling(scalar: &Scalar) -> Option<String> {
    match scalar.resolve() {
        Resolved::Bool(value) => Some(value.to_string()),
        Resolved::Int(value) => Some(value.to_string()),
        Resolved::Float(value) if value.is_finite() => Some(value.to_string()),
        Resolved::Float(_) | Resolved::Null | Resolved::Text(_) => None,
    }
}

/// Whether it is `YYYY-MM-DD`, which YAML reads as a time.
fn is_date(text: &str) -> bool {
    let digit = |(at, byte): (usize, u8)| match at {
        4 | 7 => byte == b'-',
        _ => byte.is_ascii_digit(),
    };
    text.len() == 10 && text.bytes().enumerate().all(digit)
}
