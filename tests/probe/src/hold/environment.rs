//! A copy in the environment of a process that sleeps.

use std::ffi::CStr;
use std::fs;
use std::ptr::{null, null_mut};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::process::Signal;
use zeroize::Zeroizing;

use super::heap::sleep_forever;
use super::place::Place;

/// The command of this program that does [`sleep`].
pub const COMMAND: &str = "hold-environment";
const ARGUMENT: &CStr = c"hold-environment";
const PREFIX: &[u8] = b"HELD=";

/// How long the process may take to have an environment: 10 s in all.
const INTERVAL: Duration = Duration::from_millis(10);
const TRIES: u32 = 1000;

/// The process with the value in its environment.
pub struct Environment {
    child: libc::pid_t,
    /// Address of the value there.
    start: usize,
}

impl Environment {
    /// Starts it; `value` must have no zero byte.
    pub fn new(value: &[u8]) -> anyhow::Result<Self> {
        ensure!(!value.contains(&0), "an environment has no zero bytes");
        // By hand, for what the standard library copies it does not wipe. The kernel copies the strings to the new
        // process's stack itself, and the process makes none of ours its own before.
        let mut variable = Zeroizing::new(Vec::with_capacity(PREFIX.len() + value.len() + 1));
        variable.extend_from_slice(PREFIX);
        variable.extend_from_slice(value);
        variable.push(0);
        let arguments = [c"probe".as_ptr(), ARGUMENT.as_ptr(), null()];
        let environment = [variable.as_ptr().cast::<libc::c_char>(), null()];
        let mut child = 0;
        // SAFETY: both lists end with a null pointer, and their strings with a zero; they outlive the call.
        let error = unsafe {
            libc::posix_spawn(
                &raw mut child,
                c"/proc/self/exe".as_ptr(),
                null(),
                null(),
                arguments.as_ptr().cast(),
                environment.as_ptr().cast(),
            )
        };
        if error != 0 {
            return Err(std::io::Error::from_raw_os_error(error))
                .context("cannot start a process from /proc/self/exe");
        }
        let start = environment_of(child)? + PREFIX.len();
        Ok(Self { child, start })
    }
}

/// Where the environment of process `child` begins: field 50 of its `stat` (proc_pid_stat(5)).
fn environment_of(child: libc::pid_t) -> anyhow::Result<usize> {
    let path = format!("/proc/{child}/stat");
    // The parent runs on as soon as the child has let go of its memory; its own is made a bit later.
    for _ in 0..TRIES {
        let stat = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        // The second field is a name in parentheses that may hold anything.
        let fields = stat.rsplit_once(')').map(|(_, fields)| fields);
        let start = fields.and_then(|fields| fields.split_whitespace().nth(50 - 3));
        match start.map(str::parse) {
            Some(Ok(0)) => thread::sleep(INTERVAL),
            Some(Ok(start)) => return Ok(start),
            _ => break,
        }
    }
    bail!("{path} does not tell where the environment is; is this process allowed to know?")
}

impl Place for Environment {
    /// Straight from the process: `/proc/PID/environ` would leave a copy in a page of the kernel.
    fn look(&mut self, bytes: &mut [u8]) -> anyhow::Result<()> {
        let local = libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        };
        let remote = libc::iovec {
            iov_base: std::ptr::without_provenance_mut(self.start),
            iov_len: bytes.len(),
        };
        // SAFETY: it writes to `bytes` alone; the other address is checked in the other process.
        let read = unsafe {
            libc::process_vm_readv(self.child, &raw const local, 1, &raw const remote, 1, 0)
        };
        ensure!(
            usize::try_from(read) == Ok(bytes.len()),
            "cannot read the process's environment: {}",
            std::io::Error::last_os_error()
        );
        Ok(())
    }
}

impl Drop for Environment {
    fn drop(&mut self) {
        // SAFETY: the process is our child, which nobody has waited for.
        unsafe {
            libc::kill(self.child, libc::SIGKILL);
            libc::waitpid(self.child, null_mut(), 0);
        }
    }
}

/// What the process does.
pub fn sleep() -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .context("cannot end with the parent")?;
    sleep_forever()
}
