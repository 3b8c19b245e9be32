//! What the host does to the device: it declares secrets, gives them new values and takes them away.
//!
//! What the driver must hear of is left in the device; [`VirtioDevice::process_queue`] tells it.
//!
//! [`VirtioDevice::process_queue`]: crate::virtio::VirtioDevice::process_queue

use std::io;
use std::sync::Arc;

use cachot_secrets::{Name, SealedValue};
use vm_memory::{GuestMemory, GuestMemoryError};

use super::delivered::{Delivered, MAX_DELIVERED, MAX_DELIVERED_LEN};
use super::device::SecretsDevice;
use super::events::Event;
use super::handles::Content;
use super::pages::{deliver, wipe};
use super::wire::EventKind;

/// A secret as the host declares it to the device.
#[derive(Debug)]
pub struct Secret {
    /// Its name, which no other secret of the device has.
    pub name: Name,
    /// Permission bits in the guest, a subset of 0444.
    pub mode: u32,
    /// Owner in the guest.
    pub uid: u32,
    /// Group in the guest.
    pub gid: u32,
    /// The bytes.
    pub value: SealedValue,
}

/// A declared secret and what has become of it.
#[derive(Debug)]
pub struct Entry {
    pub name: Name,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// The epoch in which the value came, so that a version is never used again, even after a restore.
    pub version: u64,
    pub value_len: u32,
    /// None once the secret is revoked.
    pub value: Option<Arc<SealedValue>>,
}

/// Length of a value, which is far below 4 GiB.
fn value_len(value: &SealedValue) -> u32 {
    u32::try_from(value.len()).unwrap_or(u32::MAX)
}

/// Why the host's change of the device failed.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// No secret of that name was declared.
    #[error("no secret {0} is declared for this VM")]
    NotDeclared(Name),
    /// The secret was revoked, which is final.
    #[error("the secret {0} was revoked and cannot be given a value again")]
    Revoked(Name),
    /// One value more than snapshots are searched for.
    #[error(
        "the value of {0} is refused: in its life a VM gets at most {MAX_DELIVERED} different values of {MAX_DELIVERED_LEN} bytes together, so that its snapshots can be searched for all of them: start a new VM"
    )]
    Limit(Name),
    /// A value could not be compared with those that the device has.
    #[error("the value of {name} cannot be read from its sealed file")]
    Read {
        /// The secret.
        name: Name,
        /// What failed.
        #[source]
        source: io::Error,
    },
    /// A value could not be brought into the guest's pages; they hold zero bytes.
    #[error("the value of {name} cannot be written to the guest's pages")]
    Deliver {
        /// The secret.
        name: Name,
        /// What failed.
        #[source]
        source: GuestMemoryError,
    },
    /// Pages could not be wiped: guest memory is gone.
    #[error("attached guest pages cannot be wiped")]
    Wipe(#[source] GuestMemoryError),
}

/// What has become of the handles in [`SecretsDevice::rehydrate`], each counted once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rehydrated {
    /// Handles whose pages held their secret's current value, or none, and hold the current one now.
    pub refilled: usize,
    /// Handles whose pages held an older value, which is not known any more, and hold the current one now.
    pub renewed: usize,
    /// Handles whose pages hold zero bytes: the secret is not declared, or its value does not fit.
    pub wiped: usize,
}

/// The secrets of a device, all of the same version.
pub fn declare(
    secrets: Vec<Secret>,
    version: u64,
    delivered: &mut Delivered,
) -> Result<Vec<Entry>, HostError> {
    let entry = |secret: Secret| {
        Ok(Entry {
            version,
            value_len: value_len(&secret.value),
            value: Some(delivered.keep(&secret.name, version, secret.value)?),
            name: secret.name,
            mode: secret.mode,
            uid: secret.uid,
            gid: secret.gid,
        })
    };
    secrets.into_iter().map(entry).collect()
}

impl SecretsDevice {
    /// Gives a secret a new value. Attached pages keep the old one; the driver is told to attach fresh
    /// pages.
    ///
    /// # Errors
    /// [`HostError::NotDeclared`], [`HostError::Revoked`], [`HostError::Limit`] or [`HostError::Read`]; then
    /// nothing has changed.
    pub fn rotate(&mut self, name: &Name, value: SealedValue) -> Result<(), HostError> {
        let index = self.declared(name)?;
        if self.entries[index].value.is_none() {
            return Err(HostError::Revoked(name.clone()));
        }
        let value_len = value_len(&value);
        let value = self.delivered.keep(name, self.epoch + 1, value)?;
        self.begin_epoch(EventKind::Rotated, Some(name.clone()));
        self.handles.try_update(|pages| match pages.content {
            Content::Current(version) if pages.name == *name => Ok(Content::Superseded(version)),
            other => Ok::<_, HostError>(other),
        })?;
        let entry = &mut self.entries[index];
        entry.version = self.epoch;
        entry.value_len = value_len;
        entry.value = Some(value);
        Ok(())
    }

    /// Wipes all pages that hold a secret and never delivers it again. A second time it does nothing.
    ///
    /// # Errors
    /// [`HostError::NotDeclared`], or [`HostError::Wipe`]; in both cases the secret is not delivered any
    /// more.
    pub fn revoke<M: GuestMemory>(&mut self, name: &Name, mem: &M) -> Result<(), HostError> {
        let index = self.declared(name)?;
        if self.entries[index].value.take().is_none() {
            return Ok(());
        }
        self.begin_epoch(EventKind::Revoked, Some(name.clone()));
        self.handles.try_update(|pages| {
            if pages.name != *name {
                return Ok(pages.content);
            }
            wipe(mem, &pages.ranges).map_err(HostError::Wipe)?;
            Ok(Content::Wiped)
        })
    }

    /// Delivers nothing until [`Self::rehydrate`]; attached pages keep what they hold.
    pub fn freeze(&mut self) {
        self.frozen = true;
        self.config_changed = true;
    }

    /// Declares these secrets in place of all that were, fills every attached page again and ends a
    /// freeze. vCPUs are paused.
    ///
    /// Every handle gets its secret's current value, whatever version it held: of older ones the host has no
    /// value any more. Pages whose secret is not among the new ones, or does not fit into them, are wiped. A
    /// secret that was revoked is as good as new if it is declared again; that is the caller's choice.
    ///
    /// # Errors
    /// [`HostError::Limit`], [`HostError::Read`], [`HostError::Deliver`] or [`HostError::Wipe`]: the device is
    /// frozen then, and the guest must not run on.
    pub fn rehydrate<M: GuestMemory>(
        &mut self,
        secrets: Vec<Secret>,
        mem: &M,
    ) -> Result<Rehydrated, HostError> {
        self.frozen = true;
        self.begin_epoch(EventKind::Rehydrated, None);
        self.entries = declare(secrets, self.epoch, &mut self.delivered)?;
        let mut done = Rehydrated::default();
        self.handles.try_update(|pages| {
            let value = self
                .entries
                .iter()
                .find(|entry| entry.name == pages.name)
                .and_then(|entry| entry.value.as_ref())
                .filter(|value| value.len() as u64 <= pages.len());
            let Some(value) = value else {
                wipe(mem, &pages.ranges).map_err(HostError::Wipe)?;
                done.wiped += 1;
                return Ok(Content::Wiped);
            };
            deliver(mem, &pages.ranges, value).map_err(|source| HostError::Deliver {
                name: pages.name.clone(),
                source,
            })?;
            match pages.content {
                Content::Superseded(_) => done.renewed += 1,
                Content::Current(_) | Content::Wiped => done.refilled += 1,
            }
            Ok(Content::Current(self.epoch))
        })?;
        self.frozen = false;
        Ok(done)
    }

    fn declared(&self, name: &Name) -> Result<usize, HostError> {
        let index = self.entries.iter().position(|entry| entry.name == *name);
        index.ok_or_else(|| HostError::NotDeclared(name.clone()))
    }

    fn begin_epoch(&mut self, kind: EventKind, name: Option<Name>) {
        // Starts under 2^63, here and after a restore, and rises by one at a time.
        self.epoch += 1;
        self.config_changed = true;
        self.events.push(Event {
            kind,
            name,
            epoch: self.epoch,
        });
    }
}
