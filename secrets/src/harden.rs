//! What a process does to itself before it holds values.

use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit};

/// A step of [`harden_process`] failed; the process must not go on to handle secrets.
#[derive(Debug, thiserror::Error)]
#[error("cannot protect this process: {step} failed")]
pub struct HardenError {
    /// The call that failed.
    pub step: &'static str,
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

/// Makes the calling process one that may hold values. Call it first thing in `main`, before any
/// thread is started, in every process that does.
///
/// | step | so that |
/// |---|---|
/// | `RLIMIT_CORE` = 0, soft and hard | no core file is written |
/// | `PR_SET_DUMPABLE` = 0 | no core dump goes to a pipe handler, and processes of the same user can neither attach with ptrace nor read `/proc/PID/mem` or `environ` (those files belong to root from now on) |
/// | `PR_SET_NO_NEW_PRIVS` | no program started from here gains privileges; threads and children inherit it |
/// | soft `RLIMIT_MEMLOCK` = hard one | as much memory as permitted can be locked for values |
///
/// The dumpable flag returns to its default at `execve`: a program started from here calls this
/// function itself.
///
/// # Errors
/// [`HardenError`] with the step that failed.
pub fn harden_process() -> Result<(), HardenError> {
    let failed = |step| {
        move |errno: rustix::io::Errno| HardenError {
            step,
            source: errno.into(),
        }
    };
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    rustix::process::setrlimit(Resource::Core, none).map_err(failed("setrlimit(RLIMIT_CORE)"))?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(failed("prctl(PR_SET_DUMPABLE)"))?;
    rustix::thread::set_no_new_privs(true).map_err(failed("prctl(PR_SET_NO_NEW_PRIVS)"))?;
    let locked = rustix::process::getrlimit(Resource::Memlock);
    let raised = Rlimit {
        current: locked.maximum,
        maximum: locked.maximum,
    };
    rustix::process::setrlimit(Resource::Memlock, raised)
        .map_err(failed("setrlimit(RLIMIT_MEMLOCK)"))
}
