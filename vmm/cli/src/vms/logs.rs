//! `cachot logs`: what a detached VM's workload has printed, masked.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use cachot_snapshot::image::next_data;

use crate::args::LogsArgs;
use crate::state_dir::Places;
use crate::vm::error::{RunError, system};
use crate::vm::existing::Existing;
use crate::vm::{CONSOLE_LOG, OUTPUT_LOG};

/// How often a log is looked at that is followed.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Copies the log to `output`.
///
/// # Errors
/// See [`RunError`].
pub fn logs(args: &LogsArgs, output: &mut impl Write) -> Result<(), RunError> {
    let vm = Existing::find(&Places::of_process().root()?, &args.name)?;
    let name = if args.console {
        CONSOLE_LOG
    } else {
        OUTPUT_LOG
    };
    let mut log = vm.file(name).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => RunError::Refused {
            code: crate::run::OWN_FAILURE,
            message: format!(
                "the VM {} has no log: it is not detached, and its output goes to the command that started it",
                args.name
            ),
        },
        _ => system("open the log")(error),
    })?;
    let failed = || system("show the log");
    skip_hole(&mut log).map_err(failed())?;
    loop {
        // Asked before the last bytes are read, so that none is missed.
        let goes_on = args.follow && vm.is_kept()?;
        io::copy(&mut log, output).map_err(failed())?;
        output.flush().map_err(failed())?;
        if !goes_on {
            return Ok(());
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Goes to the first line behind what was given up of an old log.
fn skip_hole(log: &mut File) -> io::Result<()> {
    let mut first = [0];
    if log.read_at(&mut first, 0)? == 0 || first != [0] {
        return Ok(());
    }
    let data = next_data(log, 0, log.metadata()?.len())?;
    io::Seek::seek(log, io::SeekFrom::Start(data))?;
    let mut byte = [0];
    while log.read(&mut byte)? == 1 && byte != *b"\n" {}
    Ok(())
}
