//! `cachot restore`: a VM that goes on where its snapshot was taken, its secrets back in place.

pub mod fork;
mod live;
pub mod source;

use crate::args::RestoreArgs;
use crate::launch::{Launch, launch};
use crate::state_dir::Places;
use crate::vm::error::RunError;
use source::Source;

/// Restores a VM and returns the exit code to end with.
///
/// # Errors
/// See [`RunError`].
pub fn restore(args: &RestoreArgs) -> Result<u8, RunError> {
    let root = Places::of_process().root()?;
    let source = Source::open(&args.image_path, &args.image, &root)?;
    launch(&args.keeping, args.interactive, || {
        Ok(Launch {
            timeout: args.timeout,
            ..source.launch(&args.image.secrets, &args.image.dropped, &args.keeping)?
        })
    })
}
