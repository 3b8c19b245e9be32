//! What the host does to the device: it declares secrets, gives them new values and takes them away.
//!
//! What the driver must hear of is left in the device; [`VirtioDevice::process_queue`] tells it.
//!
//! [`VirtioDevice::process_queue`]: crate::virtio::VirtioDevice::process_queue

use cachot_secrets::{Name, SealedValue};
use vm_memory::{GuestMemory, GuestMemoryError};

use super::device::SecretsDevice;
use super::events::Event;
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
    pub value: Option<SealedValue>,
}

impl Entry {
    fn new(secret: Secret, version: u64) -> Self {
        Self {
            name: secret.name,
            mode: secret.mode,
            uid: secret.uid,
            gid: secret.gid,
            version,
            value_len: value_len(&secret.value),
            value: Some(secret.value),
        }
    }
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

/// The secrets of a device, all of the same version.
pub fn declare(secrets: Vec<Secret>, version: u64) -> Vec<Entry> {
    let entry = |secret| Entry::new(secret, version);
    secrets.into_iter().map(entry).collect()
}

impl SecretsDevice {
    /// Gives a secret a new value. Attached pages keep the old one; the driver is told to attach fresh
    /// pages.
    ///
    /// # Errors
    /// [`HostError::NotDeclared`] or [`HostError::Revoked`]; then nothing has changed.
    pub fn rotate(&mut self, name: &Name, value: SealedValue) -> Result<(), HostError> {
        let index = self.declared(name)?;
        if self.entries[index].value.is_none() {
            return Err(HostError::Revoked(name.clone()));
        }
        self.begin_epoch(EventKind::Rotated, Some(name.clone()));
        let entry = &mut self.entries[index];
        entry.version = self.epoch;
        entry.value_len = value_len(&value);
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
        let mut of_secret = self.handles.iter().filter(|(_, pages)| pages.name == *name);
        of_secret
            .try_for_each(|(_, pages)| wipe(mem, &pages.ranges))
            .map_err(HostError::Wipe)
    }

    /// Delivers nothing until [`Self::rehydrate`]; attached pages keep what they hold.
    pub fn freeze(&mut self) {
        self.frozen = true;
        self.config_changed = true;
    }

    /// Declares these secrets in place of all that were, fills every attached page again and ends a
    /// freeze. vCPUs are paused.
    ///
    /// Pages whose secret is not among the new ones, or does not fit into them any more, are wiped.
    ///
    /// # Errors
    /// [`HostError::Deliver`] or [`HostError::Wipe`]: the device is frozen then, and the guest must not
    /// run on.
    pub fn rehydrate<M: GuestMemory>(
        &mut self,
        secrets: Vec<Secret>,
        mem: &M,
    ) -> Result<(), HostError> {
        self.frozen = true;
        self.begin_epoch(EventKind::Rehydrated, None);
        self.entries = declare(secrets, self.epoch);
        for (_, pages) in self.handles.iter() {
            let value = self
                .entries
                .iter()
                .find(|entry| entry.name == pages.name)
                .and_then(|entry| entry.value.as_ref())
                .filter(|value| value.len() as u64 <= pages.len());
            match value {
                Some(value) => {
                    deliver(mem, &pages.ranges, value).map_err(|source| HostError::Deliver {
                        name: pages.name.clone(),
                        source,
                    })?
                }
                None => wipe(mem, &pages.ranges).map_err(HostError::Wipe)?,
            }
        }
        self.frozen = false;
        Ok(())
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
