//! The folders that running VMs keep their state in.
//!
//! `ROOT/vms/NAME` belongs to one VM, mode 0700. The keeper holds an exclusive `flock` on it; a
//! folder whose lock is free was left by processes that were killed, and the next command removes
//! it, unless it holds [`EXIT_FILE`]: then the VM has ended, and `cachot rm` removes it. So that a folder is never
//! seen between its creation and its lock, creators share a lock on `ROOT/vms` that sweepers take exclusively.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::vm_name::VmName;

/// Folder of the state of all VMs.
pub const STATE_VARIABLE: &str = "CACHOT_STATE";

/// File of a VM that has ended: how it did.
pub const EXIT_FILE: &str = "exit.json";

/// Where root's VMs have their state by default.
const ROOT_DEFAULT: &str = "/var/lib/cachot";

/// Why there is no place for a VM's state.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Neither variable nor home.
    #[error(
        "there is no place for the state of VMs: set {STATE_VARIABLE} to a folder, or set HOME"
    )]
    NoPlace,
    /// A system call failed.
    #[error(
        "cannot {action} {path:?}, make room or permit it, or set {STATE_VARIABLE} to another folder"
    )]
    System {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The name is taken.
    #[error(
        "there is a VM of the name {0:?} already: choose another name, or remove it with `cachot rm {0}`"
    )]
    Taken(String),
    /// No VM has this name.
    #[error("there is no VM of the name {0:?}: `cachot ps --all` lists those that there are")]
    NoVm(String),
    /// A VM that has ended.
    #[error(
        "the VM {0:?} has ended: `cachot logs {0}` shows what it said, `cachot rm {0}` removes it"
    )]
    Ended(String),
    /// A VM that is still there.
    #[error("the VM {0:?} is running: stop it first, or give --force")]
    Running(String),
    /// Others could put files of theirs into it.
    #[error(
        "the state folder {path:?} belongs to another user or can be written to by others: \
         `chown` it and `chmod go-w` it, or set {STATE_VARIABLE} to another folder"
    )]
    NotPrivate {
        /// The folder.
        path: PathBuf,
    },
}

impl StateError {
    pub(crate) fn system<E: Into<io::Error>>(
        action: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| Self::System {
            action,
            path,
            source: source.into(),
        }
    }
}

/// What decides where the state of VMs is.
#[derive(Debug, Default, Clone)]
pub struct Places {
    /// `$CACHOT_STATE`.
    pub state: Option<OsString>,
    /// `$XDG_STATE_HOME`.
    pub xdg_state_home: Option<OsString>,
    /// `$HOME`.
    pub home: Option<OsString>,
    /// Whether the user is root.
    pub root: bool,
}

impl Places {
    /// Of this process.
    pub fn of_process() -> Self {
        Self {
            state: crate::settings::state(),
            xdg_state_home: std::env::var_os("XDG_STATE_HOME"),
            home: std::env::var_os("HOME"),
            root: rustix::process::geteuid().is_root(),
        }
    }

    /// The folder of all VMs' state; it need not exist yet.
    ///
    /// # Errors
    /// [`StateError::NoPlace`].
    pub fn root(&self) -> Result<PathBuf, StateError> {
        let set = |variable: &Option<OsString>| {
            variable
                .clone()
                .filter(|path| !path.is_empty())
                .map(PathBuf::from)
        };
        if let Some(state) = set(&self.state) {
            return Ok(state);
        }
        if self.root {
            return Ok(ROOT_DEFAULT.into());
        }
        // The XDG specification has relative paths ignored.
        let xdg = set(&self.xdg_state_home).filter(|path| path.is_absolute());
        xdg.or_else(|| set(&self.home).map(|home| home.join(".local/state")))
            .map(|base| base.join("cachot"))
            .ok_or(StateError::NoPlace)
    }
}

/// Commands that may wait to be served.
const BACKLOG: i32 = 64;

/// The state folder of one VM, locked; removed with all that is in it on drop.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    name: String,
    /// Holds the lock.
    folder: OwnedFd,
    kept: bool,
}

impl StateDir {
    /// Makes the folder of a new VM, with this name, or with one that no other VM of `root` has.
    ///
    /// # Errors
    /// See [`StateError`].
    pub fn create(root: &Path, wanted: Option<&VmName>) -> Result<Self, StateError> {
        if wanted.is_some() {
            // The name may be that of a VM whose processes were killed.
            Self::sweep(root)?;
        }
        let vms = root.join("vms");
        let lock = open_private(&vms)?;
        flock(&lock, FlockOperation::LockShared).map_err(StateError::system("lock", &vms))?;
        loop {
            let name = match wanted {
                Some(name) => name.to_string(),
                None => random_name().map_err(StateError::system("name a folder in", &vms))?,
            };
            let path = vms.join(&name);
            match fs::DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match wanted {
                    None => continue,
                    Some(_) => return Err(StateError::Taken(name)),
                },
                other => other.map_err(StateError::system("create the folder", &path))?,
            }
            // From here on the folder is removed on any way out.
            let mut created = Self {
                folder: lock,
                path,
                name,
                kept: false,
            };
            let folder = open_folder(&created.path)
                .map_err(StateError::system("open the folder", &created.path))?;
            // Others hold it for a moment only, to see whether it is free.
            flock(&folder, FlockOperation::LockExclusive)
                .map_err(StateError::system("lock the folder", &created.path))?;
            created.folder = folder;
            return Ok(created);
        }
    }

    /// Removes the folders of VMs whose processes were killed; returns how many.
    ///
    /// While another command creates a folder nothing is removed: the next sweep does it.
    ///
    /// # Errors
    /// See [`StateError`].
    pub fn sweep(root: &Path) -> Result<usize, StateError> {
        let vms = root.join("vms");
        let lock = open_private(&vms)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Ok(0),
            other => other.map_err(StateError::system("lock", &vms))?,
        }
        let mut swept = 0;
        for entry in fs::read_dir(&vms).map_err(StateError::system("list", &vms))? {
            let path = entry.map_err(StateError::system("list", &vms))?.path();
            let Ok(folder) = open_folder(&path) else {
                continue;
            };
            match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) => {}
                Err(error) => return Err(StateError::system("lock", &path)(error)),
                Ok(()) if path.join(EXIT_FILE).exists() => {}
                Ok(()) => {
                    remove(&path)?;
                    swept += 1;
                }
            }
        }
        Ok(swept)
    }

    /// The VM's name, which is the folder's.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the folder is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a Unix socket of this name that listens for connections of packets (`SOCK_SEQPACKET`).
    ///
    /// # Errors
    /// See [`StateError`].
    pub fn listen_for_packets(&self, name: &str) -> Result<OwnedFd, StateError> {
        let listen = || -> rustix::io::Result<OwnedFd> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let kind = SocketType::SEQPACKET;
            let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
            rustix::net::bind(&socket, &SocketAddrUnix::new(self.short_path(name))?)?;
            rustix::net::listen(&socket, BACKLOG)?;
            Ok(socket)
        };
        listen().map_err(StateError::system("listen on", &self.path.join(name)))
    }

    /// Leaves the folder to [`Self::remove_ended`]: it holds [`EXIT_FILE`].
    pub fn keep(mut self) {
        self.kept = true;
    }

    /// The path of a socket has at most 107 bytes: this one is short, wherever the folder is.
    fn short_path(&self, name: &str) -> String {
        format!("/proc/self/fd/{}/{name}", self.folder.as_raw_fd())
    }

    /// Makes a Unix socket of this name that listens.
    ///
    /// # Errors
    /// See [`StateError`].
    pub fn listen(&self, name: &str) -> Result<UnixListener, StateError> {
        UnixListener::bind(self.short_path(name))
            .map_err(StateError::system("listen on", &self.path.join(name)))
    }

    /// Makes a file of this name with this content, mode 0600, open for appending and reading.
    ///
    /// # Errors
    /// See [`StateError`].
    pub fn file(&self, name: &str, content: &[u8]) -> Result<File, StateError> {
        let path = self.path.join(name);
        let mut file = File::options()
            .read(true)
            .append(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(StateError::system("create", &path))?;
        file.write_all(content)
            .map_err(StateError::system("write", &path))?;
        Ok(file)
    }

    /// Makes a file that a guest may write to, mode 0600.
    ///
    /// # Errors
    /// See [`StateError`].
    pub fn writable_file(&self, name: &str) -> Result<File, StateError> {
        let path = self.path.join(name);
        let mut options = File::options();
        options.read(true).write(true).create_new(true).mode(0o600);
        options
            .open(&path)
            .map_err(StateError::system("create", &path))
    }

    /// Removes all files but these.
    ///
    /// # Errors
    /// [`StateError::System`].
    pub fn remove_all_but(&self, kept: &[&str]) -> Result<(), StateError> {
        let failed = || StateError::system::<io::Error>("clean up", &self.path);
        for entry in fs::read_dir(&self.path).map_err(failed())? {
            let entry = entry.map_err(failed())?;
            if !kept.iter().any(|name| entry.file_name() == *name) {
                fs::remove_file(entry.path()).map_err(failed())?;
            }
        }
        Ok(())
    }

    /// Removes the folder.
    ///
    /// # Errors
    /// [`StateError::System`] if something of it is left.
    pub fn remove(self) -> Result<(), StateError> {
        remove(&self.path)
    }
}

impl AsFd for StateDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }
}

impl Drop for StateDir {
    fn drop(&mut self) {
        if !self.kept {
            // Nobody is left to tell on this way out; the next command sweeps what remains.
            remove(&self.path).ok();
        }
    }
}

fn remove(path: &Path) -> Result<(), StateError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(StateError::system("remove", path)),
    }
}

/// Opens the folder of all VMs, made if need be, and makes sure that it is this user's alone.
fn open_private(path: &Path) -> Result<OwnedFd, StateError> {
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path);
    made.map_err(StateError::system("create the folder", path))?;
    let folder = open_folder(path).map_err(StateError::system("open the folder", path))?;
    let metadata = File::from(
        folder
            .try_clone()
            .map_err(StateError::system("open", path))?,
    )
    .metadata()
    .map_err(StateError::system("examine", path))?;
    if metadata.uid() != rustix::process::geteuid().as_raw() || metadata.mode() & 0o022 != 0 {
        return Err(StateError::NotPrivate {
            path: path.to_owned(),
        });
    }
    Ok(folder)
}

pub(crate) fn open_folder(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

fn random_name() -> rustix::io::Result<String> {
    let mut bytes = [0; 4];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(format!("vm-{:08x}", u32::from_le_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;

    fn vms(root: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(root.join("vms")).expect("a folder");
        entries
            .map(|entry| entry.expect("an entry").path())
            .collect()
    }

    #[test]
    fn test_create_folder_is_private_and_removed_on_drop() {
        let root = tempfile::tempdir().expect("a folder");
        let state = StateDir::create(root.path(), None).expect("created");
        state.file("config.json", b"{}").expect("written");

        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(state.path()), 0o700);
        assert_eq!(mode(&state.path().join("config.json")), 0o600);
        assert_eq!(vms(root.path()), [state.path()]);

        drop(state);
        assert!(vms(root.path()).is_empty());
    }

    #[test]
    fn test_sweep_removes_what_killed_processes_left_and_nothing_else() {
        let root = tempfile::tempdir().expect("a folder");
        let live = StateDir::create(root.path(), None).expect("created");
        let left = root.path().join("vms/vm-left");
        fs::create_dir(&left).expect("made");
        fs::write(left.join("console.log"), "x").expect("written");

        assert_eq!(StateDir::sweep(root.path()).expect("swept"), 1);

        assert_eq!(vms(root.path()), [live.path()]);
    }

    #[test]
    fn test_sweep_while_another_command_creates_removes_nothing() {
        let root = tempfile::tempdir().expect("a folder");
        fs::create_dir_all(root.path().join("vms/vm-new")).expect("made");
        let creator = open_folder(&root.path().join("vms")).expect("open");
        flock(&creator, FlockOperation::LockShared).expect("locked");
        assert_eq!(StateDir::sweep(root.path()).expect("tried"), 0);
        drop(creator);
        assert_eq!(StateDir::sweep(root.path()).expect("swept"), 1);
    }

    #[test]
    fn test_listen_works_where_the_path_is_too_long_for_a_socket() {
        let root = tempfile::tempdir().expect("a folder");
        let long = root.path().join("d".repeat(120));
        let state = StateDir::create(&long, None).expect("created");
        let listener = state.listen("vsock.sock_1024").expect("listening");
        let path = format!("/proc/self/fd/{}/vsock.sock_1024", state.folder.as_raw_fd());
        UnixStream::connect(path).expect("connected");
        listener.accept().expect("accepted");
    }

    #[test]
    fn test_create_in_a_folder_that_others_can_write_to_is_refused() {
        let root = tempfile::tempdir().expect("a folder");
        let vms = root.path().join("vms");
        fs::create_dir(&vms).expect("made");
        fs::set_permissions(&vms, fs::Permissions::from_mode(0o777)).expect("opened up");
        let created = StateDir::create(root.path(), None);
        assert!(
            matches!(created, Err(StateError::NotPrivate { .. })),
            "{created:?}"
        );
    }

    #[test]
    fn test_places_root_in_order_of_precedence() {
        let all = Places {
            state: Some("/s".into()),
            xdg_state_home: Some("/x".into()),
            home: Some("/h".into()),
            root: false,
        };
        let root = |places: Places| places.root().ok();
        assert_eq!(root(all.clone()), Some("/s".into()));
        let xdg = Places { state: None, ..all };
        assert_eq!(root(xdg.clone()), Some("/x/cachot".into()));
        assert_eq!(
            root(Places {
                root: true,
                ..xdg.clone()
            }),
            Some("/var/lib/cachot".into())
        );
        let relative = Places {
            xdg_state_home: Some("x".into()),
            ..xdg
        };
        assert_eq!(
            root(relative.clone()),
            Some("/h/.local/state/cachot".into())
        );
        assert_eq!(
            root(Places {
                home: None,
                ..relative
            }),
            None
        );
    }
}
