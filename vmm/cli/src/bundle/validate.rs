//! `cachot bundle validate`.

use std::io::Write;
use std::path::PathBuf;

use cachot_custody::bundle::Format;
use serde::Serialize;

use super::{BundleCommandError, bundles};
use crate::args::ValidateArgs;
use crate::text::{count, with_causes};

/// What is said of a bundle, and never a value.
#[derive(Debug, Serialize)]
struct Report {
    name: String,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    format: Option<&'static str>,
    /// How many keys of age can read it.
    #[serde(skip_serializing_if = "Option::is_none")]
    readers: Option<usize>,
    fields: Vec<FieldReport>,
    errors: Vec<String>,
    warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
struct FieldReport {
    field: String,
    bytes: usize,
    secret: bool,
}

/// Reads a bundle and says what is amiss; whether nothing is.
///
/// # Errors
/// [`BundleCommandError::Output`].
pub fn validate(args: &ValidateArgs, output: &mut impl Write) -> Result<bool, BundleCommandError> {
    let report = examine(args);
    if args.json {
        serde_json::to_writer_pretty(&mut *output, &report).map_err(std::io::Error::from)?;
        writeln!(output)?;
        return Ok(report.ok);
    }
    for field in &report.fields {
        writeln!(output, "{} bytes={}", field.field, field.bytes)?;
    }
    for warning in &report.warnings {
        writeln!(output, "warning: {warning}")?;
    }
    for error in &report.errors {
        writeln!(output, "error: {error}")?;
    }
    let verdict = if report.ok { "ok" } else { "not usable" };
    let format = report.format.map(|format| format!(" ({format})"));
    writeln!(
        output,
        "{} {verdict}{}",
        report.name,
        format.unwrap_or_default()
    )?;
    Ok(report.ok)
}

fn examine(args: &ValidateArgs) -> Report {
    let mut report = Report {
        name: args.name.to_string(),
        ok: false,
        path: None,
        format: None,
        readers: None,
        fields: Vec::new(),
        errors: Vec::new(),
        warnings: Vec::new(),
    };
    let opened = match bundles(&args.place).open(&args.name) {
        Ok(opened) => opened,
        Err(error) => {
            report.errors.push(with_causes(&error));
            return report;
        }
    };
    report.path = Some(opened.path);
    report.readers = opened.readers.map(|readers| readers.keys + readers.others);
    report.format = Some(match opened.format {
        Format::Age => "age",
        Format::SopsYaml | Format::SopsJson => "sops",
        Format::Plaintext => "plaintext",
    });
    if opened.format == Format::Plaintext {
        report.warnings.push("it is not encrypted".to_owned());
    }
    if opened.unauthenticated > 0 {
        report.warnings.push(format!(
            "{} not protected against changes (mac_only_encrypted)",
            count(opened.unauthenticated as u64, "value")
        ));
    }
    for finding in opened.document.findings() {
        match finding.is_error() {
            true => report.errors.push(finding.to_string()),
            false => report.warnings.push(finding.to_string()),
        }
    }
    for field in opened.document.fields() {
        report.fields.push(FieldReport {
            bytes: opened.document.value(&field).map_or(0, |value| value.len()),
            secret: field.is_secret(),
            field: field.to_string(),
        });
    }
    report.ok = report.errors.is_empty();
    report
}
