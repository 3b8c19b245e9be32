//! `cachot secret check`: how every reference fares, and never a value.

use std::io::Write;

use cachot_custody::audit::Access;
use cachot_secrets::{Check, Declarations};

use super::{CustodyError, schemes};
use crate::args::CheckArgs;
use crate::audit::{self, Use};
use crate::text::write_json;

/// Resolves the references and writes a line for each, or a JSON array, to `output`; whether all
/// have a value.
pub(super) fn check(args: &CheckArgs, output: &mut impl Write) -> Result<bool, CustodyError> {
    let requester = args.owner.requester(None);
    let schemes = schemes(&requester);
    let checks: Vec<Check> = Declarations::parse(&args.references).check(&schemes);
    let uses = checks.iter().map(|check| Use {
        // What stands there instead of a name is none.
        name: check.name.parse().ok(),
        scheme: check.scheme.as_deref(),
        result: check.refusal.map_or_else(|| Ok(check.origin.clone()), Err),
    });
    audit::used(Access::Check, &requester.user, uses, None)?;
    if args.json {
        write_json(&checks, output)?;
    } else {
        for check in &checks {
            writeln!(output, "{check}")?;
        }
    }
    Ok(checks.iter().all(|check| check.ok))
}
