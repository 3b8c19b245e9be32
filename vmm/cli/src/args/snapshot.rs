//! `cachot snapshot ...`.

use std::path::PathBuf;

use cachot_snapshot::image::Recipient;
use clap::{Args, Subcommand, ValueEnum};

use super::owner::OwnerArgs;

use crate::vm_name::VmName;

const CREATE_EXAMPLES: &str = "\
Examples:
  cachot snapshot create web snap1
  cachot snapshot create web snap1 --on-residue refuse
  cachot snapshot create web snap1 --quiesce-workload --stop --recipient age1...

The VM is paused for the copy only, keeps its secrets, and runs on, also if no image comes about. With --stop it rests
from the copy on and is ended once the image is published; if none comes about, or this command is killed before, it
runs on.

Exit codes: 0 if the image was published, 125 if not.";

const LIST_EXAMPLES: &str = "\
Examples:
  cachot snapshot list
  cachot snapshot list /srv/images --json

Images that cannot be used are listed with the reason: damaged, of another version, or signed by a key that is not in
trusted-keys of the state folder.

Exit codes: 0, or 125 if the folder cannot be read or the command line is wrong.";

const INSPECT_EXAMPLES: &str = "\
Examples:
  cachot snapshot inspect base
  cachot snapshot inspect base --json | jq .manifest.receipt

The signature is checked, the content is not: see `cachot snapshot verify`.

Exit codes: 0; 1 if the image is damaged or not trusted; 125 if it is no image or the command line is wrong.";

const VERIFY_EXAMPLES: &str = "\
Examples:
  cachot snapshot verify base
  cachot snapshot verify base --secret API_KEY=file:/run/keys/api --json
  cachot snapshot verify private --identity key.txt

Checks the signature and every byte of the image, resolves its secrets again by the references that it names, and
searches all of it for their values. A secret without a value is reported as not checked; one that was given
with --secret and has none is an error.

Exit codes: 0 if nothing was found; 1 if the image is damaged, not trusted, made with --dangerously-keep-residue, or
holds a value; 125 if it is no image or the command line is wrong.";

const SCAN_EXAMPLES: &str = "\
Examples:
  cachot snapshot scan vm.mem --secret API_KEY=env:API_TOKEN
  cachot snapshot scan /var/lib/vms core.1234 --secrets-env-file .env --json

Searches any file, or all files of a folder, for the values in all encodings: raw, base64, hexadecimal, percent, JSON,
UTF-16, UTF-32, with CRLF line ends, and with its words of 8 bytes in reverse, as on a kernel's stack. Found is a run of 16 bytes of one anywhere (of a shorter one all of it), and a run of 8 bytes at an
edge of a page of 4096 bytes. Symbolic links in folders are not followed; what cannot be read is an error.
Of each file the first 100 hits are shown. Neither a value nor what is around it is ever shown.

Exit codes: 0 if nothing was found; 1 if something was, or a file could not be read; 125 if a secret has no value or
the command line is wrong.";

const DELETE_EXAMPLES: &str = "\
Examples:
  cachot snapshot delete base

Asks nothing. Only a folder with an image's signature and nothing but an image's files is removed, whole or damaged.
VMs that were restored from it run on.

Exit codes: 0, or 125 if it is no image, cannot be removed, or the command line is wrong.";

/// `cachot snapshot ...`.
#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Take a snapshot of a running VM, without the values of its secrets
    Create(CreateArgs),
    /// List the images in a folder
    List(ListArgs),
    /// Say what is in an image, and what was proved of it
    Inspect(InspectArgs),
    /// Check every byte of an image, and search it again for its secrets
    Verify(VerifyArgs),
    /// Search files, of cachot or not, for values of secrets
    Scan(ScanArgs),
    /// Remove an image
    Delete(DeleteArgs),
}

/// `cachot snapshot create`.
#[derive(Debug, Args)]
#[command(after_help = CREATE_EXAMPLES)]
pub struct CreateArgs {
    /// Name of the VM
    pub name: VmName,

    /// Folder to make; the folder above it must exist
    #[arg(value_name = "DIR")]
    pub image_path: PathBuf,

    /// What to do with copies of values in memory and registers: leave them out and put them back at a restore, or take
    /// no snapshot
    #[arg(long, value_name = "POLICY", default_value = "redact")]
    pub on_residue: OnResidue,

    /// Bring the workload to rest before, so that a copy of the VM is one of its own before its workload goes on
    #[arg(long)]
    pub quiesce_workload: bool,

    /// End the VM once the image is published; it does not run after the copy
    #[arg(long)]
    pub stop: bool,

    /// Encrypt the image to this age recipient
    #[arg(long = "recipient", value_name = "age1...")]
    pub recipients: Vec<Recipient>,

    /// Leave all values in the image, for tests and forensics
    #[arg(long, conflicts_with = "on_residue")]
    pub dangerously_keep_residue: bool,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// What to do with residue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnResidue {
    /// Leave it out of the image.
    Redact,
    /// Take no snapshot.
    Refuse,
}

/// `cachot snapshot list`.
#[derive(Debug, Args)]
#[command(after_help = LIST_EXAMPLES)]
pub struct ListArgs {
    /// Folder that the images are in
    #[arg(value_name = "FOLDER", default_value = ".")]
    pub folder: PathBuf,

    /// Print a JSON array with one object an image
    #[arg(long)]
    pub json: bool,
}

/// `cachot snapshot inspect`.
#[derive(Debug, Args)]
#[command(after_help = INSPECT_EXAMPLES)]
pub struct InspectArgs {
    /// Folder of the image
    #[arg(value_name = "DIR")]
    pub image: PathBuf,

    /// Print one JSON object, with all of the manifest
    #[arg(long)]
    pub json: bool,
}

/// `cachot snapshot verify`.
#[derive(Debug, Args)]
#[command(after_help = VERIFY_EXAMPLES)]
pub struct VerifyArgs {
    /// Folder of the image
    #[arg(value_name = "DIR")]
    pub image: PathBuf,

    /// File with a private key of age, as age-keygen makes it, for an encrypted image
    #[arg(long = "identity", value_name = "FILE")]
    pub identities: Vec<PathBuf>,

    /// Reference to resolve in place of the one that the image names for this secret
    #[arg(long = "secret", value_name = "NAME=SCHEME:REF")]
    pub secrets: Vec<String>,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,

    /// Who asks for secrets
    #[command(flatten)]
    pub owner: OwnerArgs,
}

/// `cachot snapshot scan`.
#[derive(Debug, Args)]
#[command(after_help = SCAN_EXAMPLES)]
pub struct ScanArgs {
    /// Files and folders to search
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<PathBuf>,

    /// Name of a secret and where its value is: env:VARIABLE, file:PATH or another reference
    #[arg(
        long = "secret",
        value_name = "NAME=SCHEME:REF",
        required_unless_present = "secrets_env_file"
    )]
    pub secrets: Vec<String>,

    /// dotenv file of which every key is a secret to search for
    #[arg(long, value_name = "FILE")]
    pub secrets_env_file: Option<PathBuf>,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,

    /// Who asks for secrets
    #[command(flatten)]
    pub owner: OwnerArgs,
}

/// `cachot snapshot delete`.
#[derive(Debug, Args)]
#[command(after_help = DELETE_EXAMPLES)]
pub struct DeleteArgs {
    /// Folder of the image
    #[arg(value_name = "DIR")]
    pub image: PathBuf,
}
