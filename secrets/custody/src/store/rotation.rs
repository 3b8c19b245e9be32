//! The key of a store, wrapped anew: no value is touched, and whenever this process is killed the old source opens the
//! store or the new one does.

use rusqlite::TransactionBehavior;

use super::{KeyStatus, Store, StoreError, keyring, now, positive};
use crate::keys::{KeyChoice, KeyError, Recipient};

impl Store {
    /// What wraps the store's key.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn key_status(&self) -> Result<KeyStatus, StoreError> {
        let rows = keyring::rows(&self.connection, &self.path)?;
        let choice = rows[0].choice()?;
        Ok(KeyStatus {
            file: matches!(choice, KeyChoice::File {}).then(|| keyring::key_file(&self.place)),
            choice,
            created: positive(rows[0].created),
            unfinished: rows.len() > 1,
        })
    }

    /// Wraps the store's key anew, by this source; the old wrapping is removed. No value is touched.
    ///
    /// # Errors
    /// See [`StoreError`]; the store can be opened by the old source or by the new one then.
    pub fn rotate_key(&mut self, choice: &KeyChoice) -> Result<(), StoreError> {
        self.rewrap(|_| Ok(choice.clone()))
    }

    /// Changes who can read the store, if its key is an age file.
    ///
    /// # Errors
    /// See [`StoreError`]; nothing is changed then.
    pub fn change_recipients(
        &mut self,
        change: impl FnOnce(&mut Vec<Recipient>) -> Result<(), KeyError>,
    ) -> Result<(), StoreError> {
        self.rewrap(|current| match current {
            KeyChoice::Age {
                identity,
                mut recipients,
            } => {
                change(&mut recipients)?;
                Ok(KeyChoice::Age {
                    identity,
                    recipients,
                })
            }
            other => Err(KeyError::NoRecipients(other.kind())),
        })
    }

    fn rewrap(
        &mut self,
        choose: impl FnOnce(KeyChoice) -> Result<KeyChoice, KeyError>,
    ) -> Result<(), StoreError> {
        self.finish_rotation()?;
        let failed = || StoreError::database("write to", &self.path);
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(failed())?;
        // Another process may have begun one since, and not have finished it.
        keyring::finish(&transaction, &self.path, &self.place, &self.root)?;
        let current = keyring::rows(&transaction, &self.path)?[0].choice()?;
        let choice = choose(current)?;
        keyring::begin(
            &transaction,
            &self.path,
            &self.place,
            &self.root,
            &choice,
            now(),
        )?;
        transaction.commit().map_err(failed())?;
        self.finish_rotation()?;
        self.connection
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |_| Ok(()))
            .ok();
        Ok(())
    }

    pub(super) fn finish_rotation(&mut self) -> Result<(), StoreError> {
        let failed = || StoreError::database("write to", &self.path);
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(failed())?;
        keyring::finish(&transaction, &self.path, &self.place, &self.root)?;
        transaction.commit().map_err(failed())
    }
}
