//! `cachot key ...`.

use std::path::PathBuf;

use cachot_custody::keys::Recipient;
use clap::{Args, Subcommand};

const KEY_HELP: &str = "\
Values are encrypted under keys that one root key gives. That key lies in the store only wrapped, by one of:
  a key file        master.key beside the database, 32 bytes, made when the first secret is stored
  age               an age file to several recipients, which an identity file of this host reads
  a credential      32 bytes that systemd gives to a service (LoadCredential=, LoadCredentialEncrypted=)

Exit codes: 0, or 125 if nothing was changed.";

/// `cachot key ...`.
#[derive(Debug, Subcommand)]
#[command(after_help = KEY_HELP)]
pub enum KeyCommand {
    /// Make an empty store with the key that is named, a key file by default
    Init(SourceArgs),
    /// Say what wraps the store's key, and whether it does
    Status(KeyStatusArgs),
    /// Wrap the store's key anew, by another source if one is named; no value is touched
    Rotate(SourceArgs),
    /// Let further keys of age read the store
    AddRecipient(RecipientArgs),
    /// Wrap the store's key no longer for keys of age; who has opened the store before keeps the key
    RemoveRecipient(RecipientArgs),
}

/// What wraps the store's key.
#[derive(Debug, Args)]
#[command(after_help = KEY_HELP)]
pub struct SourceArgs {
    /// A key file beside the database
    #[arg(long, conflicts_with_all = ["age_identity", "credential"])]
    pub file: bool,

    /// age: file with a private key that this host reads the store with, as age-keygen makes it
    #[arg(long, value_name = "FILE", conflicts_with = "credential")]
    pub age_identity: Option<PathBuf>,

    /// age: a further public key that can read the store
    #[arg(long = "recipient", value_name = "age1...", requires = "age_identity")]
    pub recipients: Vec<Recipient>,

    /// Name of a credential that systemd gives to this service
    #[arg(long, value_name = "NAME")]
    pub credential: Option<String>,
}

/// `cachot key status`.
#[derive(Debug, Args)]
pub struct KeyStatusArgs {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `cachot key add-recipient` and `remove-recipient`.
#[derive(Debug, Args)]
pub struct RecipientArgs {
    /// Public keys of age
    #[arg(value_name = "age1...", required = true)]
    pub recipients: Vec<Recipient>,
}
