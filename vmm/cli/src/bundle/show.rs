//! `cachot bundle show`.

use std::io::Write;

use cachot_custody::bundle::Opened;

use super::{BundleCommandError, bundles};
use crate::args::ShowArgs;
use crate::input;
use crate::text::{count, table, word};

/// Lists the fields of a bundle.
///
/// # Errors
/// See [`BundleCommandError`].
pub fn show(args: &ShowArgs, output: &mut impl Write) -> Result<(), BundleCommandError> {
    let opened = bundles(&args.place).open(&args.name)?;
    if args.reveal && !args.yes {
        confirm(&opened)?;
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
    let fields = opened.document.fields();
    let secrets = fields.iter().filter(|field| field.is_secret()).count();
    let question = format!("Print the values of {}?", count(secrets as u64, "secret"));
    Ok(input::confirm(&question)?)
}
