//! `cachot snapshot delete`.

use std::io::Write;

use cachot_snapshot::image;

use super::ImagesError;
use crate::args::DeleteArgs;
use crate::text::word;

/// Removes an image.
pub(super) fn delete(args: &DeleteArgs, output: &mut impl Write) -> Result<(), ImagesError> {
    image::delete(&args.image)?;
    writeln!(output, "{} is deleted", word(&args.image.to_string_lossy()))?;
    Ok(())
}
