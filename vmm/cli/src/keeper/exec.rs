//! Further commands in the guest: a session each, for a client that waits for its end.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use cachot_control::{Start, ToGuest, ToHost, WindowSize};
use cachot_vmm::protocol;

use super::Keeper;
use super::life::CLOSING_PATIENCE;
use super::request::{Answer, Exec};
use super::streams::{self, Stdio, Streams, Written};

/// How long the guest may take to start a command.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// Most further commands at a time.
const MAX_COMMANDS: usize = 32;

/// A further command.
pub struct Command {
    pub(super) streams: Streams,
    /// None once it is gone.
    client: Option<OwnedFd>,
    /// Exit code, once it has ended.
    ended: Option<u8>,
    deadline: Option<Instant>,
}

impl Command {
    /// When [`Keeper::expire_commands`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
            .into_iter()
            .chain(self.streams.deadline())
            .min()
    }

    fn tell(&self, answer: &Answer) {
        if let Some(client) = &self.client {
            // A client that is gone is found to be when it is heard.
            protocol::send(client.as_fd(), answer, &[]).ok();
        }
    }
}

impl Keeper<'_> {
    /// Starts a command for the client of this number.
    pub(super) fn start_command(
        &mut self,
        number: u32,
        client: OwnedFd,
        exec: Exec,
        files: Vec<OwnedFd>,
        now: Instant,
    ) {
        let refuse = |message: &str| {
            // A client that is gone needs no answer.
            protocol::send(client.as_fd(), &Answer::failed(message), &[]).ok();
        };
        if !self.life.running() || self.control.is_none() {
            return refuse("the VM's workload is not running: wait until it is");
        }
        if self.commands.len() >= MAX_COMMANDS {
            return refuse("too many commands run in this VM already: wait for one to end");
        }
        let Some(stdio) = stdio(&exec, files) else {
            return refuse("the command came without its standard streams");
        };
        let workload = self.ends.workload;
        let start = ToGuest::Start(Start {
            session: number,
            root: None,
            argv: exec.argv,
            env: [workload.env.clone(), exec.env].concat(),
            secrets: workload.secrets.clone(),
            secret_env: workload.secret_env.clone(),
            user: exec.user,
            workdir: exec.workdir,
            terminal: exec.terminal,
            stdin: exec.stdin,
        });
        if self.tell_guest(&start).is_err() {
            return refuse("the command line is too long");
        }
        let mut streams = Streams::new(stdio);
        if let Some(needles) = &self.needles {
            streams.mask(needles);
        }
        let command = Command {
            streams,
            client: Some(client),
            ended: None,
            deadline: Some(now + START_PATIENCE),
        };
        self.commands.insert(number, command);
    }

    /// The guest has said something of a further command.
    pub(super) fn command_heard(&mut self, number: u32, message: ToHost, now: Instant) {
        let Some(command) = self.commands.get_mut(&number) else {
            return;
        };
        match message {
            ToHost::Started { .. } => {
                command.deadline = None;
                command.tell(&Answer::Started);
            }
            ToHost::Exited { code, .. } => {
                command.ended = Some(code);
                command.deadline = Some(now + CLOSING_PATIENCE);
                self.end_command(number);
            }
            ToHost::Failed { code, message, .. } => {
                command.tell(&Answer::Failed {
                    code: code.clamp(125, 127),
                    message: super::life::one_line(&message),
                });
                self.forget_command(number);
            }
            _ => {}
        }
    }

    /// Moves bytes of a further command.
    pub(super) fn serve_command(&mut self, number: u32, source: streams::Source) {
        let Some(command) = self.commands.get_mut(&number) else {
            return;
        };
        match command.streams.serve(source) {
            Written::Fine => {}
            Written::Refused => self.signal_command(number, libc::SIGPIPE),
            Written::Failed(error) => {
                command.tell(&Answer::failed(error.to_string()));
                self.leave_command(number);
            }
        }
        self.end_command(number);
    }

    /// Sees to the time limits of further commands.
    pub(super) fn expire_commands(&mut self, now: Instant) {
        let numbers: Vec<u32> = self.commands.keys().copied().collect();
        for number in numbers {
            let Some(command) = self.commands.get_mut(&number) else {
                continue;
            };
            command.streams.expire(now);
            if command.deadline.is_none_or(|deadline| deadline > now) {
                continue;
            }
            match command.ended {
                Some(_) if command.streams.writing() => {
                    command.deadline = Some(now + CLOSING_PATIENCE);
                }
                Some(code) => {
                    command.tell(&Answer::Exited { code });
                    self.forget_command(number);
                }
                None => {
                    command.tell(&Answer::failed("the guest does not start the command"));
                    self.leave_command(number);
                }
            }
        }
    }

    /// Tells the client of the end, when all output is written.
    fn end_command(&mut self, number: u32) {
        if let Some(command) = self.commands.get(&number)
            && let Some(code) = command.ended
            && command.streams.done()
        {
            command.tell(&Answer::Exited { code });
            self.forget_command(number);
        }
    }

    fn forget_command(&mut self, number: u32) {
        self.commands.remove(&number);
        self.clients.remove(&number);
    }

    /// A command's client is gone: so is its terminal, and whoever reads its output.
    pub(super) fn leave_command(&mut self, number: u32) {
        self.clients.remove(&number);
        if let Some(command) = self.commands.get_mut(&number) {
            command.client = None;
            command.streams.abandon();
            if command.ended.is_some() {
                self.commands.remove(&number);
            } else {
                self.signal_command(number, libc::SIGHUP);
            }
        }
    }

    /// The guest has closed its control connection: its commands are lost.
    pub(super) fn lose_commands(&mut self) {
        for command in std::mem::take(&mut self.commands).into_values() {
            command.tell(&Answer::failed(
                "the guest ended before the command had ended",
            ));
        }
    }

    /// Sends a signal to a further command.
    pub(super) fn signal_command(&mut self, session: u32, signal: i32) {
        // A short message.
        self.tell_guest(&ToGuest::Signal { session, signal }).ok();
    }

    /// Gives the terminal of a further command another size.
    pub(super) fn resize_command(&mut self, session: u32, size: WindowSize) {
        // A short message.
        self.tell_guest(&ToGuest::WindowSize { session, size }).ok();
    }
}

/// The descriptors of a command, which have to be those that it needs.
fn stdio(exec: &Exec, files: Vec<OwnedFd>) -> Option<Stdio> {
    let mut files = files.into_iter();
    let input = if exec.stdin {
        Some(files.next()?)
    } else {
        None
    };
    let output = files.next()?;
    let error = match exec.terminal {
        Some(_) => None,
        None => Some(files.next()?),
    };
    files.next().is_none().then_some(Stdio {
        input,
        output,
        error,
    })
}
