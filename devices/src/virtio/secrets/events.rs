//! Events that wait for a buffer of the driver's.

use std::collections::VecDeque;

use cachot_secrets::Name;

use super::wire::EventKind;

/// Something the driver is to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// To which secret; none with [`EventKind::Rehydrated`].
    pub name: Option<Name>,
    /// The epoch that began with it.
    pub epoch: u64,
}

/// Waiting events, oldest first; one of a kind and name at most.
#[derive(Debug, Default)]
pub struct Events(VecDeque<Event>);

impl Events {
    /// Adds an event, in place of one of its kind and name.
    pub fn push(&mut self, event: Event) {
        self.0
            .retain(|old| (old.kind, &old.name) != (event.kind, &event.name));
        self.0.push_back(event);
    }

    /// The event to tell next.
    pub fn front(&self) -> Option<&Event> {
        self.0.front()
    }

    /// The event to tell next has been told.
    pub fn pop_front(&mut self) {
        self.0.pop_front();
    }

    /// Forgets all events.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// All events, oldest first.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Event> {
        self.0.iter()
    }
}
