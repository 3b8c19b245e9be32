//! `cachot doctor`: what this machine can do, and what to do about what it cannot.
//!
//! Each check is a [`Finding`]; its `values` have fixed names, for programs.

mod kvm;
mod memory;
mod software;

use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::args::DoctorArgs;

/// Version of the JSON form.
const SCHEMA: u32 = 1;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Nothing to do.
    Ok,
    /// VMs run, but something is worse than it could be.
    Warning,
    /// VMs do not run.
    Error,
}

/// One check.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// Which one.
    pub name: &'static str,
    /// How it came out.
    pub status: Status,
    /// What was found, in a line.
    pub summary: String,
    /// What to do, if it is not ok.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
    /// What was found, for programs.
    pub values: Map<String, Value>,
}

impl Finding {
    fn ok(name: &'static str, summary: impl Into<String>) -> Self {
        Self {
            name,
            status: Status::Ok,
            summary: summary.into(),
            advice: None,
            values: Map::new(),
        }
    }

    fn warning(name: &'static str, summary: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            status: Status::Warning,
            advice: Some(advice.into()),
            ..Self::ok(name, summary)
        }
    }

    fn error(name: &'static str, summary: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            status: Status::Error,
            ..Self::warning(name, summary, advice)
        }
    }

    fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.values.insert(name.to_owned(), value.into());
        self
    }
}

/// All checks.
#[derive(Debug, Serialize)]
struct Report {
    schema: u32,
    /// Whether VMs can run here.
    ok: bool,
    checks: Vec<Finding>,
}

/// Examines this machine and writes what it finds to `output`; whether VMs can run here.
///
/// # Errors
/// What writing to `output` said.
pub fn doctor(args: &DoctorArgs, output: &mut impl Write) -> io::Result<bool> {
    let mut checks = kvm::check(Path::new("/dev/kvm"));
    checks.extend(memory::check());
    checks.extend(software::check());
    let report = Report {
        schema: SCHEMA,
        ok: checks.iter().all(|check| check.status != Status::Error),
        checks,
    };
    if args.json {
        serde_json::to_writer_pretty(&mut *output, &report)?;
        writeln!(output)?;
    } else {
        write_text(&report, output)?;
    }
    Ok(report.ok)
}

fn write_text(report: &Report, output: &mut impl Write) -> io::Result<()> {
    for check in &report.checks {
        let status = match check.status {
            Status::Ok => "ok",
            Status::Warning => "warning",
            Status::Error => "error",
        };
        writeln!(output, "{:<12} {status:<8} {}", check.name, check.summary)?;
        if let Some(advice) = &check.advice {
            writeln!(output, "{:21} -> {advice}", "")?;
        }
    }
    writeln!(
        output,
        "{}",
        match report.ok {
            true => "VMs can run here.",
            false => "VMs cannot run here.",
        }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_report_forms() {
        let report = Report {
            schema: SCHEMA,
            ok: false,
            checks: vec![
                Finding::ok("one", "fine").with("number", 1),
                Finding::error("two", "broken", "mend it"),
            ],
        };
        let mut text = Vec::new();
        write_text(&report, &mut text).expect("written");
        let text = String::from_utf8(text).expect("text");
        assert!(text.contains("two          error    broken\n"), "{text}");
        assert!(text.contains("-> mend it\n"), "{text}");
        assert!(text.ends_with("VMs cannot run here.\n"), "{text}");

        let json = serde_json::to_value(&report).expect("JSON");
        assert_eq!(json["checks"][0]["values"]["number"], 1);
        assert_eq!(json["checks"][0]["status"], "ok");
        assert_eq!(json["checks"][1]["advice"], "mend it");
    }
}
