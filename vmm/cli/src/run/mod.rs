//! `cachot run`: from a command line to a booted VM, with nothing started half-way.
//!
//! What costs nothing is tried first, and nothing exists outside this process before all references
//! are resolved and all files are open. From then on every way out kills the monitor and removes the
//! state folder.

mod bundle;
mod files;
mod stored;

use std::ffi::OsString;

use cachot_control::{Start, WindowSize};
use cachot_custody::audit::Access;
use cachot_secrets::Declarations;
use cachot_snapshot::image::Digest;

use crate::args::RunArgs;
use crate::audit;
use crate::launch::{DiskMaker, Launch, launch};
pub use crate::vm::error::{OWN_FAILURE, RunError};
use crate::vm::record::{Disk, Record, Workload};
use crate::vm::secrets::{Secret, resolve};
use crate::vm::{First, SESSION, window};
use files::Files;

/// The kernel's command line: a console for the kernel's own messages, of which only errors are
/// shown; a reset after a panic, which ends the VM; nothing probed for that this machine lacks; code for
/// several CPUs left as it is where there is one.
const CMDLINE: &str = "console=ttyS0 quiet panic=-1 reboot=acpi pci=off 8250.nr_uarts=1 \
                       i8042.noaux i8042.nokbd tsc=reliable random.trust_cpu=on noreplace-smp";

/// Boots a VM, runs the command in it, and returns the exit code to end with.
///
/// # Errors
/// See [`RunError`].
pub fn run(args: &RunArgs) -> Result<u8, RunError> {
    let window = window(args.tty)?;
    launch(&args.keeping, args.interactive, || prepare(args, window))
}

/// Resolves the secrets, then opens the files.
fn prepare(args: &RunArgs, window: Option<WindowSize>) -> Result<Launch<'static>, RunError> {
    let requester = args.keeping.requester();
    let bundle = bundle::of_run(args)?;
    let declared: Vec<_> = args
        .secrets
        .iter()
        .chain(&bundle.declarations)
        .cloned()
        .collect();
    let mut declarations = Declarations::parse(stored::expand(&declared, &requester)?);
    if let Some(path) = &args.secrets_env_file {
        declarations = declarations.with_env_file(path);
    }
    let secrets = resolve(&declarations, &requester)
        .inspect_err(|error| audit::start_failed(error, Access::Materialize, &args.keeping))?;
    let files = Files::open(args)?;
    let cmdline = match &args.cmdline {
        Some(more) => format!("{CMDLINE} {more}"),
        None => CMDLINE.to_owned(),
    };
    let rootfs = args.rootfs.as_ref().zip(files.rootfs);
    let disk = rootfs.as_ref().map(|(rootfs, file)| Disk {
        path: std::path::absolute(&rootfs.path).unwrap_or_else(|_| rootfs.path.clone()),
        read_only: rootfs.is_read_only(),
        length: file.len,
    });
    let record = Record {
        name: String::new(),
        created: 0,
        keeper: 0,
        detached: false,
        cpus: args.cpus().get(),
        memory: args.memory().bytes(),
        cmdline: Digest::of(cmdline.as_bytes()),
        disk,
        secrets: secrets.iter().map(|one| one.declared.clone()).collect(),
        lineage: Vec::new(),
        workload: Workload {
            start: start(args, bundle.env, &secrets, window),
            withheld: false,
            secrets_audit: args.keeping.secrets_audit,
        },
    };
    Ok(Launch {
        record,
        secrets,
        first: First::Kernel {
            kernel: files.kernel.file,
            initrd: files.initrd.map(|file| file.file),
            cmdline,
        },
        disk: rootfs.map(|(rootfs, file)| -> DiskMaker<'static> {
            let read_only = rootfs.is_read_only();
            Box::new(move |_| Ok((file.file, read_only)))
        }),
        is_copy: false,
        parent: None,
        timeout: args.timeout,
    })
}

fn start(
    args: &RunArgs,
    bundle: Vec<(String, String)>,
    secrets: &[Secret],
    terminal: Option<WindowSize>,
) -> Start {
    let mut env = bundle;
    // What a bundle points out, a secret of the same name wins over, as over all that an image sets.
    env.retain(|(name, _)| {
        secrets
            .iter()
            .all(|secret| secret.declared.name.as_str() != name)
    });
    if terminal.is_some()
        && let Some(term) =
            std::env::var_os("TERM").and_then(|term| OsString::into_string(term).ok())
    {
        env.push(("TERM".to_owned(), term));
    }
    // Of a variable that is given twice the last one counts.
    env.extend(args.env.iter().cloned());
    let name = |secret: &Secret| secret.declared.name.to_string();
    let exported = secrets.iter().filter(|secret| secret.declared.export_env);
    Start {
        session: SESSION,
        root: args.rootfs.as_ref().map(|rootfs| rootfs.root),
        argv: args.command.clone(),
        env,
        secrets: secrets.iter().map(name).collect(),
        secret_env: exported.map(name).collect(),
        user: args.user.clone(),
        workdir: args.workdir.clone(),
        terminal,
        stdin: args.interactive,
    }
}
