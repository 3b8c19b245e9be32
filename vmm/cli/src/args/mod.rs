//! The command line: what can be written on it, and what each part is read as.

mod bundle;
mod import;
mod keeping;
mod key;
mod owner;
mod restore;
mod run;
mod secret;
mod snapshot;
mod vm;

use std::error::Error;

use clap::{Args, Parser, Subcommand};

pub use bundle::{
    AddSshKeyArgs, BundleCommand, EncryptArgs, GitPart, PlaceArgs, ReencryptArgs, RemoveSshKeyArgs,
    SetEnvArgs, SetGitArgs, ShowArgs, ValidateArgs,
};
pub use import::{
    AegisArgs, AgentlabArgs, BhattiArgs, DotenvArgs, ImportCommand, IntoArgs, PolicyArgs, SopsArgs,
};
pub use keeping::KeepingArgs;
pub use key::{KeyCommand, KeyStatusArgs, RecipientArgs, SourceArgs};
pub use owner::OwnerArgs;
pub use restore::{ForkArgs, ImageArgs, RestoreArgs};
pub use run::{Rootfs, RunArgs};
pub use secret::{
    AuditArgs, AuditCommand, AuditVerifyArgs, CheckArgs, ExportArgs, HistoryArgs, RollbackArgs,
    RotateArgs, SecretCommand, SecretListArgs, SecretName, SecretNameArgs, SetArgs, ValueArgs,
};
pub use snapshot::{
    CreateArgs, DeleteArgs, InspectArgs, ListArgs, OnResidue, ScanArgs, SnapshotCommand, VerifyArgs,
};
pub use vm::{ExecArgs, LogsArgs, NameArgs, PsArgs, RmArgs, StopArgs};

const EXIT_CODES: &str = "\
Exit codes of `cachot run`:
  0-255    what the command in the guest ended with; 128+N if signal N ended it
  124      --timeout was reached
  125      cachot itself failed, or the guest did before the command had ended
  126      the command could not be run
  127      the command was not found
The other commands end with 0, with 1 if they found something wrong, and with 125 if they were used wrongly.

Environment (it beats the settings file, and options beat both):
  CACHOT_CONFIG  settings file (default: $XDG_CONFIG_HOME/cachot/config.yaml, else ~/.config/cachot/config.yaml; for
                 root /etc/cachot/config.yaml); resources/bundles.md has its keys
  CACHOT_STATE   folder for the state of running VMs, the store of secrets, the audit log, the key that images and
                 logs are signed with, and trusted keys
                 (default: $XDG_STATE_HOME/cachot, else ~/.local/state/cachot; for root /var/lib/cachot)
  CACHOT_GUEST   folder with the guest's `vmlinux` and `initrd`
                 (default: ../guest or ../share/cachot, seen from the folder of this program)
  CACHOT_VMM     the monitor program (default: `cachot-vmm` in the folder of this program)";

/// Run commands in microVMs that are given secrets and whose snapshots forget them.
#[derive(Debug, Parser)]
#[command(name = "cachot", version, after_help = EXIT_CODES, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot a microVM, run one command in it, and end with the command's exit code
    Run(Box<RunArgs>),
    /// List VMs
    Ps(PsArgs),
    /// Show what the workload of a detached VM has printed
    Logs(LogsArgs),
    /// Run a further command in a VM
    Exec(ExecArgs),
    /// End a VM's workload, and with it the VM
    Stop(StopArgs),
    /// Remove what is left of VMs that have ended
    Rm(RmArgs),
    /// Stop the vCPUs of a VM
    Pause(NameArgs),
    /// Let a paused VM go on
    Resume(NameArgs),
    /// Go on with the VM of a snapshot, its secrets back in place
    Restore(Box<RestoreArgs>),
    /// Make copies of a VM, or of a snapshot's, each with secrets of its own
    Fork(Box<ForkArgs>),
    /// Keep secrets in the store, and look at references
    #[command(subcommand)]
    Secret(SecretCommand),
    /// Look after the key that the store is encrypted with
    #[command(subcommand)]
    Key(KeyCommand),
    /// Make, look at and change bundles of secrets
    #[command(subcommand)]
    Bundle(Box<BundleCommand>),
    /// Take, look at and check snapshots
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Say what this machine can do, and what to do about what it cannot
    Doctor(DoctorArgs),
}

/// `cachot doctor`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 if VMs can run here, 1 if not, 125 if the command line is wrong."
)]
pub struct DoctorArgs {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments that something secret may have been typed in place of: a value, a private key.
const NOT_REPEATED: [&str; 5] = [
    "<NAME>",
    "NAME[@VERSION]",
    "age1...",
    "SCHEME:REF",
    "FROM=NAME",
];

/// A usage error of clap as one line with a hint; without what may be a value.
pub fn usage_line(error: &clap::Error) -> String {
    use clap::error::{ContextKind, ErrorKind};
    let context = |kind| error.get(kind).map(ToString::to_string).unwrap_or_default();
    match error.kind() {
        ErrorKind::UnknownArgument if context(ContextKind::Usage).contains("cachot secret") => {
            return "there is an argument that this command does not know: a value is never one: see --help"
                .to_owned();
        }
        ErrorKind::ValueValidation => {
            let argument = context(ContextKind::InvalidArg);
            if let Some(reason) = error.source()
                && NOT_REPEATED.iter().any(|name| argument.contains(name))
            {
                return format!("invalid value for '{argument}': {reason}: see --help");
            }
        }
        _ => {}
    }
    let text = error.to_string();
    let collapse = |part: &str| part.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut parts = text.split("\n\n").map(collapse);
    let first = parts.next().unwrap_or_default();
    let mut line = first.strip_prefix("error: ").unwrap_or(&first).to_owned();
    for tip in parts.filter_map(|part| part.strip_prefix("tip: ").map(str::to_owned)) {
        line.push_str("; ");
        line.push_str(&tip);
    }
    line.push_str(": see --help");
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use std::time::Duration;

    fn parse(words: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(words)
    }

    fn run(words: &[&str]) -> RunArgs {
        let mut line = vec!["cachot", "run"];
        line.extend(words);
        match parse(&line).expect("a correct command line").command {
            Command::Run(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn test_cli_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn test_run_defaults() {
        let args = run(&["--", "true"]);
        assert_eq!((args.cpus().get(), args.memory().bytes()), (1, 256 << 20));
        assert_eq!(args.command, ["true"]);
        assert!(!args.tty && !args.interactive && !args.keeping.dangerously_allow_swap);
    }

    #[test]
    fn test_run_everything() {
        let args = run(&[
            "--memory",
            "1G",
            "--cpus=4",
            "-it",
            "-e",
            "A=b=c",
            "--env",
            "EMPTY=",
            "--rootfs",
            "a,b.ext4,ro",
            "--timeout",
            "1m 30s",
            "--",
            "sh",
            "-c",
            "--help",
        ]);
        assert_eq!((args.cpus().get(), args.memory().bytes()), (4, 1 << 30));
        assert!(args.tty && args.interactive);
        assert_eq!(
            args.env,
            [
                ("A".to_owned(), "b=c".to_owned()),
                ("EMPTY".to_owned(), String::new())
            ]
        );
        let rootfs = args.rootfs.expect("given");
        assert_eq!(
            (rootfs.path.to_str(), rootfs.root),
            (Some("a,b.ext4"), cachot_control::Root::ReadOnly)
        );
        assert_eq!(args.timeout, Some(Duration::from_secs(90)));
        assert_eq!(args.command, ["sh", "-c", "--help"]);
    }

    #[test]
    fn test_usage_line_is_one_line_with_the_reason_and_a_hint() {
        let cases: &[(&[&str], &[&str])] = &[
            (
                &["run", "--cpus", "0", "--", "x"],
                &["'0'", "--cpus", "at least 1"],
            ),
            (&["run", "--memory", "3M", "--", "x"], &["'3M'", "--memory"]),
            (
                &["run", "--env", "=x", "--", "x"],
                &["--env", "write KEY=VALUE"],
            ),
            (
                &["run", "--timeout", "10", "--", "x"],
                &["--timeout", "unit"],
            ),
            (
                &["run", "--memroy", "1G", "--", "x"],
                &["--memroy", "--memory"],
            ),
            (&["run"], &["required", "CMD"]),
            (&["secret", "check"], &["required", "NAME=SCHEME:REF"]),
            (&["fly"], &["'fly'"]),
        ];
        for (words, expected) in cases {
            let mut line = vec!["cachot"];
            line.extend(*words);
            let error = parse(&line).expect_err("a wrong command line");
            let line = usage_line(&error);
            assert!(!line.contains('\n'), "{line}");
            for text in *expected {
                assert!(line.contains(text), "{words:?}: {line}");
            }
            assert!(line.ends_with("see --help"), "{line}");
        }
    }
}
