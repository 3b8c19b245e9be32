//! Why a value was not got from Vault.

use std::io;

use cachot_secrets::{LockError, ResolveError};

use super::place::PlaceError;
use super::{ADDRESS_VARIABLE, TOKEN_VARIABLE};
use crate::files::FileError;

/// Why a value was not got from Vault. What the server says is never repeated: it could hold the value or the
/// token.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The reference cannot be read.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// No server is named.
    #[error(
        "vault: no server is named: set {ADDRESS_VARIABLE}, as in https://vault.example.org:8200"
    )]
    NoAddress,
    /// The address cannot be used. It is not repeated, as a password may be in it.
    #[error(
        "vault: {ADDRESS_VARIABLE} is not an address: write https://HOST:PORT (or http://), with neither user, \
         password, query nor fragment"
    )]
    BadAddress,
    /// There is no token.
    #[error(
        "vault: there is no token: set {TOKEN_VARIABLE}, or log in, which writes ~/.vault-token"
    )]
    NoToken,
    /// The token or namespace cannot be sent.
    #[error("vault: the {0} cannot be sent: it is not one line of printable ASCII")]
    BadHeader(&'static str),
    /// The token's file or that of the certificates is not used.
    #[error("vault: the file of the {what} is not used")]
    File {
        /// What is in it.
        what: &'static str,
        /// What is wrong with it.
        source: FileError,
    },
    /// The file of the token or certificates cannot be read.
    #[error("vault: cannot read the {what}")]
    Unreadable {
        /// What is in it.
        what: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No certificate is trusted.
    #[error(
        "vault: no certificate authority is trusted: install the system's certificates, or set VAULT_CACERT to a \
         PEM file with the server's"
    )]
    NoCertificates,
    /// There is no connection.
    #[error("vault: no connection to {address}: check {ADDRESS_VARIABLE} and that the server runs")]
    Unreachable {
        /// The server.
        address: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It is not known whose the connection is.
    #[error(
        "vault: {address} does not prove who it is: set VAULT_CACERT if it has a certificate authority of its own"
    )]
    Tls {
        /// The server.
        address: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It does not speak HTTP.
    #[error("vault: {address} does not answer as HTTP demands: check {ADDRESS_VARIABLE}")]
    NotHttp {
        /// The server.
        address: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The connection ended before the answer did.
    #[error("vault: the answer of {address} ended too soon: try again")]
    Cut {
        /// The server.
        address: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// 400.
    #[error(
        "vault: the server does not understand the request for {secret:?} (400): check the path and {ADDRESS_VARIABLE}"
    )]
    BadRequest {
        /// Path of the secret.
        secret: String,
    },
    /// 401 or 403.
    #[error(
        "vault: access to {secret:?} is denied ({status}): the token is not valid (any more), or its policies do not \
         allow to read this path"
    )]
    Denied {
        /// Path of the secret.
        secret: String,
        /// 401 or 403.
        status: u16,
    },
    /// 404.
    #[error(
        "vault: there is no secret {secret:?}, or that version of it does not exist or was deleted (404)"
    )]
    NotFound {
        /// Path of the secret.
        secret: String,
    },
    /// 503.
    #[error(
        "vault: {address} is sealed, or stands by for another server (503): unseal it, or name that server in {ADDRESS_VARIABLE}"
    )]
    Unavailable {
        /// The server.
        address: String,
    },
    /// Another status from 500.
    #[error("vault: {address} failed ({status}): see its log")]
    Server {
        /// The server.
        address: String,
        /// The status.
        status: u16,
    },
    /// A redirection, which would carry the token to whom the server names.
    #[error(
        "vault: {address} sends to {to} ({status}): the token does not follow; if that is the server, name it in {ADDRESS_VARIABLE}"
    )]
    Redirect {
        /// The server.
        address: String,
        /// Scheme, host and port of the other.
        to: String,
        /// The status.
        status: u16,
    },
    /// Another status.
    #[error(
        "vault: {address} answers with the status {status}, which means nothing here: check {ADDRESS_VARIABLE}"
    )]
    Status {
        /// The server.
        address: String,
        /// The status.
        status: u16,
    },
    /// The answer is not what the interface says.
    #[error(
        "vault: the answer for {secret:?} is not that of a key-value store, version 2: check the path, and that its mount \
         is of that version"
    )]
    NotKeyValue {
        /// Path of the secret.
        secret: String,
    },
    /// The secret has no such field.
    #[error("vault: {secret:?} has no field {field:?}: add it, or name another")]
    NoField {
        /// Path of the secret.
        secret: String,
        /// The field.
        field: String,
    },
    /// The field is a number, a list, or the like.
    #[error("vault: the field {field:?} of {secret:?} is not text: write it as a string")]
    NotText {
        /// Path of the secret.
        secret: String,
        /// The field.
        field: String,
    },
    /// Reading failed.
    #[error("vault: cannot read the answer")]
    Io(#[source] io::Error),
    /// There is no locked memory for the token or the answer.
    #[error(transparent)]
    Lock(#[from] LockError),
}

impl From<VaultError> for ResolveError {
    fn from(error: VaultError) -> Self {
        match error {
            VaultError::Lock(error) => Self::Lock(error),
            error => Self::Scheme(Box::new(error)),
        }
    }
}
