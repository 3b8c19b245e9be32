//! `cachot secret check`: how every reference fares, and never a value.

use std::io::Write;

use cachot_secrets::{Check, Declarations};

use super::{CustodyError, schemes};
use crate::args::CheckArgs;
use crate::text::write_json;

/// Resolves the references and writes a line for each, or a JSON array, to `output`; whether all
/// have a value.
pub(super) fn check(args: &CheckArgs, output: &mut impl Write) -> Result<bool, CustodyError> {
    let schemes = schemes(&args.owner.requester(None));
    let checks: Vec<Check> = Declarations::parse(&args.references).check(&schemes);
    if args.json {
        write_json(&checks, output)?;
    } else {
        for check in &checks {
            writeln!(output, "{check}")?;
        }
    }
    Ok(checks.iter().all(|check| check.ok))
}
