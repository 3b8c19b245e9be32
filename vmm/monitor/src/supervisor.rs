//! Watches everything that decides on the machine's life: keeper, signals, control socket, the guest.

use std::sync::Arc;
use std::time::Instant;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use crate::api::Server;
use crate::keeper::{Keeper, Wish};
use crate::life::{Life, State};
use crate::protocol::ToKeeper;
use crate::signals::Signals;
use crate::snapshot::Snapshots;
use crate::vcpu::End;

/// Event data of what is watched.
const KEEPER: u32 = 0;
const SIGNALS: u32 = 1;
const GUEST: u32 = 2;
const API_LISTENER: u32 = 3;
const API_CONNECTION: u32 = 4;
const SNAPSHOTS: u32 = 5;

/// How the monitor ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The machine has ended.
    End(End),
    /// The keeper is gone, and the guest may not go on without it.
    KeeperGone,
}

/// An event subscriber for all that is not a device.
pub struct Supervisor {
    life: Life,
    keeper: Arc<Keeper>,
    signals: Signals,
    api: Option<Server>,
    snapshots: Snapshots,
    outlive_keeper: bool,
    keeper_gone: bool,
}

impl Supervisor {
    /// Supervises a machine whose vCPUs are about to run.
    #[must_use]
    pub fn new(
        life: Life,
        keeper: Arc<Keeper>,
        signals: Signals,
        api: Option<Server>,
        snapshots: Snapshots,
        outlive_keeper: bool,
    ) -> Self {
        Self {
            life,
            keeper,
            signals,
            api,
            snapshots,
            outlive_keeper,
            keeper_gone: false,
        }
    }

    /// Sees to all deadlines; says how the monitor ends, as soon as that is known.
    pub fn check(&mut self, ops: &mut EventOps) -> Option<Outcome> {
        if let Some(api) = &mut self.api {
            api.expire(ops);
        }
        self.life.check_deadline();
        match self.life.end() {
            Some(end) => Some(Outcome::End(end.clone())),
            None if self.keeper_gone && !self.outlive_keeper => Some(Outcome::KeeperGone),
            None => None,
        }
    }

    /// Milliseconds until something has to be done even if nothing happens; -1 is never.
    #[must_use]
    pub fn timeout(&self) -> i32 {
        let api = self.api.as_ref().and_then(Server::deadline);
        let Some(deadline) = self.life.deadline().into_iter().chain(api).min() else {
            return -1;
        };
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up, so as not to wake before the deadline.
        i32::try_from(left.as_millis()).map_or(i32::MAX, |left| left.saturating_add(1))
    }

    /// Does what the keeper wants, if it is not gone.
    fn on_keeper(&mut self, events: Events, ops: &mut EventOps) {
        match self.keeper.wish() {
            Some(Wish::Snapshot(request, files)) => {
                let answer = self.snapshots.begin(request, files, &self.life);
                self.tell(answer);
            }
            Some(Wish::Release) => self.snapshots.release(&mut self.life),
            None => {
                self.keeper_gone = true;
                drop(ops.remove(events));
                // Nobody else could.
                self.snapshots.release(&mut self.life);
            }
        }
    }

    fn on_snapshots(&mut self) {
        // Reports that came together are one event.
        loop {
            let (report, answer) = self.snapshots.go_on(&mut self.life);
            self.tell(answer);
            if !report {
                break;
            }
        }
    }

    /// A keeper that cannot be told is gone, and is found to be.
    fn tell(&self, answer: Option<ToKeeper>) {
        drop(answer.map(|answer| self.keeper.tell(&answer)));
    }

    fn on_signals(&mut self) {
        while self.signals.take() {
            if self.life.state() != State::Running || self.life.press_power_button().is_err() {
                self.life.kill();
            }
        }
    }
}

impl MutEventSubscriber for Supervisor {
    fn init(&mut self, ops: &mut EventOps) {
        let mut watched = vec![
            Events::with_data(&*self.keeper, KEEPER, EventSet::IN),
            Events::with_data(&self.signals, SIGNALS, EventSet::IN),
            Events::with_data(self.snapshots.event(), SNAPSHOTS, EventSet::IN),
            Events::with_data(
                self.life.machine().crew.ender().event(),
                GUEST,
                EventSet::IN,
            ),
        ];
        if let Some(api) = &self.api {
            watched.push(Events::with_data(
                api.listener(),
                API_LISTENER,
                EventSet::IN,
            ));
        }
        for events in watched {
            ops.add(events)
                .expect("a few new descriptors can be added to a new epoll instance");
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match (events.data(), &mut self.api) {
            (KEEPER, _) => self.on_keeper(events, ops),
            (SNAPSHOTS, _) => self.on_snapshots(),
            (SIGNALS, _) => self.on_signals(),
            (GUEST, _) => {
                self.life.check_guest();
                drop(ops.remove(events));
            }
            (API_LISTENER, Some(api)) => api.accept(API_CONNECTION, ops),
            (API_CONNECTION, Some(api)) => api.serve(events, ops, &mut self.life),
            _ => {}
        }
    }
}
