//! VMs that there are, as other commands see them: found by name, asked through their sockets.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::de::DeserializeOwned;

use super::record::{Exit, RECORD_FILE, Record};
use crate::keeper::request::KEEPER_SOCKET;
use crate::state_dir::{EXIT_FILE, StateError, open_folder};
use crate::vm_name::VmName;

/// Longest file that is read, in bytes: a record with the longest command line.
const MAX_FILE: u64 = 8 << 20;

/// A VM that runs, or has ended and was not removed.
#[derive(Debug)]
pub struct Existing {
    name: VmName,
    path: PathBuf,
    folder: OwnedFd,
}

impl Existing {
    /// The VM of this name.
    ///
    /// # Errors
    /// [`StateError::NoVm`] or [`StateError::System`].
    pub fn find(root: &Path, name: &VmName) -> Result<Self, StateError> {
        let path = root.join("vms").join(name.as_ref());
        match open_folder(&path) {
            Ok(folder) => Ok(Self {
                name: name.clone(),
                path,
                folder,
            }),
            // What is no folder was not put there by cachot.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                Err(StateError::NoVm(name.to_string()))
            }
            Err(errno) => Err(StateError::system("open the folder", &path)(errno)),
        }
    }

    /// The VM of this name, which has not ended.
    ///
    /// # Errors
    /// As [`Self::find`], and [`StateError::Ended`].
    pub fn running(root: &Path, name: &VmName) -> Result<Self, StateError> {
        let vm = Self::find(root, name)?;
        if vm.is_kept()? {
            Ok(vm)
        } else {
            Err(StateError::Ended(name.to_string()))
        }
    }

    /// All VMs, sorted by name. Folders of VMs whose processes were killed are left out.
    ///
    /// # Errors
    /// [`StateError::System`].
    pub fn all(root: &Path) -> Result<Vec<Self>, StateError> {
        let vms = root.join("vms");
        let entries = match fs::read_dir(&vms) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(StateError::system("list", &vms))?,
        };
        let mut all = Vec::new();
        for entry in entries {
            let name = entry.map_err(StateError::system("list", &vms))?.file_name();
            let Some(Ok(name)) = name.to_str().map(str::parse) else {
                continue;
            };
            match Self::find(root, &name) {
                Ok(vm) if vm.is_kept()? || vm.exit().is_ok() => all.push(vm),
                // It has just gone.
                Ok(_) | Err(StateError::NoVm(_)) => {}
                Err(error) => return Err(error),
            }
        }
        all.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(all)
    }

    /// Its name.
    pub fn name(&self) -> &VmName {
        &self.name
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it has a keeper, and so runs.
    ///
    /// # Errors
    /// [`StateError::System`].
    pub fn is_kept(&self) -> Result<bool, StateError> {
        // Shared, so that two commands that look at the same time do not take each other for a keeper.
        match flock(&self.folder, FlockOperation::NonBlockingLockShared) {
            Err(Errno::WOULDBLOCK) => Ok(true),
            Err(errno) => Err(StateError::system("lock the folder", &self.path)(errno)),
            Ok(()) => {
                flock(&self.folder, FlockOperation::Unlock)
                    .map_err(StateError::system("unlock the folder", &self.path))?;
                Ok(false)
            }
        }
    }

    /// What it is.
    ///
    /// # Errors
    /// [`StateError::System`], as while it is being started.
    pub fn record(&self) -> Result<Record, StateError> {
        self.read(RECORD_FILE)
    }

    /// How it has ended.
    ///
    /// # Errors
    /// [`StateError::System`], as where it has not.
    pub fn exit(&self) -> Result<Exit, StateError> {
        self.read(EXIT_FILE)
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<T, StateError> {
        let path = self.path.join(name);
        let failed = StateError::system::<io::Error>("read", &path);
        let read = || -> io::Result<T> {
            let mut text = Vec::new();
            self.file(name)?.take(MAX_FILE).read_to_end(&mut text)?;
            Ok(serde_json::from_slice(&text)?)
        };
        read().map_err(failed)
    }

    /// A file of its folder, open for reading.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn file(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::NOFOLLOW.bits() | OFlags::NONBLOCK.bits();
        File::options()
            .read(true)
            .custom_flags(flags.cast_signed())
            .open(self.path.join(name))
    }

    /// A connection to its keeper.
    ///
    /// # Errors
    /// [`StateError::System`].
    pub fn keeper(&self) -> Result<OwnedFd, StateError> {
        let connect = || -> rustix::io::Result<OwnedFd> {
            let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
            let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
            rustix::net::connect(&socket, &SocketAddrUnix::new(self.short(KEEPER_SOCKET))?)?;
            Ok(socket)
        };
        connect().map_err(StateError::system("reach the keeper of", &self.path))
    }

    /// A connection to its control socket.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn api(&self) -> io::Result<UnixStream> {
        UnixStream::connect(self.short(cachot_vmm::protocol::API_SOCKET))
    }

    fn short(&self, name: &str) -> String {
        format!("/proc/self/fd/{}/{name}", self.folder.as_raw_fd())
    }

    /// Removes what is left of a VM that has ended.
    ///
    /// # Errors
    /// [`StateError::Running`] or [`StateError::System`].
    pub fn remove(self) -> Result<(), StateError> {
        if self.is_kept()? {
            return Err(StateError::Running(self.name.to_string()));
        }
        // Others hold it for a moment only, to see whether it is free.
        flock(&self.folder, FlockOperation::LockExclusive)
            .map_err(StateError::system("lock the folder", &self.path))?;
        fs::remove_dir_all(&self.path).map_err(StateError::system("remove", &self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state_dir::StateDir;
    use crate::vm::OUTPUT_LOG;
    use std::os::unix::fs::symlink;

    fn name(text: &str) -> VmName {
        text.parse().expect("a name")
    }

    fn running(root: &Path, text: &str) -> StateDir {
        StateDir::create(root, Some(&name(text))).expect("created")
    }

    /// Makes a VM that has ended with this code.
    fn ended(root: &Path, text: &str, code: u8) {
        let state = running(root, text);
        let exit = Exit {
            code,
            error: None,
            ended: 7,
        };
        let json = serde_json::to_vec(&exit).expect("plain data");
        state.file(EXIT_FILE, &json).expect("written");
        state.keep();
    }

    /// Leaves what is left of a VM whose processes were killed.
    fn killed(root: &Path, text: &str) {
        let path = root.join("vms").join(text);
        fs::create_dir_all(&path).expect("made");
        fs::write(path.join(OUTPUT_LOG), "x").expect("written");
    }

    #[test]
    fn test_running_tells_those_that_run_from_those_that_ended_and_those_there_never_were() {
        let root = tempfile::tempdir().expect("a folder");
        let _web = running(root.path(), "web");
        ended(root.path(), "job", 3);

        let web = Existing::running(root.path(), &name("web")).expect("it runs");
        assert!(web.is_kept().expect("known") && web.exit().is_err());
        let job = Existing::find(root.path(), &name("job")).expect("it is there");
        assert_eq!(job.exit().expect("known").code, 3);
        let result = Existing::running(root.path(), &name("job"));
        assert!(matches!(result, Err(StateError::Ended(_))), "{result:?}");
        let result = Existing::running(root.path(), &name("nobody"));
        assert!(matches!(result, Err(StateError::NoVm(_))), "{result:?}");
    }

    #[test]
    fn test_all_lists_by_name_and_leaves_out_what_killed_processes_left() {
        let root = tempfile::tempdir().expect("a folder");
        assert!(Existing::all(root.path()).expect("listed").is_empty());
        let _web = running(root.path(), "web");
        ended(root.path(), "job", 0);
        killed(root.path(), "lost");
        // Things that no cachot has put there.
        fs::write(root.path().join("vms/a-file"), "x").expect("written");
        fs::create_dir(root.path().join("vms/no name")).expect("made");

        let all = Existing::all(root.path()).expect("listed");
        let names: Vec<_> = all.iter().map(|vm| vm.name().to_string()).collect();
        assert_eq!(names, ["job", "web"]);
    }

    #[test]
    fn test_remove_takes_what_has_ended_and_refuses_what_runs() {
        let root = tempfile::tempdir().expect("a folder");
        let _web = running(root.path(), "web");
        ended(root.path(), "job", 0);
        let find = |text| Existing::find(root.path(), &name(text));

        find("job").expect("there").remove().expect("removed");
        assert!(matches!(find("job"), Err(StateError::NoVm(_))));
        let result = find("web").expect("there").remove();
        assert!(matches!(result, Err(StateError::Running(_))), "{result:?}");
        assert!(find("web").expect("there").is_kept().expect("known"));
    }

    #[test]
    fn test_file_that_is_a_link_is_not_followed_and_nonsense_is_no_record() {
        let root = tempfile::tempdir().expect("a folder");
        let web = running(root.path(), "web");
        let elsewhere = root.path().join("elsewhere");
        fs::write(&elsewhere, "x").expect("written");
        symlink(&elsewhere, web.path().join(OUTPUT_LOG)).expect("linked");
        fs::write(web.path().join(RECORD_FILE), "{}").expect("written");

        let vm = Existing::find(root.path(), &name("web")).expect("there");
        assert!(vm.file(OUTPUT_LOG).is_err());
        assert!(vm.record().is_err());
        assert!(vm.file(RECORD_FILE).is_ok(), "control: a file is opened");
    }

    #[test]
    fn test_keeper_is_reached_while_it_listens() {
        let root = tempfile::tempdir().expect("a folder");
        let web = running(root.path(), "web");
        let vm = Existing::find(root.path(), &name("web")).expect("there");
        assert!(vm.keeper().is_err());
        let _listener = web.listen_for_packets(KEEPER_SOCKET).expect("listening");
        vm.keeper().expect("connected");
    }
}
