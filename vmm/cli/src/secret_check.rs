//! `cachot secret check`: how every reference fares, and never a value.

use std::io::{self, Write};

use cachot_custody::audit::Access;
use cachot_secrets::{Check, Declarations, Schemes};

use crate::args::CheckArgs;
use crate::audit::{self, RecordError, Use};

/// Why references are not checked.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// It cannot be recorded.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The output cannot be written.
    #[error("cannot write the output")]
    Output(#[from] io::Error),
}

/// Resolves the references and writes a line for each, or a JSON array, to `output`; whether all
/// have a value.
///
/// # Errors
/// See [`CheckError`].
pub fn check(args: &CheckArgs, output: &mut impl Write) -> Result<bool, CheckError> {
    let schemes = Schemes::default();
    let checks: Vec<Check> = Declarations::parse(&args.references).check(&schemes);
    let uses = checks.iter().map(|check| Use {
        // What stands there instead of a name is none.
        name: check.name.parse().ok(),
        scheme: check.scheme.as_deref(),
        version: None,
        result: match check.ok {
            true => Ok(()),
            false => Err(check.kind),
        },
    });
    audit::used(Access::Check, uses, None)?;
    if args.json {
        serde_json::to_writer_pretty(&mut *output, &checks).map_err(io::Error::from)?;
        writeln!(output)?;
    } else {
        for check in &checks {
            writeln!(output, "{check}")?;
        }
    }
    Ok(checks.iter().all(|check| check.ok))
}
