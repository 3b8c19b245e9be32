//! `cachot secret import ...`: what other systems keep, into the store; and a table of what went where, without values.

use std::io::Write;

use cachot_custody::import::{self, Found, Plan, Rules};
use cachot_custody::store::Scope;
use cachot_custody::{Store, StoreError};
use serde::Serialize;

use super::{CustodyError, store_folder};
use crate::args::{ImportCommand, PolicyArgs};
use crate::bundle::bundles;
use crate::settings;
use crate::text::{count, table, word, write_json};

/// Imports what the command line names.
pub(super) fn import(command: &ImportCommand, output: &mut impl Write) -> Result<(), CustodyError> {
    let nobodys = &Scope::Workspace;
    let (found, policy, scope, owners) = match command {
        ImportCommand::Aegis(args) => (
            import::aegis(&args.db, &args.key)?,
            &args.policy,
            &args.into.scope,
            args.apps.as_slice(),
        ),
        ImportCommand::Bhatti(args) => (
            import::bhatti(&args.db, &args.key)?,
            &args.policy,
            nobodys,
            args.users.as_slice(),
        ),
        ImportCommand::Agentlab(args) => {
            let bundles = bundles(&args.place);
            let names = match args.all {
                true => bundles.names().map_err(import::ImportError::from)?,
                false => args.names.clone(),
            };
            if names.is_empty() {
                return Err(CustodyError::NoBundles(bundles.folder));
            }
            let found = import::agentlab(&bundles, &names)?;
            (found, &args.policy, &args.into.scope, [].as_slice())
        }
        ImportCommand::Dotenv(args) => (
            import::dotenv(&args.file)?,
            &args.policy,
            &args.into.scope,
            [].as_slice(),
        ),
        ImportCommand::Sops(args) => {
            let key = args.identity.clone();
            let key = key.unwrap_or_else(|| settings::bundles().key);
            let found = import::sops(&args.file, &key)?;
            (found, &args.policy, &args.into.scope, [].as_slice())
        }
    };
    let rules = Rules {
        requester: policy.owner.requester(None),
        scope: scope.clone(),
        owners: owners.to_vec(),
        renames: policy.renames.clone(),
        skip: policy.skip.clone(),
        skip_empty: policy.skip_empty,
    };
    store(found, &rules, policy, output)
}

fn store(
    found: Vec<Found>,
    rules: &Rules,
    policy: &PolicyArgs,
    output: &mut impl Write,
) -> Result<(), CustodyError> {
    let plan = Plan::new(found, rules)?;
    let requester = rules.requester.clone();
    let folder = store_folder()?;
    let opened = match policy.dry_run || plan.planned.is_empty() {
        true => match Store::open(&folder, requester) {
            Err(StoreError::Absent(_)) => None,
            other => Some(other?),
        },
        false => Some(Store::open_or_create(&folder, requester)?),
    };
    let versions = match opened {
        None => vec![None; plan.planned.len()],
        Some(mut store) => {
            let versions = plan.versions(&mut store)?;
            if !policy.dry_run {
                plan.store(&mut store, policy.replace)?;
            }
            versions
        }
    };
    report(&plan, &versions, policy, output)
}

/// One row of the report.
#[derive(Serialize)]
struct Line<'a> {
    from: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<&'a Scope>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<usize>,
    /// The version in the store whose place it takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    replaces: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    left_out: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'a str>,
}

fn report(
    plan: &Plan,
    versions: &[Option<u64>],
    policy: &PolicyArgs,
    output: &mut impl Write,
) -> Result<(), CustodyError> {
    let stored = plan.planned.iter().zip(versions);
    let stored = stored.map(|(planned, version)| Line {
        from: &planned.from,
        name: Some(planned.name.as_str()),
        scope: Some(&planned.scope),
        bytes: Some(planned.bytes()),
        replaces: *version,
        left_out: None,
        note: planned.note.as_deref(),
    });
    let left_out = plan.left_out.iter().map(|left| Line {
        from: &left.from,
        name: None,
        scope: None,
        bytes: None,
        replaces: None,
        left_out: Some(&left.why),
        note: None,
    });
    let lines: Vec<Line<'_>> = stored.chain(left_out).collect();
    if policy.json {
        return Ok(write_json(&lines, output)?);
    }
    let mut rows = vec![["FROM", "NAME", "SCOPE", "BYTES", ""].map(str::to_owned)];
    rows.extend(lines.iter().map(|line| row(line, policy)));
    table(&rows, output)?;
    let number = |number: usize| count(u64::try_from(number).unwrap_or(u64::MAX), "secret");
    let verb = match policy.dry_run {
        true => "would be stored",
        false => "stored",
    };
    write!(output, "{} {verb}", number(plan.planned.len()))?;
    match plan.left_out.len() {
        0 => writeln!(output)?,
        left => writeln!(output, ", {left} left out")?,
    }
    Ok(())
}

fn row(line: &Line<'_>, policy: &PolicyArgs) -> [String; 5] {
    let replaces = match (line.replaces, policy.replace) {
        (None, _) => None,
        (Some(version), true) => Some(format!("replaces version {version}")),
        (Some(version), false) => Some(format!("is there in version {version}: needs --replace")),
    };
    let left_out = line.left_out.map(|why| format!("left out: {why}"));
    let remarks = [replaces, left_out, line.note.map(str::to_owned)];
    let remarks: Vec<String> = remarks.into_iter().flatten().collect();
    let text = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    [
        word(line.from),
        text(line.name.map(str::to_owned)),
        text(line.scope.map(ToString::to_string)),
        text(line.bytes.map(|bytes| bytes.to_string())),
        remarks.join("; "),
    ]
}
