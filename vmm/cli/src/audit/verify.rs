//! `cachot secret audit verify`: whether what was recorded is still what was written.

use std::io::{self, Write};
use std::path::Path;

use cachot_custody::audit::{AuditError, Finding, Report, verify as verify_log};
use serde::Serialize;

use super::keys::TrustedVerifier;
use super::{AuditCommandError, FOLDER};
use crate::args::AuditVerifyArgs;
use crate::state_dir::Places;
use crate::text::{count, line, word};
use crate::vm::existing::Existing;
use crate::vm_name::VmName;

/// How one log fared.
#[derive(Debug, Serialize)]
struct Checked {
    folder: String,
    /// Name of the VM; none for the host's log.
    vm: Option<String>,
    ok: bool,
    /// The log's id, where it can be read.
    id: Option<String>,
    files: u64,
    lines: u64,
    records: u64,
    /// Number of the last line.
    last: u64,
    /// Its hash.
    hash: String,
    wrong: Vec<Said>,
    notes: Vec<Said>,
    /// Whether there was more to say than is said.
    more: bool,
}

/// What there is to say of a place in a log.
#[derive(Debug, Serialize)]
struct Said {
    path: String,
    line: Option<u64>,
    what: String,
}

/// Checks the host's log and those of VMs, or what is named; whether nothing is wrong.
///
/// # Errors
/// See [`AuditCommandError`]: it could not be checked.
pub fn verify(args: &AuditVerifyArgs, output: &mut impl Write) -> Result<bool, AuditCommandError> {
    let checked = check(args)?;
    if args.json {
        serde_json::to_writer_pretty(&mut *output, &checked).map_err(io::Error::from)?;
        writeln!(output)?;
    } else {
        for one in &checked {
            print(one, output)?;
        }
    }
    Ok(checked.iter().all(|one| one.ok))
}

fn check(args: &AuditVerifyArgs) -> Result<Vec<Checked>, AuditCommandError> {
    let root = Places::of_process().root()?;
    let keys = TrustedVerifier::load(&root)?;
    let named = args.target.as_deref();
    if let Some(path) = named.filter(|target| target.contains('/')) {
        return Ok(vec![verify_log(Path::new(path), &keys, None)?.into()]);
    }
    let vms = match named {
        Some(name) => {
            let name: VmName = name
                .parse()
                .map_err(|_| AuditCommandError::NoTarget(name.to_owned()))?;
            vec![Existing::find(&root, &name)?]
        }
        None => Existing::all(&root)?,
    };
    // What it says of the logs of VMs counts for as much as it does itself.
    let mut host = verify_log(&root.join(FOLDER), &keys, None)?;
    let anchors = std::mem::take(&mut host.anchors);
    let mut checked = vec![host.into()];
    for vm in vms {
        let folder = vm.path().join(FOLDER);
        match verify_log(&folder, &keys, Some(&anchors)) {
            Err(AuditError::NoLog(_)) if must_have_log(&vm) => {
                checked.push(Checked::missing(&folder, vm.name()));
            }
            // Of all VMs only some have one.
            Err(AuditError::NoLog(_)) if named.is_none() => {}
            other => checked.push(other?.into()),
        }
    }
    Ok(checked)
}

/// Whether a VM was given secrets and has a log of its own.
fn must_have_log(vm: &Existing) -> bool {
    vm.record()
        .is_ok_and(|record| record.workload.secrets_audit && !record.secrets.is_empty())
}

impl From<Report> for Checked {
    fn from(report: Report) -> Self {
        let say = |findings: Vec<Finding>| findings.into_iter().map(Said::from).collect();
        Self {
            folder: report.folder.to_string_lossy().into_owned(),
            ok: report.is_good(),
            vm: report.vm,
            id: report.log.map(|id| id.to_string()),
            files: report.files,
            lines: report.lines,
            records: report.records,
            last: report.seq,
            hash: report.hash.to_string(),
            wrong: say(report.wrong),
            notes: say(report.notes),
            more: report.more,
        }
    }
}

impl From<Finding> for Said {
    fn from(finding: Finding) -> Self {
        Self {
            path: finding.path.to_string_lossy().into_owned(),
            line: finding.line,
            what: finding.flaw.to_string(),
        }
    }
}

impl Checked {
    /// Of a log that is not there any more.
    fn missing(folder: &Path, vm: &VmName) -> Self {
        let path = folder.to_string_lossy().into_owned();
        Self {
            vm: Some(vm.to_string()),
            ok: false,
            id: None,
            files: 0,
            lines: 0,
            records: 0,
            last: 0,
            hash: String::new(),
            wrong: vec![Said {
                path: path.clone(),
                line: None,
                what: "the log is missing".to_owned(),
            }],
            notes: Vec::new(),
            more: false,
            folder: path,
        }
    }
}

fn print(log: &Checked, output: &mut impl Write) -> io::Result<()> {
    let notes = log.notes.iter().map(|said| ("note", said));
    for (kind, said) in notes.chain(log.wrong.iter().map(|said| ("wrong", said))) {
        let path = word(&said.path);
        let place = match said.line {
            Some(line) => format!("{path}:{line}"),
            None => path,
        };
        writeln!(output, "{kind}: {place}: {}", line(&said.what))?;
    }
    if log.more {
        writeln!(output, "and more of the kind")?;
    }
    let whose = match &log.vm {
        Some(vm) => format!("the VM {}", word(vm)),
        None => "the host".to_owned(),
    };
    writeln!(
        output,
        "{}: log of {whose}, {} and {} in {}: {}; ends with line {} {}",
        word(&log.folder),
        count(log.records, "record"),
        count(log.lines.saturating_sub(log.records), "other line"),
        count(log.files, "file"),
        match log.ok {
            true => "as it was written",
            false => "NOT as it was written",
        },
        log.last,
        log.hash,
    )
}
