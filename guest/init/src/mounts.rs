//! The kernel's file systems that every workload expects, mounted in the initramfs; the ones in
//! [`CARRIED`] follow into another root.

use std::ffi::CStr;
use std::fs::{DirBuilder, read_to_string};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

/// Mount points that move into another root, with everything that is mounted below them.
pub const CARRIED: [&str; 5] = ["/proc", "/sys", "/dev", "/run", "/tmp"];

/// Where the hierarchy of control groups is mounted, version 2.
pub const CGROUPS: &str = "/sys/fs/cgroup";

/// The file system that serves secrets, as the driver registers it.
const SECRETSFS: &str = "secretsfs";

/// Where it is mounted.
const SECRETS: &str = "/run/secrets";

struct Mount {
    at: &'static str,
    kind: &'static str,
    flags: MountFlags,
    options: &'static CStr,
}

const STRICT: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

/// In the order in which they are mounted; `/proc` says whether the kernel has the rest.
const MOUNTS: [Mount; 8] = [
    Mount {
        at: "/proc",
        kind: "proc",
        flags: STRICT,
        options: c"",
    },
    Mount {
        at: "/sys",
        kind: "sysfs",
        flags: STRICT,
        options: c"",
    },
    Mount {
        at: "/dev",
        kind: "devtmpfs",
        flags: MountFlags::NOSUID,
        options: c"mode=755",
    },
    // Group 5 is `tty` in every distribution; it may write to terminals.
    Mount {
        at: "/dev/pts",
        kind: "devpts",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        options: c"gid=5,mode=620,ptmxmode=666",
    },
    Mount {
        at: "/dev/shm",
        kind: "tmpfs",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
        options: c"mode=1777",
    },
    Mount {
        at: "/run",
        kind: "tmpfs",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
        options: c"mode=755",
    },
    Mount {
        at: "/tmp",
        kind: "tmpfs",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
        options: c"mode=1777",
    },
    Mount {
        at: CGROUPS,
        kind: "cgroup2",
        flags: STRICT,
        options: c"",
    },
];

/// Links that belong to `/dev` and that devtmpfs leaves to user space.
const DEV_LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Mounts everything but secretsfs; what the kernel was built without is passed over.
///
/// # Errors
/// A message that names what could not be mounted.
pub fn mount_all() -> Result<(), String> {
    for Mount {
        at,
        kind,
        flags,
        options,
    } in &MOUNTS
    {
        make_directory(Path::new(at)).map_err(|error| format!("cannot create {at}: {error}"))?;
        match mount(*kind, *at, *kind, *flags, *options) {
            Ok(()) => {}
            Err(Errno::NODEV) if *kind == "cgroup2" => {}
            // A kernel may mount devtmpfs by itself.
            Err(Errno::BUSY) if *kind == "devtmpfs" => {}
            Err(error) => {
                let error = io::Error::from(error);
                return Err(format!("cannot mount {kind} on {at}: {error}"));
            }
        }
    }
    for (target, link) in DEV_LINKS {
        match rustix::fs::symlink(target, link) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => {
                let error = io::Error::from(error);
                return Err(format!("cannot create the link {link}: {error}"));
            }
        }
    }
    Ok(())
}

/// Mounts secretsfs on `/run/secrets`.
///
/// # Errors
/// A message that says why there are no secrets.
pub fn mount_secrets() -> Result<(), String> {
    make_directory(Path::new(SECRETS))
        .map_err(|error| format!("cannot create {SECRETS}: {error}"))?;
    mount(SECRETSFS, SECRETS, SECRETSFS, STRICT, c"").map_err(|error| match error {
        Errno::NODEV => format!(
            "{SECRETS} stays empty: the kernel has no {SECRETSFS}; load its driver, \
             virtio_secrets.ko"
        ),
        error => {
            let error = io::Error::from(error);
            format!("{SECRETS} stays empty: cannot mount {SECRETSFS}: {error}")
        }
    })
}

/// Whether the running kernel has a file system.
pub fn kernel_has(file_system: &str) -> bool {
    let list = read_to_string("/proc/filesystems").unwrap_or_default();
    list.lines()
        .any(|line| line.split_whitespace().last() == Some(file_system))
}

/// Creates a directory with the usual mode, unless it is there.
pub fn make_directory(path: &Path) -> io::Result<()> {
    make(path, 0o755)
}

/// Creates a directory that only root can enter, unless it is there.
pub fn make_private_directory(path: &Path) -> io::Result<()> {
    make(path, 0o700)
}

fn make(path: &Path, mode: u32) -> io::Result<()> {
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}
