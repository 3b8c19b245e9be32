//! A sops program of the user's in place of our reader: for files whose data key only it can get.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use zeroize::Zeroizing;

use super::read::MAX_TEXT_LEN;
use crate::files::{self, Access, FileError};
use crate::group::Group;

/// How long it may take: it may ask a service for the data key.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Variables that it gets: where programs, and files and sockets with its credentials, are.
const KEPT: [&str; 5] = [
    "PATH",
    "HOME",
    "XDG_CONFIG_HOME",
    "XDG_RUNTIME_DIR",
    "GNUPGHOME",
];

/// Why it gave no document. What it said on standard error is not repeated: it may quote the file.
#[derive(Debug, thiserror::Error)]
pub enum ExternalError {
    /// The program is not to be trusted.
    #[error(transparent)]
    File(#[from] FileError),
    /// It does not run.
    #[error("cannot run the sops program: check secrets_sops_path")]
    Start(#[source] io::Error),
    /// Its output cannot be read.
    #[error("cannot read what the sops program prints")]
    Read(#[source] io::Error),
    /// It did not end.
    #[error("the sops program did not end within {} s and was killed", .0.as_secs())]
    Late(Duration),
    /// It failed.
    #[error("the sops program failed ({0}): run `sops --decrypt` on the file by hand to see why")]
    Failed(std::process::ExitStatus),
    /// It printed too much.
    #[error("the sops program printed more than {MAX_TEXT_LEN} bytes")]
    TooLong,
}

/// Has the program decrypt a file to JSON.
///
/// # Errors
/// See [`ExternalError`]; the program and what it has started is gone then.
pub fn decrypt(
    program: &Path,
    file: &Path,
    key: &Path,
    patience: Duration,
) -> Result<Zeroizing<Vec<u8>>, ExternalError> {
    files::open(program, Access::Trusted, u64::MAX)?;
    let deadline = Instant::now() + patience;
    let late = || ExternalError::Late(patience);
    let mut command = Command::new(program);
    command
        .args(["--decrypt", "--output-type", "json"])
        .arg(file)
        // Our own environment may have values in it.
        .env_clear()
        .envs(
            KEPT.iter()
                .filter_map(|name| Some((name, std::env::var_os(name)?))),
        )
        .env("SOPS_AGE_KEY_FILE", key)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut group = Group::start(&mut command).map_err(ExternalError::Start)?;
    let output = output(group.child(), deadline)?.ok_or_else(late)?;
    let pid = Pid::from_raw(group.child().id().cast_signed());
    let process = pid
        .ok_or(Errno::SRCH)
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()));
    let process = process.map_err(|error| ExternalError::Read(error.into()))?;
    if !wait_for(process.as_fd(), deadline)? {
        return Err(late());
    }
    // What it has started may still run, and ends with it.
    let status = group.end().map_err(ExternalError::Read)?;
    match status.success() {
        true => Ok(output),
        false => Err(ExternalError::Failed(status)),
    }
}

/// What a program prints; `None` if it has not closed its output by the deadline.
fn output(
    child: &mut Child,
    deadline: Instant,
) -> Result<Option<Zeroizing<Vec<u8>>>, ExternalError> {
    let Some(mut stdout) = child.stdout.take() else {
        return Err(ExternalError::Read(io::ErrorKind::BrokenPipe.into()));
    };
    // All of it at once: what it would grow out of is not wiped.
    let mut output = Zeroizing::new(vec![0; MAX_TEXT_LEN + 1]);
    let mut len = 0;
    while wait_for(stdout.as_fd(), deadline)? {
        match stdout.read(&mut output[len..]) {
            Ok(0) if len > MAX_TEXT_LEN => return Err(ExternalError::TooLong),
            Ok(0) => {
                output.truncate(len);
                return Ok(Some(output));
            }
            Ok(read) => len += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(ExternalError::Read(error)),
        }
    }
    Ok(None)
}

/// Waits until a descriptor is readable; `false` if it is not by the deadline.
fn wait_for(descriptor: BorrowedFd<'_>, deadline: Instant) -> Result<bool, ExternalError> {
    let mut descriptors = [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)];
    let ready = retry_on_intr(|| {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(|_| Errno::INVAL)?;
        poll(&mut descriptors, Some(&left))
    });
    let ready = ready.map_err(|error| ExternalError::Read(error.into()))?;
    Ok(ready > 0)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A program that this shell script is.
    fn run(script: &str, patience: Duration) -> Result<Zeroizing<Vec<u8>>, ExternalError> {
        let folder = tempfile::tempdir().expect("a folder");
        let program = folder.path().join("sops");
        // Another test that forks just now may hold the file open for writing, and then it is busy.
        for _ in 0..50 {
            fs::write(&program, format!("#!/bin/sh\n{script}\n")).expect("written");
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("its mode");
            match decrypt(&program, Path::new("/bundle"), Path::new("/key"), patience) {
                Err(ExternalError::Start(error))
                    if error.kind() == io::ErrorKind::ExecutableFileBusy => {}
                other => return other,
            }
        }
        panic!("always busy");
    }

    #[test]
    fn test_external_sops_gets_the_file_and_the_key_and_gives_its_output() {
        let output = run(
            "echo \"$* $SOPS_AGE_KEY_FILE $CARGO_PKG_NAME\"; echo no >&2",
            PATIENCE,
        )
        .expect("output");
        assert_eq!(
            output.as_slice(),
            b"--decrypt --output-type json /bundle /key \n"
        );
    }

    #[test]
    fn test_external_sops_that_fails_says_nothing_of_what_it_said() {
        let failed = run("echo v-7c1d; echo v-7c1d >&2; exit 3", PATIENCE).expect_err("failed");
        assert!(matches!(failed, ExternalError::Failed(_)));
        assert!(!format!("{failed:?} {failed}").contains("7c1d"));
    }

    #[test]
    fn test_external_sops_that_does_not_end_is_killed_with_what_it_started() {
        for script in ["sleep 100 & sleep 100", "exec >&-; sleep 100"] {
            let begun = Instant::now();
            let late = run(script, Duration::from_millis(200)).expect_err("late");
            assert!(matches!(late, ExternalError::Late(_)), "{late}");
            assert!(begun.elapsed() < Duration::from_secs(20));
        }
    }

    #[test]
    fn test_external_sops_that_succeeds_leaves_nothing_running() {
        let output = run("sleep 1000 >/dev/null & echo $!", PATIENCE).expect("output");
        let text = String::from_utf8(output.to_vec()).expect("text");
        let stat = format!("/proc/{}/stat", text.trim());
        let begun = Instant::now();
        // Whoever is its parent now may not have waited for it.
        while fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
            assert!(begun.elapsed() < Duration::from_secs(10), "it still runs");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn test_external_sops_inherits_no_descriptor() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = fs::File::create(folder.path().join("file")).expect("a file");
        // Without the flag that closes it, as a descriptor from this process's own parent is.
        let inherited = rustix::io::fcntl_dupfd_cloexec(&file, 200).expect("a descriptor");
        rustix::io::fcntl_setfd(&inherited, rustix::io::FdFlags::empty()).expect("set");
        let script = format!(
            "[ -e /proc/$$/fd/{} ] && echo open || echo closed",
            std::os::fd::AsRawFd::as_raw_fd(&inherited)
        );

        let output = run(&script, PATIENCE).expect("output");

        assert_eq!(output.as_slice(), b"closed\n");
        let control = Command::new("sh").args(["-c", &script]).output();
        assert_eq!(control.expect("it runs").stdout, b"open\n");
    }

    #[test]
    fn test_external_sops_that_prints_without_end_is_stopped() {
        let long = run("cat /dev/zero", PATIENCE).expect_err("too long");
        assert!(matches!(long, ExternalError::TooLong), "{long}");
    }

    #[test]
    fn test_external_sops_that_others_can_write_or_that_is_not_there_is_not_run() {
        let folder = tempfile::tempdir().expect("a folder");
        let program = folder.path().join("sops");
        let decrypt = || decrypt(&program, Path::new("/b"), Path::new("/k"), PATIENCE);
        assert!(matches!(
            decrypt(),
            Err(ExternalError::File(FileError::Absent(_)))
        ));
        fs::write(&program, "#!/bin/sh\n").expect("written");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o777)).expect("its mode");
        assert!(matches!(
            decrypt(),
            Err(ExternalError::File(FileError::Refused { .. }))
        ));
    }
}
