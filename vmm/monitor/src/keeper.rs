//! The keeper's side of the monitor: what to build, received and checked; and what to do when the keeper is
//! gone.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use cachot_devices::virtio::secrets::Secret;
use cachot_secrets::{Name, SealedError, SealedValue};
use rustix::net::sockopt;

use crate::protocol::{
    ChannelError, Config, FileRole, SOCKET_FD, STATE_FILES, SecretInfo, SnapshotRequest, ToKeeper,
    ToMonitor, receive, send,
};

/// Most vCPUs: local APIC id 255 means all of them.
pub const MAX_CPUS: u8 = 254;

/// Permission bits that a secret's file may have: nobody writes.
const MODE_MASK: u32 = 0o444;

/// All that a machine is made of.
#[derive(Debug)]
pub struct Setup {
    /// The machine.
    pub config: Config,
    /// `/dev/kvm`.
    pub kvm: OwnedFd,
    /// Where the machine's first state comes from.
    pub source: Source,
    /// Block device image, and whether it refuses writes.
    pub disk: Option<(File, bool)>,
    /// Listener for the control API.
    pub api: Option<UnixListener>,
    /// Listener for host connections to the guest's vsock ports.
    pub vsock: Option<UnixListener>,
    /// Where console output goes.
    pub console: Option<File>,
    /// Secrets, in the order in which they came.
    pub secrets: Vec<Secret>,
}

/// Where a machine's first state comes from.
#[derive(Debug)]
pub enum Source {
    /// A kernel, which is loaded and entered.
    Kernel {
        /// Kernel image.
        kernel: File,
        /// Initial RAM disk.
        initrd: Option<File>,
    },
    /// A snapshot, from which the machine goes on.
    Image {
        /// RAM.
        memory: OwnedFd,
        /// The machine's state.
        state: File,
        /// What is missing in RAM and state.
        plan: File,
    },
}

/// Why a set-up was refused.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The connection failed or carried something else.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The process was started by something else than a keeper.
    #[error(
        "descriptor {SOCKET_FD} is not a packet socket: the monitor is started by `cachot`, not by hand"
    )]
    NoSocket,
    /// A message at the wrong time.
    #[error("the keeper's messages are out of order: {0}")]
    Order(&'static str),
    /// Descriptors and their roles do not match.
    #[error("the keeper's descriptors do not match its configuration: {0}")]
    Files(&'static str),
    /// A number of vCPUs that is not possible.
    #[error("{0} vCPUs are not possible: give from 1 to {MAX_CPUS} (--cpus)")]
    Cpus(u8),
    /// A secret's name is not one, or comes twice; or its mode lets somebody write.
    #[error(
        "the keeper sent a secret with an illegal name or mode, or with a name that it had sent before"
    )]
    SecretInfo,
    /// What was handed over for a secret is not a sealed value.
    #[error("the secret {name} is not usable")]
    Secret {
        /// Name of the secret.
        name: Name,
        /// What is wrong.
        #[source]
        source: SealedError,
    },
}

/// The connection to the keeper.
#[derive(Debug)]
pub struct Keeper(OwnedFd);

impl Keeper {
    /// Takes over the descriptor that the keeper left for the monitor.
    ///
    /// # Errors
    /// [`SetupError::NoSocket`].
    pub fn inherited() -> Result<Self, SetupError> {
        // SAFETY: looking at a descriptor that may not be open does no harm; nobody closes it meanwhile.
        let inherited = unsafe { BorrowedFd::borrow_raw(SOCKET_FD) };
        if sockopt::socket_type(inherited) != Ok(rustix::net::SocketType::SEQPACKET) {
            return Err(SetupError::NoSocket);
        }
        // SAFETY: the descriptor is open, as was just seen, and this process, which has not opened anything
        // yet, has it from its parent for this purpose.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(SOCKET_FD) }))
    }

    /// Receives everything up to the order to boot.
    ///
    /// # Errors
    /// See [`SetupError`].
    pub fn receive_setup(&self) -> Result<Setup, SetupError> {
        let (ToMonitor::Configure(config), files) = receive(self.0.as_fd())? else {
            return Err(SetupError::Order("the configuration comes first"));
        };
        let mut setup = Setup::new(config, files)?;
        loop {
            match receive(self.0.as_fd())? {
                (ToMonitor::Secret(info), files) => setup.add_secret(info, files)?,
                (ToMonitor::Boot, files) if files.is_empty() => return Ok(setup),
                (ToMonitor::Boot, _) => {
                    return Err(SetupError::Files("one comes with the order to boot"));
                }
                (ToMonitor::Configure(_), _) => {
                    return Err(SetupError::Order("there is one configuration"));
                }
                (ToMonitor::Snapshot(_) | ToMonitor::Release, _) => {
                    return Err(SetupError::Order("there is no machine yet"));
                }
            }
        }
    }

    /// Tells the keeper something. A keeper that is gone needs no telling.
    ///
    /// # Errors
    /// See [`ChannelError`].
    pub fn tell(&self, message: &ToKeeper) -> Result<(), ChannelError> {
        match send(self.0.as_fd(), message, &[]) {
            Err(ChannelError::Closed) => Ok(()),
            other => other,
        }
    }

    /// What the keeper of a machine wants, asked when the connection became readable; none if it is gone.
    /// Anything else that it says is a violation of the protocol and counts as its end.
    #[must_use]
    pub fn wish(&self) -> Option<Wish> {
        match receive(self.0.as_fd()) {
            Ok((ToMonitor::Snapshot(request), files)) => Some(Wish::Snapshot(request, files)),
            Ok((ToMonitor::Release, _)) => Some(Wish::Release),
            _ => None,
        }
    }
}

/// What the keeper of a machine may want.
pub enum Wish {
    /// [`ToMonitor::Snapshot`], with its descriptors.
    Snapshot(SnapshotRequest, Vec<OwnedFd>),
    /// [`ToMonitor::Release`].
    Release,
}

impl AsRawFd for Keeper {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Setup {
    fn new(config: Config, files: Vec<OwnedFd>) -> Result<Self, SetupError> {
        if !(1..=MAX_CPUS).contains(&config.cpus) {
            return Err(SetupError::Cpus(config.cpus));
        }
        if config.files.len() != files.len() {
            return Err(SetupError::Files("there are more or fewer than announced"));
        }
        let (mut kvm, mut kernel, mut initrd, mut disk) = (None, None, None, None);
        let (mut api, mut vsock, mut console) = (None, None, None);
        let (mut memory, mut state, mut plan) = (None, None, None);
        for (role, file) in config.files.iter().zip(files) {
            let twice = match *role {
                FileRole::Kvm => kvm.replace(file).is_some(),
                FileRole::Kernel => kernel.replace(file.into()).is_some(),
                FileRole::Initrd => initrd.replace(file.into()).is_some(),
                FileRole::Disk { read_only } => disk.replace((file.into(), read_only)).is_some(),
                FileRole::ApiListener => api.replace(file.into()).is_some(),
                FileRole::VsockListener => vsock.replace(file.into()).is_some(),
                FileRole::Console => console.replace(file.into()).is_some(),
                FileRole::ImageMemory => memory.replace(file).is_some(),
                FileRole::ImageState => state.replace(file.into()).is_some(),
                FileRole::ImagePlan => plan.replace(file.into()).is_some(),
            };
            if twice {
                return Err(SetupError::Files("there are two for the same purpose"));
            }
        }
        let source = match (kernel, memory, state, plan) {
            (Some(kernel), None, None, None) => Source::Kernel { kernel, initrd },
            (None, Some(memory), Some(state), Some(plan)) if initrd.is_none() => Source::Image {
                memory,
                state,
                plan,
            },
            (None, None, None, None) => return Err(SetupError::Files("the kernel is missing")),
            _ => {
                return Err(SetupError::Files(
                    "there has to be a kernel, or the three parts of a snapshot",
                ));
            }
        };
        Ok(Self {
            kvm: kvm.ok_or(SetupError::Files("/dev/kvm is missing"))?,
            source,
            disk,
            api,
            vsock,
            console,
            secrets: Vec::new(),
            config,
        })
    }

    fn add_secret(&mut self, info: SecretInfo, files: Vec<OwnedFd>) -> Result<(), SetupError> {
        let [file] = <[OwnedFd; 1]>::try_from(files)
            .map_err(|_| SetupError::Files("a secret comes with one descriptor"))?;
        let name = info
            .name
            .parse::<Name>()
            .map_err(|_| SetupError::SecretInfo)?;
        let known = self.secrets.iter().any(|other| other.name == name);
        if known || info.mode & !MODE_MASK != 0 {
            return Err(SetupError::SecretInfo);
        }
        match SealedValue::try_from(file) {
            Ok(value) => {
                let SecretInfo { mode, uid, gid, .. } = info;
                self.secrets.push(Secret {
                    name,
                    mode,
                    uid,
                    gid,
                    value,
                });
                Ok(())
            }
            Err(source) => Err(SetupError::Secret { name, source }),
        }
    }
}

/// Removes the VM's state folder, which is the working directory, with the files that belong there. Done
/// when the keeper is gone and cannot do it; what cannot be removed stays for the next command's sweep.
pub fn remove_state_folder() {
    for name in STATE_FILES {
        drop(std::fs::remove_file(Path::new(name)));
    }
    // Fails where something else is in the folder, which then stays.
    if let Ok(folder) = std::env::current_dir() {
        drop(std::fs::remove_dir(folder));
    }
}
