//! The command line: what can be written on it, and what each part is read as.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::resources::{Cpus, Memory};

const EXIT_CODES: &str = "\
Exit codes of `cachot run`:
  0-255    what the command in the guest ended with; 128+N if signal N ended it
  124      --timeout was reached
  125      cachot itself failed, or the guest did before the command had ended
  126      the command could not be run
  127      the command was not found
The other commands end with 0, with 1 if they found something wrong, and with 125 if they were used wrongly.

Environment:
  CACHOT_STATE   folder for the state of running VMs
                 (default: $XDG_STATE_HOME/cachot, else ~/.local/state/cachot; for root /var/lib/cachot)
  CACHOT_GUEST   folder with the guest's `vmlinux` and `initrd`
                 (default: ../guest or ../share/cachot, seen from the folder of this program)
  CACHOT_VMM     the monitor program (default: `cachot-vmm` in the folder of this program)";

const RUN_EXAMPLES: &str = "\
Examples:
  cachot run -- uname -a
  cachot run --secret API_KEY=env:API_TOKEN -- sh -c 'wc -c /run/secrets/API_KEY'
  cachot run --secret DB=dotenv:.env#DB_PASSWORD,uid=1000,env --user 1000 -- ./job
  cachot run --rootfs debian.ext4 --memory 1G --cpus 2 -it -- bash
  tar c src | cachot run -i --timeout 10m -- tar t

Signals: SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1 and SIGUSR2 are passed on to the command. A second SIGINT or
SIGTERM within 2 seconds stops the VM at once, and so does any of them before the command has started.
A guest that has not started the command after 120 seconds is given up.

Exit codes: the command's own; 128+N for signal N; 124 timeout; 125 cachot or guest failed; 126 command cannot
be run; 127 command not found.";

const CHECK_EXAMPLES: &str = "\
Examples:
  cachot secret check API_KEY=env:API_TOKEN
  cachot secret check API_KEY=file:/run/keys/api DB=dotenv:.env#DB_PASSWORD --json

Exit codes: 0 if every reference has a value, 1 if not, 125 if the command line is wrong.";

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
    /// Look at secrets
    #[command(subcommand)]
    Secret(SecretCommand),
    /// Say what this machine can do, and what to do about what it cannot
    Doctor(DoctorArgs),
}

/// `cachot secret ...`.
#[derive(Debug, Subcommand)]
pub enum SecretCommand {
    /// Resolve references and say how long their values are; never shows a value
    Check(CheckArgs),
}

/// `cachot secret check`.
#[derive(Debug, Args)]
#[command(after_help = CHECK_EXAMPLES)]
pub struct CheckArgs {
    /// Names of secrets and where their values are
    #[arg(value_name = "NAME=SCHEME:REF", required = true)]
    pub references: Vec<String>,

    /// Print a JSON array with one object a reference
    #[arg(long)]
    pub json: bool,
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

    /// ext4 image to use as the root file system: under an overlay in memory, or with `,ro` read-only;
    /// the image itself is never written to
    #[arg(long, value_name = "IMAGE[,ro]", value_parser = parse_rootfs, help_heading = "Machine")]
    pub rootfs: Option<Rootfs>,

    /// Number of virtual CPUs
    #[arg(
        long,
        value_name = "N",
        default_value = "1",
        help_heading = "Machine",
        allow_hyphen_values = true
    )]
    pub cpus: Cpus,

    /// Guest memory, in MiB or with a unit (M, G); a multiple of 2M
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "256M",
        help_heading = "Machine",
        allow_hyphen_values = true
    )]
    pub memory: Memory,

    /// Words to append to the kernel's command line
    #[arg(
        long,
        value_name = "TEXT",
        help_heading = "Machine",
        allow_hyphen_values = true
    )]
    pub cmdline: Option<String>,

    /// Show the guest's serial console on standard error
    #[arg(long, help_heading = "Machine")]
    pub console: bool,

    /// Go on although this machine may write guest memory, and with it secrets, to its swap
    #[arg(long, help_heading = "Machine")]
    pub dangerously_allow_swap: bool,

    /// Secret to deliver as /run/secrets/NAME, by reference: env:VARIABLE, file:PATH or dotenv:PATH#KEY;
    /// options: mode=0400, uid=0, gid=0, and env to export it to the command as well
    #[arg(
        long = "secret",
        value_name = "NAME=SCHEME:REF[,OPTION]...",
        help_heading = "Secrets"
    )]
    pub secrets: Vec<String>,

    /// dotenv file of which every key becomes a secret that is exported as well
    #[arg(long, value_name = "FILE", help_heading = "Secrets")]
    pub secrets_env_file: Option<PathBuf>,

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

/// The root file system's image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rootfs {
    /// The image.
    pub path: PathBuf,
    /// Mounted read-only instead of under an overlay in memory.
    pub read_only: bool,
}

fn parse_rootfs(text: &str) -> Result<Rootfs, String> {
    let (path, read_only) = match text.strip_suffix(",ro") {
        Some(path) => (path, true),
        None => (text, false),
    };
    if path.is_empty() {
        return Err("name an ext4 image".to_owned());
    }
    Ok(Rootfs {
        path: path.into(),
        read_only,
    })
}

fn parse_variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("it must be longer than nothing".to_owned()),
        Ok(duration) => Ok(duration),
        Err(_) => Err("write a number with a unit, as in 500ms, 30s, 5m or 1h".to_owned()),
    }
}

/// A usage error of clap as one line with a hint.
pub fn usage_line(error: &clap::Error) -> String {
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
        assert_eq!((args.cpus.get(), args.memory.bytes()), (1, 256 << 20));
        assert_eq!(args.command, ["true"]);
        assert!(!args.tty && !args.interactive && !args.dangerously_allow_swap);
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
        assert_eq!((args.cpus.get(), args.memory.bytes()), (4, 1 << 30));
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
            (rootfs.path.to_str(), rootfs.read_only),
            (Some("a,b.ext4"), true)
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
