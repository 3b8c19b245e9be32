//! Where bundles are, and how one is read.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::age::{self, AgeError, Readers};
use super::external;
use super::read::{read, read_json};
use super::sops::{self, SopsError};
use super::{BundleError, BundleName, Document, DocumentError};
use crate::files::{self, Access, FileError};
use crate::identities::Identities;

/// Most bytes of a bundle's file: base64 and the frame of sops around each value make it no more than four times
/// [`super::MAX_TEXT_LEN`].
pub(super) const MAX_FILE_LEN: u64 = 16 << 20;

/// How a bundle is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// An age file.
    Age,
    /// YAML whose values sops has encrypted.
    SopsYaml,
    /// JSON whose values sops has encrypted.
    SopsJson,
    /// Not at all.
    Plaintext,
}

/// Extensions in the order in which they are looked for.
const EXTENSIONS: [(&str, Format); 7] = [
    (".age", Format::Age),
    (".sops.yaml", Format::SopsYaml),
    (".sops.yml", Format::SopsYaml),
    (".sops.json", Format::SopsJson),
    (".yaml", Format::Plaintext),
    (".yml", Format::Plaintext),
    (".json", Format::Plaintext),
];

/// Decrypts a file of sops with the private keys in the file `key`.
fn open_sops(
    path: &Path,
    format: Format,
    stored: &[u8],
    key: &Path,
) -> Result<sops::Opened, BundleError> {
    let node = match format {
        Format::SopsJson => read_json(stored),
        _ => read(stored),
    };
    let node = node.map_err(|error| BundleError::Document {
        path: path.to_owned(),
        error: error.into(),
    })?;
    sops::open(node, &Identities::load(key)?).map_err(|error| match error {
        SopsError::NotEncrypted => BundleError::NotEncrypted(path.to_owned()),
        error => BundleError::Sops {
            path: path.to_owned(),
            error,
        },
    })
}

/// Reads any file of sops, in YAML, or in JSON if it is named `.json`, with the private keys in the file `key`.
///
/// # Errors
/// See [`BundleError`].
pub(crate) fn read_sops(path: &Path, key: &Path) -> Result<sops::Opened, BundleError> {
    let stored = files::read(path, Access::Trusted, MAX_FILE_LEN)?;
    let format = match path.extension() {
        Some(json) if json == "json" => Format::SopsJson,
        _ => Format::SopsYaml,
    };
    open_sops(path, format, &stored, key)
}

/// The folder of a user's bundles, and what they are read with.
#[derive(Debug, Clone)]
pub struct Bundles {
    /// The folder.
    pub folder: PathBuf,
    /// File with private keys of age.
    pub key: PathBuf,
    /// A sops program, by its absolute path, that decrypts files of sops in place of our own reader.
    pub sops: Option<PathBuf>,
    /// Whether bundles that are not encrypted are read as well.
    pub allow_plaintext: bool,
}

/// A bundle that was read.
pub struct Opened {
    /// What is in it.
    pub document: Document,
    /// Its file.
    pub path: PathBuf,
    /// How it is encrypted.
    pub format: Format,
    /// Of an age file: who can read it.
    pub readers: Option<Readers>,
    /// How many values whoever can write the file can change: neither encrypted nor covered by the MAC of sops.
    pub unauthenticated: usize,
}

impl Bundles {
    /// The path of an age file of this name.
    #[must_use]
    pub fn age_path(&self, name: &BundleName) -> PathBuf {
        self.folder.join(format!("{name}.age"))
    }

    /// The first path at which an encrypted bundle of this name, or anything else, is.
    pub(super) fn encrypted_path(&self, name: &BundleName) -> Result<Option<PathBuf>, BundleError> {
        for (extension, format) in EXTENSIONS {
            let path = self.folder.join(format!("{name}{extension}"));
            if format == Format::Plaintext {
                continue;
            }
            match path.symlink_metadata() {
                Ok(_) => return Ok(Some(path)),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(FileError::system("look for", &path)(error).into()),
            }
        }
        Ok(None)
    }

    /// The names of all bundles in the folder, sorted.
    ///
    /// # Errors
    /// [`BundleError::File`].
    pub fn names(&self) -> Result<Vec<BundleName>, BundleError> {
        let failed = || FileError::system("list the folder", &self.folder);
        let mut names = BTreeSet::new();
        for entry in std::fs::read_dir(&self.folder).map_err(failed())? {
            let file = entry.map_err(failed())?.file_name();
            let Some(file) = file.to_str() else { continue };
            let name = EXTENSIONS
                .iter()
                .filter(|(_, format)| self.allow_plaintext || *format != Format::Plaintext)
                .find_map(|(extension, _)| file.strip_suffix(extension))
                .and_then(|name| name.parse::<BundleName>().ok());
            names.extend(name);
        }
        Ok(names.into_iter().collect())
    }

    /// Finds and reads a bundle.
    ///
    /// # Errors
    /// See [`BundleError`].
    pub fn open(&self, name: &BundleName) -> Result<Opened, BundleError> {
        for (extension, format) in EXTENSIONS {
            let path = self.folder.join(format!("{name}{extension}"));
            let access = match format {
                Format::Plaintext => Access::Private,
                // Reading it helps nobody; writing it would.
                _ => Access::Trusted,
            };
            let stored = match files::read(&path, access, MAX_FILE_LEN) {
                Err(FileError::Absent(_)) => continue,
                _ if format == Format::Plaintext && !self.allow_plaintext => {
                    return Err(BundleError::NotEncrypted(path));
                }
                other => other?,
            };
            return self.read(path, format, &stored);
        }
        Err(BundleError::NotFound {
            name: name.clone(),
            folder: self.folder.clone(),
        })
    }

    fn read(&self, path: PathBuf, format: Format, stored: &[u8]) -> Result<Opened, BundleError> {
        let of_document = |error: DocumentError| BundleError::Document {
            path: path.clone(),
            error,
        };
        let mut unauthenticated = 0;
        let (document, readers) = match format {
            Format::Age => {
                let opened = self.decrypt(&path, stored)?;
                let document = Document::parse(&opened.plain).map_err(of_document)?;
                (document, Some(opened.readers))
            }
            Format::SopsYaml | Format::SopsJson if self.sops.is_some() => {
                (self.ask_sops(&path)?, None)
            }
            Format::SopsYaml | Format::SopsJson => {
                let opened = open_sops(&path, format, stored, &self.key)?;
                unauthenticated = opened.unauthenticated;
                (
                    Document::of_node(opened.document).map_err(of_document)?,
                    None,
                )
            }
            Format::Plaintext => (Document::parse(stored).map_err(of_document)?, None),
        };
        Ok(Opened {
            document,
            path,
            format,
            readers,
            unauthenticated,
        })
    }

    /// What the user's own sops program makes of a file.
    fn ask_sops(&self, path: &Path) -> Result<Document, BundleError> {
        let program = self.sops.as_deref().unwrap_or(Path::new(""));
        let of_program = |error| BundleError::External {
            path: path.to_owned(),
            error,
        };
        let text = external::decrypt(program, path, &self.key, external::PATIENCE);
        let node = read_json(&text.map_err(of_program)?);
        let document = node
            .map_err(DocumentError::from)
            .and_then(Document::of_node);
        document.map_err(|error| BundleError::Document {
            path: path.to_owned(),
            error,
        })
    }

    fn decrypt(&self, path: &Path, stored: &[u8]) -> Result<age::Opened, BundleError> {
        age::decrypt(stored, &Identities::load(&self.key)?).map_err(|error| match error {
            AgeError::NotEncrypted => BundleError::NotEncrypted(path.to_owned()),
            error => BundleError::Age {
                path: path.to_owned(),
                error,
            },
        })
    }
}
