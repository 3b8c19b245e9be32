//! `cachot secret audit verify`: whether what was recorded is still what was written.

use std::io::{self, Write};
use std::path::Path;

use cachot_custody::audit::{AuditError, Finding, Report, verify as verify_log};

use super::keys::TrustedVerifier;
use super::{AuditCommandError, FOLDER};
use crate::args::AuditVerifyArgs;
use crate::state_dir::Places;
use crate::text::{count, word};
use crate::vm::existing::Existing;
use crate::vm_name::VmName;

/// Checks the host's log and those of VMs, or what is named; whether nothing is wrong.
///
/// # Errors
/// See [`AuditCommandError`]: it could not be checked.
pub fn verify(args: &AuditVerifyArgs, output: &mut impl Write) -> Result<bool, AuditCommandError> {
    let root = Places::of_process().root()?;
    let keys = TrustedVerifier::load(&root)?;
    let named = args.target.as_deref();
    if let Some(path) = named.filter(|target| target.contains('/')) {
        let report = verify_log(Path::new(path), &keys, None)?;
        return Ok(print(&report, output)?);
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
    let host = verify_log(&root.join(FOLDER), &keys, None)?;
    let mut good = print(&host, output)?;
    for vm in vms {
        match verify_log(&vm.path().join(FOLDER), &keys, Some(&host.anchors)) {
            // It has none of its own, unless the host knows better.
            Err(AuditError::NoLog(path)) => {
                let name = vm.name().to_string();
                let had_one = vm.record().is_ok_and(|record| {
                    record.workload.secrets_audit && !record.secrets.is_empty()
                });
                if had_one {
                    writeln!(
                        output,
                        "{}: the audit log of the VM {name} is missing",
                        word(&path.to_string_lossy())
                    )?;
                    good = false;
                } else if named.is_some() {
                    return Err(AuditError::NoLog(path).into());
                }
            }
            other => good &= print(&other?, output)?,
        }
    }
    Ok(good)
}

/// Prints what was found; whether nothing is wrong.
fn print(report: &Report, output: &mut impl Write) -> io::Result<bool> {
    for finding in &report.notes {
        writeln!(output, "note: {}", place(finding))?;
    }
    for finding in &report.wrong {
        writeln!(output, "wrong: {}", place(finding))?;
    }
    if report.more {
        writeln!(output, "and more of the kind")?;
    }
    let whose = match &report.vm {
        Some(vm) => format!("the VM {}", word(vm)),
        None => "the host".to_owned(),
    };
    writeln!(
        output,
        "{}: log of {whose}, {} and {} in {}: {}; ends with line {} {}",
        word(&report.folder.to_string_lossy()),
        count(report.records, "record"),
        count(
            report.lines - report.records.min(report.lines),
            "other line"
        ),
        count(report.files, "file"),
        match report.is_good() {
            true => "as it was written",
            false => "NOT as it was written",
        },
        report.seq,
        report.hash,
    )?;
    Ok(report.is_good())
}

fn place(finding: &Finding) -> String {
    let path = finding.path.to_string_lossy();
    let path = word(&path);
    match finding.line {
        Some(line) => format!("{path}:{line}: {}", finding.flaw),
        None => format!("{path}: {}", finding.flaw),
    }
}
