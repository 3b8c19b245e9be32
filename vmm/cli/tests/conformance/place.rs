//! A folder of state, with files of other systems in it.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// What values of the fixtures have in them, all of them.
pub const MARK: &str = "7c1d0";

/// A folder of state.
pub struct Place(tempfile::TempDir);

impl Place {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Copies files that the tests of the library have of other systems, so that only this user reads them.
    pub fn with(self, kind: &str, names: &[&str]) -> Self {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../secrets/custody/tests");
        for name in names {
            let from = fixtures.join(kind).join("fixtures").join(name);
            fs::copy(from, self.path(name)).expect("a fixture");
            let private = fs::Permissions::from_mode(0o600);
            fs::set_permissions(self.path(name), private).expect("its mode");
        }
        self
    }

    /// Runs a command, of words without spaces, in the folder; with this on standard input.
    pub fn given(&self, line: &str, input: &str) -> Output {
        let mut child = Command::new(env!("CARGO_BIN_EXE_cachot"))
            .args(line.split(' '))
            .current_dir(self.0.path())
            .env_clear()
            .env("CACHOT_STATE", self.path("state"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut pipe = child.stdin.take().expect("a pipe");
        // A command that is refused reads nothing.
        pipe.write_all(input.as_bytes()).ok();
        drop(pipe);
        child.wait_with_output().expect("it ends")
    }

    /// What a command says that ends well.
    #[track_caller]
    pub fn ok(&self, line: &str) -> String {
        let output = self.given(line, "");
        assert!(output.status.success(), "{line}: {}", said(&output));
        said(&output)
    }

    /// What a command says that ends with this code.
    #[track_caller]
    pub fn fails(&self, line: &str, code: i32, expected: &str) -> String {
        let output = self.given(line, "");
        let text = said(&output);
        assert_eq!(output.status.code(), Some(code), "{line}: {text}");
        assert!(text.contains(expected), "{line}: {text}");
        assert!(!text.contains(MARK), "{line}: {text}");
        text
    }

    /// The value that a user has.
    #[track_caller]
    pub fn value(&self, user: &str, selector: &str) -> String {
        self.ok(&format!(
            "secret export {selector} --yes --secrets-user {user}"
        ))
    }
}

/// All that a command has said.
pub fn said(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&both).into_owned()
}
