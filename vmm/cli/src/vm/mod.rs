//! A VM from the order to start to its end: the monitor, the sockets, the state folder, the keeper.

pub mod error;
pub mod existing;
pub mod record;
pub mod secrets;

use std::cell::Cell;
use std::fs::File;
use std::io::{self, PipeWriter};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cachot_control::{CONTROL_PORT, STREAM_PORT, Start, WindowSize};
use cachot_secrets::ValueError;
use cachot_snapshot::needles::{Needles, Value};
use cachot_vmm::protocol::{
    API_SOCKET, ChannelError, Config, FileRole, KEEPER_SOCKET, StopReason, ToMonitor, VSOCK_SOCKET,
};
use rustix::stdio;
use zeroize::Zeroizing;

use crate::audit;
use crate::keeper::console::Console;
use crate::keeper::life::{Ending, Life, SessionError};
use crate::keeper::streams::Stdio;
use crate::keeper::{Ends, Keeper};
use crate::log::Log;
use crate::monitor_process::MonitorProcess;
use crate::signals::Signals;
use crate::state_dir::{EXIT_FILE, StateDir};
use crate::swap::Sources;
use crate::tail::last_line;
use crate::terminal;
use error::{RunError, system};
use record::{Exit, RECORD_FILE, Record};
use secrets::Secret;

/// Name of the log of a detached workload's output in the state folder.
pub const OUTPUT_LOG: &str = "output.log";

/// Name of the log of the guest's console in the state folder.
pub const CONSOLE_LOG: &str = "console.log";

/// Most bytes of all values together that output is searched for, the shortest first: the search is made ready while the
/// guest, which does not wait for its keeper for ever, boots.
const MAX_MASKED: usize = 64 << 10;

/// How long the guest may take to power itself off once its workload has ended.
const POWER_OFF_PATIENCE: Duration = Duration::from_secs(5);

/// Number of the workload's session.
pub const SESSION: u32 = 1;

/// What a machine is made from.
pub struct Machine {
    /// `/dev/kvm`.
    pub kvm: File,
    /// vCPUs.
    pub cpus: u8,
    /// Guest RAM in bytes.
    pub memory: u64,
    /// Where its first state comes from.
    pub first: First,
    /// Its disk, and whether it refuses writes.
    pub disk: Option<(File, bool)>,
}

/// Where a machine's first state comes from.
pub enum First {
    /// A kernel with this command line.
    Kernel {
        /// An ELF image or a bzImage.
        kernel: File,
        /// Initial RAM disk.
        initrd: Option<File>,
        /// Command line.
        cmdline: String,
    },
    /// An image.
    Image {
        /// RAM.
        memory: OwnedFd,
        /// The machine's state.
        state: OwnedFd,
        /// The redaction plan.
        plan: OwnedFd,
        /// The key of the image's commitments to values, where this host has it.
        key: Option<Zeroizing<[u8; 32]>>,
    },
}

/// How a VM is kept.
#[derive(Debug, Clone, Copy)]
pub struct Keeping {
    /// Show the console on standard error.
    pub console: bool,
    /// Mask values in what the guest prints.
    pub mask: bool,
    /// Go on although the machine may swap.
    pub allow_swap: bool,
    /// The workload's output goes to a log, and what is left of the VM stays until it is removed.
    pub detached: Detached,
    /// Connect this process's standard input.
    pub interactive: bool,
}

/// What becomes of a VM that nobody watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detached {
    /// Somebody does.
    No,
    /// Its logs stay until it is removed.
    Kept,
    /// Nothing of it stays.
    Removed,
}

/// A VM that has been told to start. The fields are dropped in this order.
pub struct Vm {
    monitor: MonitorProcess,
    control: UnixListener,
    streams: UnixListener,
    commands: OwnedFd,
    console: Console,
    output: Option<Log>,
    keeping: Keeping,
    state: StateDir,
}

impl Vm {
    /// Starts the monitor and tells it all.
    ///
    /// # Errors
    /// See [`RunError`]; then nothing is left.
    pub fn start(
        program: &Path,
        state: StateDir,
        machine: Machine,
        secrets: &[Secret],
        keeping: Keeping,
    ) -> Result<Self, RunError> {
        // First, so that the monitor loads while the rest is made.
        let monitor = MonitorProcess::start(program, &state)?;
        let api = state.listen(API_SOCKET)?;
        let vsock = state.listen(VSOCK_SOCKET)?;
        let log = Log::new(state.file(CONSOLE_LOG, b"")?);
        let (console, console_pipe) =
            Console::new(log, keeping.console).map_err(system("make a pipe for the console"))?;
        let output = match keeping.detached {
            Detached::No => None,
            _ => Some(Log::new(state.file(OUTPUT_LOG, b"")?)),
        };
        let vm = Self {
            control: state.listen(&format!("{VSOCK_SOCKET}_{CONTROL_PORT}"))?,
            streams: state.listen(&format!("{VSOCK_SOCKET}_{STREAM_PORT}"))?,
            commands: state.listen_for_packets(KEEPER_SOCKET)?,
            console,
            output,
            keeping,
            monitor,
            state,
        };
        vm.order(machine, secrets, &api, &vsock, console_pipe)?;
        Ok(vm)
    }

    fn order(
        &self,
        machine: Machine,
        secrets: &[Secret],
        api: &UnixListener,
        vsock: &UnixListener,
        console: PipeWriter,
    ) -> Result<(), RunError> {
        let mut files: Vec<(FileRole, OwnedFd)> = vec![
            (FileRole::Kvm, machine.kvm.into()),
            (FileRole::Console, console.into()),
        ];
        let (cmdline, commitment_key) = match machine.first {
            First::Kernel {
                kernel,
                initrd,
                cmdline,
            } => {
                files.push((FileRole::Kernel, kernel.into()));
                files.extend(initrd.map(|file| (FileRole::Initrd, file.into())));
                (cmdline, None)
            }
            First::Image {
                memory,
                state,
                plan,
                key,
            } => {
                files.push((FileRole::ImageMemory, memory));
                files.push((FileRole::ImageState, state));
                files.push((FileRole::ImagePlan, plan));
                (String::new(), key.map(|key| *key))
            }
        };
        let disk = machine.disk;
        files.extend(disk.map(|(file, read_only)| (FileRole::Disk { read_only }, file.into())));
        let own = files.iter().map(|(role, file)| (*role, file.as_fd()));
        let listeners = [
            (FileRole::ApiListener, api.as_fd()),
            (FileRole::VsockListener, vsock.as_fd()),
        ];
        let (roles, descriptors): (Vec<_>, Vec<BorrowedFd<'_>>) = own.chain(listeners).unzip();
        let config = Config {
            name: self.state.name().to_owned(),
            memory: machine.memory,
            cpus: machine.cpus,
            cmdline,
            files: roles,
            outlive_keeper: false,
            allow_swap: self.keeping.allow_swap || !Sources::default().may_swap(),
            commitment_key,
        };
        let sent = self
            .monitor
            .send(&ToMonitor::Configure(config), &descriptors)
            .and_then(|()| {
                secrets.iter().try_for_each(|secret| {
                    let message = ToMonitor::Secret(secret.info());
                    self.monitor.send(&message, &[secret.value.as_fd()])
                })
            })
            .and_then(|()| self.monitor.send(&ToMonitor::Boot, &[]));
        match sent {
            // A monitor that has given up says why, or its end does: the keeper hears it.
            Ok(()) | Err(ChannelError::Closed) => Ok(()),
            Err(error) => Err(RunError::HandOver(error)),
        }
    }

    /// Keeps the VM until its workload has ended, and removes what it leaves; the exit code to end with.
    ///
    /// # Errors
    /// See [`RunError`].
    pub fn keep(
        self,
        mut record: Record,
        life: Life,
        secrets: &[Secret],
        signals: &Signals,
        started: &dyn Fn(&StateDir) -> io::Result<()>,
    ) -> Result<u8, RunError> {
        // The machine starts meanwhile.
        let needles = match needles(secrets) {
            // Without masks nothing depends on them but what is written down.
            Err(RunError::Needles(_)) if !self.keeping.mask => {
                record.workload.withhold();
                None
            }
            other => other?,
        };
        if let Some(needles) = &needles {
            let withheld = record.withhold(needles);
            withheld.map_err(|error| system("describe the VM")(error.into()))?;
        }
        let json = record.to_json();
        let json = json.map_err(|error| system("describe the VM")(error.into()))?;
        self.state.file(RECORD_FILE, &json)?;

        let stdio = self.stdio(&record.workload.start)?;
        let Self {
            monitor,
            control,
            streams,
            commands,
            console,
            output,
            keeping,
            state,
        } = self;
        let output = std::cell::RefCell::new(output);
        let has_started = Cell::new(false);
        let ends = Ends {
            monitor: monitor.socket(),
            control: &control,
            streams: &streams,
            commands: &commands,
            signals,
            window_size: &terminal::size,
            started: &|| {
                started(&state)?;
                has_started.set(true);
                Ok(())
            },
            written: &|| {
                if let Some(output) = &mut *output.borrow_mut() {
                    // The log grows where the file system has no holes.
                    output.bound().ok();
                }
            },
            workload: &record.workload.start,
        };
        let mut keeper =
            Keeper::new(&ends, life, stdio, console).map_err(system("listen for the guest"))?;
        if let Some(needles) = needles.filter(|_| keeping.mask) {
            keeper.mask(needles);
        }
        let (ending, console) = keeper.run().map_err(system("wait for the guest"))?;
        let result = finish(monitor, console, ending);
        // Of a start that failed the command that waited for it has heard.
        let detached = match has_started.get() {
            true => keeping.detached,
            false => Detached::No,
        };
        leave(state, detached, &result)?;
        result
    }

    /// What the workload's streams are connected to.
    fn stdio(&self, start: &Start) -> Result<Stdio, RunError> {
        let duplicate = |fd: BorrowedFd<'_>| fd.try_clone_to_owned();
        let streams = || -> io::Result<Stdio> {
            let interactive = self.keeping.interactive && start.stdin;
            let output = self.output.as_ref().map(AsFd::as_fd);
            let error = match start.terminal {
                Some(_) => None,
                None => Some(duplicate(output.unwrap_or(stdio::stderr()))?),
            };
            Ok(Stdio {
                input: interactive.then(|| duplicate(stdio::stdin())).transpose()?,
                output: duplicate(output.unwrap_or(stdio::stdout()))?,
                error,
            })
        };
        streams().map_err(system("connect the standard streams"))
    }
}

/// Ends the machine, and says how the workload ended.
fn finish(mut monitor: MonitorProcess, console: Console, ending: Ending) -> Result<u8, RunError> {
    // A monitor that was found dead has ended by itself, and how it did is the news.
    let found_dead = matches!(ending.result, Err(SessionError::MonitorDied));
    let patience = match ending.orderly || found_dead {
        true => POWER_OFF_PATIENCE,
        false => Duration::ZERO,
    };
    let end = monitor.end(patience)?;
    let log = console.finish();
    ending.result.map_err(|error| match error {
        SessionError::MonitorDied => RunError::MonitorDied {
            ending: end,
            words: monitor.last_words(),
        },
        SessionError::Stopped(reason) => guest_ended(&log, reason),
        silent @ (SessionError::Silent | SessionError::Abandoned) => RunError::Guest {
            what: silent.to_string(),
            console: last_line(log.file(), |_| true),
        },
        other => other.into(),
    })
}

fn guest_ended(console: &Log, reason: StopReason) -> RunError {
    let panic = last_line(console.file(), |line| line.contains("Kernel panic"));
    let what = match (reason, &panic) {
        (StopReason::Killed, _) => "the VM was stopped from outside before the command had ended",
        (_, Some(_)) => "the guest's kernel panicked before the command had ended",
        (StopReason::PowerOff, _) => "the guest powered itself off before the command had ended",
        (StopReason::Reset, _) => "the guest reset itself before the command had ended",
        (StopReason::TripleFault, _) => {
            "the guest's CPU shut down (triple fault) before the command had ended: check that kernel and initial RAM disk fit the machine and --memory"
        }
    };
    RunError::Guest {
        what: what.to_owned(),
        console: panic.or_else(|| last_line(console.file(), |_| true)),
    }
}

/// Leaves of a VM that has ended what is to stay: nothing, or logs and how it ended.
fn leave(
    state: StateDir,
    detached: Detached,
    result: &Result<u8, RunError>,
) -> Result<(), RunError> {
    if detached != Detached::Kept {
        return Ok(state.remove()?);
    }
    let exit = Exit {
        code: result
            .as_ref()
            .map_or_else(RunError::exit_code, |code| *code),
        error: result.as_ref().err().map(error::one_line),
        ended: now(),
    };
    let json = serde_json::to_vec(&exit);
    let json = json.map_err(|error| system("describe the VM's end")(error.into()))?;
    state.file(EXIT_FILE, &json)?;
    let kept = [
        EXIT_FILE,
        RECORD_FILE,
        OUTPUT_LOG,
        CONSOLE_LOG,
        audit::FOLDER,
    ];
    state.remove_all_but(&kept)?;
    state.keep();
    Ok(())
}

/// Seconds since 1970.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// What must not be shown or written down; none where there is no secret.
fn needles(secrets: &[Secret]) -> Result<Option<Arc<Needles>>, RunError> {
    if secrets.is_empty() {
        return Ok(None);
    }
    let mut shortest_first: Vec<_> = secrets.iter().collect();
    shortest_first.sort_by_key(|secret| secret.value.len());
    let mut total = 0;
    let masked = shortest_first.into_iter().filter(|secret| {
        total += secret.value.len();
        if total > MAX_MASKED {
            let name = &secret.declared.name;
            eprintln!("cachot: warning: secret {name}: its value is too long to be masked in what the guest prints");
        }
        total <= MAX_MASKED
    });
    let values = masked.map(|secret| {
        Ok(Value {
            name: secret.declared.name.clone(),
            version: secret.declared.version,
            bytes: secret.value.read()?,
        })
    });
    let values = values
        .collect::<Result<Vec<_>, ValueError>>()
        .map_err(RunError::Value)?;
    let needles = Needles::new(values).map_err(RunError::Needles)?;
    Ok(Some(Arc::new(needles)))
}

/// The size of the terminal that `-t` asks for.
///
/// # Errors
/// [`RunError::NoTerminal`].
pub fn window(tty: bool) -> Result<Option<WindowSize>, RunError> {
    match tty {
        false => Ok(None),
        true => terminal::size().map(Some).ok_or(RunError::NoTerminal),
    }
}
