//! Snapshots as the monitor takes and restores them, with a keeper's part played here so that only the monitor is
//! measured: guests are bare-metal, and a VM's secret is one value unless something else is said.

pub mod create;
pub mod fork;
mod machine;
pub mod restore;

use std::path::PathBuf;

pub use machine::{Image, Machine, Monitor};

/// What is measured.
pub struct Host {
    /// The monitor's program.
    pub monitor: PathBuf,
    /// The bare-metal guest.
    pub tiny: PathBuf,
}
