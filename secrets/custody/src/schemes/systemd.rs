//! `systemd:NAME`: a credential that the service manager passes to this service.

use std::io;
use std::path::PathBuf;

use cachot_secrets::{Fetched, ResolveError, Scheme, SecretValue};

use super::{Environment, of_value};
use crate::files::{self, Access, FileError};

/// Names the folder of credentials (`systemd.exec(5)`).
const FOLDER_VARIABLE: &str = "CREDENTIALS_DIRECTORY";

/// Most bytes of a credential: systemd passes 1 MiB to a service in all.
const MAX_LEN: u64 = 1 << 20;

/// `systemd:NAME`: the bytes of the file `NAME` in `$CREDENTIALS_DIRECTORY` as they are.
pub struct Systemd(Environment);

/// Why a credential has no value.
#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    /// This process has no credentials.
    #[error(
        "systemd: this process has no credentials ($CREDENTIALS_DIRECTORY is not set): run it as a service \
         with LoadCredential= or SetCredentialEncrypted="
    )]
    NoFolder,
    /// The variable does not hold a folder's path.
    #[error("systemd: $CREDENTIALS_DIRECTORY is {0:?}, which is not an absolute path")]
    RelativeFolder(PathBuf),
    /// The name is no credential's.
    #[error("systemd: {0:?} is not the name of a credential: it has no slash and is not . or ..")]
    BadName(String),
    /// The service has other credentials or none.
    #[error(
        "systemd: the service has no credential {0:?}: add LoadCredential={0}:PATH to its unit or name another"
    )]
    NoCredential(String),
    /// The folder or file is not used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file is there and cannot be read.
    #[error("systemd: cannot read the credential {name:?}")]
    Unreadable {
        /// The credential.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Systemd {
    /// One that finds the folder in `environment`.
    #[must_use]
    pub fn new(environment: Environment) -> Self {
        Self(environment)
    }

    fn open(&self, name: &str) -> Result<std::fs::File, SystemdError> {
        if matches!(name, "." | "..") || name.contains(['/', '\0']) {
            return Err(SystemdError::BadName(name.to_owned()));
        }
        let folder = self.0.get(FOLDER_VARIABLE).ok_or(SystemdError::NoFolder)?;
        let folder = PathBuf::from(folder);
        if !folder.is_absolute() {
            return Err(SystemdError::RelativeFolder(folder));
        }
        files::trusted_folder(&folder)?;
        // Not `Private`: where the service has a user of its own, an access list lets it read root's file, and its
        // mask stands where a group's mode would. The folder keeps others out.
        match files::open(&folder.join(name), Access::Trusted, MAX_LEN) {
            Err(FileError::Absent(_)) => Err(SystemdError::NoCredential(name.to_owned())),
            other => Ok(other?),
        }
    }
}

impl Scheme for Systemd {
    fn name(&self) -> &'static str {
        "systemd"
    }

    fn is_plaintext(&self) -> bool {
        false
    }

    fn resolve(&self, name: &str) -> Result<Fetched, ResolveError> {
        let mut file = self
            .open(name)
            .map_err(|error| ResolveError::Scheme(Box::new(error)))?;
        let value = SecretValue::read_from(&mut file);
        value.map(Fetched::from).map_err(|error| {
            of_value(format!("the credential {name:?}"), error, |source| {
                SystemdError::Unreadable {
                    name: name.to_owned(),
                    source,
                }
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;

    use super::*;

    fn systemd(folder: Option<&Path>) -> Systemd {
        let folder = folder.map(|folder| folder.as_os_str().to_owned());
        Systemd::new(Environment::new(move |name| {
            (name == "CREDENTIALS_DIRECTORY")
                .then(|| folder.clone())
                .flatten()
        }))
    }

    fn message(systemd: &Systemd, name: &str) -> String {
        systemd.resolve(name).expect_err("no value").to_string()
    }

    #[test]
    fn test_systemd_credential_is_its_bytes() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("db.password"), b"s3cret\n").expect("written");
        let value = systemd(Some(folder.path())).resolve("db.password");
        assert_eq!(value.expect("a value").value.expose(), b"s3cret\n");
    }

    #[test]
    fn test_systemd_every_failure_is_a_distinct_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path();
        fs::write(path.join("empty"), b"").expect("written");
        fs::write(path.join("long"), vec![1; (1 << 20) + 1]).expect("written");
        fs::write(path.join("open"), b"open").expect("written");
        fs::set_permissions(path.join("open"), fs::Permissions::from_mode(0o666)).expect("set");
        symlink("/etc/passwd", path.join("link")).expect("linked");
        let good = systemd(Some(path));

        assert!(message(&systemd(None), "a").contains("is not set"));
        assert!(message(&systemd(Some(Path::new("here"))), "a").contains("not an absolute path"));
        assert!(message(&systemd(Some(Path::new("/cachot/none"))), "a").contains("there is no"));
        for name in [".", "..", "../a", "/etc/passwd", "a/b", "a\0b"] {
            assert!(message(&good, name).contains("is not the name of a credential"));
        }
        assert!(message(&good, "none").contains("has no credential \"none\""));
        assert!(message(&good, "empty").starts_with("the credential \"empty\" is empty"));
        assert!(message(&good, "long").contains("over the limit"));
        assert!(message(&good, "open").contains("writable by others"));
        assert!(message(&good, "link").contains("symbolic link"));
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).expect("set");
        assert!(message(&good, "none").contains("writable by others"));
    }
}
