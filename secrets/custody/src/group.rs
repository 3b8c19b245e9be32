//! A program and what it starts, as one process group, none of which outlives its use.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};

use rustix::process::{Pid, Signal, kill_process_group};

/// A program and what it starts in its process group.
pub(crate) struct Group(Option<Child>);

impl Group {
    /// Starts a program, which inherits its standard streams and nothing else.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn start(command: &mut Command) -> io::Result<Self> {
        command.process_group(0);
        // SAFETY: the closure makes one system call.
        unsafe { command.pre_exec(close_inherited) };
        command.spawn().map(|child| Self(Some(child)))
    }

    /// The program itself.
    pub fn child(&mut self) -> &mut Child {
        self.0.as_mut().expect("only `end` takes it, by value")
    }

    /// Ends all of it, and says how the program itself ended.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn end(mut self) -> io::Result<ExitStatus> {
        end(&mut self.0.take().expect("nothing else takes it"))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            end(child).ok();
        }
    }
}

fn end(child: &mut Child) -> io::Result<ExitStatus> {
    // Before it is waited for: until then the number can be no other group's.
    if let Some(group) = Pid::from_raw(child.id().cast_signed()) {
        kill_process_group(group, Signal::KILL).ok();
    }
    // It may have gone to another group, and is waited for.
    child.kill().ok();
    child.wait()
}

/// Closes what this process has inherited from its own parent, a pipe with another secret perhaps, when the
/// program begins. What this process opens itself is closed then anyway.
fn close_inherited() -> io::Result<()> {
    // SAFETY: a system call on numbers.
    let done = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3_u32,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
