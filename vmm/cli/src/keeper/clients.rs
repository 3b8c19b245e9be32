//! Connections of commands, and what they ask for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use cachot_vmm::protocol::{self, ChannelError};
use rustix::io::Errno;
use rustix::net::SocketFlags;

use super::Keeper;
use super::life::{Action, killed};
use super::request::{Answer, Request, Stop};

/// Most connections of commands at a time; further ones are closed at once.
const MAX_CLIENTS: usize = 64;

/// Exit code of a VM that is ended at once: that of a command that SIGKILL ends.
const KILLED: u8 = 128 + 9;

/// A connection of a command.
pub struct Client {
    socket: OwnedFd,
    /// Whether it has asked for something already.
    asked: bool,
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Keeper<'_> {
    /// Takes a connection that waits.
    pub(super) fn accept_client(&mut self) -> io::Result<()> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = match rustix::net::accept_with(self.ends.commands, flags) {
            Ok(socket) => socket,
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        if self.clients.len() < MAX_CLIENTS {
            let client = Client {
                socket,
                asked: false,
            };
            self.clients.insert(self.next_client, client);
            // A number that was used four billion clients ago may be used again.
            self.next_client = self.next_client.checked_add(1).unwrap_or(2);
        }
        Ok(())
    }

    /// Hears what a command wants.
    pub(super) fn hear_client(&mut self, number: u32, now: Instant) -> Option<Action> {
        let held = self.is_held_for(number);
        let client = self.clients.get_mut(&number)?;
        let first = !std::mem::replace(&mut client.asked, true);
        match protocol::receive::<Request>(client.socket.as_fd()) {
            Ok((request, files)) if first => self.obey(number, request, files, now),
            Ok((Request::Signal { signal }, _)) => {
                self.signal_command(number, signal);
                None
            }
            Ok((Request::WindowSize { size }, _)) => {
                self.resize_command(number, size);
                None
            }
            Ok((Request::Stop(Stop::Kill), _)) if held => killed(Ok(KILLED)),
            Err(ChannelError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                client.asked = !first;
                None
            }
            // It is gone, or does not keep to the rules.
            Ok(_) | Err(_) => {
                self.leave_command(number);
                self.release_snapshot(number);
                None
            }
        }
    }

    fn obey(
        &mut self,
        number: u32,
        request: Request,
        files: Vec<OwnedFd>,
        now: Instant,
    ) -> Option<Action> {
        match request {
            Request::Exec(exec) => {
                match self.duplicate(number) {
                    Ok(client) => self.start_command(number, client, *exec, files, now),
                    Err(error) => self.answer(number, &Answer::failed(error.to_string())),
                }
                None
            }
            Request::Stop(Stop::Kill) => killed(Ok(KILLED)),
            Request::Stop(Stop::Terminate(grace)) => {
                self.life.stop(Duration::from_secs(grace.into()), now)
            }
            Request::Snapshot { request, quiesce } => {
                self.begin_snapshot(number, request, quiesce, files, now);
                None
            }
            Request::Signal { .. } | Request::WindowSize { .. } => {
                self.answer(
                    number,
                    &Answer::failed("there is no command to pass this to"),
                );
                None
            }
        }
    }

    /// A second descriptor of a client's connection.
    fn duplicate(&self, number: u32) -> io::Result<OwnedFd> {
        let client = self.clients.get(&number);
        client.map_or_else(
            || Err(io::ErrorKind::NotFound.into()),
            |client| client.socket.try_clone(),
        )
    }

    /// Answers a client that is still there.
    pub(super) fn answer(&self, number: u32, answer: &Answer) {
        if let Some(client) = self.clients.get(&number) {
            // One that is gone, or does not listen, needs no answer.
            protocol::send(client.as_fd(), answer, &[]).ok();
        }
    }
}
