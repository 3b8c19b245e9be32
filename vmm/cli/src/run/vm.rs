//! A VM from the order to boot to its end: the monitor, the sockets, the state folder.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use cachot_control::{CONTROL_PORT, STREAM_PORT};
use cachot_vmm::protocol::{
    API_SOCKET, ChannelError, Config, FileRole, StopReason, ToMonitor, VSOCK_SOCKET,
};
use rustix::stdio;
use serde::Serialize;

use super::error::{RunError, system};
use super::parts::Parts;
use crate::args::RunArgs;
use crate::monitor_process::MonitorProcess;
use crate::session::Ends;
use crate::session::life::{Ending, SessionError};
use crate::signals::Signals;
use crate::state_dir::StateDir;
use crate::swap::Sources;
use crate::tail::last_line;
use crate::terminal;

/// The kernel's command line: a console for the kernel's own messages, of which only errors are
/// shown; a reset after a panic, which ends the VM; nothing probed for that this machine lacks; code for
/// several CPUs left as it is where there is one.
const CMDLINE: &str = "console=ttyS0 quiet panic=-1 reboot=acpi pci=off 8250.nr_uarts=1 \
                       i8042.noaux i8042.nokbd tsc=reliable random.trust_cpu=on noreplace-smp";

/// How long the guest may take to power itself off once its command has ended.
const POWER_OFF_PATIENCE: Duration = Duration::from_secs(5);

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

/// A VM that has been told to boot. The fields are dropped in this order.
pub(super) struct Vm {
    monitor: MonitorProcess,
    control: UnixListener,
    streams: UnixListener,
    console: File,
    state: StateDir,
}

impl Vm {
    pub fn start(
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
        // Otherwise it is kept for the message about a guest that breaks down.
        let console = match args.console {
            true => stdio::stderr(),
            false => self.console.as_fd(),
        };
        let mut files: Vec<(FileRole, BorrowedFd<'_>)> = vec![
            (FileRole::Kvm, parts.kvm.as_fd()),
            (FileRole::Kernel, parts.kernel.file.as_fd()),
            (FileRole::ApiListener, api.as_fd()),
            (FileRole::VsockListener, vsock.as_fd()),
            (FileRole::Console, console),
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
            cmdline: match &args.cmdline {
                Some(more) => format!("{CMDLINE} {more}"),
                None => CMDLINE.to_owned(),
            },
            files,
            outlive_keeper: false,
            allow_swap: args.dangerously_allow_swap || !Sources::default().may_swap(),
            commitment_key: None,
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

    pub fn ends<'a>(
        &'a self,
        args: &RunArgs,
        signals: &'a Signals,
        started: &'a dyn Fn() -> io::Result<()>,
    ) -> Ends<'a> {
        Ends {
            monitor: self.monitor.socket(),
            control: &self.control,
            streams: &self.streams,
            signals,
            input: args.interactive.then(stdio::stdin),
            output: stdio::stdout(),
            error: stdio::stderr(),
            window_size: &terminal::size,
            started,
        }
    }

    /// Ends the VM, removes what it leaves, and says how the command ended.
    pub fn finish(mut self, ending: Ending) -> Result<u8, RunError> {
        // A monitor that was found dead has ended by itself, and how it did is the news.
        let found_dead = matches!(ending.result, Err(SessionError::MonitorDied));
        let patience = match ending.orderly || found_dead {
            true => POWER_OFF_PATIENCE,
            false => Duration::ZERO,
        };
        let monitor = self.monitor.end(patience)?;
        let result = ending.result.map_err(|error| match error {
            SessionError::MonitorDied => RunError::MonitorDied {
                ending: monitor,
                words: self.monitor.last_words(),
            },
            SessionError::Stopped(reason) => self.guest_ended(reason),
            silent @ (SessionError::Silent | SessionError::Abandoned) => RunError::Guest {
                what: silent.to_string(),
                console: last_line(&self.console, |_| true),
            },
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
        RunError::Guest {
            what: what.to_owned(),
            console: panic.or_else(|| last_line(&self.console, |_| true)),
        }
    }
}
