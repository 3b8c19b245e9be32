//! Secrets that the host keeps: the commands `secret` and `key`, and what references are resolved with.

mod check;
mod error;
mod import;
mod input;
pub mod key;
pub mod secret;

use std::path::PathBuf;

use cachot_custody::Requester;
use cachot_custody::schemes::{Environment, StoreScheme, with_providers};
use cachot_secrets::Schemes;

pub use error::CustodyError;

use crate::settings;
use crate::state_dir::{Places, StateError};

/// Folder of the store in the folder of all state.
const STORE_FOLDER: &str = "secrets";

/// The schemes that references may use, for whoever asks.
pub fn schemes(requester: &Requester) -> Schemes {
    with_providers(Schemes::default(), &Environment::of_this_process())
        .with(settings::bundle_scheme())
        .with(StoreScheme::new(store_folder().ok(), requester.clone()))
}

/// Where the store is, or will be.
pub fn store_folder() -> Result<PathBuf, StateError> {
    Ok(Places::of_process().root()?.join(STORE_FOLDER))
}
