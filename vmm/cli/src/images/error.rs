//! Why a command about images did not do its work.

use std::io;

use cachot_secrets::{Failures, LockError, Name, ScrubError};
use cachot_snapshot::image::ImageError;
use cachot_snapshot::needles::NeedleError;

use crate::audit::RecordError;
use crate::state_dir::StateError;
use crate::vm::error::{OWN_FAILURE, RunError};

/// Exit code of a command that found something wrong.
const FOUND_WRONG: u8 = 1;

/// Why a command about images did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ImagesError {
    /// No snapshot was taken.
    #[error(transparent)]
    Create(#[from] RunError),
    /// An image, or a key.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// No place for keys.
    #[error(transparent)]
    State(#[from] StateError),
    /// Some references have no value.
    #[error(transparent)]
    Secrets(#[from] Failures),
    /// Who looks for secrets cannot be recorded.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Values stay in the environment.
    #[error(transparent)]
    Scrub(#[from] ScrubError),
    /// Values cannot be searched for.
    #[error(transparent)]
    Needles(#[from] NeedleError),
    /// No memory to search in.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// All values are too short.
    #[error(
        "none of the values can be searched for: they have fewer than 8 bytes, or are in every program"
    )]
    AllShort,
    /// `--secret` of `verify` names what the image does not have.
    #[error("the image has no secret {name}: it has {known}")]
    NoSuchSecret {
        /// The name.
        name: Name,
        /// The names that it has, with commas.
        known: String,
    },
    /// The output cannot be written.
    #[error("cannot write the output")]
    Output(#[from] io::Error),
}

impl ImagesError {
    /// The exit code to report it with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Image(
                ImageError::UntrustedKey { .. }
                | ImageError::Signature(_)
                | ImageError::Manifest { .. }
                | ImageError::Length { .. }
                | ImageError::Damaged { .. }
                | ImageError::Digests(_),
            ) => FOUND_WRONG,
            Self::Create(error) => error.exit_code(),
            _ => OWN_FAILURE,
        }
    }
}
