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
