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

    /// What the program answers to a question, and whether it succeeds.
    fn ask(program: &Path, question: &str, name: Option<&str>) -> (String, bool) {
        // By the shell: another test that forks just now may hold the file open for writing.
        let mut command = Command::new("sh");
        command.arg(program).arg(question);
        match name {
            Some(name) => command.env("GIT_USERNAME", name),
            None => command.env_remove("GIT_USERNAME"),
        };
        let output = command.output().expect("it runs");
        let answer = String::from_utf8(output.stdout).expect("text");
        (answer, output.status.success())
    }

    #[test]
    fn test_askpass_answers_with_the_name_that_is_set_or_the_usual_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("askpass");
        place(&path).expect("written");
        let question = "Username for 'https://example.org': ";
        let answer = |name| ask(&path, question, name);
        assert_eq!(answer(None), ("x-access-token\n".to_owned(), true));
        assert_eq!(answer(Some("ci")), ("ci\n".to_owned(), true));
        assert!(place(&path).is_err());
    }

    #[test]
    fn test_askpass_answers_no_question_but_one_of_git_over_https() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("askpass");
        let token = folder.path().join("token");
        std::fs::write(&token, "t-7c1d").expect("written");
        // With the token where a test can put it.
        let script = String::from_utf8(SCRIPT.to_vec()).expect("text");
        let of_test = script.replace("/run/secrets/GIT_TOKEN", &token.display().to_string());
        std::fs::write(&path, of_test).expect("written");

        let good = ask(&path, "Password for 'https://ci@example.org': ", None);
        assert_eq!(good, ("t-7c1d".to_owned(), true));
        for question in [
            "Username for 'http://example.org': ",
            "Password for 'http://ci@example.org': ",
            "Password for 'ftp://https://example.org': ",
            "Password for 'httpsx://example.org': ",
            "ci@example.org's password: ",
            "Enter passphrase for key '/root/.ssh/id_ed25519': ",
            "Password for x",
            "Username",
            "",
        ] {
            let refused = ask(&path, question, Some("ci"));
            assert_eq!(refused, (String::new(), false), "{question}");
        }
    }
}
