//! A keeper that goes on when its command has ended.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};

use rustix::process::{WaitOptions, setsid, waitpid};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

use rustix::process::Pid;

/// Which of the two processes this is.
pub enum Side {
    /// The command, which waits for what the keeper says.
    Command(Waiter),
    /// The keeper, in a session of its own; its standard streams are still the command's.
    Keeper(Starting),
}

/// Makes a second process.
///
/// # Errors
/// What the kernel said.
pub fn split() -> io::Result<Side> {
    let (reader, writer) = io::pipe()?;
    // SAFETY: this process has one thread, so that the child's memory is in no state that only another thread could
    // bring to an end.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            drop(reader);
            setsid()?;
            Ok(Side::Keeper(Starting(writer)))
        }
        child => {
            drop(writer);
            let keeper = Pid::from_raw(child)
                .ok_or_else(|| io::Error::other("the new process has no number"))?;
            Ok(Side::Command(Waiter { reader, keeper }))
        }
    }
}

/// The command's end.
pub struct Waiter {
    reader: PipeReader,
    keeper: Pid,
}

impl Waiter {
    /// Waits until the VM has started, and returns its name; or returns the exit code of a keeper that has failed, and
    /// has said why.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn wait(mut self) -> io::Result<Result<String, u8>> {
        let mut name = String::new();
        self.reader.read_to_string(&mut name)?;
        if !name.is_empty() {
            return Ok(Ok(name));
        }
        let ended = rustix::io::retry_on_intr(|| waitpid(Some(self.keeper), WaitOptions::empty()))?;
        let code = ended.and_then(|(_, status)| status.exit_status());
        // What ended without a code was killed, and could say nothing.
        Ok(Err(code
            .and_then(|code| u8::try_from(code).ok())
            .unwrap_or(crate::run::OWN_FAILURE)))
    }
}

/// The keeper's end, until the VM has started.
#[derive(Debug)]
pub struct Starting(PipeWriter);

impl Starting {
    /// The VM has started: the command may end. From now on this process's standard error is `log`.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn done(mut self, name: &str, log: &File) -> io::Result<()> {
        let null = File::options().read(true).write(true).open("/dev/null")?;
        dup2_stdin(&null)?;
        dup2_stdout(&null)?;
        dup2_stderr(log)?;
        // A command that was killed does not hear it.
        self.0
            .write_all(name.as_bytes())
            .or_else(|error| match error.kind() {
                io::ErrorKind::BrokenPipe => Ok(()),
                _ => Err(error),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// Waits for a process that does what `script` says, and whose keeper has said `name`.
    fn wait(script: &str, name: &[u8]) -> Result<String, u8> {
        let child = Command::new("sh").args(["-c", script]).spawn();
        let child = child.expect("started").id().cast_signed();
        let (reader, mut writer) = io::pipe().expect("a pipe");
        writer.write_all(name).expect("fits the pipe");
        drop(writer);
        let keeper = Pid::from_raw(child).expect("a number");
        Waiter { reader, keeper }.wait().expect("waited")
    }

    #[test]
    fn test_wait_gives_the_name_or_the_exit_code_of_a_keeper_that_failed() {
        assert_eq!(wait("exit 127", b""), Err(127));
        assert_eq!(wait("kill -9 $$", b""), Err(crate::run::OWN_FAILURE));
        assert_eq!(wait("exit 0", b"web"), Ok("web".to_owned()));
    }
}
