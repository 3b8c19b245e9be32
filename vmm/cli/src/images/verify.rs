//! `cachot snapshot verify`: an image is what was signed, and still holds no value.

use std::io::{self, Write};
use std::path::Path;

use cachot_snapshot::image::{Identities, Image, ImageError, MANIFEST_FILE};
use cachot_snapshot::needles::Value;
use serde::Serialize;

use super::content::{FileContent, PartContent};
use super::report::{Report, Reporter};
use super::search::Searcher;
use super::secrets::{self, Checked, Known};
use super::{ImagesError, trusted_keys, values, walk};
use crate::args::VerifyArgs;
use crate::custody::schemes;
use crate::progress::Progress;
use crate::text::{count, size, word, write_json};

/// The JSON form.
#[derive(Serialize)]
struct Verification {
    path: String,
    id: String,
    signed_by: String,
    encrypted: bool,
    residue_kept: bool,
    /// Whether nothing is wrong.
    ok: bool,
    secrets: Vec<Checked>,
    /// Values that were searched for when the image was made.
    needles_then: u64,
    /// How many of them were searched for again, where that can be known.
    #[serde(skip_serializing_if = "Option::is_none")]
    needles_again: Option<u64>,
    /// What the search found, if there was a value to search for.
    #[serde(skip_serializing_if = "Option::is_none")]
    search: Option<Report>,
}

/// Checks an image and searches it; whether nothing is wrong.
pub(super) fn verify(args: &VerifyArgs, output: &mut impl Write) -> Result<bool, ImagesError> {
    let mut image = Image::open(&args.image, &trusted_keys()?)?;
    let vm = image.manifest().guest.name.parse().ok();
    let requester = args.owner.requester(vm.as_ref());
    let schemes = schemes(&requester);
    let given = values::resolve(&args.secrets, None, &schemes, &requester.user)?;
    secrets::check_names(&given, image.manifest())?;
    match Identities::load_all(&args.identities)? {
        Some(identities) => image.set_identities(identities),
        None if image.manifest().is_encrypted() => {
            return Err(ImageError::Encrypted(args.image.clone()).into());
        }
        None => {}
    }
    // Before the first thread is started.
    let candidates = secrets::resolve(image.manifest(), given, &schemes, &requester.user)?;
    image.verify_all()?;
    let known = Known::load(&image)?;
    let (checked, values) = secrets::compare(candidates, &known);
    let needles_again = known.count(&values);
    let manifest = image.manifest();
    let mut verification = Verification {
        path: args.image.to_string_lossy().into_owned(),
        id: manifest.id.to_string(),
        signed_by: manifest.host_key.to_string(),
        encrypted: manifest.is_encrypted(),
        residue_kept: manifest.receipt.residue_kept,
        ok: false,
        secrets: checked,
        needles_then: manifest.receipt.needles,
        needles_again,
        search: None,
    };
    if !args.json {
        write_checks(&verification, &image, output)?;
    }
    verification.search = search(&image, values, args.json, output)?;
    let clean = verification
        .search
        .as_ref()
        .is_none_or(|search| search.clean);
    verification.ok = clean && !verification.residue_kept;
    match args.json {
        true => write_json(&verification, output)?,
        false => write_result(&verification, output)?,
    }
    Ok(verification.ok)
}

/// Searches the manifest and all parts; `None` if there is no value to search for.
fn search(
    image: &Image,
    values: Vec<Value>,
    json: bool,
    output: &mut impl Write,
) -> Result<Option<Report>, ImagesError> {
    let mut distinct = values::needles(values)?;
    if distinct.searchable() == 0 {
        return Ok(None);
    }
    let parts = &image.manifest().parts;
    let bytes = parts.iter().map(|part| part.length).sum();
    let progress = Progress::new("searching", bytes, distinct.searchable());
    let same = std::mem::take(&mut distinct.same);
    let mut searcher = Searcher::new(&distinct.needles, &progress)?;
    let mut reporter = Reporter::new(&distinct.needles, same, &progress, json, output);
    let shown = |path: &Path| path.to_string_lossy().into_owned();

    let manifest = image.path().join(MANIFEST_FILE);
    match walk::open(&manifest, false).and_then(|file| Ok(FileContent::new(file)?)) {
        Err(error) => reporter.unread(&shown(&manifest), &error),
        Ok(content) => {
            let (found, result) = searcher.search(&content);
            reporter.file(&shown(&manifest), &found, result)?;
        }
    }
    for part in parts {
        let path = image.path().join(part.name.to_string());
        let content = PartContent {
            image,
            name: part.name,
        };
        let (found, result) = searcher.search(&content);
        reporter.file(&shown(&path), &found, result)?;
    }
    Ok(Some(reporter.finish()?))
}

fn write_checks(
    verification: &Verification,
    image: &Image,
    output: &mut impl Write,
) -> io::Result<()> {
    let parts = &image.manifest().parts;
    writeln!(
        output,
        "{}: signed by {}, {} in {} as they were signed",
        word(&verification.path),
        verification.signed_by,
        size(parts.iter().map(|part| part.length).sum()),
        count(parts.len() as u64, "part")
    )?;
    for secret in &verification.secrets {
        writeln!(output, "{secret}")?;
    }
    if verification.needles_again.is_none() {
        writeln!(
            output,
            "another host made the image: only there is known which values were searched for"
        )?;
    }
    Ok(())
}

fn write_result(verification: &Verification, output: &mut impl Write) -> io::Result<()> {
    if verification.search.is_none() {
        writeln!(
            output,
            "not searched: there is no value to search for; give one with --secret"
        )?;
    }
    if let Some(again) = verification.needles_again {
        writeln!(
            output,
            "searched for again: {again} of {} that were searched for when the image was made",
            count(verification.needles_then, "value")
        )?;
    }
    if verification.residue_kept {
        writeln!(
            output,
            "the image was made with --dangerously-keep-residue: it may hold values of secrets"
        )?;
    }
    Ok(())
}
