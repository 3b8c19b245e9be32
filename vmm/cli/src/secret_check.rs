//! `cachot secret check`: how every reference fares, and never a value.

use std::io::{self, Write};

use cachot_secrets::{Check, Declarations, Schemes};

use crate::args::CheckArgs;
use crate::settings;

/// Resolves the references and writes a line for each, or a JSON array, to `output`; whether all
/// have a value.
///
/// # Errors
/// What writing to `output` said.
pub fn check(args: &CheckArgs, output: &mut impl Write) -> io::Result<bool> {
    let schemes = Schemes::default().with(settings::bundle_scheme());
    let checks: Vec<Check> = Declarations::parse(&args.references).check(&schemes);
    if args.json {
        serde_json::to_writer_pretty(&mut *output, &checks)?;
        writeln!(output)?;
    } else {
        for check in &checks {
            writeln!(output, "{check}")?;
        }
    }
    Ok(checks.iter().all(|check| check.ok))
}
