//! `cachot secret audit`: what was recorded, a line a record, and on as more comes.

use std::io::Write;
use std::time::Duration;

use cachot_custody::audit::{AuditError, Read, Reader, Record};

use super::{AuditCommandError, FOLDER};
use crate::args::AuditArgs;
use crate::state_dir::Places;
use crate::text::{line, word};
use crate::vm::existing::Existing;

/// How often a log is looked at that is followed.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Prints the records of a VM's log, or of the host's.
///
/// # Errors
/// See [`AuditCommandError`].
pub fn show(args: &AuditArgs, output: &mut impl Write) -> Result<(), AuditCommandError> {
    let root = Places::of_process().root()?;
    let vm = match &args.vm {
        Some(name) => Some(Existing::find(&root, name)?),
        None => None,
    };
    let folder = vm
        .as_ref()
        .map_or(root.as_path(), Existing::path)
        .join(FOLDER);
    let mut reader = None;
    loop {
        // Asked before the last records are read, so that none is missed.
        let goes_on = args.follow && vm.as_ref().map_or(Ok(true), Existing::is_kept)?;
        let opened = match reader.take() {
            Some(opened) => Ok(opened),
            None => Reader::open(&folder),
        };
        match opened {
            Err(AuditError::NoLog(_)) if goes_on => {}
            opened => {
                let mut opened = opened?;
                while let Some(read) = opened.read()? {
                    print(&read, args.json, output)?;
                }
                reader = Some(opened);
            }
        }
        output.flush()?;
        if !goes_on {
            return Ok(());
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn print(read: &Read, json: bool, output: &mut impl Write) -> Result<(), AuditCommandError> {
    match read {
        Read::Record { json: text, .. } if json => writeln!(output, "{text}")?,
        Read::Record { time, record, .. } => {
            let time = humantime::format_rfc3339_nanos(*time);
            writeln!(output, "{time} {}", describe(record))?;
        }
        Read::Unreadable { path, line } => {
            eprintln!(
                "cachot: warning: {path:?}:{line}: not a line of a log: `cachot secret audit verify` says more"
            );
        }
    }
    Ok(())
}

/// A record without its time, for people.
fn describe(record: &Record) -> String {
    let name = record.name.as_ref().map_or("-", |name| name.as_str());
    let mut text = format!("{name} {} {}", record.access, record.decision);
    let version = record.version.map(|version| version.to_string());
    let fields = [
        ("vm", record.vm.as_deref()),
        ("user", Some(record.user.as_str())),
        ("source", record.source.as_deref()),
        ("scope", record.scope.as_deref()),
        ("version", version.as_deref()),
    ];
    for (key, value) in fields {
        if let Some(value) = value {
            text.push_str(&format!(" {key}={}", word(value)));
        }
    }
    if !record.lineage.is_empty() {
        text.push_str(&format!(" from={}", word(&record.lineage.join(","))));
    }
    if let Some(reason) = &record.reason {
        text.push_str(&format!(": {}", line(reason)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use cachot_custody::audit::{Access, Decision};

    #[test]
    fn test_describe_says_all_and_quotes_what_a_terminal_would_act_on() {
        let mut record = Record {
            vm: Some("web".into()),
            user: "1000".into(),
            name: Some("DB_PASSWORD".parse().expect("a name")),
            scope: Some("user:1000".into()),
            version: Some(3),
            source: Some("store".into()),
            access: Access::OnDemand,
            decision: Decision::Allow,
            reason: None,
            lineage: vec!["vm:old".into(), "image:00".into()],
        };
        assert_eq!(
            describe(&record),
            "DB_PASSWORD on-demand allow vm=web user=1000 source=store scope=user:1000 version=3 from=vm:old,image:00"
        );
        record.vm = Some("a\x1b[2J".into());
        record.name = None;
        record.scope = None;
        record.version = None;
        record.source = None;
        record.lineage.clear();
        record.decision = Decision::Error;
        record.reason = Some("no such\nvariable".into());
        assert_eq!(
            describe(&record),
            "- on-demand error vm=\"a\\u{1b}[2J\" user=1000: no such variable"
        );
    }
}
