//! From all that a VM is made of to its end, in this process or in one that goes on without its command.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use cachot_control::Renewal;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::args::KeepingArgs;
use crate::audit::{self, Given, Recorded};
use crate::detach::{self, Side, Starting};
use crate::keeper::life::Life;
use crate::monitor_process::monitor_program;
use crate::settings;
use crate::signals::Signals;
use crate::state_dir::{Places, StateDir};
use crate::terminal::RawMode;
use crate::vm::error::{RunError, system};
use crate::vm::record::Record;
use crate::vm::secrets::Secret;
use crate::vm::{Detached, First, Keeping, Machine, Vm, now};

/// What a VM is made of, open and checked.
pub struct Launch<'a> {
    /// What is written down of it; its name, keeper and time are filled in.
    pub record: Record,
    /// Its secrets.
    pub secrets: Vec<Secret>,
    /// Where its first state comes from.
    pub first: First,
    /// Makes its disk, if it has one, perhaps in its state folder; says whether that refuses writes.
    pub disk: Option<DiskMaker<'a>>,
    /// Whether it is a copy of another VM.
    pub is_copy: bool,
    /// Name of the VM that it is a copy of, if that is no image.
    pub parent: Option<String>,
    /// Time limit of its workload.
    pub timeout: Option<Duration>,
}

/// Makes a disk.
pub type DiskMaker<'a> = Box<dyn FnOnce(&StateDir) -> Result<(File, bool), RunError> + 'a>;

/// Who watches a VM.
#[derive(Debug)]
pub enum Watcher {
    /// The command that started it, with its standard streams; the input only if it is `interactive`.
    Command {
        /// Connect standard input.
        interactive: bool,
    },
    /// Nobody, once it has started.
    Nobody(Starting),
}

/// Starts what `prepare` gives and waits for its end, or, if it is to be detached, for its start.
///
/// # Errors
/// See [`RunError`].
pub fn launch<'a>(
    args: &KeepingArgs,
    interactive: bool,
    prepare: impl FnOnce() -> Result<Launch<'a>, RunError>,
) -> Result<u8, RunError> {
    if !args.detach {
        return keep(prepare()?, args, Watcher::Command { interactive });
    }
    match detach::split().map_err(system("start a process for the VM"))? {
        // Values are of the process that resolves them.
        Side::Keeper(starting) => keep(prepare()?, args, Watcher::Nobody(starting)),
        Side::Command(waiter) => match waiter.wait().map_err(system("wait for the VM"))? {
            Ok(name) => {
                writeln!(io::stdout(), "{name}").map_err(system("print the VM's name"))?;
                Ok(0)
            }
            Err(code) => Ok(code),
        },
    }
}

/// Starts a VM and keeps it to its end.
///
/// # Errors
/// See [`RunError`].
pub fn keep(launch: Launch<'_>, args: &KeepingArgs, watcher: Watcher) -> Result<u8, RunError> {
    let root = Places::of_process().root()?;
    let own = std::env::current_exe().ok();
    let program = monitor_program(settings::monitor(), own.as_deref());
    let kvm = open_kvm(Path::new("/dev/kvm"))?;

    // From here on a signal is a reason to clean up, not to vanish.
    let signals = Signals::block().map_err(system("take over signals"))?;
    let state = StateDir::create(&root, args.name.as_ref())?;
    let mut record = launch.record;
    state.name().clone_into(&mut record.name);
    record.created = now();
    record.keeper = rustix::process::getpid().as_raw_pid();
    record.detached = args.detach;
    let start = record.workload.start.clone();
    let life = if launch.is_copy {
        let complete = !record.workload.withheld;
        Life::restored(
            start,
            complete,
            renewal(&record.name)?,
            launch.timeout,
            Instant::now(),
        )
    } else {
        Life::new(start, launch.timeout, Instant::now())
    };
    let machine = Machine {
        kvm,
        cpus: record.cpus,
        memory: record.memory,
        first: launch.first,
        disk: launch.disk.map(|make| make(&state)).transpose()?,
    };
    let (interactive, starting) = match watcher {
        Watcher::Command { interactive } => (interactive, None),
        Watcher::Nobody(starting) => (false, Some(starting)),
    };
    let keeping = Keeping {
        console: args.console,
        mask: !args.no_mask,
        allow_swap: args.dangerously_allow_swap,
        detached: match (&starting, args.rm) {
            (None, _) => Detached::No,
            (Some(_), false) => Detached::Kept,
            (Some(_), true) => Detached::Removed,
        },
        interactive,
    };
    let user = args.requester().user;
    let given = Given {
        vm: &record,
        secrets: &launch.secrets,
        is_copy: launch.is_copy,
        parent: launch.parent.as_deref(),
        user: &user,
    };
    let recorded = audit::start(&root, &state, &given)?;
    let vm = Vm::start(&program, state, machine, &launch.secrets, keeping);
    // The guest need not wait for the disk. Dropped, and so waited for, whatever happens from here on.
    let _closing = recorded.map(Recorded::close);
    let vm = vm?;
    // The VM boots meanwhile. What is left behind by others is no reason to stop it.
    StateDir::sweep(&root).ok();

    let (raw, starting) = (Cell::new(None), Cell::new(starting));
    let terminal = record.workload.start.terminal.is_some();
    // Until the workload runs, Ctrl-C is for the keeper.
    let started = |state: &StateDir| {
        if terminal && interactive {
            raw.set(RawMode::enter()?);
        }
        match starting.take() {
            Some(starting) => {
                let log = state.file("keeper.log", b"").map_err(io::Error::other)?;
                starting.done(state.name(), &log)
            }
            None => Ok(()),
        }
    };
    let result = vm.keep(record, life, &launch.secrets, &signals, &started);
    drop(raw.take());
    result
}

/// What makes a copy a guest of its own.
fn renewal(name: &str) -> Result<Renewal, RunError> {
    let failed = |errno: rustix::io::Errno| system("get random bytes")(errno.into());
    let mut entropy = vec![0; Renewal::ENTROPY_LEN];
    getrandom(&mut entropy, GetRandomFlags::empty()).map_err(failed)?;
    let mut machine_id = [0; 16];
    getrandom(&mut machine_id, GetRandomFlags::empty()).map_err(failed)?;
    let since_1970 = std::time::SystemTime::now()
        .duration_since(std::time::SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let label = |character: char| match character {
        '_' | '.' => '-',
        other => other,
    };
    Ok(Renewal {
        entropy,
        realtime_ns: since_1970.as_nanos().try_into().unwrap_or(u64::MAX),
        hostname: name.chars().map(label).collect(),
        machine_id: hex::encode(machine_id),
    })
}

/// Opens `/dev/kvm`.
///
/// # Errors
/// [`RunError::Kvm`], with what to do.
pub fn open_kvm(path: &Path) -> Result<File, RunError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_renewal_has_nothing_in_common_with_another_one() {
        let (one, other) = (renewal("web").expect("made"), renewal("web").expect("made"));
        for renewal in [&one, &other] {
            assert_eq!(renewal.entropy.len(), Renewal::ENTROPY_LEN);
            assert_eq!(renewal.machine_id.len(), 32);
            let hexadecimal = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            assert!(renewal.machine_id.bytes().all(hexadecimal));
        }
        assert_ne!(one.entropy, other.entropy);
        assert_ne!(one.machine_id, other.machine_id);
    }

    #[test]
    fn test_renewal_has_the_time_and_a_host_name_that_is_one() {
        let renewal = renewal("A_b.c-1").expect("made");
        assert_eq!(renewal.hostname, "A-b-c-1");
        let seconds = renewal.realtime_ns / 1_000_000_000;
        assert!(now().abs_diff(seconds) < 10, "{seconds}");
    }
}
