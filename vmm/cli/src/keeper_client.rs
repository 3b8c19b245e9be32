//! A connection of a command to the keeper of a running VM.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use cachot_vmm::protocol::{ChannelError, receive, send};

use crate::keeper::request::{Answer, Request};
use crate::vm::error::RunError;
use crate::vm::existing::Existing;

/// A connection; one request, and the answers to it.
pub struct KeeperClient {
    socket: OwnedFd,
    name: String,
}

impl KeeperClient {
    /// Connects.
    ///
    /// # Errors
    /// [`RunError::State`].
    pub fn connect(vm: &Existing) -> Result<Self, RunError> {
        Ok(Self {
            socket: vm.keeper()?,
            name: vm.name().to_string(),
        })
    }

    /// Asks for something, with descriptors.
    ///
    /// # Errors
    /// [`RunError::Gone`] or [`RunError::HandOver`].
    pub fn ask(&self, request: &Request, files: &[BorrowedFd<'_>]) -> Result<(), RunError> {
        send(self.socket.as_fd(), request, files).map_err(|error| self.broken(error))
    }

    /// The next answer.
    ///
    /// # Errors
    /// [`RunError::Refused`] for [`Answer::Failed`], [`RunError::Gone`] or [`RunError::HandOver`].
    pub fn answer(&self) -> Result<Answer, RunError> {
        match receive(self.socket.as_fd()) {
            Ok((Answer::Failed { code, message }, _)) => Err(RunError::Refused { code, message }),
            Ok((answer, _)) => Ok(answer),
            Err(error) => Err(self.broken(error)),
        }
    }

    fn broken(&self, error: ChannelError) -> RunError {
        match error {
            ChannelError::Closed => RunError::Gone(self.name.clone()),
            other => RunError::HandOver(other),
        }
    }
}

impl AsFd for KeeperClient {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
