//! `cachot run`.

use std::path::PathBuf;
use std::time::Duration;

use cachot_control::Root;
use cachot_custody::bundle::BundleName;
use clap::Args;

use super::keeping::KeepingArgs;
use crate::resources::{Cpus, Memory};
use crate::settings;

const RUN_EXAMPLES: &str = "\
Examples:
  cachot run -- uname -a
  cachot run --secret API_KEY=env:API_TOKEN -- sh -c 'wc -c /run/secrets/API_KEY'
  cachot run --secret DB=dotenv:.env#DB_PASSWORD,uid=1000,env --user 1000 -- ./job
  cachot run --secrets-bundle default --rootfs debian.ext4 -- git clone git@github.com:me/repo
  cachot run --rootfs debian.ext4 --memory 1G --cpus 2 -it -- bash
  tar c src | cachot run -i --timeout 10m -- tar t

Signals: SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1 and SIGUSR2 are passed on to the command. A second SIGINT or
SIGTERM within 2 seconds stops the VM at once, and so does any of them before the command has started.
A guest that has not started the command after 120 seconds is given up.

Exit codes: the command's own; 128+N for signal N; 124 timeout; 125 cachot or guest failed; 126 command cannot
be run; 127 command not found.";

/// `cachot run`.
#[derive(Debug, Args)]
#[command(after_help = RUN_EXAMPLES)]
pub struct RunArgs {
    /// Guest kernel: an ELF vmlinux or a bzImage
    #[arg(long, value_name = "FILE", help_heading = "Machine")]
    pub kernel: Option<PathBuf>,

    /// Initial RAM disk with cachot's init as /init; `none` boots without one
    #[arg(long, value_name = "FILE", help_heading = "Machine")]
    pub initrd: Option<PathBuf>,

    /// ext4 image to use as the root file system: under an overlay in memory, or with `,ro` read-only, or with `,rw`
    /// for writing; without `,rw` the image itself is never written to
    #[arg(long, value_name = "IMAGE[,ro|,rw]", value_parser = parse_rootfs, help_heading = "Machine")]
    pub rootfs: Option<Rootfs>,

    /// Number of virtual CPUs (default: `cpus` of the settings, else 1)
    #[arg(
        long,
        value_name = "N",
        help_heading = "Machine",
        allow_hyphen_values = true
    )]
    pub cpus: Option<Cpus>,

    /// Guest memory, in MiB or with a unit (M, G); a multiple of 2M (default: `memory` of the settings, else 256M)
    #[arg(
        long,
        value_name = "SIZE",
        help_heading = "Machine",
        allow_hyphen_values = true
    )]
    pub memory: Option<Memory>,

    /// Words to append to the kernel's command line
    #[arg(
        long,
        value_name = "TEXT",
        help_heading = "Machine",
        allow_hyphen_values = true
    )]
    pub cmdline: Option<String>,

    /// How the VM is kept
    #[command(flatten)]
    pub keeping: KeepingArgs,

    /// Secret to deliver as /run/secrets/NAME, by reference: store:NAME, env:VARIABLE, file:PATH, dotenv:PATH#KEY,
    /// bundle:NAME#PLACE, vault:MOUNT/data/PATH#FIELD, exec:PROGRAM ARGUMENTS, helper:REF or systemd:NAME; options:
    /// mode=0400, uid=0, gid=0, and env to export it to the command as well; '*' is every secret of the store
    #[arg(
        long = "secret",
        value_name = "NAME=SCHEME:REF[,OPTION]...",
        help_heading = "Secrets"
    )]
    pub secrets: Vec<String>,

    /// dotenv file of which every key becomes a secret that is exported as well
    #[arg(long, value_name = "FILE", help_heading = "Secrets")]
    pub secrets_env_file: Option<PathBuf>,

    /// Bundle to deliver: its variables are exported, and git, claude and ssh find what is theirs in /run/secrets
    /// (default: secrets_bundle of the settings, else `default`)
    #[arg(long, value_name = "NAME", num_args = 0..=1, help_heading = "Secrets")]
    pub secrets_bundle: Option<Option<BundleName>>,

    /// Environment variable of the command; wins over a secret of the same name
    #[arg(long = "env", short = 'e', value_name = "KEY=VALUE", value_parser = parse_variable, help_heading = "Command")]
    pub env: Vec<(String, String)>,

    /// User to run the command as, looked up in the guest: USER[:GROUP] or UID[:GID]
    #[arg(long, short = 'u', value_name = "USER", help_heading = "Command")]
    pub user: Option<String>,

    /// Working directory of the command
    #[arg(long, short = 'w', value_name = "DIR", help_heading = "Command")]
    pub workdir: Option<String>,

    /// Send SIGTERM to the command after this time, for example 30s or 5m, and stop the VM 5 seconds later
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, help_heading = "Command")]
    pub timeout: Option<Duration>,

    /// Connect standard input; it is /dev/null otherwise
    #[arg(long, short = 'i', help_heading = "Command")]
    pub interactive: bool,

    /// Give the command a terminal of the size of this one
    #[arg(long, short = 't', help_heading = "Command")]
    pub tty: bool,

    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<String>,
}

impl RunArgs {
    /// Number of virtual CPUs.
    pub fn cpus(&self) -> Cpus {
        self.cpus.or(settings::in_force().cpus).unwrap_or_default()
    }

    /// Guest memory.
    pub fn memory(&self) -> Memory {
        self.memory
            .or(settings::in_force().memory)
            .unwrap_or_default()
    }
}

/// The root file system's image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rootfs {
    /// The image.
    pub path: PathBuf,
    /// How it is mounted.
    pub root: Root,
}

impl Rootfs {
    /// Whether the guest's disk refuses writes.
    pub fn is_read_only(&self) -> bool {
        self.root != Root::Writable
    }
}

fn parse_rootfs(text: &str) -> Result<Rootfs, String> {
    let modes = [(",ro", Root::ReadOnly), (",rw", Root::Writable)];
    let (path, root) = modes
        .iter()
        .find_map(|(suffix, root)| Some((text.strip_suffix(suffix)?, *root)))
        .unwrap_or((text, Root::Overlay));
    if path.is_empty() {
        return Err("name an ext4 image".to_owned());
    }
    Ok(Rootfs {
        path: path.into(),
        root,
    })
}

pub(super) fn parse_variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}

pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("it must be longer than nothing".to_owned()),
        Ok(duration) => Ok(duration),
        Err(_) => Err("write a number with a unit, as in 500ms, 30s, 5m or 1h".to_owned()),
    }
}
