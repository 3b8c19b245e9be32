//! `cachot secret ...`: the store, from the command line. Only `export` ever shows a value.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::{Duration, SystemTime};

use cachot_custody::audit::Access;
use cachot_custody::schemes::StoreScheme;
use cachot_custody::store::{Entry, Version};
use cachot_custody::{Requester, Store};
use cachot_secrets::SecretValue;

use super::{CustodyError, check, import, input, store_folder};
use crate::args::{
    ExportArgs, HistoryArgs, RollbackArgs, RotateArgs, SecretCommand, SecretListArgs, SecretName,
    SetArgs,
};
use crate::audit::{self, Use};
use crate::text::{count, table, write_json};

/// Does what the command says; whether all was as it should be.
///
/// # Errors
/// See [`CustodyError`].
pub fn run(command: &SecretCommand, output: &mut impl Write) -> Result<bool, CustodyError> {
    match command {
        SecretCommand::Check(args) => return check::check(args, output),
        SecretCommand::Set(args) => set(args, output)?,
        SecretCommand::List(args) => list(args, output)?,
        SecretCommand::Rotate(args) => rotate(args, output)?,
        SecretCommand::History(args) => history(args, output)?,
        SecretCommand::Rollback(args) => rollback(args, output)?,
        SecretCommand::Delete(args) => delete(&args.secret, output)?,
        SecretCommand::Export(args) => export(args)?,
        SecretCommand::Import(command) => import::import(command, output)?,
        SecretCommand::Audit(args) => return Ok(audit::run(args, output)?),
    }
    Ok(true)
}

impl SecretName {
    fn requester(&self) -> Requester {
        self.owner.requester(None)
    }

    fn open(&self) -> Result<Store, CustodyError> {
        Ok(Store::open(&store_folder()?, self.requester())?)
    }

    fn stored(&self, version: u64, output: &mut impl Write) -> Result<(), CustodyError> {
        writeln!(output, "{} in {}: version {version}", self.name, self.scope)?;
        Ok(())
    }
}

fn set(args: &SetArgs, output: &mut impl Write) -> Result<(), CustodyError> {
    let secret = &args.secret;
    let value: SecretValue = match args.inline.as_slice() {
        [] => input::value(&args.value, &secret.requester())?,
        pieces => input::inline(pieces)?,
    };
    let mut store = Store::open_or_create(&store_folder()?, secret.requester())?;
    let version = store.set(&secret.scope, &secret.name, &value)?;
    secret.stored(version, output)
}

fn rotate(args: &RotateArgs, output: &mut impl Write) -> Result<(), CustodyError> {
    let secret = &args.secret;
    let mut store = secret.open()?;
    // Before the user types a value for nothing.
    store.history(&secret.scope, &secret.name)?;
    let value = input::value(&args.value, &secret.requester())?;
    let version = store.rotate(&secret.scope, &secret.name, &value)?;
    secret.stored(version, output)
}

fn rollback(args: &RollbackArgs, output: &mut impl Write) -> Result<(), CustodyError> {
    let secret = &args.secret;
    let version = secret
        .open()?
        .rollback(&secret.scope, &secret.name, args.version)?;
    secret.stored(version, output)
}

fn delete(secret: &SecretName, output: &mut impl Write) -> Result<(), CustodyError> {
    let deleted = secret.open()?.delete(&secret.scope, &secret.name)?;
    let versions = count(deleted, "version");
    writeln!(
        output,
        "{} in {}: {versions} deleted",
        secret.name, secret.scope
    )?;
    Ok(())
}

fn list(args: &SecretListArgs, output: &mut impl Write) -> Result<(), CustodyError> {
    let store = Store::open(&store_folder()?, args.owner.requester(None));
    let entries = match store {
        // Nothing was stored yet, which is no failure.
        Err(cachot_custody::StoreError::Absent(_)) => Vec::new(),
        other => other?.list(args.all)?,
    };
    if args.json {
        return Ok(write_json(&entries, output)?);
    }
    let header = ["NAME", "SCOPE", "VERSION", "KEPT", "CHANGED"];
    let row = |entry: &Entry| {
        [
            entry.name.to_string(),
            entry.scope.to_string(),
            entry.version.to_string(),
            match entry.versions {
                0 => "deleted".to_owned(),
                kept => kept.to_string(),
            },
            time(entry.updated),
        ]
    };
    let mut rows = vec![header.map(str::to_owned)];
    rows.extend(entries.iter().map(row));
    Ok(table(&rows, output)?)
}

fn history(args: &HistoryArgs, output: &mut impl Write) -> Result<(), CustodyError> {
    let secret = &args.secret;
    let versions = secret.open()?.history(&secret.scope, &secret.name)?;
    if args.json {
        return Ok(write_json(&versions, output)?);
    }
    let row = |version: &Version| {
        [
            version.version.to_string(),
            time(version.created),
            match version.current {
                true => "current".to_owned(),
                false => String::new(),
            },
        ]
    };
    let mut rows = vec![["VERSION", "STORED", ""].map(str::to_owned)];
    rows.extend(versions.iter().map(row));
    Ok(table(&rows, output)?)
}

fn export(args: &ExportArgs) -> Result<(), CustodyError> {
    let name = &args.selector.name;
    let requester = args.owner.requester(None);
    let record = |result| {
        let exported = Use {
            name: Some(name.clone()),
            scheme: Some(StoreScheme::NAME),
            result,
        };
        let uses = std::iter::once(exported);
        audit::used(Access::Export, &requester.user, uses, None)
    };
    let mut store = Store::open(&store_folder()?, requester.clone())?;
    let stored = match store.get(&args.selector) {
        Ok(stored) => stored,
        Err(error) => {
            record(Err(error.refusal()))?;
            return Err(error.into());
        }
    };
    if !args.yes {
        let (scope, version) = (&stored.scope, stored.version);
        crate::input::confirm(&format!(
            "Write version {version} of {name} in {scope} to standard output, as it is?"
        ))?;
    }
    record(Ok(stored.origin()))?;
    // Not by way of the buffer of the standard library's stream, which would keep a copy.
    let output = io::stdout().as_fd().try_clone_to_owned()?;
    File::from(output).write_all(stored.value.expose())?;
    Ok(())
}

/// A time for people.
pub(super) fn time(seconds: u64) -> String {
    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    // What humantime can write: up to the year 9999.
    match time.filter(|_| seconds < 253_402_300_800) {
        Some(time) => humantime::format_rfc3339_seconds(time).to_string(),
        None => "-".to_owned(),
    }
}
