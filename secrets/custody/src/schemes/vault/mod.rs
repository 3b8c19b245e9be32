//! `vault:MOUNT/data/PATH#FIELD`: a field of a secret in the key-value store, version 2, of Vault or OpenBao.

mod answer;
mod client;
mod error;
mod place;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cachot_secrets::{Fetched, Origin, ResolveError, Scheme, TIME_LIMIT};

use super::{Environment, of_value};
use answer::{Field, field};
use client::Client;
pub use error::VaultError;
use place::Place;
pub use place::PlaceError;

/// Holds the server's address.
const ADDRESS_VARIABLE: &str = "VAULT_ADDR";

/// Holds the token.
const TOKEN_VARIABLE: &str = "VAULT_TOKEN";

/// Name of the scheme.
const SCHEME: &str = "vault";

/// `vault:MOUNT/data/PATH[?version=N]#FIELD`: the text of one field, as it is.
///
/// The server, the token and the namespace are those of `VAULT_ADDR`, `VAULT_TOKEN` (or the file `~/.vault-token`)
/// and `VAULT_NAMESPACE`; with `VAULT_CACERT` a file of certificates is trusted in place of the system's. They
/// are read at the first use and kept.
pub struct Vault {
    environment: Environment,
    client: Mutex<Option<Arc<Client>>>,
    limit: Duration,
}

impl Vault {
    /// One that finds its settings in `environment`.
    #[must_use]
    pub fn new(environment: Environment) -> Self {
        Self {
            environment,
            client: Mutex::default(),
            limit: TIME_LIMIT,
        }
    }

    /// The same with another limit than [`TIME_LIMIT`] for a request.
    #[must_use]
    pub fn with_time_limit(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    fn client(&self) -> Result<Arc<Client>, ResolveError> {
        // What a panic left behind is a client or none.
        let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = &*client {
            return Ok(Arc::clone(client));
        }
        let new = Arc::new(Client::new(&self.environment, self.limit)?);
        *client = Some(Arc::clone(&new));
        Ok(new)
    }
}

impl Scheme for Vault {
    fn name(&self) -> &'static str {
        SCHEME
    }

    fn is_plaintext(&self) -> bool {
        false
    }

    fn resolve(&self, locator: &str) -> Result<Fetched, ResolveError> {
        let place: Place = locator.parse().map_err(VaultError::from)?;
        let answer = self.client()?.get(&place)?;
        let Field { value, version } = field(&answer, &place)?;
        let value = value.map_err(|error| {
            let place = format!("the field {:?} of {:?}", place.field, place.secret);
            of_value(place, error, VaultError::Io)
        })?;
        Ok(Fetched {
            value,
            origin: Origin {
                scope: None,
                version,
            },
        })
    }

    fn time_limit(&self) -> Option<Duration> {
        Some(self.limit)
    }

    fn variable<'a>(&'a self, _locator: &'a str) -> Option<&'a str> {
        Some(TOKEN_VARIABLE)
    }
}
