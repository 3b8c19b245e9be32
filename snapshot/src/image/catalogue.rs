//! What the commands about images that exist need: list, inspect, delete.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::Serialize;

use super::error::ImageError;
use super::folder::{self, Place, TEMPORARY_PREFIX, Temporary};
use super::key::{self, SIGNATURE_FILE_LEN, TrustedKeys};
use super::manifest::{Manifest, PartName};
use super::reader::Image;
use super::{DIGESTS_FILE, MANIFEST_FILE, SIGNATURE_FILE};

/// One image of a folder.
#[derive(Debug)]
pub struct Listed {
    /// Where it is.
    pub path: PathBuf,
    /// Bytes that its files take on disk, as far as they can be examined; holes take none.
    pub disk_usage: u64,
    /// What it says, or why it cannot be used.
    pub manifest: Result<Manifest, ImageError>,
}

/// What there is to say about one image.
#[derive(Debug, Serialize)]
pub struct Inspection {
    /// Where it is.
    pub path: PathBuf,
    /// Bytes that it takes on disk; holes take none.
    pub disk_usage: u64,
    /// What it says. Its signature was checked, the content of its parts was not ([`Image::verify_all`]).
    pub manifest: Manifest,
}

/// The images in a folder, sorted by name. Other folders, and images that are being written, are left out.
///
/// # Errors
/// [`ImageError::System`] if the folder cannot be read.
pub fn list(parent: &Path, trusted: &TrustedKeys) -> Result<Vec<Listed>, ImageError> {
    let system = ImageError::system("list", parent);
    let entries =
        std::fs::read_dir(parent).and_then(|entries| entries.collect::<Result<Vec<_>, _>>());
    let mut paths: Vec<PathBuf> = entries
        .map_err(system)?
        .into_iter()
        .filter(|entry| {
            !entry
                .file_name()
                .as_bytes()
                .starts_with(TEMPORARY_PREFIX.as_bytes())
        })
        .map(|entry| entry.path())
        .filter(|path| path.join(SIGNATURE_FILE).symlink_metadata().is_ok())
        .collect();
    paths.sort();
    let listed = paths.into_iter().map(|path| Listed {
        disk_usage: usage_of_all_files(&path),
        manifest: Image::open(&path, trusted).map(|image| image.manifest().clone()),
        path,
    });
    Ok(listed.collect())
}

/// Of whatever is in the folder, which need not be an image that can be used.
fn usage_of_all_files(path: &Path) -> u64 {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let blocks = entries
        .filter_map(|entry| entry.metadata().ok())
        .map(|metadata| metadata.blocks());
    blocks.fold(0u64, u64::saturating_add).saturating_mul(512)
}

/// What an image says.
///
/// # Errors
/// Those of [`Image::open`].
pub fn inspect(path: &Path, trusted: &TrustedKeys) -> Result<Inspection, ImageError> {
    let image = Image::open(path, trusted)?;
    let mut disk_usage = 0;
    let parts = image
        .manifest()
        .parts
        .iter()
        .map(|part| part.name.to_string());
    let others = [MANIFEST_FILE, SIGNATURE_FILE, DIGESTS_FILE].map(str::to_owned);
    for name in parts.chain(others) {
        let path = path.join(name);
        let metadata = path
            .symlink_metadata()
            .map_err(ImageError::system("examine", &path))?;
        disk_usage += metadata.blocks() * 512;
    }
    Ok(Inspection {
        path: path.to_owned(),
        disk_usage,
        manifest: image.manifest().clone(),
    })
}

/// Removes an image, whole or damaged, of this host or another: at once under its name, then file by file.
///
/// Only a folder with the signature file of an image and with nothing but an image's files is touched.
/// VMs that were restored from it run on.
///
/// # Errors
/// [`ImageError::NotAnImage`], [`ImageError::Refused`] or [`ImageError::System`].
pub fn delete(path: &Path) -> Result<(), ImageError> {
    let place = Place::of(path)?;
    let image_folder = folder::open_private(path)?;
    let not_an_image = |why: String| ImageError::NotAnImage {
        path: path.to_owned(),
        why,
    };
    let names = folder::entries(&image_folder).map_err(ImageError::system("list", path))?;
    if let Some(foreign) = names.iter().find(|name| !is_image_file(name)) {
        return Err(not_an_image(format!(
            "it holds {foreign:?}, which no image does"
        )));
    }
    let signature_path = path.join(SIGNATURE_FILE);
    let mut signature = [0; SIGNATURE_FILE_LEN + 1];
    let read = match folder::open_file(&image_folder, SIGNATURE_FILE, &signature_path) {
        Err(error) if error.is_not_found() => 0,
        other => folder::read_up_to(&other?, &mut signature)
            .map_err(ImageError::system("read", &signature_path))?,
    };
    if !key::is_signature_file(&signature[..read]) {
        return Err(not_an_image(
            "it has no signature of one: remove it by other means if you are sure".to_owned(),
        ));
    }
    match rustix::fs::flock(&image_folder, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => {
            return Err(ImageError::Refused {
                path: path.to_owned(),
                what: "being published or deleted by another command",
            });
        }
        other => other.map_err(ImageError::system("lock", path))?,
    }
    let temporary = Temporary::take(&place.parent, &place.name, image_folder)
        .map_err(ImageError::system("rename", path))?;
    temporary
        .remove(&place.parent)
        .map_err(ImageError::system("remove", path))
}

fn is_image_file(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else {
        return false;
    };
    [MANIFEST_FILE, SIGNATURE_FILE, DIGESTS_FILE].contains(&name)
        || name.parse::<PartName>().is_ok()
}
