//! The program that `GIT_ASKPASS` of a workload may name. It has no value in it: it reads the one in `/run/secrets`.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// What it does.
const SCRIPT: &[u8] = include_bytes!("askpass.sh");

/// Writes it: anybody may run it, only root alters it.
///
/// # Errors
/// What the kernel said.
pub fn place(path: &Path) -> io::Result<()> {
    // Nobody was here before PID 1: a file that is there is a mistake.
    let mut options = File::options();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o755)
        .open(path)?;
    file.write_all(SCRIPT)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn test_askpass_answers_with_the_name_that_is_set_or_the_usual_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("askpass");
        place(&path).expect("written");
        let answer = |name: Option<&str>| {
            // By the shell: another test that forks just now may hold the file open for writing.
            let mut command = Command::new("sh");
            command
                .arg(&path)
                .arg("Username for 'https://example.org': ");
            match name {
                Some(name) => command.env("GIT_USERNAME", name),
                None => command.env_remove("GIT_USERNAME"),
            };
            String::from_utf8(command.output().expect("it runs").stdout).expect("text")
        };
        assert_eq!(answer(None), "x-access-token\n");
        assert_eq!(answer(Some("ci")), "ci\n");
        assert!(place(&path).is_err());
    }
}
