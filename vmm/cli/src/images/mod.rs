//! The commands about images: create, list, inspect, verify, delete; and the search of any file.

mod content;
pub mod create;
mod delete;
mod error;
mod inspect;
mod list;
mod report;
mod scan;
mod search;
mod secrets;
mod steps;
mod values;
mod verify;
mod walk;

use std::io::Write;

use cachot_snapshot::image::TrustedKeys;

use crate::args::SnapshotCommand;
use crate::state_dir::Places;
pub use error::ImagesError;

/// Does what the command says, writing to `output`; whether nothing is wrong.
///
/// # Errors
/// See [`ImagesError`].
pub fn run(command: &SnapshotCommand, output: &mut impl Write) -> Result<bool, ImagesError> {
    match command {
        SnapshotCommand::Create(args) => Ok(create::create(args, output).map(|()| true)?),
        SnapshotCommand::List(args) => list::list(args, output).map(|()| true),
        SnapshotCommand::Inspect(args) => inspect::inspect(args, output).map(|()| true),
        SnapshotCommand::Verify(args) => verify::verify(args, output),
        SnapshotCommand::Scan(args) => scan::scan(args, output),
        SnapshotCommand::Delete(args) => delete::delete(args, output).map(|()| true),
    }
}

/// The keys whose images this user uses.
fn trusted_keys() -> Result<TrustedKeys, ImagesError> {
    Ok(TrustedKeys::load(&Places::of_process().root()?)?)
}
