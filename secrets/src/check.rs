//! What `secret check` reports.

use std::fmt;

use serde::Serialize;

use crate::declarations::{Outcome, Warning};
use crate::schemes::{Origin, Refusal};

/// What `secret check` says about one reference; never a value.
///
/// `Display` is the line for people: `API_KEY ok source=env bytes=40 warning: ...`, or
/// `API_KEY error source=env: ...`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// The secret's name, or which declaration it is if that has no good name.
    pub name: String,
    /// Whether a VM would get it.
    pub ok: bool,
    /// Name of the scheme, where the reference names one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Scope and version of the value, if it is ok and where its place has such.
    #[serde(flatten)]
    pub origin: Origin,
    /// Length of the value, if it is ok.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<usize>,
    /// What the user should know about it, if it is ok.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
    /// What is wrong, if it is not ok.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The same in a few fixed words.
    #[serde(skip)]
    pub refusal: Option<Refusal>,
    /// As `source`, but only if there is such a scheme.
    #[serde(skip)]
    pub scheme: Option<String>,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.ok { "ok" } else { "error" };
        write!(f, "{} {state}", self.name)?;
        if let Some(source) = &self.source {
            write!(f, " source={source}")?;
        }
        if let Some(scope) = &self.origin.scope {
            write!(f, " scope={scope}")?;
        }
        if let Some(version) = self.origin.version {
            write!(f, " version={version}")?;
        }
        if let Some(bytes) = self.bytes {
            write!(f, " bytes={bytes}")?;
        }
        if let Some(warning) = &self.warning {
            write!(f, " warning: {warning}")?;
        }
        if let Some(error) = &self.error {
            write!(f, ": {error}")?;
        }
        Ok(())
    }
}

impl From<Outcome> for Check {
    fn from(outcome: Outcome) -> Self {
        let name = outcome.subject.to_string();
        let source = outcome.source;
        match outcome.result {
            Ok(secret) => {
                let warnings: Vec<_> = secret.warnings.iter().map(Warning::to_string).collect();
                Self {
                    name,
                    ok: true,
                    scheme: source.clone(),
                    source,
                    origin: secret.origin,
                    bytes: Some(secret.value.len()),
                    warning: (!warnings.is_empty()).then(|| warnings.join("; ")),
                    error: None,
                    refusal: None,
                }
            }
            Err(error) => Self {
                name,
                ok: false,
                scheme: error.scheme(source.as_ref()),
                source,
                origin: Origin::default(),
                bytes: None,
                warning: None,
                error: Some(error.to_string()),
                refusal: Some(error.refusal()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Declarations;
    use crate::declarations::tests::schemes;

    #[test]
    fn test_check_lines_for_people() {
        let declarations = Declarations::parse([
            "LONG=fixed:0123456789",
            "SHORT=fixed:1234567",
            "PLAIN=env:PATH",
            "MISSING=env:CACHOT_NOT_SET",
            "oops",
            "KEPT=fixed:0123456789@3",
        ]);

        let lines: Vec<_> = declarations
            .check(&schemes())
            .iter()
            .map(Check::to_string)
            .collect();

        let path_len = std::env::var_os("PATH").expect("PATH").len();
        assert_eq!(lines[0], "LONG ok source=fixed bytes=10");
        assert_eq!(
            lines[1],
            "SHORT ok source=fixed bytes=7 warning: a value of 7 bytes cannot be searched for in snapshots: use at least 8"
        );
        assert!(lines[2].starts_with(&format!(
            "PLAIN ok source=env bytes={path_len} warning: secret scheme \"env\" is plaintext: not encrypted at rest, not for production"
        )));
        assert!(
            lines[3].starts_with("MISSING error source=env: the environment variable"),
            "{}",
            lines[3]
        );
        assert!(lines[4].starts_with("declaration 5 error: the declaration has no name"));
        assert_eq!(
            lines[5],
            "KEPT ok source=fixed scope=workspace version=3 bytes=10"
        );
    }

    #[test]
    fn test_check_as_json() {
        let declarations =
            Declarations::parse(["A=fixed:0123456789", "B=nope:x", "C=fixed:01234567@3"]);

        let json = serde_json::to_value(declarations.check(&schemes())).expect("JSON");

        assert_eq!(
            json,
            serde_json::json!([
                {"name": "A", "ok": true, "source": "fixed", "bytes": 10},
                {
                    "name": "B",
                    "ok": false,
                    "source": "nope",
                    "error": "there is no secret scheme \"nope\": use one of dotenv, env, file, fixed",
                },
                {
                    "name": "C",
                    "ok": true,
                    "source": "fixed",
                    "scope": "workspace",
                    "version": 3,
                    "bytes": 8,
                },
            ])
        );
    }
}
