//! `cachot exec`: a further command in a running VM.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::stdio;

use super::{is_paused, running};
use crate::args::ExecArgs;
use crate::keeper::request::{Answer, Exec, Request};
use crate::keeper_client::KeeperClient;
use crate::signals::Signals;
use crate::terminal::{self, RawMode};
use crate::vm::error::{OWN_FAILURE, RunError, system};
use crate::vm::window;

/// Runs the command and returns its exit code.
///
/// # Errors
/// See [`RunError`].
pub fn exec(args: &ExecArgs) -> Result<u8, RunError> {
    let terminal = window(args.tty)?;
    let vm = running(&args.name)?;
    // A guest that rests would start the command whenever it goes on.
    if is_paused(&vm) {
        return Err(RunError::Refused {
            code: OWN_FAILURE,
            message: format!(
                "the VM {0:?} is paused: `cachot resume {0}` lets it go on",
                args.name.as_ref()
            ),
        });
    }
    let keeper = KeeperClient::connect(&vm)?;
    let signals = Signals::block().map_err(system("take over signals"))?;
    let mut files: Vec<BorrowedFd<'_>> = Vec::new();
    if args.interactive {
        files.push(stdio::stdin());
    }
    files.push(stdio::stdout());
    let mut env = Vec::new();
    if terminal.is_some() {
        if let Ok(term) = std::env::var("TERM") {
            env.push(("TERM".to_owned(), term));
        }
    } else {
        files.push(stdio::stderr());
    }
    env.extend(args.env.iter().cloned());
    let exec = Exec {
        argv: args.command.clone(),
        env,
        user: args.user.clone(),
        workdir: args.workdir.clone(),
        terminal,
        stdin: args.interactive,
    };
    keeper.ask(&Request::Exec(Box::new(exec)), &files)?;
    wait(&keeper, &signals, args.tty && args.interactive)
}

/// Passes signals on until the command has ended. `raw` says that the terminal is the command's while it runs.
fn wait(keeper: &KeeperClient, signals: &Signals, raw: bool) -> Result<u8, RunError> {
    let mut mode = None;
    loop {
        let mut descriptors = [
            PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(keeper.as_fd(), PollFlags::IN),
        ];
        match poll(&mut descriptors, None) {
            Err(Errno::INTR) => continue,
            other => other.map_err(|errno| system("wait for the command")(errno.into()))?,
        };
        let [signalled, answered] = descriptors.map(|one| !one.revents().is_empty());
        if signalled && let Some(signal) = signals.next().map_err(system("read signals"))? {
            match (signal, terminal::size()) {
                (libc::SIGWINCH, Some(size)) => keeper.ask(&Request::WindowSize { size }, &[])?,
                (libc::SIGWINCH, None) => {}
                (signal, _) => keeper.ask(&Request::Signal { signal }, &[])?,
            }
        }
        if !answered {
            continue;
        }
        match keeper.answer()? {
            Answer::Started if raw => {
                mode = Some(RawMode::enter().map_err(system("put the terminal into raw mode"))?);
            }
            Answer::Exited { code } => {
                drop(mode);
                return Ok(code);
            }
            _ => {}
        }
    }
}
