//! What a bundle is made of before it has a meaning: scalars, lists and mappings, in the order of their text.

use std::fmt;

use zeroize::Zeroizing;

/// Text that is a secret, or may be: wiped on drop, and never shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(Zeroizing<String>);

impl SecretText {
    /// The text. What is copied out of it is the caller's to wipe.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for SecretText {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl From<&str> for SecretText {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretText({} bytes)", self.0.len())
    }
}

/// Entries of a mapping, in the order of its text; no key is there twice.
pub type Entries = Vec<(SecretText, Node)>;

/// One value of YAML or JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A single value.
    Scalar(Scalar),
    /// A list.
    List(Vec<Node>),
    /// A mapping.
    Map(Entries),
}

impl Node {
    /// A text, as if it stood in quotation marks.
    pub fn text(text: impl Into<SecretText>) -> Self {
        Self::Scalar(Scalar {
            text: text.into(),
            plain: false,
        })
    }

    /// Whether it is the value that stands for none.
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Scalar(scalar) if scalar.resolve() == Resolved::Null)
    }
}

/// The value of this key among the entries of a mapping.
pub fn get<'a>(entries: &'a Entries, key: &str) -> Option<&'a Node> {
    let mut found = entries.iter().filter(|(name, _)| name.expose() == key);
    found.next().map(|(_, node)| node)
}

/// A single value as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scalar {
    /// What is written, escapes undone.
    pub text: SecretText,
    /// Whether it stands without quotation marks, so that it may be a number, a truth value or nothing.
    pub plain: bool,
}

/// What a scalar means.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Resolved<'a> {
    /// No value.
    Null,
    /// Yes or no.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Any other number.
    Float(f64),
    /// Text.
    Text(&'a str),
}

impl Scalar {
    /// What the scalar means by the core schema of YAML 1.2, with the wider notations of numbers that
    /// `go-yaml` 3 knows (underscores, `0b`, a leading zero for octal): that is what agentlab and sops read with.
    pub fn resolve(&self) -> Resolved<'_> {
        let text = self.text.expose();
        if !self.plain {
            return Resolved::Text(text);
        }
        match text {
            "" | "~" | "null" | "Null" | "NULL" => return Resolved::Null,
            "true" | "True" | "TRUE" => return Resolved::Bool(true),
            "false" | "False" | "FALSE" => return Resolved::Bool(false),
            ".nan" | ".NaN" | ".NAN" => return Resolved::Float(f64::NAN),
            ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => {
                return Resolved::Float(f64::INFINITY);
            }
            "-.inf" | "-.Inf" | "-.INF" => return Resolved::Float(f64::NEG_INFINITY),
            _ => {}
        }
        if !text.starts_with(|first: char| first.is_ascii_digit() || "+-.".contains(first)) {
            return Resolved::Text(text);
        }
        let digits = Zeroizing::new(text.replace('_', ""));
        match (int(&digits), is_float(&digits)) {
            (Some(int), _) => Resolved::Int(int),
            (None, true) => digits.parse().map_or(Resolved::Text(text), Resolved::Float),
            (None, false) => Resolved::Text(text),
        }
    }
}

fn int(text: &str) -> Option<i64> {
    let (negative, digits) = match text.as_bytes() {
        [b'-', ..] => (true, &text[1..]),
        [b'+', ..] => (false, &text[1..]),
        _ => (false, text),
    };
    let lower = digits.get(..2).map(str::to_ascii_lowercase);
    let (radix, digits) = match lower.as_deref() {
        Some("0x") => (16, &digits[2..]),
        Some("0o") => (8, &digits[2..]),
        Some("0b") => (2, &digits[2..]),
        Some(_) if digits.starts_with('0') => (8, &digits[1..]),
        _ => (10, digits),
    };
    // A sign is not allowed twice.
    if !digits.starts_with(|first: char| first.is_ascii_alphanumeric()) {
        return None;
    }
    let value = i128::from_str_radix(digits, radix).ok()?;
    i64::try_from(if negative { -value } else { value }).ok()
}

/// Whether it is `[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`.
fn is_float(text: &str) -> bool {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (unsigned, None),
    };
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let some_digits = |text: &str| !text.is_empty() && digits(text);
    let good_mantissa = match mantissa.split_once('.') {
        Some(("", fraction)) => some_digits(fraction),
        Some((whole, fraction)) => some_digits(whole) && digits(fraction),
        None => some_digits(mantissa),
    };
    let good_exponent = exponent
        .is_none_or(|exponent| some_digits(exponent.strip_prefix(['-', '+']).unwrap_or(exponent)));
    good_mantissa && good_exponent
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: &str) -> Scalar {
        Scalar {
            text: text.into(),
            plain: true,
        }
    }

    #[test]
    fn test_scalar_means_what_go_yaml_reads() {
        let cases = [
            ("", Resolved::Null),
            ("~", Resolved::Null),
            ("null", Resolved::Null),
            ("nULL", Resolved::Text("nULL")),
            ("true", Resolved::Bool(true)),
            ("yes", Resolved::Text("yes")),
            ("FALSE", Resolved::Bool(false)),
            ("0", Resolved::Int(0)),
            ("-12", Resolved::Int(-12)),
            ("+12", Resolved::Int(12)),
            ("1_000", Resolved::Int(1000)),
            ("010", Resolved::Int(8)),
            ("0o10", Resolved::Int(8)),
            ("0x1F", Resolved::Int(31)),
            ("0b101", Resolved::Int(5)),
            ("-9223372036854775808", Resolved::Int(i64::MIN)),
            ("08", Resolved::Float(8.0)),
            ("1.50", Resolved::Float(1.5)),
            (".5", Resolved::Float(0.5)),
            ("1.", Resolved::Float(1.0)),
            ("1e3", Resolved::Float(1000.0)),
            ("-.inf", Resolved::Float(f64::NEG_INFINITY)),
            ("--1", Resolved::Text("--1")),
            ("1e", Resolved::Text("1e")),
            ("1.2.3", Resolved::Text("1.2.3")),
            ("0x", Resolved::Text("0x")),
            ("-", Resolved::Text("-")),
            ("2024-01-30", Resolved::Text("2024-01-30")),
            ("0é", Resolved::Text("0é")),
        ];
        for (text, expected) in cases {
            assert_eq!(plain(text).resolve(), expected, "{text:?}");
        }
        let quoted = Scalar {
            plain: false,
            ..plain("12")
        };
        assert_eq!(quoted.resolve(), Resolved::Text("12"));
    }

    #[test]
    fn test_debug_shows_no_text() {
        let node = Node::Map(vec![("key-7c1d".into(), Node::text("value-7c1d"))]);
        assert!(!format!("{node:?}").contains("7c1d"));
    }
}
