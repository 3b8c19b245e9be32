//! Why there is no snapshot.

use std::error::Error;
use std::io;

use cachot_secrets::ValueError;
use cachot_snapshot::needles::NeedleError;
use cachot_snapshot::plan::PlanError;

use crate::state::StateError;

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// A value cannot be brought into locked memory.
    #[error("cannot read a delivered value")]
    Value(#[source] ValueError),
    /// Values cannot be searched for.
    #[error(transparent)]
    Needles(#[from] NeedleError),
    /// A part cannot be written or read back.
    #[error("cannot write the snapshot's {part}")]
    Part {
        /// The part.
        part: &'static str,
        /// What failed.
        #[source]
        source: io::Error,
    },
    /// The state does not become bytes.
    #[error(transparent)]
    State(#[from] StateError),
    /// There is no plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// RAM is not where it was said to be.
    #[error("guest memory cannot be read")]
    Ram(#[source] io::Error),
    /// There is residue, and the user does not want it redacted.
    #[error(
        "copies of secrets are in the machine, and --on-residue refuse was given: {0}; --on-residue redact leaves \
         them out"
    )]
    Refused(String),
    /// There is residue where it cannot be redacted.
    #[error(
        "{0} copies of secrets are in the state of devices, where they cannot be left out: try again later"
    )]
    Unredactable(u64),
    /// There is residue on the disk that the guest writes to.
    #[error(
        "copies of secrets are on the writable disk (/dev/vda), of which nothing can be left out: {found}, the first \
         {places}; overwrite them in the guest (deleting a file does not), or keep them in the image with \
         --dangerously-keep-residue"
    )]
    Disk {
        /// What was found.
        found: String,
        /// Where the first ones are.
        places: String,
    },
    /// What was written has residue all the same.
    #[error(
        "the image would hold copies of secrets and is not published: {found}, the first at {offset:#x}; please \
         report this"
    )]
    Leak {
        /// What was found.
        found: String,
        /// Where the first one is.
        offset: u64,
    },
}

impl JobError {
    /// A part that cannot be written or read back.
    pub fn part(part: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Part { part, source }
    }

    /// RAM that is not there.
    pub fn no_ram() -> Self {
        Self::Ram(io::ErrorKind::InvalidInput.into())
    }

    /// The error with its causes.
    pub fn one_line(&self) -> String {
        let mut line = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            line = format!("{line}: {error}");
            cause = error.source();
        }
        line
    }
}
