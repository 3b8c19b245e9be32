//! The environment of the workload: defaults, then exported secrets, then explicit variables; the
//! later wins. Built in the child that becomes the workload: PID 1 never holds a value.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use cachot_control::Start;
use zeroize::Zeroizing;

use crate::users::Identity;

/// `PATH` where the keeper sends none.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// `TERM` of a workload with a terminal where the keeper sends none.
const DEFAULT_TERM: &str = "xterm";

/// Longest `NAME=value` string, with its final NUL, that `execve(2)` accepts, in bytes:
/// `MAX_ARG_STRLEN`, 32 pages.
const MAX_ENTRY: usize = 32 * 4096;

/// Why the environment cannot be built. No message holds a value.
#[derive(Debug, thiserror::Error)]
pub enum EnvironmentError {
    /// The name cannot be a variable's.
    #[error("`{0}` cannot be the name of a variable; it must not be empty or contain `=` or NUL")]
    Name(String),
    /// The value has a NUL byte, which no variable can hold.
    #[error("the variable {0} cannot be set: its value contains a NUL byte")]
    Nul(String),
    /// The secret's value has a NUL byte, which no variable can hold.
    #[error(
        "the secret {0} cannot be exported as a variable: its value contains a NUL byte; \
         read {1} instead"
    )]
    SecretNul(String, String),
    /// The secret's value is longer than a variable can be.
    #[error(
        "the secret {0} cannot be exported as a variable: with its name it is over Linux's limit \
         of {MAX_ENTRY} bytes; read {1} instead"
    )]
    SecretTooLong(String, String),
    /// The secret is declared and not there.
    #[error(
        "the secret {0} is not in {1}: check that the guest kernel has virtio_secrets, built in or as a module"
    )]
    SecretMissing(String, String),
    /// The secret's file cannot be read.
    #[error("the secret {name} cannot be exported as a variable: {path} cannot be read: {error}")]
    SecretUnreadable {
        /// Name of the secret.
        name: String,
        /// Its file.
        path: String,
        /// The failure.
        error: io::Error,
    },
}

/// Variables in the order in which they were first set; each is `NAME=value` and a NUL, wiped when
/// dropped.
#[derive(Default)]
pub struct Environment {
    entries: Vec<(String, Zeroizing<Vec<u8>>)>,
}

impl Environment {
    /// Builds the environment of `start` for `identity`; `secrets` is where secretsfs is mounted.
    ///
    /// # Errors
    /// The first variable or secret that cannot be exported.
    pub fn build(
        start: &Start,
        identity: &Identity,
        secrets: &Path,
    ) -> Result<Self, EnvironmentError> {
        check_secrets(&start.secrets, secrets)?;
        let mut environment = Self::default();
        environment.set("PATH", DEFAULT_PATH)?;
        environment.set("HOME", home(identity))?;
        if let Some(account) = &identity.account {
            environment.set("USER", &account.name)?;
            environment.set("LOGNAME", &account.name)?;
            if !account.shell.is_empty() {
                environment.set("SHELL", &account.shell)?;
            }
        }
        if start.terminal.is_some() {
            environment.set("TERM", DEFAULT_TERM)?;
        }
        for name in &start.secret_env {
            // What an explicit variable hides is not even fetched.
            if start.env.iter().all(|(explicit, _)| explicit != name) {
                let entry = secret_entry(name, &secrets.join(name))?;
                environment.put(name, entry);
            }
        }
        for (name, value) in &start.env {
            environment.set(name, value)?;
        }
        Ok(environment)
    }

    /// The value of a variable, if it is set and UTF-8.
    pub fn get(&self, name: &str) -> Option<&str> {
        let (_, entry) = self.entries.iter().find(|(n, _)| n == name)?;
        std::str::from_utf8(&entry[name.len() + 1..entry.len() - 1]).ok()
    }

    /// The strings for `execve(2)`.
    pub fn strings(&self) -> Vec<&CStr> {
        let string = |entry| CStr::from_bytes_with_nul(entry);
        self.entries
            .iter()
            .map(|(_, entry)| string(entry).expect("set and secret_entry refuse inner NUL bytes"))
            .collect()
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), EnvironmentError> {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(EnvironmentError::Name(name.to_owned()));
        }
        if value.contains('\0') {
            return Err(EnvironmentError::Nul(name.to_owned()));
        }
        let entry = Zeroizing::new(format!("{name}={value}\0").into_bytes());
        self.put(name, entry);
        Ok(())
    }

    fn put(&mut self, name: &str, entry: Zeroizing<Vec<u8>>) {
        match self.entries.iter_mut().find(|(n, _)| n == name) {
            Some((_, old)) => *old = entry,
            None => self.entries.push((name.to_owned(), entry)),
        }
    }
}

/// The identity's home directory, or `/`.
pub fn home(identity: &Identity) -> &str {
    let home = identity.account.as_ref().map(|account| &account.home);
    home.filter(|home| !home.is_empty()).map_or("/", |h| h)
}

/// A process that needs a secret must not run without it: it would find out late, or not at all.
fn check_secrets(names: &[String], secrets: &Path) -> Result<(), EnvironmentError> {
    for name in names {
        check_name(name)?;
        if !secrets.join(name).exists() {
            let place = secrets.display().to_string();
            return Err(EnvironmentError::SecretMissing(name.clone(), place));
        }
    }
    Ok(())
}

/// Names are a secret's and a file's at once: neither may leave the directory.
fn check_name(name: &str) -> Result<(), EnvironmentError> {
    let legal = |b: u8| b == b'_' || b.is_ascii_alphanumeric();
    if name.is_empty() || !name.bytes().all(legal) {
        return Err(EnvironmentError::Name(name.to_owned()));
    }
    Ok(())
}

/// Reads a secret straight into the string that `execve(2)` gets: one copy, never reallocated.
fn secret_entry(name: &str, path: &Path) -> Result<Zeroizing<Vec<u8>>, EnvironmentError> {
    check_name(name)?;
    let shown = path.display().to_string();
    let unreadable = |error| EnvironmentError::SecretUnreadable {
        name: name.to_owned(),
        path: shown.clone(),
        error,
    };
    let mut file = File::open(path).map_err(unreadable)?;
    // An open file of secretsfs keeps the version, and so the length, that it was opened with.
    let value_length = file.metadata().map_err(unreadable)?.len();
    let prefix = name.len() + 1;
    let length = usize::try_from(value_length)
        .ok()
        .and_then(|value| value.checked_add(prefix + 1))
        .filter(|&length| length <= MAX_ENTRY)
        .ok_or_else(|| EnvironmentError::SecretTooLong(name.to_owned(), shown.clone()))?;
    let mut entry = Zeroizing::new(vec![0; length]);
    entry[..name.len()].copy_from_slice(name.as_bytes());
    entry[name.len()] = b'=';
    let value = &mut entry[prefix..length - 1];
    file.read_exact(value).map_err(unreadable)?;
    if value.contains(&0) {
        return Err(EnvironmentError::SecretNul(name.to_owned(), shown));
    }
    Ok(entry)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use cachot_control::WindowSize;

    use super::*;
    use crate::users::Account;

    fn start(secret_env: &[&str], env: &[(&str, &str)]) -> Start {
        Start {
            session: 1,
            root: None,
            argv: vec!["true".into()],
            env: env
                .iter()
                .map(|&(n, v)| (n.to_owned(), v.to_owned()))
                .collect(),
            secrets: Vec::new(),
            secret_env: secret_env.iter().map(|&n| n.to_owned()).collect(),
            user: None,
            workdir: None,
            terminal: None,
            stdin: false,
        }
    }

    fn app() -> Identity {
        Identity {
            uid: 1000,
            gid: 1000,
            groups: Vec::new(),
            account: Some(Account {
                name: "app".into(),
                home: "/srv/app".into(),
                shell: String::new(),
            }),
        }
    }

    #[test]
    fn test_build_defaults_come_from_the_account() {
        let mut start = start(&[], &[]);
        let environment =
            Environment::build(&start, &app(), Path::new("/nonexistent")).expect("built");
        assert_eq!(environment.get("PATH"), Some(DEFAULT_PATH));
        assert_eq!(environment.get("HOME"), Some("/srv/app"));
        assert_eq!(environment.get("USER"), Some("app"));
        assert_eq!(environment.get("LOGNAME"), Some("app"));
        assert_eq!(
            (environment.get("SHELL"), environment.get("TERM")),
            (None, None)
        );

        start.terminal = Some(WindowSize { rows: 1, cols: 1 });
        let environment =
            Environment::build(&start, &app(), Path::new("/nonexistent")).expect("built");
        assert_eq!(environment.get("TERM"), Some("xterm"));
    }

    #[test]
    fn test_build_explicit_beats_secret_beats_default() {
        let secrets = tempfile::tempdir().expect("a directory");
        for name in ["HOME", "TOKEN", "BOTH"] {
            fs::write(secrets.path().join(name), format!("secret {name}")).expect("written");
        }
        let start = start(
            &["HOME", "TOKEN", "BOTH", "ABSENT"],
            &[("BOTH", "explicit"), ("ABSENT", "a=b"), ("EMPTY", "")],
        );

        let environment = Environment::build(&start, &app(), secrets.path()).expect("built");

        assert_eq!(environment.get("HOME"), Some("secret HOME"));
        assert_eq!(environment.get("TOKEN"), Some("secret TOKEN"));
        assert_eq!(environment.get("BOTH"), Some("explicit"));
        assert_eq!(environment.get("ABSENT"), Some("a=b"));
        assert!(environment.strings().contains(&c"EMPTY="));
        assert!(environment.strings().contains(&c"TOKEN=secret TOKEN"));
        let homes = |s: &&&CStr| s.to_bytes().starts_with(b"HOME=");
        assert_eq!(environment.strings().iter().filter(homes).count(), 1);
    }

    #[test]
    fn test_build_secret_that_no_variable_can_hold_is_refused_by_name() {
        let secrets = tempfile::tempdir().expect("a directory");
        fs::write(secrets.path().join("NUL"), b"va\0lue").expect("written");
        let longest = MAX_ENTRY - "LONG=\0".len();
        fs::write(secrets.path().join("FITS"), vec![b'x'; longest]).expect("written");
        fs::write(secrets.path().join("LONG"), vec![b'x'; longest + 1]).expect("written");
        let refusal = |name: &str| {
            let built = Environment::build(&start(&[name], &[]), &app(), secrets.path());
            built.err().expect("it is refused").to_string()
        };

        assert!(refusal("NUL").contains("NUL byte"));
        assert!(refusal("LONG").contains("over Linux's limit"));
        assert!(refusal("MISSING").contains("MISSING cannot be exported"));
        assert!(refusal("../NUL").contains("cannot be the name"));
        Environment::build(&start(&["FITS"], &[]), &app(), secrets.path()).expect("it just fits");
    }

    #[test]
    fn test_build_secret_that_is_not_there_is_refused_exported_or_not() {
        let secrets = tempfile::tempdir().expect("a directory");
        fs::write(secrets.path().join("THERE"), "value").expect("written");
        let mut start = start(&[], &[]);
        let build = |start: &Start| Environment::build(start, &app(), secrets.path());
        start.secrets = vec!["THERE".into()];
        build(&start).expect("all are there");

        start.secrets.push("MISSING".into());
        let refusal = build(&start).err().expect("one is not").to_string();
        start.secrets = vec!["../passwd".into()];
        let foreign = build(&start).err().expect("it is no secret").to_string();

        assert!(
            refusal.contains("the secret MISSING is not in"),
            "{refusal}"
        );
        assert!(
            refusal.contains("the guest kernel has virtio_secrets"),
            "{refusal}"
        );
        assert!(foreign.contains("cannot be the name"), "{foreign}");
    }

    #[test]
    fn test_build_illegal_variable_is_refused() {
        for (name, value) in [("", "x"), ("A=B", "x"), ("A\0", "x"), ("A", "x\0y")] {
            let start = start(&[], &[(name, value)]);
            let built = Environment::build(&start, &app(), Path::new("/nonexistent"));
            assert!(built.is_err(), "{name:?}={value:?}");
        }
    }
}
