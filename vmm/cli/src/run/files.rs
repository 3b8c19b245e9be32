//! The files that a VM boots from, opened and checked before anything starts.

use std::path::Path;

use cachot_control::Root;

use super::RunError;
use crate::args::RunArgs;
use crate::guest_files::{
    GuestFile, Role, check_memory, guest_folders, open, open_or_default, open_writable,
};
use crate::settings;

/// What a VM boots from.
pub struct Files {
    pub kernel: GuestFile,
    pub initrd: Option<GuestFile>,
    pub rootfs: Option<GuestFile>,
}

impl Files {
    /// Opens them.
    ///
    /// # Errors
    /// [`RunError::GuestFile`].
    pub fn open(args: &RunArgs) -> Result<Self, RunError> {
        let own = std::env::current_exe().ok();
        let folders = guest_folders(settings::guest(), own.as_deref());
        let kernel = open_or_default(Role::Kernel, args.kernel.as_deref(), &folders)?;
        let initrd = match args.initrd.as_deref() {
            Some(path) if path == Path::new("none") => None,
            named => Some(open_or_default(Role::Initrd, named, &folders)?),
        };
        check_memory(args.memory().bytes(), &kernel, initrd.as_ref())?;
        let rootfs = match &args.rootfs {
            None => None,
            Some(rootfs) if rootfs.root == Root::Writable => {
                Some(open_writable(Role::Rootfs, &rootfs.path)?)
            }
            Some(rootfs) => Some(open(Role::Rootfs, &rootfs.path)?),
        };
        Ok(Self {
            kernel,
            initrd,
            rootfs,
        })
    }
}
