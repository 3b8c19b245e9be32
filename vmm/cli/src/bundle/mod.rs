//! `cachot bundle ...`: bundles of secrets, looked at, checked, made and changed.

mod input;
mod show;
mod validate;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use cachot_custody::bundle::{
    BundleError, Bundles, Document, DocumentError, Field, Recipient, RecipientError, Written,
};
use cachot_secrets::NameError;

use crate::args::{BundleCommand, GitPart, PlaceArgs};
use crate::audit::RecordError;
use crate::input::InputError;
use crate::settings;
use crate::text::count;
use crate::vm::error::OWN_FAILURE;
use input::{Ending, read};

/// Why a command about bundles did nothing.
#[derive(Debug, thiserror::Error)]
pub enum BundleCommandError {
    /// The bundle.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A value or an answer of the user.
    #[error(transparent)]
    Input(#[from] InputError),
    /// Standard input is not a bundle.
    #[error("standard input holds no bundle: {0}")]
    Document(DocumentError),
    /// The value is not UTF-8.
    #[error(
        "the value is not text in UTF-8, and a bundle holds text only: encode it, as with base64"
    )]
    NotText,
    /// Several lines are not typed.
    #[error("{0} has several lines: give it by `< FILE` or --from file:PATH")]
    Lines(&'static str),
    /// Not the name of a variable.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Not a recipient.
    #[error("--recipient {place}: {error}")]
    Recipient {
        /// Which of them, counted from 1.
        place: usize,
        /// Why.
        error: RecipientError,
    },
    /// That values are shown cannot be recorded.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Printing failed.
    #[error("cannot print")]
    Output(#[from] io::Error),
}

impl BundleCommandError {
    /// The exit code to report it with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Input(error) => error.exit_code(),
            _ => OWN_FAILURE,
        }
    }
}

/// Does what the command line says; whether all is well.
///
/// # Errors
/// See [`BundleCommandError`].
pub fn run(command: &BundleCommand, output: &mut impl Write) -> Result<bool, BundleCommandError> {
    match command {
        BundleCommand::Show(args) => show::show(args, output).map(|()| true),
        BundleCommand::Validate(args) => validate::validate(args, output),
        BundleCommand::SetEnv(args) => {
            let value = read(args.from.as_ref(), "the value", Ending::Stripped)?;
            let field = Field::Env(args.key.parse()?);
            let written = bundles(&args.place).edit(&args.name, |document| {
                document.set(&field, value);
                Ok(())
            })?;
            report("changed", &written, output)
        }
        BundleCommand::SetGit(args) => {
            let (field, ending) = match args.part {
                GitPart::Username => (Field::GitUsername, Ending::Stripped),
                GitPart::Token => (Field::GitToken, Ending::Stripped),
                GitPart::SshPrivateKey => (Field::GitSshPrivateKey, Ending::Kept),
                GitPart::SshPublicKey => (Field::GitSshPublicKey, Ending::Stripped),
                GitPart::KnownHosts => (Field::GitKnownHosts, Ending::Kept),
            };
            let value = read(args.from.as_ref(), "the value", ending)?;
            let written = bundles(&args.place)
                .edit(&args.name, |document| document.set_git(&field, value))?;
            report("changed", &written, output)
        }
        BundleCommand::AddSshKey(args) => {
            let key = read(args.from.as_ref(), "the private key", Ending::Kept)?;
            let (kind, comment) = (args.kind.as_deref(), args.comment.as_deref());
            let written = bundles(&args.place).edit(&args.name, |document| {
                document.add_ssh_key(&args.key, key, kind, comment)
            })?;
            report("changed", &written, output)
        }
        BundleCommand::RemoveSshKey(args) => {
            let bundles = bundles(&args.place);
            let written =
                bundles.edit(&args.name, |document| document.remove_ssh_key(&args.key))?;
            report("changed", &written, output)
        }
        BundleCommand::Encrypt(args) => {
            let recipients = recipients(&args.recipients)?;
            let bundles = bundles(&args.place);
            let is_file = args.file != Path::new("-");
            let document = match is_file {
                true => Document::read_plaintext(&args.file)?,
                false => input::document()?,
            };
            let written = bundles.encrypt(&args.name, document, &recipients, args.replace)?;
            report("written", &written, output)?;
            if is_file {
                writeln!(
                    output,
                    "the plaintext is still in {:?}: remove it with `shred -u` or `rm` (what a disk or a backup has kept of \
                 it, neither removes)",
                    args.file
                )?;
            }
            Ok(true)
        }
        BundleCommand::Reencrypt(args) => {
            let written =
                bundles(&args.place).reencrypt(&args.name, &recipients(&args.recipients)?)?;
            report("written", &written, output)?;
            writeln!(
                output,
                "who could read the old file may have its values still: replace them if somebody is to lose access"
            )?;
            Ok(true)
        }
    }
}

/// The bundles that the command line, else the settings, speak of.
pub fn bundles(place: &PlaceArgs) -> Bundles {
    let chosen = settings::bundles();
    let path = |option: &Option<PathBuf>, setting| option.clone().unwrap_or(setting);
    Bundles {
        folder: path(&place.secrets_dir, chosen.folder),
        key: path(&place.identity, chosen.key),
        sops: chosen.sops,
        allow_plaintext: place.allow_plaintext || chosen.allow_plaintext,
    }
}

fn recipients(texts: &[String]) -> Result<Vec<Recipient>, BundleCommandError> {
    let parse = |(at, text): (usize, &String)| {
        let recipient = text.parse();
        recipient.map_err(|error| BundleCommandError::Recipient {
            place: at + 1,
            error,
        })
    };
    texts.iter().enumerate().map(parse).collect()
}

fn report(
    what: &str,
    written: &Written,
    output: &mut impl Write,
) -> Result<bool, BundleCommandError> {
    let recipients = written.recipients.len() as u64;
    writeln!(
        output,
        "{what}: {:?}, encrypted to {}",
        written.path,
        count(recipients, "key")
    )?;
    for recipient in &written.recipients {
        writeln!(output, "  {recipient}")?;
    }
    Ok(true)
}
