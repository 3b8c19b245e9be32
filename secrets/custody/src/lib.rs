//! Secrets in custody: where the host keeps them, who may have them, and the record of who had them.
//!
//! [`cachot_secrets`] knows what a value and a reference are, and both processes of a VM link it. This
//! crate is the host's side alone: the keeper and the commands link it, the monitor never does, for it
//! brings a database, TLS and a network.

pub mod audit;
pub mod bundle;
mod crypto;
mod files;
mod group;
mod identities;
pub mod import;
pub mod keys;
mod requester;
pub mod schemes;
pub mod store;

pub use crypto::{CryptoError, Key};
pub use files::{Access, FileError, read as read_file};
pub use keys::KeyError;
pub use requester::{Requester, UserId, UserIdError};
pub use store::{Store, StoreError};
