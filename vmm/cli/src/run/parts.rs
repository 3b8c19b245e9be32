//! What a VM is made from: secrets resolved, files opened, all of it checked before anything starts.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use cachot_secrets::{
    Declarations, Resolved, Schemes, SealedError, SealedValue, Warning, scrub_environment,
};
use cachot_vmm::protocol::SecretInfo;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::error::RunError;
use crate::args::RunArgs;
use crate::guest_files::{
    GUEST_VARIABLE, GuestFile, Role, check_memory, guest_folders, open, open_or_default,
};

/// What is open at once: a descriptor a secret, and some dozens.
const MAX_DESCRIPTORS: u64 = 4096;

/// What a VM is made from, open and checked.
pub(super) struct Parts {
    pub kvm: File,
    pub kernel: GuestFile,
    pub initrd: Option<GuestFile>,
    pub rootfs: Option<GuestFile>,
    pub secrets: Vec<Secret>,
}

/// A secret as the monitor gets it.
pub(super) struct Secret {
    pub info: SecretInfo,
    pub value: SealedValue,
    /// Whether the command finds it in its environment as well.
    pub exported: bool,
}

impl Parts {
    /// Resolves the secrets, then opens the files.
    pub fn gather(args: &RunArgs) -> Result<Self, RunError> {
        let secrets = resolve(args)?;
        open_parts(args, secrets)
    }
}

/// Resolves all secrets, seals them, and takes them out of this process's environment.
fn resolve(args: &RunArgs) -> Result<Vec<Secret>, RunError> {
    let mut declarations = Declarations::parse(&args.secrets);
    if let Some(path) = &args.secrets_env_file {
        declarations = declarations.with_env_file(path);
    }
    raise_descriptor_limit();
    let resolved = declarations.resolve(&Schemes::default())?;
    warn(&resolved);
    let sealed = resolved.into_iter().map(seal).collect::<Result<_, _>>()?;
    scrub_environment(declarations.environment_variables())?;
    Ok(sealed)
}

/// Says what is amiss with the values themselves. That a scheme is plaintext, the user has chosen.
fn warn(secrets: &[Resolved]) {
    for secret in secrets {
        for warning in &secret.warnings {
            if let Warning::Short(_) = warning {
                eprintln!("cachot: warning: secret {}: {warning}", secret.name);
            }
        }
    }
}

fn seal(secret: Resolved) -> Result<Secret, SealedError> {
    Ok(Secret {
        value: secret.value.seal()?,
        info: SecretInfo {
            name: secret.name.to_string(),
            mode: secret.delivery.mode,
            uid: secret.delivery.uid,
            gid: secret.delivery.gid,
        },
        exported: secret.delivery.export_env,
    })
}

/// Every secret is an open file, here and in the monitor, which inherits the limit.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = limit
        .maximum
        .map_or(MAX_DESCRIPTORS, |maximum| maximum.min(MAX_DESCRIPTORS));
    if limit.current.is_some_and(|current| current < raised) {
        let limit = Rlimit {
            current: Some(raised),
            ..limit
        };
        // If it stays too low, the call that hits it says so.
        setrlimit(Resource::Nofile, limit).ok();
    }
}

fn open_parts(args: &RunArgs, secrets: Vec<Secret>) -> Result<Parts, RunError> {
    let folders = guest_folders(std::env::var_os(GUEST_VARIABLE), program().as_deref());
    let kernel = open_or_default(Role::Kernel, args.kernel.as_deref(), &folders)?;
    let initrd = match args.initrd.as_deref() {
        Some(path) if path == Path::new("none") => None,
        named => Some(open_or_default(Role::Initrd, named, &folders)?),
    };
    check_memory(args.memory.bytes(), &kernel, initrd.as_ref())?;
    let rootfs = match &args.rootfs {
        Some(rootfs) => Some(open(Role::Rootfs, &rootfs.path)?),
        None => None,
    };
    Ok(Parts {
        kvm: open_kvm(Path::new("/dev/kvm"))?,
        kernel,
        initrd,
        rootfs,
        secrets,
    })
}

fn open_kvm(path: &Path) -> Result<File, RunError> {
    File::options()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|source| RunError::Kvm {
            hint: match source.kind() {
                io::ErrorKind::NotFound => {
                    "load kvm-intel or kvm-amd and enable virtualisation in the firmware (see `cachot doctor`)"
                }
                io::ErrorKind::PermissionDenied => {
                    "add yourself to its group with `usermod -aG kvm USER` and log in again"
                }
                _ => "see `cachot doctor`",
            },
            source,
        })
}

/// This program, for finding what is installed with it.
pub(super) fn program() -> Option<PathBuf> {
    std::env::current_exe().ok()
}
