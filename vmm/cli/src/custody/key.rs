//! `cachot key ...`: the key that the store is encrypted with.

use std::io::Write;

use cachot_custody::keys::{self, KeyChoice, KeyError, Recipient};
use cachot_custody::{Requester, Store, UserId};

use super::secret::time;
use super::{CustodyError, store_folder};
use crate::args::{KeyCommand, KeyStatusArgs, RecipientArgs, SourceArgs};
use crate::text::write_json;

/// Does what the command says; whether all was as it should be.
///
/// # Errors
/// See [`CustodyError`].
pub fn run(command: &KeyCommand, output: &mut impl Write) -> Result<bool, CustodyError> {
    match command {
        KeyCommand::Init(args) => init(args)?,
        KeyCommand::Status(args) => status(args, output)?,
        KeyCommand::Rotate(args) => rotate(args)?,
        KeyCommand::AddRecipient(args) => add(args)?,
        KeyCommand::RemoveRecipient(args) => remove(args)?,
    }
    Ok(true)
}

/// A key has no owner among the users.
fn requester() -> Requester {
    Requester {
        user: UserId::of_this_process(),
        instance: None,
    }
}

fn open() -> Result<Store, CustodyError> {
    Ok(Store::open(&store_folder()?, requester())?)
}

/// The source that the command line names.
fn choice(args: &SourceArgs) -> Result<Option<KeyChoice>, CustodyError> {
    if let Some(name) = &args.credential {
        return Ok(Some(KeyChoice::Credential { name: name.clone() }));
    }
    if let Some(identity) = &args.age_identity {
        let mut recipients = keys::recipients_of(identity)?;
        extend(&mut recipients, &args.recipients);
        return Ok(Some(KeyChoice::Age {
            identity: std::path::absolute(identity)?,
            recipients,
        }));
    }
    Ok(args.file.then_some(KeyChoice::File {}))
}

fn extend(recipients: &mut Vec<Recipient>, more: &[Recipient]) {
    for recipient in more {
        if !recipients.contains(recipient) {
            recipients.push(recipient.clone());
        }
    }
}

fn init(args: &SourceArgs) -> Result<(), CustodyError> {
    let choice = choice(args)?.unwrap_or(KeyChoice::File {});
    Store::create(&store_folder()?, requester(), &choice)?;
    Ok(())
}

fn rotate(args: &SourceArgs) -> Result<(), CustodyError> {
    let mut store = open()?;
    let choice = match choice(args)? {
        Some(choice) => choice,
        None => match store.key_status()?.choice {
            KeyChoice::Credential { .. } => return Err(CustodyError::WhichCredential),
            same => same,
        },
    };
    Ok(store.rotate_key(&choice)?)
}

fn add(args: &RecipientArgs) -> Result<(), CustodyError> {
    let change = |recipients: &mut Vec<Recipient>| {
        extend(recipients, &args.recipients);
        Ok(())
    };
    Ok(open()?.change_recipients(change)?)
}

fn remove(args: &RecipientArgs) -> Result<(), CustodyError> {
    let change = |recipients: &mut Vec<Recipient>| {
        for recipient in &args.recipients {
            if !recipients.contains(recipient) {
                return Err(KeyError::NotARecipient(recipient.clone()));
            }
            recipients.retain(|other| other != recipient);
        }
        Ok(())
    };
    Ok(open()?.change_recipients(change)?)
}

fn status(args: &KeyStatusArgs, output: &mut impl Write) -> Result<(), CustodyError> {
    let status = open()?.key_status()?;
    if args.json {
        return Ok(write_json(&status, output)?);
    }
    writeln!(output, "source: {}", status.choice.kind())?;
    match &status.choice {
        KeyChoice::File {} => {
            if let Some(file) = &status.file {
                writeln!(output, "file: {file:?}")?;
            }
        }
        KeyChoice::Age {
            identity,
            recipients,
        } => {
            writeln!(output, "identity: {identity:?}")?;
            for recipient in recipients {
                writeln!(output, "recipient: {recipient}")?;
            }
        }
        KeyChoice::Credential { name } => writeln!(output, "credential: {name:?}")?,
    }
    writeln!(output, "wrapped: {}", time(status.created))?;
    match status.unfinished {
        true => writeln!(
            output,
            "a rotation was begun and is not finished: `cachot key rotate` finishes it"
        )?,
        false => writeln!(output, "the store opens with it")?,
    }
    Ok(())
}
