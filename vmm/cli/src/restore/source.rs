//! What copies of a VM are made of: an image that was checked, or a live VM's own.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use cachot_custody::audit::Access;
use cachot_secrets::Name;
use cachot_snapshot::image::{
    Digest, HostKey, Identities, Image, ImageId, Machine, PartName, Residue, Secret as Declared,
    TrustedKeys, copy_disk, memfd::memory_file,
};
use zeroize::Zeroizing;

use crate::args::{ImageArgs, KeepingArgs};
use crate::audit;
use crate::guest_files::{self, Role};
use crate::launch::{DiskMaker, Launch, open_kvm};
use crate::state_dir::StateDir;
use crate::vm::First;
use crate::vm::error::{RunError, system};
use crate::vm::record::{Disk, Record, Workload};
use crate::vm::secrets::{redeclare, resolve};

/// Name of a writable disk in the state folder.
pub const DISK_FILE: &str = "disk-0";

/// What copies of a VM are made of. Nothing of it changes any more.
pub struct Source {
    /// Guest RAM, to be mapped privately.
    pub memory: OwnedFd,
    /// The machine's state.
    pub state: OwnedFd,
    /// The redaction plan.
    pub plan: OwnedFd,
    /// The key of the commitments to values, where this host has it.
    pub key: Option<Zeroizing<[u8; 32]>>,
    /// The machine's shape.
    pub machine: Machine,
    /// BLAKE3 of the kernel's command line.
    pub cmdline: Digest,
    /// The disk.
    pub disk: Option<SourceDisk>,
    /// The secrets, without values.
    pub secrets: Vec<Declared>,
    /// How the workload is run.
    pub workload: Workload,
    /// The images that copies descend from.
    pub lineage: Vec<ImageId>,
    /// Name of the VM that copies are made of, if it is no image.
    pub parent: Option<String>,
}

/// A disk that copies begin with.
pub struct SourceDisk {
    /// As it is written down.
    pub record: Disk,
    /// The copy of a disk that the guest can write to; another one is opened by its path again.
    pub copy: Option<File>,
}

impl Source {
    /// Checks an image and reads it.
    ///
    /// # Errors
    /// [`RunError::Image`], or [`RunError::Workload`].
    pub fn open(path: &Path, args: &ImageArgs, root: &Path) -> Result<Self, RunError> {
        let mut image = Image::open(path, &TrustedKeys::load(root)?)?;
        if let Some(identity) = &args.identity {
            image.set_identities(Identities::load(identity)?);
        }
        let residue = match args.dangerously_keep_residue {
            true => Residue::Accept,
            false => Residue::Refuse,
        };
        let cpu = cachot_vmm::host_cpu(&open_kvm(Path::new("/dev/kvm"))?);
        image.check_restorable(&cpu.map_err(RunError::HostCpu)?, residue)?;
        let memory = match args.trust_image {
            true => image
                .trusted_memory()?
                .try_clone()
                .map_err(system("open the image's memory"))?
                .into(),
            false => image.load_memory()?,
        };
        let part = |name| -> Result<OwnedFd, RunError> {
            let bytes = image.read(name)?;
            memory_file(&bytes).map_err(system("make a memory file"))
        };
        // Of no use here, but an image that was changed is not what was signed.
        image.read(PartName::Needles)?;
        let manifest = image.manifest();
        let own = HostKey::load(root)?.filter(|key| key.public() == manifest.host_key);
        let key = own.map(|key| key.commitment_key(&manifest.id));
        let workload = serde_json::from_value(manifest.guest.keeper.clone());
        let workload = workload.map_err(|error| RunError::Workload(path.to_owned(), error))?;
        let disk = match manifest.guest.disks.first() {
            None => None,
            Some(disk) => Some(SourceDisk {
                record: Disk {
                    path: disk.source.clone().into(),
                    read_only: disk.read_only,
                    length: disk.length,
                },
                copy: disk
                    .part
                    .map(|name| copy_of(&image, name, root))
                    .transpose()?,
            }),
        };
        Ok(Self {
            memory,
            state: part(PartName::State)?,
            plan: part(PartName::Plan)?,
            key,
            machine: manifest.machine.clone(),
            cmdline: manifest.guest.cmdline,
            disk,
            secrets: manifest.secrets.clone(),
            workload,
            lineage: manifest.descent(),
            parent: None,
        })
    }

    /// One copy, with these declarations in place of the recorded ones, and its secrets resolved.
    ///
    /// # Errors
    /// Those of [`RunError`] that speak of secrets and files.
    pub fn launch(
        &self,
        declared: &[String],
        dropped: &[Name],
        keeping: &KeepingArgs,
    ) -> Result<Launch<'_>, RunError> {
        let declarations = redeclare(&self.secrets, declared, dropped)?;
        let secrets = resolve(&declarations, &keeping.requester())
            .inspect_err(|error| audit::start_failed(error, Access::Rehydrate, keeping))?;
        let duplicate =
            |file: &OwnedFd| file.try_clone().map_err(system("open a part of the image"));
        let mut workload = self.workload.clone();
        workload.secrets_audit |= keeping.secrets_audit;
        let exported = secrets.iter().filter(|secret| secret.declared.export_env);
        workload.start.secret_env = exported.map(|one| one.declared.name.to_string()).collect();
        workload.start.secrets = secrets
            .iter()
            .map(|one| one.declared.name.to_string())
            .collect();
        let record = Record {
            name: String::new(),
            created: 0,
            keeper: 0,
            detached: false,
            cpus: self.machine.cpus,
            memory: self.machine.memory.iter().map(|region| region.length).sum(),
            cmdline: self.cmdline,
            disk: self.disk.as_ref().map(|disk| disk.record.clone()),
            secrets: secrets.iter().map(|one| one.declared.clone()).collect(),
            lineage: self.lineage.clone(),
            workload,
        };
        Ok(Launch {
            record,
            secrets,
            first: First::Image {
                memory: duplicate(&self.memory)?,
                state: duplicate(&self.state)?,
                plan: duplicate(&self.plan)?,
                key: self.key.clone(),
            },
            disk: self
                .disk
                .as_ref()
                .map(|disk| -> DiskMaker<'_> { Box::new(move |state| disk.make(state)) }),
            is_copy: true,
            parent: self.parent.clone(),
            timeout: None,
        })
    }
}

impl SourceDisk {
    /// The disk of one copy, and whether it refuses writes.
    fn make(&self, state: &StateDir) -> Result<(File, bool), RunError> {
        let Some(copy) = &self.copy else {
            let file = guest_files::open(Role::Rootfs, &self.record.path)?;
            if file.len != self.record.length {
                return Err(RunError::OtherDisk(self.record.path.clone()));
            }
            return Ok((file.file, true));
        };
        let file = state.writable_file(DISK_FILE)?;
        copy_disk(copy, &file).map_err(system("copy the disk"))?;
        Ok((file, false))
    }
}

/// A checked copy of an image's disk, without a name.
fn copy_of(image: &Image, name: PartName, root: &Path) -> Result<File, RunError> {
    let file = nameless(root).map_err(system("make a file for the disk"))?;
    image.copy_disk(name, &file)?;
    Ok(file)
}

/// A file without a name, on the file system of the state folders.
pub fn nameless(root: &Path) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    Ok(rustix::fs::open(root, flags, Mode::RUSR | Mode::WUSR)?.into())
}
