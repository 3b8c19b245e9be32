//! Snapshots: the guest's workload brought to rest, the order to the monitor, reports to the command that wants it.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use cachot_control::ToGuest;
use cachot_vmm::protocol::{self, SnapshotRequest, ToKeeper, ToMonitor};

use super::Keeper;
use super::life::{Action, SessionError, killed, one_line};
use super::request::Answer;

/// How long the guest may take to bring its workload to rest: longer than its own limit.
const FREEZE_PATIENCE: Duration = Duration::from_secs(15);

/// A snapshot that is being taken.
pub struct Snapshotting {
    client: u32,
    /// Until the workload rests: what is to be sent to the monitor, and when that is given up.
    waiting: Option<(SnapshotRequest, Vec<OwnedFd>, Instant)>,
    /// Whether the workload is to go on afterwards.
    thaw: bool,
    /// What becomes of the machine once its copy is made.
    afterwards: Afterwards,
}

/// What becomes of the machine once its copy is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Afterwards {
    /// It goes on.
    Runs,
    /// It is to rest until the client ends it or is gone.
    ToBeHeld,
    /// It rests, and all parts are written.
    Held,
}

impl Snapshotting {
    /// When [`Keeper::expire_snapshot`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        self.waiting.as_ref().map(|(.., deadline)| *deadline)
    }
}

impl Keeper<'_> {
    /// Begins a snapshot for the client of this number.
    pub(super) fn begin_snapshot(
        &mut self,
        client: u32,
        request: SnapshotRequest,
        quiesce: bool,
        files: Vec<OwnedFd>,
        now: Instant,
    ) {
        if self.snapshot.is_some() {
            let answer = Answer::failed("another snapshot of this VM is being taken: wait for it");
            return self.answer(client, &answer);
        }
        if quiesce && (!self.life.running() || self.control.is_none()) {
            let answer = Answer::failed(
                "the VM's workload is not running, and cannot be brought to rest: leave out --quiesce-workload",
            );
            return self.answer(client, &answer);
        }
        let afterwards = match request.hold {
            true => Afterwards::ToBeHeld,
            false => Afterwards::Runs,
        };
        self.snapshot = Some(Snapshotting {
            client,
            afterwards,
            waiting: Some((request, files, now + FREEZE_PATIENCE)),
            thaw: quiesce,
        });
        if quiesce {
            // A short message.
            self.tell_guest(&ToGuest::Freeze).ok();
            self.freezes += 1;
        } else {
            self.order_snapshot();
        }
    }

    /// The workload rests, or does not.
    pub(super) fn frozen(&mut self, failure: Option<String>) {
        self.freezes = self.freezes.saturating_sub(1);
        match failure {
            // The answer to an order that was given up: the workload has been let go on since.
            _ if self.freezes > 0 => {}
            _ if self
                .snapshot
                .as_ref()
                .is_none_or(|one| one.waiting.is_none()) => {}
            None => self.order_snapshot(),
            Some(failure) => self.fail_snapshot(&format!(
                "the workload cannot be brought to rest: {}",
                one_line(&failure)
            )),
        }
    }

    /// Gives up a workload that does not come to rest.
    pub(super) fn expire_snapshot(&mut self, now: Instant) {
        let deadline = self.snapshot.as_ref().and_then(Snapshotting::deadline);
        if deadline.is_some_and(|deadline| deadline <= now) {
            self.fail_snapshot("the workload does not come to rest: is the VM paused?");
        }
    }

    /// What the monitor says of the snapshot.
    pub(super) fn snapshot_heard(&mut self, message: ToKeeper) -> Option<Action> {
        let Some(snapshot) = &mut self.snapshot else {
            let message = "the monitor speaks of a snapshot that nobody asked for";
            return killed(Err(SessionError::Monitor(message.into())));
        };
        let client = snapshot.client;
        match message {
            ToKeeper::SnapshotProgress(progress) => {
                self.answer(client, &Answer::Progress(progress));
            }
            ToKeeper::SnapshotWritten(report) => {
                if snapshot.afterwards == Afterwards::ToBeHeld {
                    snapshot.afterwards = Afterwards::Held;
                } else {
                    self.end_snapshot();
                }
                self.answer(client, &Answer::Written(report));
                if !self.clients.contains_key(&client) {
                    self.release_snapshot(client);
                }
            }
            ToKeeper::SnapshotFailed { message } => self.fail_snapshot(&message),
            _ => {}
        }
        None
    }

    /// Whether the machine rests for the client of this number, which may end it.
    pub(super) fn is_held_for(&self, client: u32) -> bool {
        let snapshot = self.snapshot.as_ref();
        snapshot.is_some_and(|one| one.client == client && one.afterwards == Afterwards::Held)
    }

    /// Lets the machine go on if it is held for the client of this number, which is gone.
    pub(super) fn release_snapshot(&mut self, client: u32) {
        if self.is_held_for(client) {
            // A monitor that cannot be told is gone, and is found to be.
            protocol::send(self.ends.monitor, &ToMonitor::Release, &[]).ok();
            self.end_snapshot();
        }
    }

    fn order_snapshot(&mut self) {
        let waiting = self.snapshot.as_mut().and_then(|one| one.waiting.take());
        let Some((request, files, _)) = waiting else {
            return;
        };
        let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        let sent = protocol::send(self.ends.monitor, &ToMonitor::Snapshot(request), &files);
        if let Err(error) = sent {
            self.fail_snapshot(&error.to_string());
        }
    }

    fn fail_snapshot(&mut self, message: &str) {
        if let Some(client) = self.end_snapshot() {
            self.answer(client, &Answer::failed(message));
        }
    }

    /// Lets the workload go on.
    fn end_snapshot(&mut self) -> Option<u32> {
        let snapshot = self.snapshot.take()?;
        if snapshot.thaw {
            // A short message.
            self.tell_guest(&ToGuest::Thaw).ok();
        }
        Some(snapshot.client)
    }
}
