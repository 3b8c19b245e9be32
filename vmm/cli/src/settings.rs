//! The settings file: what a user has chosen once for all commands. A variable of the environment beats it, and an
//! option of a command beats both.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cachot_custody::bundle::{BundleName, BundleNameError, Bundles, TextError, yaml_to_json};
use cachot_custody::schemes::Bundle;
use cachot_custody::{Access, FileError, read_file};
use serde::Deserialize;

use crate::guest_files::GUEST_VARIABLE;
use crate::monitor_process::MONITOR_VARIABLE;
use crate::resources::{Cpus, Memory};
use crate::state_dir::STATE_VARIABLE;

/// Path of the settings file.
pub const CONFIG_VARIABLE: &str = "CACHOT_CONFIG";

/// Where root's settings, bundles and keys are.
const ROOT_FOLDER: &str = "/etc/cachot";

/// Most bytes of a settings file; all keys with the longest of paths have less.
const MAX_LEN: u64 = 1 << 16;

/// What can be set, by the names that it has in the file.
#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Folder of bundles.
    pub secrets_dir: Option<PathBuf>,
    /// The bundle that `run --secrets-bundle` delivers if it names none.
    pub secrets_bundle: Option<SettingName>,
    /// File with the private keys of age that read bundles.
    pub secrets_age_key_path: Option<PathBuf>,
    /// A sops program that decrypts files of sops in place of our own reader.
    pub secrets_sops_path: Option<PathBuf>,
    /// Whether bundles that are not encrypted are read as well.
    pub secrets_allow_plaintext: bool,
    /// `$CACHOT_STATE`.
    pub state_dir: Option<PathBuf>,
    /// `$CACHOT_GUEST`.
    pub guest_dir: Option<PathBuf>,
    /// `$CACHOT_VMM`.
    pub monitor_path: Option<PathBuf>,
    /// `--cpus` of `run`.
    pub cpus: Option<Cpus>,
    /// `--memory` of `run`.
    pub memory: Option<Memory>,
}

/// A bundle's name in the file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct SettingName(pub BundleName);

impl TryFrom<String> for SettingName {
    type Error = BundleNameError;

    fn try_from(text: String) -> Result<Self, BundleNameError> {
        text.parse().map(Self)
    }
}

/// Why the settings file is not used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// It is not to be trusted, or cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file that the environment names is not there.
    #[error("there is no settings file {0:?}: correct or unset {CONFIG_VARIABLE}")]
    Absent(PathBuf),
    /// It is not YAML.
    #[error("the settings file {path:?} cannot be read: {error}")]
    Text {
        /// The file.
        path: PathBuf,
        /// Why.
        error: TextError,
    },
    /// It has a key that there is not, or another value than belongs there.
    #[error("the settings file {path:?} is not right: {why}")]
    Form {
        /// The file.
        path: PathBuf,
        /// What, and what belongs there.
        why: String,
    },
    /// A path that begins nowhere.
    #[error("the settings file {path:?} is not right: {key} is not an absolute path")]
    Relative {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
    },
}

/// What decides where a user's files are.
#[derive(Debug, Default, Clone)]
pub struct Homes {
    /// `$CACHOT_CONFIG`.
    pub config: Option<OsString>,
    /// `$XDG_CONFIG_HOME`.
    pub xdg_config_home: Option<OsString>,
    /// `$HOME`.
    pub home: Option<OsString>,
    /// Whether the user is root.
    pub root: bool,
}

impl Homes {
    fn of_process() -> Self {
        Self {
            config: variable(CONFIG_VARIABLE),
            xdg_config_home: variable("XDG_CONFIG_HOME"),
            home: variable("HOME"),
            root: rustix::process::geteuid().is_root(),
        }
    }

    /// The folder of the settings file, of bundles and of keys.
    fn folder(&self) -> Option<PathBuf> {
        if self.root {
            return Some(ROOT_FOLDER.into());
        }
        let path = |variable: &Option<OsString>| variable.clone().map(PathBuf::from);
        // The XDG specification has relative paths ignored.
        let xdg = path(&self.xdg_config_home).filter(|path| path.is_absolute());
        xdg.or_else(|| path(&self.home).map(|home| home.join(".config")))
            .map(|base| base.join("cachot"))
    }
}

impl Settings {
    /// Those of a user; all defaults where there is no file.
    ///
    /// # Errors
    /// See [`SettingsError`].
    pub fn load(homes: &Homes) -> Result<Self, SettingsError> {
        if let Some(named) = homes.config.clone().map(PathBuf::from) {
            return match Self::read(&named) {
                Err(SettingsError::File(FileError::Absent(path))) => {
                    Err(SettingsError::Absent(path))
                }
                other => other,
            };
        }
        let Some(folder) = homes.folder() else {
            return Ok(Self::default());
        };
        match Self::read(&folder.join("config.yaml")) {
            Err(SettingsError::File(FileError::Absent(_))) => Ok(Self::default()),
            other => other,
        }
    }

    fn read(path: &Path) -> Result<Self, SettingsError> {
        let text = read_file(path, Access::Trusted, MAX_LEN)?;
        let json = yaml_to_json(&text).map_err(|error| SettingsError::Text {
            path: path.to_owned(),
            error,
        })?;
        let settings: Self = serde_json::from_str(&json).map_err(|error| SettingsError::Form {
            path: path.to_owned(),
            // Where in the JSON, which nobody sees, does not matter.
            why: without_place(&error.to_string()),
        })?;
        for (key, value) in settings.paths() {
            if value.is_some_and(|path| !path.is_absolute()) {
                return Err(SettingsError::Relative {
                    path: path.to_owned(),
                    key,
                });
            }
        }
        Ok(settings)
    }

    fn paths(&self) -> [(&'static str, Option<&PathBuf>); 6] {
        [
            ("secrets_dir", self.secrets_dir.as_ref()),
            ("secrets_age_key_path", self.secrets_age_key_path.as_ref()),
            ("secrets_sops_path", self.secrets_sops_path.as_ref()),
            ("state_dir", self.state_dir.as_ref()),
            ("guest_dir", self.guest_dir.as_ref()),
            ("monitor_path", self.monitor_path.as_ref()),
        ]
    }
}

fn without_place(message: &str) -> String {
    let end = message.rfind(" at line ").unwrap_or(message.len());
    message[..end].to_owned()
}

/// A variable that is set and not empty.
fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

static IN_FORCE: OnceLock<Settings> = OnceLock::new();

/// Reads the settings of this process's user, once.
///
/// # Errors
/// See [`SettingsError`].
pub fn load() -> Result<(), SettingsError> {
    let settings = Settings::load(&Homes::of_process())?;
    IN_FORCE.get_or_init(|| settings);
    Ok(())
}

/// The settings of this process; all defaults before [`load`].
pub fn in_force() -> &'static Settings {
    static DEFAULTS: OnceLock<Settings> = OnceLock::new();
    IN_FORCE
        .get()
        .unwrap_or_else(|| DEFAULTS.get_or_init(Settings::default))
}

fn place(name: &str, setting: Option<&PathBuf>) -> Option<OsString> {
    variable(name).or_else(|| setting.map(|path| path.clone().into_os_string()))
}

/// The state folder that was chosen.
pub fn state() -> Option<OsString> {
    place(STATE_VARIABLE, in_force().state_dir.as_ref())
}

/// The folder of the guest's files that was chosen.
pub fn guest() -> Option<OsString> {
    place(GUEST_VARIABLE, in_force().guest_dir.as_ref())
}

/// The monitor program that was chosen.
pub fn monitor() -> Option<OsString> {
    place(MONITOR_VARIABLE, in_force().monitor_path.as_ref())
}

/// This user's bundles, by the settings.
pub fn bundles() -> Bundles {
    let settings = in_force();
    // Without a home, the machine's: never the working directory.
    let folder = Homes::of_process().folder();
    let folder = folder.unwrap_or_else(|| ROOT_FOLDER.into());
    let chosen = |path: &Option<PathBuf>, default| path.clone().unwrap_or(default);
    Bundles {
        folder: chosen(&settings.secrets_dir, folder.join("secrets")),
        key: chosen(&settings.secrets_age_key_path, folder.join("keys/age.key")),
        sops: settings.secrets_sops_path.clone(),
        allow_plaintext: settings.secrets_allow_plaintext,
    }
}

/// `bundle:` of this user's bundles, for one command.
pub fn bundle_scheme() -> Bundle {
    Bundle::new(bundles())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn read(text: &str) -> Result<Settings, SettingsError> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("config.yaml");
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("its mode");
        Settings::read(&path)
    }

    #[test]
    fn test_settings_of_agentlab_and_our_own_are_read() {
        let text = "# bundles\nsecrets_dir: /srv/secrets\nsecrets_bundle: default\nsecrets_age_key_path: /srv/age.key\nsecrets_sops_path: /usr/bin/sops\ncpus: 2\nmemory: 1G\n";
        let settings = read(text).expect("settings");
        assert_eq!(
            settings.secrets_dir.as_deref(),
            Some(Path::new("/srv/secrets"))
        );
        assert_eq!(
            settings
                .secrets_bundle
                .map(|name| name.0.to_string())
                .as_deref(),
            Some("default")
        );
        assert_eq!(settings.cpus, Some("2".parse().expect("CPUs")));
        assert_eq!(settings.memory, Some("1G".parse().expect("memory")));
        assert_eq!(read("").expect("empty"), Settings::default());
        assert_eq!(
            read("memory: 512").expect("MiB").memory,
            Some("512".parse().expect("memory"))
        );
    }

    #[test]
    fn test_settings_that_are_wrong_are_refused_with_the_reason() {
        for (text, expected) in [
            ("memroy: 1G", "unknown field `memroy`, expected one of"),
            ("memory: 17M", "multiple of 2M"),
            ("memory: [1]", "memory"),
            ("cpus: 0", "at least 1"),
            ("secrets_bundle: a/b", "not the name of a bundle"),
            (
                "secrets_dir: secrets",
                "secrets_dir is not an absolute path",
            ),
            ("secrets_dir: &a /x", "anchor"),
            ("cpus: 1\ncpus: 2", "line 2 repeats"),
            ("a: b: c", "line 1 is not YAML"),
            ("- a", "not YAML"),
        ] {
            let error = read(text).expect_err(text).to_string();
            assert!(error.contains(expected), "{text}: {error}");
            assert!(!error.contains(" at line "), "{error}");
        }
    }

    #[test]
    fn test_settings_that_others_write_are_refused_and_none_are_defaults() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("cachot/config.yaml");
        let homes = Homes {
            xdg_config_home: Some(folder.path().into()),
            ..Homes::default()
        };
        assert_eq!(Settings::load(&homes).expect("none"), Settings::default());

        fs::create_dir(folder.path().join("cachot")).expect("made");
        fs::write(&path, "cpus: 2").expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("its mode");
        assert!(matches!(
            Settings::load(&homes),
            Err(SettingsError::File(_))
        ));

        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("its mode");
        assert!(Settings::load(&homes).expect("settings").cpus.is_some());

        let named = Homes {
            config: Some(folder.path().join("none").into()),
            ..homes
        };
        assert!(matches!(
            Settings::load(&named),
            Err(SettingsError::Absent(_))
        ));
    }
}
