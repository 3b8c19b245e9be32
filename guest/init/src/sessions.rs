//! All sessions: the workload, whose end is the guest's, and further commands.
//!
//! A command belongs to who has asked for it. It ends with its streams: where nobody takes them any more they are
//! closed, and it gets SIGPIPE or SIGHUP, as over a broken login. The workload, in contrast, waits for another keeper.

use std::collections::BTreeMap;
use std::time::Instant;

use cachot_control::ToHost;
use rustix::process::{Pid, Signal, WaitStatus};

use crate::child::Failure;
use crate::link::{Interest, Transport};
use crate::session::Session;

/// Most commands at once beside the workload; each takes up to a dozen descriptors of PID 1, which has 1,024.
pub const MAX_COMMANDS: usize = 64;

/// The sessions by their numbers.
#[derive(Default)]
pub struct Sessions {
    workload: Option<Session>,
    commands: BTreeMap<u32, Session>,
}

impl Sessions {
    /// The first session.
    pub fn workload(&self) -> Option<&Session> {
        self.workload.as_ref()
    }

    /// The session of this number.
    pub fn find(&self, id: u32) -> Option<&Session> {
        let workload = self
            .workload
            .as_ref()
            .filter(|workload| workload.id() == id);
        workload.or_else(|| self.commands.get(&id))
    }

    /// Whether a session of this number can be added.
    ///
    /// # Errors
    /// Why not, and what to do.
    pub fn check(&self, id: u32) -> Result<(), Failure> {
        let refused = |message: String| Err(Failure::not_started(message));
        if self.workload.as_ref().is_some_and(Session::is_over) {
            return refused("the workload has ended, and the guest switches off".to_owned());
        }
        if self.find(id).is_some() {
            return refused(format!(
                "session {id} is there already; give the command another number"
            ));
        }
        if self.commands.len() >= MAX_COMMANDS {
            return refused(format!(
                "{MAX_COMMANDS} commands run beside the workload, which is the limit; wait until one ends"
            ));
        }
        Ok(())
    }

    /// Adds a session; the first is the workload.
    pub fn add(&mut self, session: Session) {
        if self.workload.is_none() {
            self.workload = Some(session);
        } else {
            self.commands.insert(session.id(), session);
        }
    }

    /// The latest news of each, for a host that knows nothing.
    pub fn reports(&self) -> Vec<ToHost> {
        self.all().filter_map(Session::report).collect()
    }

    /// Moves bytes and notices changes; returns the news for the host.
    pub fn run(&mut self, transport: &impl Transport, now: Instant) -> Vec<ToHost> {
        for command in self.commands.values_mut() {
            command.close_unwanted(now);
        }
        self.all_mut()
            .flat_map(|session| session.run(transport, now))
            .collect()
    }

    /// Takes note of a process that has ended.
    pub fn reaped(&mut self, pid: Pid, status: WaitStatus, now: Instant) {
        for session in self.all_mut() {
            session.reaped(pid, status, now);
        }
    }

    /// Sends a signal to the process groups of all.
    pub fn signal(&self, signal: Signal) {
        for session in self.all() {
            session.signal(signal);
        }
    }

    /// Forgets commands that are over; returns whether there were any.
    pub fn forget_ended(&mut self) -> bool {
        let before = self.commands.len();
        self.commands.retain(|_, command| !command.is_over());
        self.commands.len() < before
    }

    /// Forgets all sessions but the workload's and returns them.
    pub fn take_commands(&mut self) -> Vec<Session> {
        std::mem::take(&mut self.commands).into_values().collect()
    }

    /// What wakes it.
    pub fn interest<'a>(&'a self, interest: &mut Interest<'a>) {
        for session in self.all() {
            session.interest(interest);
        }
    }

    fn all(&self) -> impl Iterator<Item = &Session> {
        self.workload.iter().chain(self.commands.values())
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut Session> {
        self.workload.iter_mut().chain(self.commands.values_mut())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(id: u32) -> Session {
        Session::failed(id, Failure::not_started("for a test"))
    }

    fn refusal(sessions: &Sessions, id: u32) -> String {
        sessions.check(id).expect_err("it is refused").message
    }

    #[test]
    fn test_check_after_the_workload_has_ended_is_refused() {
        let mut sessions = Sessions::default();
        sessions.check(1).expect("the first one is welcome");
        sessions.add(ended(1));
        assert!(refusal(&sessions, 2).contains("has ended"));
    }

    #[test]
    fn test_reports_have_the_workload_first_and_ended_commands_until_they_are_forgotten() {
        let mut sessions = Sessions::default();
        for id in [9, 2, 5] {
            sessions.add(ended(id));
        }
        let numbers = |sessions: &Sessions| -> Vec<u32> {
            let number = |report: ToHost| match report {
                ToHost::Failed { session, .. } => session,
                other => panic!("{other:?}"),
            };
            sessions.reports().into_iter().map(number).collect()
        };
        assert_eq!(numbers(&sessions), [9, 2, 5]);

        assert!(sessions.forget_ended());

        assert_eq!(numbers(&sessions), [9]);
        assert!(!sessions.forget_ended());
    }
}
