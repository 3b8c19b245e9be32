//! `cachot bundle show`.

use std::io::Write;

use cachot_custody::UserId;
use cachot_custody::audit::Access;
use cachot_custody::bundle::{Field, Opened};
use cachot_secrets::Origin;

use super::{BundleCommandError, bundles};
use crate::args::ShowArgs;
use crate::audit::{self, RecordError, Use};
use crate::input;
use crate::text::{count, table, word};

/// Scheme of the references that have what is in bundles.
const SCHEME: &str = "bundle";

/// Lists the fields of a bundle; its secrets only once it is recorded that they are shown.
///
/// # Errors
/// See [`BundleCommandError`].
pub fn show(args: &ShowArgs, output: &mut impl Write) -> Result<(), BundleCommandError> {
    let opened = bundles(&args.place).open(&args.name)?;
    if args.reveal && !args.yes {
        confirm(&opened)?;
    }
    if args.reveal {
        record(&opened)?;
    }
    let mut rows = vec![["FIELD", "BYTES", "VALUE"].map(str::to_owned)];
    for (key, text) in opened.document.metadata() {
        let cells = [
            format!("metadata.{}", word(key)),
            text.len().to_string(),
            word(text),
        ];
        rows.push(cells);
    }
    for field in opened.document.fields() {
        let value = opened.document.value(&field).unwrap_or_default();
        let shown = match (field.is_secret(), args.reveal) {
            (true, false) => "(secret)".to_owned(),
            _ => word(&value),
        };
        rows.push([field.to_string(), value.len().to_string(), shown]);
    }
    table(&rows, output)?;
    Ok(())
}

fn confirm(opened: &Opened) -> Result<(), BundleCommandError> {
    let secrets = secrets(opened).count() as u64;
    let question = format!("Print the values of {}?", count(secrets, "secret"));
    Ok(input::confirm(&question)?)
}

fn record(opened: &Opened) -> Result<(), RecordError> {
    let uses = secrets(opened).map(|field| Use {
        name: field.secret_name().and_then(|name| name.parse().ok()),
        scheme: Some(SCHEME),
        result: Ok(Origin::default()),
    });
    audit::used(Access::Export, &UserId::of_this_process(), uses, None)
}

fn secrets(opened: &Opened) -> impl Iterator<Item = Field> {
    let fields = opened.document.fields();
    fields.into_iter().filter(Field::is_secret)
}
