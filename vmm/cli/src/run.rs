//! `cachot run`: from a command line to a booted VM, with nothing started half-way.
//!
//! Everything that can fail is tried in an order such that what costs nothing comes first, and
//! nothing exists outside this process before all references are resolved and all files are open.
//! From then on every way out kills the monitor and removes the state folder.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cachot_control::{CONTROL_PORT, Root, STREAM_PORT, Start, WindowSize};
use cachot_secrets::{
    Declarations, Failures, Resolved, Schemes, ScrubError, SealedError, SealedValue,
    scrub_environment,
};
use cachot_vmm::protocol::{
    API_SOCKET, ChannelError, Config, FileRole, SecretInfo, StopReason, ToMonitor, VSOCK_SOCKET,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::stdio;
use serde::Serialize;

use crate::args::RunArgs;
use crate::guest_files::{
    GUEST_VARIABLE, GuestFile, GuestFileError, Role, check_memory, guest_folders, open,
    open_or_default,
};
use crate::monitor_process::{MONITOR_VARIABLE, MonitorError, MonitorProcess, monitor_program};
use crate::session::life::{Ending, SessionError};
use crate::session::{self, Ends};
use crate::signals::Signals;
use crate::state_dir::{Places, StateDir, StateError};
use crate::swap::Sources;
use crate::tail::last_line;
use crate::terminal::{self, RawMode};

/// Exit code of cachot's own failures.
pub const OWN_FAILURE: u8 = 125;

/// The kernel's command line: a console for the kernel's own messages, of which only errors are
/// shown; a reset after a panic, which ends the VM; nothing probed for that this machine lacks.
const CMDLINE: &str = "console=ttyS0 quiet panic=-1 reboot=acpi pci=off 8250.nr_uarts=1 \
                       i8042.noaux i8042.nokbd tsc=reliable random.trust_cpu=on";

/// Number of the one session of this command.
const SESSION: u32 = 1;

/// How long the guest may take to power itself off once its command has ended.
const POWER_OFF_PATIENCE: Duration = Duration::from_secs(5);

/// What is open at once: a descriptor a secret, and some dozens.
const MAX_DESCRIPTORS: u64 = 4096;

/// Why there is no exit code of the command.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Some references have no value.
    #[error(transparent)]
    Secrets(#[from] Failures),
    /// A value could not be sealed.
    #[error(transparent)]
    Seal(#[from] SealedError),
    /// Values stay in the environment.
    #[error(transparent)]
    Scrub(#[from] ScrubError),
    /// A file of the guest cannot be used.
    #[error(transparent)]
    GuestFile(#[from] GuestFileError),
    /// No virtual machines here.
    #[error("cannot open /dev/kvm, {hint}")]
    Kvm {
        /// What to do.
        hint: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// `-t` without a terminal.
    #[error("-t needs a terminal, and none of the standard streams is one: leave -t out")]
    NoTerminal,
    /// No place for the VM's state.
    #[error(transparent)]
    State(#[from] StateError),
    /// The monitor as a process.
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    /// The monitor did not take what it was told.
    #[error("cannot hand the VM over to the monitor")]
    HandOver(#[source] ChannelError),
    /// The monitor died.
    #[error("the monitor {ending}{}", said(.words))]
    MonitorDied {
        /// How.
        ending: crate::monitor_process::Ending,
        /// Its last line.
        words: Option<String>,
    },
    /// The guest ended before its command had.
    #[error("{what}{}", said(.console))]
    GuestEnded {
        /// How.
        what: &'static str,
        /// The console's line that says most.
        console: Option<String>,
    },
    /// The session failed otherwise.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// Signals, `poll`, the terminal.
    #[error("cannot {action}")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

fn said(line: &Option<String>) -> String {
    match line {
        Some(line) => format!("; it said last: {line}"),
        None => String::new(),
    }
}

fn system(action: &'static str) -> impl FnOnce(io::Error) -> RunError {
    move |source| RunError::System { action, source }
}

impl RunError {
    /// The exit code to report it with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Session(SessionError::NotStarted { code, .. }) => *code,
            _ => OWN_FAILURE,
        }
    }
}

/// What a VM is made from, open and checked.
struct Parts {
    kvm: File,
    kernel: GuestFile,
    initrd: Option<GuestFile>,
    rootfs: Option<GuestFile>,
    secrets: Vec<Secret>,
}

/// A secret as the monitor gets it.
struct Secret {
    info: SecretInfo,
    value: SealedValue,
    /// Whether the command finds it in its environment as well.
    exported: bool,
}

/// `config.json` in the state folder: what the VM is, with references and never a value.
#[derive(Serialize)]
struct Record<'a> {
    name: &'a str,
    keeper: i32,
    cpus: u8,
    memory: u64,
    kernel: &'a Path,
    initrd: Option<&'a Path>,
    rootfs: Option<&'a Path>,
    secrets: &'a [String],
    secrets_env_file: Option<&'a Path>,
}

/// Boots a VM, runs the command in it, and returns the exit code to end with.
///
/// # Errors
/// See [`RunError`].
pub fn run(args: &RunArgs) -> Result<u8, RunError> {
    let window = window(args)?;
    let parts = open_parts(args, resolve(args)?)?;
    let root = Places::of_process().root()?;
    let program = monitor_program(std::env::var_os(MONITOR_VARIABLE), program().as_deref());

    // From here on a signal is a reason to clean up, not to vanish.
    let signals = Signals::block().map_err(system("take over signals"))?;
    let state = StateDir::create(&root)?;
    let vm = Vm::start(&program, state, args, &parts)?;
    // The VM boots meanwhile. What is left behind by others is no reason to stop it.
    StateDir::sweep(&root).ok();

    let raw = if args.tty && args.interactive {
        RawMode::enter().map_err(system("put the terminal into raw mode"))?
    } else {
        None
    };
    let ending = session::run(
        &vm.ends(args, &signals),
        start(args, &parts.secrets, window),
        args.timeout,
    )
    .map_err(system("wait for the guest"))?;
    drop(raw);
    vm.finish(ending)
}

/// The size of the terminal that `-t` asks for.
fn window(args: &RunArgs) -> Result<Option<WindowSize>, RunError> {
    match args.tty {
        false => Ok(None),
        true => terminal::size().map(Some).ok_or(RunError::NoTerminal),
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
    let sealed = resolved.into_iter().map(seal).collect::<Result<_, _>>()?;
    scrub_environment(declarations.environment_variables())?;
    Ok(sealed)
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
fn program() -> Option<PathBuf> {
    std::env::current_exe().ok()
}

fn start(args: &RunArgs, secrets: &[Secret], terminal: Option<WindowSize>) -> Start {
    let mut env = Vec::new();
    if terminal.is_some()
        && let Some(term) =
            std::env::var_os("TERM").and_then(|term| OsString::into_string(term).ok())
    {
        env.push(("TERM".to_owned(), term));
    }
    // Of a variable that is given twice the last one counts.
    env.extend(args.env.iter().cloned());
    Start {
        session: SESSION,
        root: args.rootfs.as_ref().map(|rootfs| match rootfs.read_only {
            true => Root::ReadOnly,
            false => Root::Overlay,
        }),
        argv: args.command.clone(),
        env,
        secret_env: secrets
            .iter()
            .filter(|secret| secret.exported)
            .map(|secret| secret.info.name.clone())
            .collect(),
        user: args.user.clone(),
        workdir: args.workdir.clone(),
        terminal,
        stdin: args.interactive,
    }
}

/// A VM that has been told to boot. The fields are dropped in this order.
struct Vm {
    monitor: MonitorProcess,
    control: UnixListener,
    streams: UnixListener,
    console: File,
    state: StateDir,
}

impl Vm {
    fn start(
        program: &Path,
        state: StateDir,
        args: &RunArgs,
        parts: &Parts,
    ) -> Result<Self, RunError> {
        // First, so that the monitor loads while the rest is made.
        let monitor = MonitorProcess::start(program, &state)?;
        let api = state.listen(API_SOCKET)?;
        let vsock = state.listen(VSOCK_SOCKET)?;
        let vm = Self {
            control: state.listen(&format!("{VSOCK_SOCKET}_{CONTROL_PORT}"))?,
            streams: state.listen(&format!("{VSOCK_SOCKET}_{STREAM_PORT}"))?,
            console: state.file("console.log", b"")?,
            monitor,
            state,
        };
        vm.record(args, parts)?;
        vm.boot(args, parts, &api, &vsock)?;
        Ok(vm)
    }

    fn record(&self, args: &RunArgs, parts: &Parts) -> Result<(), RunError> {
        let record = Record {
            name: self.state.name(),
            keeper: rustix::process::getpid().as_raw_pid(),
            cpus: args.cpus.get(),
            memory: args.memory.bytes(),
            kernel: &parts.kernel.path,
            initrd: parts.initrd.as_ref().map(|file| file.path.as_path()),
            rootfs: parts.rootfs.as_ref().map(|file| file.path.as_path()),
            secrets: &args.secrets,
            secrets_env_file: args.secrets_env_file.as_deref(),
        };
        let mut text = serde_json::to_vec_pretty(&record)
            .map_err(|error| system("describe the VM")(error.into()))?;
        text.push(b'\n');
        self.state.file("config.json", &text)?;
        Ok(())
    }

    fn boot(
        &self,
        args: &RunArgs,
        parts: &Parts,
        api: &UnixListener,
        vsock: &UnixListener,
    ) -> Result<(), RunError> {
        let mut files: Vec<(FileRole, BorrowedFd<'_>)> = vec![
            (FileRole::Kvm, parts.kvm.as_fd()),
            (FileRole::Kernel, parts.kernel.file.as_fd()),
            (FileRole::ApiListener, api.as_fd()),
            (FileRole::VsockListener, vsock.as_fd()),
            (FileRole::Console, self.console.as_fd()),
        ];
        if let Some(initrd) = &parts.initrd {
            files.push((FileRole::Initrd, initrd.file.as_fd()));
        }
        if let Some(rootfs) = &parts.rootfs {
            files.push((FileRole::Disk { read_only: true }, rootfs.file.as_fd()));
        }
        let (files, descriptors): (Vec<_>, Vec<_>) = files.into_iter().unzip();
        let config = Config {
            name: self.state.name().to_owned(),
            memory: args.memory.bytes(),
            cpus: args.cpus.get(),
            cmdline: CMDLINE.to_owned(),
            files,
            outlive_keeper: false,
            allow_swap: args.dangerously_allow_swap || !Sources::default().may_swap(),
        };
        let sent = self
            .monitor
            .send(&ToMonitor::Configure(config), &descriptors)
            .and_then(|()| {
                parts.secrets.iter().try_for_each(|secret| {
                    let message = ToMonitor::Secret(secret.info.clone());
                    self.monitor.send(&message, &[secret.value.as_fd()])
                })
            })
            .and_then(|()| self.monitor.send(&ToMonitor::Boot, &[]));
        match sent {
            // A monitor that has given up says why, or its end does: the session hears it.
            Ok(()) | Err(ChannelError::Closed) => Ok(()),
            Err(error) => Err(RunError::HandOver(error)),
        }
    }

    fn ends<'a>(&'a self, args: &RunArgs, signals: &'a Signals) -> Ends<'a> {
        Ends {
            monitor: self.monitor.socket(),
            control: &self.control,
            streams: &self.streams,
            signals,
            input: args.interactive.then(stdio::stdin),
            output: stdio::stdout(),
            error: stdio::stderr(),
            window_size: &terminal::size,
        }
    }

    /// Ends the VM, removes what it leaves, and says how the command ended.
    fn finish(mut self, ending: Ending) -> Result<u8, RunError> {
        let patience = match ending.orderly {
            true => POWER_OFF_PATIENCE,
            false => Duration::ZERO,
        };
        // The monitor that is found dead has ended by itself, and how it did is the news.
        let found_dead = matches!(ending.result, Err(SessionError::MonitorDied));
        let patience = if found_dead {
            POWER_OFF_PATIENCE
        } else {
            patience
        };
        let monitor = self.monitor.end(patience)?;
        let result = ending.result.map_err(|error| match error {
            SessionError::MonitorDied => RunError::MonitorDied {
                ending: monitor,
                words: self.monitor.last_words(),
            },
            SessionError::Stopped(reason) => self.guest_ended(reason),
            other => other.into(),
        });
        self.state.remove()?;
        result
    }

    fn guest_ended(&self, reason: StopReason) -> RunError {
        let panic = last_line(&self.console, |line| line.contains("Kernel panic"));
        let what = match (reason, &panic) {
            (StopReason::Killed, _) => {
                "the VM was stopped from outside before the command had ended"
            }
            (_, Some(_)) => "the guest's kernel panicked before the command had ended",
            (StopReason::PowerOff, _) => {
                "the guest powered itself off before the command had ended"
            }
            (StopReason::Reset, _) => "the guest reset itself before the command had ended",
            (StopReason::TripleFault, _) => {
                "the guest's CPU shut down (triple fault) before the command had ended: check that kernel and initial RAM disk fit the machine and --memory"
            }
        };
        RunError::GuestEnded {
            what,
            console: panic.or_else(|| last_line(&self.console, |_| true)),
        }
    }
}
