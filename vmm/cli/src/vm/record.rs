//! What is written down of a VM: `config.json` while it exists, `exit.json` once it has ended. References, never values.

use std::path::PathBuf;

use cachot_control::Start;
use cachot_snapshot::image::{Digest, ImageId, Secret};
use cachot_snapshot::needles::Needles;
use cachot_snapshot::scan::Edges;
use serde::{Deserialize, Serialize};

/// Name of the record in the state folder.
pub const RECORD_FILE: &str = "config.json";

/// What a VM is.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Its name.
    pub name: String,
    /// When it was started, in seconds since 1970.
    pub created: u64,
    /// Process number of its keeper.
    pub keeper: i32,
    /// vCPUs.
    pub cpus: u8,
    /// Guest RAM in bytes.
    pub memory: u64,
    /// BLAKE3 of the kernel's command line.
    pub cmdline: Digest,
    /// Its disk.
    pub disk: Option<Disk>,
    /// Its secrets.
    pub secrets: Vec<Secret>,
    /// The images that it was restored from, nearest first.
    pub lineage: Vec<ImageId>,
    /// How its workload is run.
    pub workload: Workload,
    /// Whether its workload's output goes to a log.
    pub detached: bool,
}

/// A disk of a VM.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// The image.
    pub path: PathBuf,
    /// Whether the guest can write to it.
    pub read_only: bool,
    /// Its length in bytes.
    pub length: u64,
}

/// How a workload is run; part of images (`guest.keeper` in the manifest).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// The command.
    pub start: Start,
    /// Whether `start` is without its variables and arguments, because a secret's value was among them.
    pub withheld: bool,
    /// Whether the VM has an audit log of its own, and its copies have one.
    #[serde(default)]
    pub secrets_audit: bool,
}

impl Record {
    /// The record as it is written down.
    ///
    /// # Errors
    /// Never in practice: it is plain data.
    pub fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        Ok(text)
    }

    /// Leaves variables and arguments of the workload out if the user has put a value of a secret among them.
    ///
    /// # Errors
    /// As [`Self::to_json`].
    pub fn withhold(&mut self, needles: &Needles) -> serde_json::Result<()> {
        if needles.count(&self.to_json()?, Edges::None, 1) > 0 {
            self.workload.withhold();
        }
        Ok(())
    }
}

impl Workload {
    /// Leaves variables and arguments out.
    pub fn withhold(&mut self) {
        self.start.env.clear();
        self.start.argv = vec!["***".to_owned()];
        self.withheld = true;
    }
}

/// How a VM has ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exit {
    /// Exit code of the workload, or 125.
    pub code: u8,
    /// Why there is none of the workload; one line.
    pub error: Option<String>,
    /// When, in seconds since 1970.
    pub ended: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use cachot_secrets::SecretValue;
    use cachot_snapshot::needles::Value;

    const VALUE: &str = "value-of-a-secret-0123456789";

    fn record(argument: &str, variable: &str) -> Record {
        Record {
            name: "web".into(),
            created: 1,
            keeper: 2,
            cpus: 1,
            memory: 1 << 28,
            cmdline: Digest::of(b""),
            disk: None,
            secrets: Vec::new(),
            lineage: Vec::new(),
            workload: Workload {
                start: Start {
                    session: 1,
                    root: None,
                    argv: vec!["sh".into(), argument.into()],
                    env: vec![("MODE".into(), variable.into())],
                    secrets: vec!["A".into()],
                    secret_env: Vec::new(),
                    user: Some("app".into()),
                    workdir: None,
                    terminal: None,
                    stdin: false,
                },
                withheld: false,
                secrets_audit: false,
            },
            detached: true,
        }
    }

    fn withheld(mut record: Record) -> Record {
        let needles = Needles::new(vec![Value {
            name: "A".parse().expect("a name"),
            version: 1,
            bytes: SecretValue::copy_of(VALUE.as_bytes()).expect("a value"),
        }]);
        record
            .withhold(&needles.expect("needles"))
            .expect("plain data");
        record
    }

    fn json(record: &Record) -> String {
        String::from_utf8(record.to_json().expect("plain data")).expect("text")
    }

    #[test]
    fn test_withhold_leaves_no_value_among_variables_and_arguments() {
        let encoded = hex::encode(VALUE);
        for (argument, variable) in [
            (VALUE, "fast"),
            ("-x", VALUE),
            ("-x", encoded.as_str()),
            (&VALUE[..20], "fast"),
        ] {
            let given = record(argument, variable);
            let before = json(&given);
            assert!(before.contains(argument) && before.contains(variable));

            let record = withheld(given);

            assert!(record.workload.withheld);
            let after = json(&record);
            assert!(!after.contains(&VALUE[..20]), "{after}");
            assert!(!after.contains(&encoded), "{after}");
            // What has no value in it stays.
            assert_eq!(record.workload.start.user.as_deref(), Some("app"));
        }
    }

    #[test]
    fn test_withhold_leaves_a_record_without_values_as_it_is() {
        let record = record("-x", &VALUE[..12]);
        let before = json(&record);
        assert_eq!(json(&withheld(record)), before);
    }
}
