//! Control groups (version 2): one a session, so that everything that a session has started can be frozen and killed.
//!
//! ```text
//! /sys/fs/cgroup            PID 1
//! └── sessions              frozen as a whole
//!     ├── 1                 the workload
//!     └── 7                 another command
//! ```
//!
//! Commands are frozen with the workload: a command that ran on while a snapshot is taken would run in each of
//! its copies too, before they are renewed. They have groups of their own because they are killed without it. A
//! command that is started while its group is frozen waits.
//!
//! Root can leave its group: freezing is for the workload's benefit, not for its confinement.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, Mode, OFlags, mkdirat, openat, unlinkat};
use rustix::io::Errno;

/// The group of all sessions, below the root of the hierarchy.
const SESSIONS: &str = "sessions";

/// Most bytes of a control file that are looked at; theirs are a few dozen.
const MAX_CONTROL: usize = 4096;

/// The groups of all sessions.
///
/// They are held by descriptor: the workload may mount what it likes over the path.
#[derive(Debug)]
pub struct Cgroups {
    sessions: OwnedFd,
}

impl Cgroups {
    /// Creates the group of all sessions where the hierarchy is mounted; `None` where none is.
    ///
    /// # Errors
    /// What keeps the group from being created.
    pub fn open(root: &Path) -> io::Result<Option<Self>> {
        // sysfs has the directory in any case, and so has version 1.
        if !root.join("cgroup.procs").exists() {
            return Ok(None);
        }
        let root = directory(rustix::fs::CWD, root)?;
        make(&root, SESSIONS)?;
        let sessions = directory(&root, SESSIONS)?;
        Ok(Some(Self { sessions }))
    }

    /// Creates the group of a session and returns the file that takes its members.
    ///
    /// # Errors
    /// What keeps it from being created.
    pub fn admit(&self, session: u32) -> io::Result<OwnedFd> {
        let name = session.to_string();
        // It may be left from an earlier one, whose daemons run on.
        make(&self.sessions, &name)?;
        Ok(openat(
            &self.sessions,
            format!("{name}/cgroup.procs"),
            WRITE,
            FILE_MODE,
        )?)
    }

    /// Kills whatever a session has started, frozen or not.
    ///
    /// # Errors
    /// What keeps it from being killed, such as a kernel older than 5.14.
    pub fn kill(&self, session: u32) -> io::Result<()> {
        self.write(&format!("{session}/cgroup.kill"), "1")
    }

    /// Removes the groups of sessions that are no more, but for those that still have members.
    pub fn tidy(&self, is_live: impl Fn(u32) -> bool) {
        let Ok(entries) = Dir::read_from(&self.sessions) else {
            return; // A group too many is harmless; so are those below.
        };
        for entry in entries.flatten() {
            let session = entry
                .file_name()
                .to_str()
                .ok()
                .and_then(|name| name.parse().ok());
            if session.is_some_and(|session| !is_live(session)) {
                unlinkat(&self.sessions, entry.file_name(), AtFlags::REMOVEDIR).ok();
            }
        }
    }

    /// Begins to freeze all sessions, or lets them go on.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn set_frozen(&self, frozen: bool) -> io::Result<()> {
        self.write("cgroup.freeze", if frozen { "1" } else { "0" })
    }

    /// Whether all sessions are frozen by now.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn is_frozen(&self) -> io::Result<bool> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = openat(&self.sessions, "cgroup.events", flags, Mode::empty())?;
        let mut events = [0; MAX_CONTROL];
        let length = rustix::io::read(&file, &mut events)?;
        let mut lines = events[..length].split(|&byte| byte == b'\n');
        Ok(lines.any(|line| line == b"frozen 1"))
    }

    fn write(&self, name: &str, text: &str) -> io::Result<()> {
        let file = openat(&self.sessions, name, WRITE, FILE_MODE)?;
        rustix::io::write(&file, text.as_bytes())?;
        Ok(())
    }
}

/// As a shell's `>` opens control files.
const WRITE: OFlags = OFlags::WRONLY
    .union(OFlags::CREATE)
    .union(OFlags::TRUNC)
    .union(OFlags::CLOEXEC);
const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);

fn directory(at: impl AsFd, path: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(at, path, flags, Mode::empty())?)
}

fn make(at: &OwnedFd, name: &str) -> io::Result<()> {
    match mkdirat(at, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;

    /// A hierarchy of plain files.
    fn hierarchy() -> (TempDir, Cgroups) {
        let root = tempfile::tempdir().expect("a directory");
        fs::write(root.path().join("cgroup.procs"), "").expect("written");
        let cgroups = Cgroups::open(root.path()).expect("opened").expect("there");
        (root, cgroups)
    }

    #[test]
    fn test_open_without_a_hierarchy_is_none() {
        let empty = tempfile::tempdir().expect("a directory");
        assert!(Cgroups::open(empty.path()).expect("no error").is_none());
        let missing = empty.path().join("missing");
        assert!(Cgroups::open(&missing).expect("no error").is_none());
    }

    #[test]
    fn test_is_frozen_reads_the_event_and_not_the_wish() {
        let (root, cgroups) = hierarchy();
        let events = root.path().join("sessions/cgroup.events");
        for (text, frozen) in [
            ("populated 1\nfrozen 0\n", false),
            ("populated 0\nfrozen 1\n", true),
            ("frozen 10\n", false),
            ("", false),
        ] {
            cgroups.set_frozen(true).expect("written");
            fs::write(&events, text).expect("written");
            assert_eq!(cgroups.is_frozen().expect("read"), frozen, "{text:?}");
        }
        let wish = root.path().join("sessions/cgroup.freeze");
        assert_eq!(fs::read(&wish).expect("read"), b"1");
        cgroups.set_frozen(false).expect("written");
        assert_eq!(fs::read(&wish).expect("read"), b"0");
    }

    #[test]
    fn test_is_frozen_without_the_event_is_an_error() {
        let (_root, cgroups) = hierarchy();
        assert!(cgroups.is_frozen().is_err());
    }

    #[test]
    fn test_tidy_removes_only_empty_groups_of_sessions_that_are_gone() {
        let (root, cgroups) = hierarchy();
        let sessions = root.path().join("sessions");
        for session in [1, 2, 3] {
            drop(cgroups.admit(session).expect("admitted"));
        }
        // In a real hierarchy the files do not count, and members do.
        for empty in ["1", "2"] {
            fs::remove_file(sessions.join(empty).join("cgroup.procs")).expect("removed");
        }
        fs::create_dir(sessions.join("other")).expect("created");

        cgroups.tidy(|session| session == 1);

        let left = |name: &str| sessions.join(name).exists();
        assert_eq!(
            ["1", "2", "3", "other"].map(left),
            [true, false, true, true]
        );
    }
}
