//! What happens between `fork` and `execve`: the child reads the exported secrets, takes its
//! session, terminal and identity, and becomes the workload.
//!
//! The order matters: secrets are root's files, so they are read before privileges are dropped;
//! the working directory and the command are looked up after, with the workload's own rights.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use cachot_control::Start;
use rustix::fs::{Gid, Uid, fchown};
use rustix::io::Errno;

use crate::environment::{DEFAULT_PATH, Environment, home};
use crate::files::read_text;
use crate::sys;
use crate::users::{self, Identity};

/// The shells' exit code for a command that does not exist.
const NOT_FOUND: u8 = 127;

/// The shells' exit code for a command that exists and cannot be run.
const NOT_RUNNABLE: u8 = 126;

/// The exit code of everything else that keeps a workload from starting.
pub const NOT_STARTED: u8 = 125;

/// Why the workload did not start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// 127 where the command was not found, 126 where it could not be run, 125 otherwise.
    pub code: u8,
    /// What failed, on what, and what to do; never a value of a secret.
    pub message: String,
}

impl Failure {
    /// A failure of anything but the command itself.
    pub fn not_started(message: impl ToString) -> Self {
        Self {
            code: NOT_STARTED,
            message: message.to_string(),
        }
    }
}

/// Where the child looks things up; the guest's own files but in tests.
#[derive(Debug, Clone)]
pub struct Places {
    /// Mount point of secretsfs.
    pub secrets: PathBuf,
    /// The user database.
    pub passwd: PathBuf,
    /// The group database.
    pub group: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            secrets: "/run/secrets".into(),
            passwd: "/etc/passwd".into(),
            group: "/etc/group".into(),
        }
    }
}

/// The child's three standard streams.
pub struct Stdio {
    /// Standard input.
    pub stdin: OwnedFd,
    /// Standard output.
    pub stdout: OwnedFd,
    /// Standard error.
    pub stderr: OwnedFd,
    /// All three are one terminal, which becomes the controlling terminal.
    pub terminal: bool,
}

/// Turns this freshly forked process into the workload; returns only if that failed.
pub fn become_workload(
    start: &Start,
    stdio: &Stdio,
    group: Option<&OwnedFd>,
    places: &Places,
) -> Failure {
    match prepare(start, stdio, group, places) {
        Ok(environment) => execute(&start.argv, &environment),
        Err(failure) => failure,
    }
}

fn prepare(
    start: &Start,
    stdio: &Stdio,
    group: Option<&OwnedFd>,
    places: &Places,
) -> Result<Environment, Failure> {
    sys::reset_signals();
    // First: whatever follows belongs to the session.
    group.map_or(Ok(()), join).map_err(|error| {
        Failure::not_started(format!("cannot join the session's control group: {error}"))
    })?;
    let identity = users::resolve(
        start.user.as_deref(),
        &database(&places.passwd)?,
        &database(&places.group)?,
    )
    .map_err(|error| Failure::not_started(format!("cannot take the identity: {error}")))?;
    let environment =
        Environment::build(start, &identity, &places.secrets).map_err(Failure::not_started)?;
    take_stdio(stdio, &identity).map_err(|error| {
        Failure::not_started(format!("cannot set up the standard streams: {error}"))
    })?;
    take_identity(&identity).map_err(|error| {
        let (uid, gid) = (identity.uid, identity.gid);
        Failure::not_started(format!("cannot become user {uid}, group {gid}: {error}"))
    })?;
    enter_workdir(start.workdir.as_deref(), &identity)?;
    Ok(environment)
}

fn join(group: &OwnedFd) -> io::Result<()> {
    let pid = rustix::process::getpid().as_raw_pid().to_string();
    rustix::io::write(group, pid.as_bytes())?;
    Ok(())
}

/// A user or group database; a missing one is an empty one: numbers need no entry.
fn database(path: &Path) -> Result<String, Failure> {
    let text = read_text(path).map_err(|error| {
        let path = path.display();
        Failure::not_started(format!(
            "cannot read {path}: {error}; mend it in the root file system"
        ))
    })?;
    Ok(text.unwrap_or_default())
}

/// A session of its own, so that its process group can be signalled, with these streams.
fn take_stdio(stdio: &Stdio, identity: &Identity) -> io::Result<()> {
    rustix::process::setsid()?;
    if stdio.terminal {
        rustix::process::ioctl_tiocsctty(&stdio.stdin)?;
    }
    for stream in [&stdio.stdin, &stdio.stdout, &stdio.stderr] {
        // Otherwise the workload could not reopen its own /dev/stdout. /dev/null is everybody's.
        let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(stream)?.st_mode);
        if kind == rustix::fs::FileType::Fifo || stdio.terminal {
            fchown(stream, Some(Uid::from_raw(identity.uid)), None)?;
        }
    }
    rustix::stdio::dup2_stdin(&stdio.stdin)?;
    rustix::stdio::dup2_stdout(&stdio.stdout)?;
    rustix::stdio::dup2_stderr(&stdio.stderr)?;
    Ok(())
}

fn take_identity(identity: &Identity) -> io::Result<()> {
    let groups: Vec<Gid> = identity.groups.iter().map(|&g| Gid::from_raw(g)).collect();
    rustix::thread::set_thread_groups(&groups)?;
    rustix::thread::set_thread_gid(Gid::from_raw(identity.gid))?;
    // Last: it takes the right to do the other two.
    rustix::thread::set_thread_uid(Uid::from_raw(identity.uid))?;
    Ok(())
}

fn enter_workdir(workdir: Option<&str>, identity: &Identity) -> Result<(), Failure> {
    let Some(workdir) = workdir else {
        // A home that is not there is no reason to refuse to run.
        return rustix::process::chdir(home(identity))
            .or_else(|_| rustix::process::chdir("/"))
            .map_err(|error| Failure::not_started(format!("cannot enter `/`: {error}")));
    };
    rustix::process::chdir(workdir).map_err(|error| {
        let hint = match error {
            Errno::NOENT => "create it in the root file system or give another",
            Errno::NOTDIR => "give a directory",
            Errno::ACCESS => "give the user the right to enter it, or another directory",
            _ => "give another directory",
        };
        let error = io::Error::from(error);
        Failure::not_started(format!(
            "cannot enter the working directory `{workdir}`: {error}; {hint}"
        ))
    })
}

/// Looks the command up as `execvp` does, but for its fallback to a shell: a file in no known
/// format is an error.
fn execute(argv: &[String], environment: &Environment) -> Failure {
    let Some(command) = argv.first().filter(|command| !command.is_empty()) else {
        return Failure::not_started("there is no command to run; give one");
    };
    let arguments: Result<Vec<CString>, _> =
        argv.iter().map(|arg| CString::new(arg.as_str())).collect();
    let Ok(arguments) = arguments else {
        return Failure::not_started(format!(
            "cannot run `{}`: an argument contains a NUL byte",
            command.escape_debug()
        ));
    };
    let arguments: Vec<&CStr> = arguments.iter().map(CString::as_c_str).collect();
    let variables = environment.strings();
    let attempt = |path: String| {
        // Both halves come from strings without NUL bytes.
        let path = CString::new(path).expect("PATH and arguments have no NUL byte");
        let error = sys::execve(&path, &arguments, &variables);
        (path, error)
    };
    if command.contains('/') {
        let (path, error) = attempt(command.clone());
        return refusal(command, &path, &error);
    }
    let search = environment.get("PATH").unwrap_or(DEFAULT_PATH);
    let mut denied = None;
    for directory in search.split(':') {
        // By POSIX, an empty element is the working directory.
        let directory = if directory.is_empty() { "." } else { directory };
        let (path, error) = attempt(format!("{directory}/{command}"));
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) if !exists(&path) => {}
            Some(libc::EACCES) => denied = denied.or(Some(refusal(command, &path, &error))),
            _ => return refusal(command, &path, &error),
        }
    }
    denied.unwrap_or_else(|| Failure {
        code: NOT_FOUND,
        message: format!(
            "cannot run `{command}`: not found in PATH={search}; install it in the root file \
             system or give its path"
        ),
    })
}

fn exists(path: &CStr) -> bool {
    rustix::fs::stat(path).is_ok()
}

/// Says why `execve` of `path` failed.
fn refusal(command: &str, path: &CStr, error: &io::Error) -> Failure {
    let shown = path.to_string_lossy();
    let directory = rustix::fs::stat(path).is_ok_and(|stat| {
        rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory
    });
    let (code, reason) = match error.raw_os_error() {
        _ if directory => (NOT_RUNNABLE, "it is a directory".to_owned()),
        Some(libc::ENOENT | libc::ENOTDIR) if exists(path) => (
            NOT_RUNNABLE,
            "the interpreter or loader that it asks for is missing; install it in the root file \
             system"
                .to_owned(),
        ),
        Some(libc::ENOENT | libc::ENOTDIR) => (NOT_FOUND, "no such file".to_owned()),
        Some(libc::EACCES) => (
            NOT_RUNNABLE,
            "permission denied; make it executable for the user (chmod +x)".to_owned(),
        ),
        Some(libc::ENOEXEC) => (
            NOT_RUNNABLE,
            "it is neither a program for x86-64 Linux nor a script that starts with #!".to_owned(),
        ),
        Some(libc::E2BIG) => (
            NOT_RUNNABLE,
            "the arguments and the environment are too long together".to_owned(),
        ),
        _ => (NOT_RUNNABLE, error.to_string()),
    };
    let place = if command == shown {
        String::new()
    } else {
        format!(" ({shown})")
    };
    Failure {
        code,
        message: format!("cannot run `{command}`{place}: {reason}"),
    }
}
