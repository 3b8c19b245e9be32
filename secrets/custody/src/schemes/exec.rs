//! `exec:PROGRAM ARGUMENTS` and `helper:REF`: values that programs print.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cachot_secrets::{Fetched, ResolveError, Scheme, TIME_LIMIT};

use super::Environment;
use super::program::{ExecError, Program};

/// Holds the absolute path of the program that `helper:` calls.
pub(super) const HELPER_VARIABLE: &str = "CACHOT_SECRET_HELPER";

/// `exec:/path/to/program argument...`: what the program prints, less one line feed at the end.
///
/// The words are told apart as a shell does it, with quotes, backslashes and comments; there is no shell, and
/// nothing in them is replaced.
pub struct Exec {
    environment: Environment,
    limit: Duration,
}

impl Exec {
    /// One whose programs get some variables of `environment`.
    #[must_use]
    pub fn new(environment: Environment) -> Self {
        Self {
            environment,
            limit: TIME_LIMIT,
        }
    }
}

impl Scheme for Exec {
    fn name(&self) -> &'static str {
        "exec"
    }

    fn is_plaintext(&self) -> bool {
        false
    }

    fn resolve(&self, locator: &str) -> Result<Fetched, ResolveError> {
        let words = shlex::split(locator).ok_or(ExecError::Words)?;
        let (program, arguments) = words.split_first().ok_or(ExecError::Words)?;
        let program = Path::new(program);
        if !program.is_absolute() {
            return Err(ExecError::RelativeProgram.into());
        }
        Program {
            scheme: self.name(),
            path: program,
            environment: &self.environment,
            limit: self.limit,
        }
        .value(arguments)
        .map(Fetched::from)
    }

    fn time_limit(&self) -> Option<Duration> {
        Some(self.limit)
    }
}

/// `helper:REF`: what the program in `CACHOT_SECRET_HELPER` prints when it is called with the one argument `REF`,
/// less one line feed at the end.
pub struct Helper {
    environment: Environment,
    limit: Duration,
}

impl Helper {
    /// One that finds its program in `environment`, and passes some variables of it on.
    #[must_use]
    pub fn new(environment: Environment) -> Self {
        Self {
            environment,
            limit: TIME_LIMIT,
        }
    }
}

impl Scheme for Helper {
    fn name(&self) -> &'static str {
        "helper"
    }

    fn is_plaintext(&self) -> bool {
        false
    }

    fn resolve(&self, locator: &str) -> Result<Fetched, ResolveError> {
        let program = self.environment.get(HELPER_VARIABLE);
        let program = PathBuf::from(program.ok_or(ExecError::NoHelper)?);
        if !program.is_absolute() {
            return Err(ExecError::RelativeHelper(program).into());
        }
        Program {
            scheme: self.name(),
            path: &program,
            environment: &self.environment,
            limit: self.limit,
        }
        .value(&[locator])
        .map(Fetched::from)
    }

    fn time_limit(&self) -> Option<Duration> {
        Some(self.limit)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Instant;

    use cachot_secrets::MAX_VALUE_LEN;

    use super::*;

    fn environment() -> Environment {
        Environment::new(|name| match name {
            "PATH" => std::env::var_os(name),
            "HOME" => Some("/home/of/test".into()),
            "CACHOT_TEST_VALUE" => Some("in the environment".into()),
            _ => None,
        })
    }

    fn exec(locator: &str) -> Result<Fetched, ResolveError> {
        Exec::new(environment()).resolve(locator)
    }

    /// Runs a script in a shell.
    fn sh(script: &str) -> Result<Fetched, ResolveError> {
        exec(&format!(
            "/bin/sh -c {}",
            shlex::try_quote(script).expect("quoted")
        ))
    }

    fn text(value: Result<Fetched, ResolveError>) -> String {
        let value = value.expect("a value").value;
        String::from_utf8(value.expose().to_vec()).expect("text")
    }

    fn message(value: Result<Fetched, ResolveError>) -> String {
        value.expect_err("no value").to_string()
    }

    /// A program in a folder that is removed with it.
    fn program(script: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("program");
        fs::write(&path, format!("#!/bin/sh\n{script}")).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("set");
        (folder, path)
    }

    #[test]
    fn test_exec_value_is_what_is_printed_less_one_line_feed() {
        assert_eq!(text(exec("/bin/echo token")), "token");
        assert_eq!(text(sh(r"printf 'a\n\n'")), "a\n");
        assert_eq!(text(sh(r"printf 'a\r\n'")), "a\r");
        assert_eq!(text(sh("printf a")), "a");
    }

    #[test]
    fn test_exec_words_are_an_argument_vector_without_a_shell() {
        let printed = text(exec(r#"/usr/bin/printf '<%s>' $HOME "a  b" ; '|' * c\ d"#));
        assert_eq!(printed, "<$HOME><a  b><;><|><*><c d>");
        for open in ["/bin/echo 'a", "/bin/echo \"a", "/bin/echo \\", " "] {
            assert!(message(exec(open)).contains("close every quote"), "{open}");
        }
        for relative in ["echo a", "./echo", "bin/echo"] {
            assert!(message(exec(relative)).contains("no absolute path"));
        }
    }

    #[test]
    fn test_exec_programs_get_settings_and_no_other_variable() {
        let printed = text(exec("/usr/bin/env"));
        assert!(printed.contains("HOME=/home/of/test"), "{printed}");
        assert!(!printed.contains("CACHOT_TEST_VALUE"), "{printed}");
        assert_eq!(printed.lines().count(), 2, "{printed}");
    }

    #[test]
    fn test_exec_input_is_empty_and_no_descriptor_is_inherited() {
        assert_eq!(text(sh("cat; echo end")), "end");
        // One without CLOEXEC, as those are that a shell passes on.
        let file = fs::File::open("/dev/null").expect("opened");
        let inherited = rustix::io::dup(&file).expect("a second one");
        let flags = rustix::io::fcntl_getfd(&inherited).expect("known");
        assert!(!flags.contains(rustix::io::FdFlags::CLOEXEC));
        let number = inherited.as_raw_fd();
        let script = format!("test -e /proc/self/fd/{number} && echo open || echo closed");
        assert_eq!(text(sh(&script)), "closed");
    }

    #[test]
    fn test_exec_every_failure_is_a_distinct_error() {
        assert!(message(exec("/cachot/none")).starts_with("cannot start \"/cachot/none\""));
        assert!(message(exec("/etc/passwd")).starts_with("cannot start \"/etc/passwd\""));
        assert!(message(exec("/bin/true")).contains("is empty"));
        assert!(message(sh("echo")).contains("is empty"));
        let failed = message(sh("echo no such entry >&2; exit 3"));
        assert_eq!(failed, "\"/bin/sh\" ended with exit code 3: no such entry");
        let silent = message(exec("/bin/false"));
        assert_eq!(
            silent,
            "\"/bin/false\" ended with exit code 1, and said nothing"
        );
        let killed = message(sh("kill -9 $$"));
        assert!(killed.contains("was killed by signal 9"), "{killed}");
    }

    #[test]
    fn test_exec_value_is_not_in_the_error() {
        let script =
            "echo hunter2hunter3; echo \"bad \\\"hunter2hunter3\\\" and unter2hu\" >&2; exit 1";
        let failed = message(sh(script));
        assert_eq!(
            failed,
            "\"/bin/sh\" ended with exit code 1: bad \"***\" and ***"
        );
        // The control: what is not printed as the value is shown.
        let shown = message(sh("echo hunter2hunter3 >&2; exit 1"));
        assert!(shown.ends_with("hunter2hunter3"), "{shown}");
        let short = message(sh("echo pin; echo 'my pin, p in' >&2; exit 1"));
        assert!(short.ends_with("my ***, p in"), "{short}");
    }

    #[test]
    fn test_exec_what_is_shown_is_one_short_line() {
        let failed = message(sh(r"printf 'a\033[31m\tb\n\0c\200' >&2; exit 1"));
        assert!(failed.ends_with(": a [31m b c\u{fffd}"), "{failed:?}");
        let long = message(sh("head -c 100000 /dev/zero | tr '\\0' x >&2; exit 1"));
        assert!(long.ends_with("xxx...") && long.len() < 600, "{long}");
    }

    #[test]
    fn test_exec_output_at_and_over_the_limit() {
        let print = |len: usize| sh(&format!("head -c {len} /dev/zero"));
        assert_eq!(
            print(MAX_VALUE_LEN).expect("a value").value.len(),
            MAX_VALUE_LEN
        );
        assert!(message(print(MAX_VALUE_LEN + 1)).contains("over the limit"));
        let endless = message(exec("/usr/bin/yes"));
        assert!(endless.contains("over the limit"), "{endless}");
    }

    #[test]
    fn test_exec_that_hangs_is_killed_with_all_that_it_started() {
        let folder = tempfile::tempdir().expect("a folder");
        let pids = folder.path().join("pids");
        let exec = Exec {
            limit: Duration::from_millis(700),
            ..Exec::new(environment())
        };
        let script = format!(
            "sleep 1000 & echo $$ $! > {}; echo half; wait",
            pids.display()
        );
        let since = Instant::now();

        let hung = exec.resolve(&format!("/bin/sh -c '{script}'"));

        assert!(matches!(
            hung,
            Err(ResolveError::TimedOut { scheme: "exec", .. })
        ));
        assert!(since.elapsed() < Duration::from_secs(10));
        let pids = fs::read_to_string(pids).expect("written before it hung");
        let mut pids = pids.split_whitespace();
        let shell = pids.next().expect("the shell's");
        assert!(!Path::new("/proc").join(shell).exists());
        let child = pids.next().expect("its child's");
        // Nobody may be there to wait for it: then it stays in the table, dead.
        let stat = fs::read_to_string(Path::new("/proc").join(child).join("stat"));
        let is_dead = stat.map_or(true, |stat| stat.contains(") Z "));
        assert!(is_dead || !runs(child), "{child} goes on");
    }

    /// Whether a process goes on for a second.
    fn runs(pid: &str) -> bool {
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(1) {
            let stat = fs::read_to_string(Path::new("/proc").join(pid).join("stat"));
            if stat.map_or(true, |stat| stat.contains(") Z ")) {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        true
    }

    #[test]
    fn test_exec_one_that_closes_its_output_and_hangs_is_killed() {
        let exec = Exec {
            limit: Duration::from_millis(300),
            ..Exec::new(environment())
        };
        for script in [
            "echo a; exec >&-; sleep 1000",
            "while :; do echo w >&2; done",
        ] {
            let hung = exec.resolve(&format!("/bin/sh -c '{script}'"));
            assert!(
                matches!(hung, Err(ResolveError::TimedOut { .. })),
                "{script}"
            );
        }
    }

    #[test]
    fn test_exec_what_it_leaves_in_the_background_ends_with_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let pid = folder.path().join("pid");
        let script = format!(
            "sleep 1000 >/dev/null 2>&1 & echo $! > {}; echo token",
            pid.display()
        );
        assert_eq!(text(sh(&script)), "token");
        let pid = fs::read_to_string(pid).expect("written");
        assert!(!runs(pid.trim()));
    }

    #[test]
    fn test_helper_gets_one_argument() {
        let (_folder, path) = program("printf '%s:%s\\n' $# \"$1\"");
        let helper = Helper::new(Environment::new(move |name| {
            (name == HELPER_VARIABLE).then(|| path.clone().into())
        }));
        for reference in ["db/password", "a b 'c' $HOME", "--option", "x:y#z"] {
            assert_eq!(text(helper.resolve(reference)), format!("1:{reference}"));
        }
    }

    #[test]
    fn test_helper_that_is_none_is_a_distinct_error() {
        let helper = |path: Option<&'static str>| {
            Helper::new(Environment::new(move |_| path.map(Into::into)))
        };
        assert!(message(helper(None).resolve("a")).contains("no program is configured"));
        assert!(message(helper(Some("")).resolve("a")).contains("no program is configured"));
        assert!(message(helper(Some("me")).resolve("a")).contains("not an absolute path"));
        assert!(message(helper(Some("/cachot/none")).resolve("a")).contains("cannot start"));
    }
}
