//! New ssh host keys, made by the root file system's own `ssh-keygen`, which runs beside the event loop.
//!
//! They are made in a directory in memory and put in place when all are there: there is no moment without keys, and
//! a root that is read-only gets them by bind mounts. An sshd that runs already may keep the old ones until it
//! reads its configuration again.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitStatus, kill_process_group};
use zeroize::Zeroizing;

use crate::files;
use crate::kernel::Kernel;
use crate::mounts::make_private_directory;
use crate::renew::Places;

/// How long the keys may take: an RSA key of 3,072 bits takes half a minute on an emulated processor.
const KEYS_WAIT: Duration = Duration::from_secs(60);

/// Longest part of what `ssh-keygen` says that is reported, in bytes.
const MAX_WORDS: usize = 512;

/// Types that `ssh-keygen -A` makes, in one version or another. Those that the root does not have are not wanted.
const TYPES: [&str; 4] = ["rsa", "ecdsa", "ed25519", "dsa"];

/// Most keys that are looked at; OpenSSH has had six types.
const MAX_KEYS: usize = 16;

/// Largest key file, in bytes; an RSA key of 16,384 bits takes 13,000.
const MAX_KEY: u64 = 64 << 10;

/// Keys in the making.
pub struct HostKeys {
    generator: Pid,
    status: Option<WaitStatus>,
    deadline: Instant,
    stage: Stage,
    /// Names of the keys that are replaced.
    names: Vec<String>,
}

impl HostKeys {
    /// Starts `ssh-keygen` if there are keys to replace.
    ///
    /// # Errors
    /// Why it could not be started, and what to do.
    pub fn begin(places: &Places, now: Instant) -> Result<Option<Self>, String> {
        let names =
            keys(&places.ssh).map_err(|error| format!("{}: {error}", places.ssh.display()))?;
        if names.is_empty() {
            return Ok(None);
        }
        let program = places
            .programs
            .iter()
            .map(|folder| folder.join("ssh-keygen"));
        let program = program.into_iter().find(|program| program.exists()).ok_or(
            "the root file system has keys but no ssh-keygen; install it, or remove the keys from the image",
        )?;
        let stage =
            Stage::new(places).map_err(|error| format!("no place to make them: {error}"))?;
        stage
            .decline(&names)
            .map_err(|error| format!("no place to make them: {error}"))?;
        let failed = |error: io::Error| format!("cannot run {}: {error}", program.display());
        let log = fs::File::create(stage.log()).map_err(failed)?;
        let generator = Command::new(&program)
            .arg("-A")
            .arg("-f")
            .arg(&stage.0)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let generator = i32::try_from(generator.id()).ok().and_then(Pid::from_raw);
        Ok(Some(Self {
            generator: generator.ok_or("it has no process id")?,
            status: None,
            deadline: now + KEYS_WAIT,
            stage,
            names,
        }))
    }

    /// When the wait for them ends.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Takes note of a process that has ended.
    pub fn reaped(&mut self, pid: Pid, status: WaitStatus) {
        if pid == self.generator {
            self.status = Some(status);
        }
    }

    /// Puts the keys in place once they are made; returns what failed once all is done.
    pub fn advance(
        &mut self,
        places: &Places,
        kernel: &dyn Kernel,
        now: Instant,
    ) -> Option<Vec<String>> {
        let failure = match self.status {
            Some(status) if status.exit_status() == Some(0) => {
                let mut failures = Vec::new();
                for name in &self.names {
                    let failure = self.install(places, kernel, name).err();
                    failures.extend(failure.map(|why| format!("{name}: {why}")));
                }
                return Some(failures);
            }
            Some(_) => self.stage.last_words(),
            None if now < self.deadline => return None,
            None => format!("ssh-keygen is not done after {} s", KEYS_WAIT.as_secs()),
        };
        Some(vec![failure])
    }

    /// Replaces one key and its public half; one of a type that is not made any more is removed.
    fn install(&self, places: &Places, kernel: &dyn Kernel, name: &str) -> Result<(), String> {
        for name in [name.to_owned(), format!("{name}.pub")] {
            let (new, old) = (self.stage.keys().join(&name), places.ssh.join(&name));
            if !old.exists() {
                continue;
            }
            let reason = |error: io::Error| error.to_string();
            if new.exists() {
                let length = new.metadata().map_err(reason)?.len();
                if length > MAX_KEY {
                    return Err("ssh-keygen has made something that is no key".to_owned());
                }
                let key = Zeroizing::new(fs::read(&new).map_err(reason)?);
                places.renew(kernel, &old, &key)?;
            } else {
                fs::remove_file(&old).map_err(|error| {
                    format!("cannot remove this key of a type no longer made: {error}")
                })?;
            }
        }
        Ok(())
    }
}

impl Drop for HostKeys {
    fn drop(&mut self) {
        if self.status.is_none() {
            // It cannot be gone: it has not been reaped.
            kill_process_group(self.generator, Signal::KILL).ok();
        }
    }
}

/// Names of the private keys in a directory.
fn keys(ssh: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(ssh) {
        Ok(entries) => entries,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(Vec::new());
        }
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name().into_string().unwrap_or_default();
        if name.starts_with("ssh_host_") && name.ends_with("_key") {
            names.push(name);
        }
    }
    if names.len() > MAX_KEYS {
        return Err(io::Error::other(format!("there are over {MAX_KEYS} keys")));
    }
    names.sort();
    Ok(names)
}

/// The directory in which `ssh-keygen` works; goes when dropped.
struct Stage(PathBuf);

impl Stage {
    fn new(places: &Places) -> io::Result<Self> {
        make_private_directory(&places.run)?;
        let stage = Self(places.run.join("new-keys"));
        stage.remove()?;
        for directory in ["", "etc", "etc/ssh"] {
            make_private_directory(&stage.0.join(directory))?;
        }
        Ok(stage)
    }

    /// Keeps `ssh-keygen` from making types that are not there: it passes over keys that it finds.
    fn decline(&self, wanted: &[String]) -> io::Result<()> {
        let names = TYPES.map(|kind| format!("ssh_host_{kind}_key"));
        for name in names.iter().filter(|name| !wanted.contains(name)) {
            fs::write(self.keys().join(name), "not wanted")?;
        }
        Ok(())
    }

    fn keys(&self) -> PathBuf {
        self.0.join("etc/ssh")
    }

    fn log(&self) -> PathBuf {
        self.0.join("log")
    }

    /// What `ssh-keygen` has said before it failed.
    fn last_words(&self) -> String {
        let log = files::read_text(&self.log())
            .ok()
            .flatten()
            .unwrap_or_default();
        match log.lines().rfind(|line| !line.trim().is_empty()) {
            Some(line) => format!(
                "ssh-keygen: {}",
                &line[..line.floor_char_boundary(MAX_WORDS)]
            ),
            None => "ssh-keygen failed and does not say why".to_owned(),
        }
    }

    fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // In memory, and removed before the next use.
        self.remove().ok();
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::{WaitOptions, waitpid};

    use super::*;

    /// A kernel that has nothing to do.
    struct Idle;

    impl Kernel for Idle {
        fn add_entropy(&self, _seed: &[u8]) -> io::Result<()> {
            unreachable!("keys need none")
        }

        fn set_clock(&self, _since_epoch: Duration) -> io::Result<()> {
            unreachable!("keys have no time")
        }

        fn set_hostname(&self, _name: &str) -> io::Result<()> {
            unreachable!("keys have no host")
        }

        fn bind_mount(&self, _file: &Path, _over: &Path) -> io::Result<()> {
            unreachable!("the keys can be replaced")
        }
    }

    fn places(root: &Path, generator: &str) -> Places {
        use std::os::unix::fs::PermissionsExt;
        let program = root.join("ssh-keygen");
        fs::create_dir(root.join("ssh")).expect("created");
        fs::write(root.join("ssh/ssh_host_rsa_key"), "old").expect("written");
        fs::write(&program, generator).expect("written");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("set");
        Places {
            ssh: root.join("ssh"),
            run: root.join("run"),
            programs: vec![root.to_owned()],
            ..Places::default()
        }
    }

    fn begin(places: &Places, now: Instant) -> HostKeys {
        let begun = HostKeys::begin(places, now).expect("started");
        begun.expect("there is a key")
    }

    #[test]
    fn test_begin_without_keys_or_without_a_directory_does_nothing() {
        let root = tempfile::tempdir().expect("a directory");
        let places = places(root.path(), "");
        fs::remove_file(places.ssh.join("ssh_host_rsa_key")).expect("removed");
        let begun = HostKeys::begin(&places, Instant::now());
        assert!(begun.expect("no error").is_none());
        fs::remove_dir(&places.ssh).expect("removed");
        let begun = HostKeys::begin(&places, Instant::now());
        assert!(begun.expect("no error").is_none());
    }

    #[test]
    fn test_begin_without_ssh_keygen_says_what_to_do() {
        let root = tempfile::tempdir().expect("a directory");
        let places = places(root.path(), "");
        fs::remove_file(root.path().join("ssh-keygen")).expect("removed");
        let error = HostKeys::begin(&places, Instant::now()).err();
        assert!(error.is_some_and(|error| error.contains("install it, or remove the keys")));
    }

    #[test]
    fn test_advance_after_the_wait_kills_ssh_keygen_and_keeps_the_keys() {
        let root = tempfile::tempdir().expect("a directory");
        let places = places(root.path(), "#!/bin/sh\nsleep 1000\n");
        let now = Instant::now();
        let mut keys = begin(&places, now);
        let pid = keys.generator;

        let early = keys.advance(&places, &Idle, now + KEYS_WAIT / 2);
        let late = keys.advance(&places, &Idle, now + KEYS_WAIT).expect("over");
        drop(keys);

        assert_eq!(early, None);
        assert_eq!(late, ["ssh-keygen is not done after 60 s"]);
        let (_, status) = waitpid(Some(pid), WaitOptions::empty())
            .expect("waited")
            .expect("it has ended");
        assert_eq!(status.terminating_signal(), Some(libc::SIGKILL));
        let key = fs::read(places.ssh.join("ssh_host_rsa_key")).expect("read");
        assert_eq!(key, b"old");
        assert!(!places.run.join("new-keys").exists());
    }

    #[test]
    fn test_advance_takes_only_the_types_that_are_there() {
        let root = tempfile::tempdir().expect("a directory");
        let places = places(
            root.path(),
            "#!/bin/sh\ncd $3/etc/ssh; ls >$3/../seen; echo new >ssh_host_rsa_key\n",
        );
        let now = Instant::now();
        let mut keys = begin(&places, now);
        let (pid, status) = waitpid(Some(keys.generator), WaitOptions::empty())
            .expect("waited")
            .expect("it has ended");

        keys.reaped(pid, status);
        let failures = keys.advance(&places, &Idle, now).expect("over");

        assert_eq!(failures, Vec::<String>::new());
        let seen = fs::read_to_string(places.run.join("seen")).expect("read");
        assert_eq!(
            seen,
            "ssh_host_dsa_key\nssh_host_ecdsa_key\nssh_host_ed25519_key\n"
        );
        let names = keys_in(&places);
        assert_eq!(names, ["ssh_host_rsa_key"]);
        let key = fs::read(places.ssh.join("ssh_host_rsa_key")).expect("read");
        assert_eq!(key, b"new\n");
    }

    fn keys_in(places: &Places) -> Vec<String> {
        super::keys(&places.ssh).expect("read")
    }
}
