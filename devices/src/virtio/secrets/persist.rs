//! What a snapshot holds of the device, and the checks on the way back. Never a value.

use std::collections::BTreeSet;

use cachot_secrets::{MAX_SECRETS, Name};
use serde::{Deserialize, Serialize};
use vm_memory::GuestMemory;

use super::device::SecretsDevice;
use super::events::Event;
use super::handles::{Attachment, Content, Refusal};
use super::pages::{PageRange, is_ram};
use super::wire::{EventKind, MAX_RANGES};
use crate::virtio::RestoreError;

/// Epochs at and over this are refused: so many never pass, and counting on cannot overflow.
const EPOCH_LIMIT: u64 = 1 << 63;

/// Most events that can wait: two a secret and one of the whole device.
const MAX_EVENTS: usize = 2 * MAX_SECRETS + 1;

/// The device as data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretsState {
    /// The epoch.
    pub epoch: u64,
    /// The last epoch the driver acknowledged.
    pub acknowledged: u64,
    /// All handles.
    pub handles: Vec<AttachmentState>,
    /// Waiting events, oldest first.
    pub events: Vec<EventState>,
}

/// A handle as data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachmentState {
    /// Its number.
    pub handle: u32,
    /// The secret's name.
    pub name: String,
    /// What its pages held.
    pub content: Content,
    /// Guest-physical addresses and lengths in bytes, in the order of the value.
    pub ranges: Vec<(u64, u64)>,
}

/// A waiting event as data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventState {
    /// What happened.
    pub kind: EventKind,
    /// The secret's name; none with [`EventKind::Rehydrated`].
    pub name: Option<String>,
    /// The epoch that began with it.
    pub epoch: u64,
}

impl From<&SecretsDevice> for SecretsState {
    fn from(device: &SecretsDevice) -> Self {
        let ranges = |pages: &Attachment| {
            let pair = |range: &PageRange| (range.start(), range.len());
            pages.ranges.iter().map(pair).collect()
        };
        Self {
            epoch: device.epoch,
            acknowledged: device.acknowledged,
            handles: device
                .handles
                .iter()
                .map(|(handle, pages)| AttachmentState {
                    handle,
                    name: pages.name.to_string(),
                    content: pages.content,
                    ranges: ranges(pages),
                })
                .collect(),
            events: device
                .events
                .iter()
                .map(|event| EventState {
                    kind: event.kind,
                    name: event.name.as_ref().map(Name::to_string),
                    epoch: event.epoch,
                })
                .collect(),
        }
    }
}

impl SecretsState {
    /// Puts the state into a new device, which is frozen from then on, until its values are there.
    pub(super) fn restore<M: GuestMemory>(
        self,
        device: &mut SecretsDevice,
        mem: &M,
    ) -> Result<(), RestoreError> {
        if !(1..EPOCH_LIMIT).contains(&self.epoch) || self.acknowledged > self.epoch {
            return refused("an epoch is out of bounds");
        }
        for saved in self.handles {
            let handle = saved.handle;
            let pages = attachment(saved)?;
            if handle == 0 || device.handles.get(handle).is_some() {
                return refused("a handle's number is 0 or used twice");
            }
            let version = pages.content.version();
            if version.is_some_and(|version| !(1..=self.epoch).contains(&version)) {
                return refused("a handle holds a version that there cannot be");
            }
            if !pages.ranges.iter().all(|range| is_ram(mem, *range)) {
                return refused("an attached page is not RAM");
            }
            match device.handles.check(&pages.ranges) {
                Ok(()) => device.handles.insert_as(handle, pages),
                Err(Refusal::Overlap) => return refused("a page is attached twice"),
                Err(Refusal::Limit) => return refused("more is attached than the device allows"),
            }
        }
        if self.events.len() > MAX_EVENTS {
            return refused("more events wait than there can be");
        }
        let mut seen = BTreeSet::new();
        for saved in self.events {
            let name = saved.name.as_deref().map(name).transpose()?;
            let of_device = saved.kind == EventKind::Rehydrated;
            if of_device != name.is_none() || saved.epoch > self.epoch {
                return refused("an event is not one of this device's");
            }
            if !seen.insert((saved.kind as u32, name.clone())) {
                return refused("an event waits twice");
            }
            device.events.push(Event {
                kind: saved.kind,
                name,
                epoch: saved.epoch,
            });
        }
        device.epoch = self.epoch;
        device.acknowledged = self.acknowledged;
        device.frozen = true;
        Ok(())
    }
}

fn attachment(saved: AttachmentState) -> Result<Attachment, RestoreError> {
    if !(1..=MAX_RANGES).contains(&saved.ranges.len()) {
        return refused("a handle has no range or too many");
    }
    let pair = |(start, len)| PageRange::new(start, len);
    let Some(ranges) = saved.ranges.into_iter().map(pair).collect() else {
        return refused("an attached range is not one of whole pages");
    };
    Ok(Attachment {
        name: name(&saved.name)?,
        content: saved.content,
        ranges,
    })
}

fn name(text: &str) -> Result<Name, RestoreError> {
    text.parse()
        .map_err(|error| RestoreError(format!("secrets: {error}")))
}

fn refused<T>(text: &str) -> Result<T, RestoreError> {
    Err(RestoreError(format!("secrets: {text}")))
}
