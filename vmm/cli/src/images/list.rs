//! `cachot snapshot list`: a line for each image of a folder, usable or not.

use std::io::Write;
use std::path::Path;
use std::time::SystemTime;

use cachot_snapshot::image::{self, Listed, Manifest};
use indicatif::HumanDuration;
use serde::Serialize;

use super::{ImagesError, trusted_keys};
use crate::args::ListArgs;
use crate::text::{line, size, table, with_causes, word, write_json};

/// What the JSON form says about an image.
#[derive(Serialize)]
struct Line<'a> {
    path: String,
    /// In bytes.
    disk_usage: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    manifest: Option<&'a Manifest>,
    /// Why the image cannot be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Lists the images of a folder.
pub(super) fn list(args: &ListArgs, output: &mut impl Write) -> Result<(), ImagesError> {
    let listed = image::list(&args.folder, &trusted_keys()?)?;
    if args.json {
        let lines: Vec<_> = listed.iter().map(json_line).collect();
        write_json(&lines, output)?;
        return Ok(());
    }
    let header = [
        "NAME", "CREATED", "VM", "MEMORY", "VCPUS", "SECRETS", "SIZE", "STATUS",
    ];
    let now = SystemTime::now();
    let mut rows = vec![header.map(str::to_owned)];
    rows.extend(listed.iter().map(|image| row(image, now)));
    table(&rows, output)?;
    Ok(())
}

fn json_line(image: &Listed) -> Line<'_> {
    Line {
        path: image.path.to_string_lossy().into_owned(),
        disk_usage: image.disk_usage,
        manifest: image.manifest.as_ref().ok(),
        error: image
            .manifest
            .as_ref()
            .err()
            .map(|error| with_causes(error)),
    }
}

fn row(image: &Listed, now: SystemTime) -> [String; 8] {
    let (name, used) = (name_of(&image.path), size(image.disk_usage));
    match &image.manifest {
        Ok(manifest) => [
            name,
            age(manifest.created, now),
            word(&manifest.guest.name),
            size(
                manifest
                    .machine
                    .memory
                    .iter()
                    .map(|region| region.length)
                    .sum(),
            ),
            manifest.machine.cpus.to_string(),
            manifest.secrets.len().to_string(),
            used,
            status(manifest).to_owned(),
        ],
        Err(error) => {
            let none = || "-".to_owned();
            let why = line(&with_causes(error));
            [name, none(), none(), none(), none(), none(), used, why]
        }
    }
}

fn name_of(path: &Path) -> String {
    path.file_name()
        .map_or_else(String::new, |name| word(&name.to_string_lossy()))
}

/// How long ago that was.
fn age(created: SystemTime, now: SystemTime) -> String {
    match now.duration_since(created) {
        Ok(age) => format!("{} ago", HumanDuration(age)),
        // By this host's clock it is yet to come.
        Err(_) => humantime::format_rfc3339_seconds(created).to_string(),
    }
}

fn status(manifest: &Manifest) -> &'static str {
    match (manifest.receipt.residue_kept, manifest.is_encrypted()) {
        (true, _) => "residue kept",
        (false, true) => "encrypted",
        (false, false) => "ok",
    }
}
