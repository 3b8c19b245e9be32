//! `hold` as a process of its own: what it holds, seen from outside, and what it says after the secret has changed.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE, Engine};

const PROBE: &str = env!("CARGO_BIN_EXE_cachot-probe");

/// No form of it is the same as another one.
const VALUE: &[u8] = b"sk_live_\"51H/8kd92+Xw0QpZrTtYvBnM3sL7uJcF?";
const OTHER: &[u8] = b"sk_test_\"90Z/1qa27+Cv5GhJkLoIuYtR8eW4dSaX?";

struct Holder {
    folder: tempfile::TempDir,
    process: Child,
    output: BufReader<ChildStdout>,
}

impl Holder {
    /// Starts it with this value, and answers what it says before it waits.
    fn start(value: &[u8]) -> (Self, Vec<String>) {
        let folder = tempfile::tempdir_in("/dev/shm").expect("a folder");
        std::fs::write(folder.path().join("secret"), value).expect("written");
        std::fs::create_dir(folder.path().join("dir")).expect("a folder");
        let path = |name| folder.path().join(name);
        let mut process = Command::new(PROBE)
            .arg("hold")
            .arg(path("secret"))
            .arg("--tmpfs")
            .arg(folder.path())
            .arg("--dir")
            .arg(path("dir"))
            .arg("--trigger")
            .arg(path("trigger"))
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let output = BufReader::new(process.stdout.take().expect("a pipe"));
        let mut holder = Self {
            folder,
            process,
            output,
        };
        let said = holder.until("holding ");
        (holder, said)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Its output up to a line that begins like this.
    fn until(&mut self, beginning: &str) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            assert_ne!(self.output.read_line(&mut line).expect("output"), 0);
            let line = line.trim_end();
            lines.push(line.to_owned());
            if line.starts_with(beginning) {
                return lines;
            }
        }
    }

    /// Has it look at its places.
    fn check(&mut self) -> Vec<String> {
        std::fs::write(self.path("trigger"), "").expect("written");
        let lines = self.until("done");
        assert_eq!(lines[0], "triggered");
        assert!(!self.path("trigger").exists());
        lines[1..].to_vec()
    }

    /// How often the process `pid` has this in its memory.
    fn hits(&self, pid: u32, needle: &[u8]) -> usize {
        let path = self.path("needle");
        std::fs::write(&path, needle).expect("written");
        let output = Command::new(PROBE)
            .arg("scan-process")
            .arg(pid.to_string())
            .arg(path)
            .output()
            .expect("it starts");
        let text = String::from_utf8(output.stdout).expect("text");
        assert!(output.status.success() && text.contains("scanned "));
        text.lines().filter(|line| line.starts_with("hit ")).count()
    }

    fn child(&self) -> u32 {
        let pid = self.process.id();
        let path = format!("/proc/{pid}/task/{pid}/children");
        let children = std::fs::read_to_string(path).expect("a list");
        children.trim().parse().expect("one child")
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.process.kill().expect("killed");
        self.process.wait().expect("it ends");
    }
}

fn assert_states(lines: &[String], state: &str) {
    let folder_name = |line: &String| line.starts_with("page-cache:");
    assert!(lines.iter().any(folder_name), "{lines:?}");
    for place in [
        "heap",
        "stack",
        "environment",
        "pipe",
        "socket",
        "tmpfs",
        "private-copy",
        "split-7",
        "split-20",
        "end-of-page",
        "base64",
        "base64-wrapped",
        "base64-url",
        "hex",
        "hex-upper",
        "percent",
        "json",
        "utf-16le",
        "vector-registers",
        "general-registers",
    ] {
        let wanted = format!("{place} {state}");
        assert!(lines.contains(&wanted), "no {wanted} in {lines:?}");
    }
    assert!(lines.contains(&"freed-heap unchecked".to_owned()));
}

#[test]
fn test_hold_has_the_value_where_it_says_and_nowhere_else() {
    let (mut holder, said) = Holder::start(VALUE);
    assert_eq!(said, ["holding 22 places"]);
    let pid = holder.process.id();
    for _ in 0..2 {
        // heap, stack, private-copy, split-7, split-20, end-of-page
        assert_eq!(holder.hits(pid, VALUE), 6);
        // and json, which leaves this part as it is, and freed-heap, which has lost what was before it
        assert_eq!(holder.hits(pid, &VALUE[16..]), 8);
        // and percent; pieces of it are nowhere else.
        assert_eq!(holder.hits(pid, &VALUE[19..35]), 9);
        assert_eq!(holder.hits(holder.child(), VALUE), 1);
        let base64 = BASE64_STANDARD.encode(VALUE);
        let url_safe = BASE64_URL_SAFE.encode(VALUE);
        let hex: String = VALUE.iter().map(|byte| format!("{byte:02x}")).collect();
        let utf16: Vec<u8> = VALUE.iter().flat_map(|byte| [*byte, 0]).collect();
        // One of the two is wrapped, which shows only in longer values.
        assert_eq!(holder.hits(pid, base64.as_bytes()), 2);
        assert_eq!(holder.hits(pid, url_safe.as_bytes()), 1);
        assert_eq!(holder.hits(pid, hex.as_bytes()), 1);
        assert_eq!(holder.hits(pid, hex.to_uppercase().as_bytes()), 1);
        assert_eq!(holder.hits(pid, &utf16), 1);
        assert_eq!(holder.hits(pid, b"%2251H%2F8kd92%2B"), 1);
        assert_eq!(holder.hits(pid, b"sk_live_\\\"51H/8kd92"), 1);
        // To look at the places leaves nothing either.
        assert_states(&holder.check(), "same");
    }
    for file in ["held", "dir/held"] {
        assert_eq!(std::fs::read(holder.path(file)).expect("readable"), VALUE);
    }
}

#[test]
fn test_hold_tells_what_the_secret_has_become() {
    let (mut holder, _) = Holder::start(VALUE);

    std::fs::write(holder.path("secret"), OTHER).expect("written");
    let lines = holder.check();
    assert_states(&lines, "old");
    assert!(lines[0].starts_with("value 42:"), "{lines:?}");

    // A restore cannot be had here, but files can be changed under it.
    std::fs::write(holder.path("held"), OTHER).expect("written");
    std::fs::write(holder.path("dir/held"), [0; 42]).expect("written");
    let lines = holder.check();
    assert!(lines.contains(&"tmpfs same".into()), "{lines:?}");
    let zero = format!("page-cache:{} zero", holder.path("dir").display());
    assert!(lines.contains(&zero), "{lines:?}");

    std::fs::remove_file(holder.path("secret")).expect("removed");
    let lines = holder.check();
    assert!(lines[0].starts_with("value missing"), "{lines:?}");
    assert!(lines.contains(&"tmpfs other".into()), "{lines:?}");
}

#[test]
fn test_hold_of_bytes_and_of_the_longest_value() {
    let bytes: Vec<u8> = (0..4096_u32)
        .map(|at| (at * at / 7).to_le_bytes()[0])
        .collect();
    let (mut holder, said) = Holder::start(&bytes);
    assert_eq!(said.len(), 4, "{said:?}");
    assert_eq!(said[3], "holding 19 places");
    let lines = holder.check();
    // value, 19 places, done
    assert_eq!(lines.len(), 21);
    let same = lines.iter().filter(|line| line.ends_with(" same")).count();
    assert_eq!(same, 18, "{lines:?}");
    let pid = holder.process.id();
    assert_eq!(holder.hits(pid, &bytes), 6);
    // What was freed has lost four words, as a large chunk does.
    assert_eq!(holder.hits(pid, &bytes[32..]), 7);
}

#[test]
fn test_hold_prints_no_form_of_the_value() {
    let (mut holder, mut said) = Holder::start(VALUE);
    said.extend(holder.check());
    assert_scan_of(&holder, said.join("\n").as_bytes(), 0);
    // The positive control
    assert_scan_of(&holder, &[b"..", VALUE].concat(), 1);
}

fn assert_scan_of(holder: &Holder, text: &[u8], code: i32) {
    let (needle, haystack) = (holder.path("value"), holder.path("text"));
    std::fs::write(&needle, VALUE).expect("written");
    std::fs::write(&haystack, text).expect("written");
    let status = scan(&haystack, &needle);
    assert_eq!(status, Some(code));
}

fn scan(path: &Path, needle: &Path) -> Option<i32> {
    let mut command = Command::new(PROBE);
    command.arg("scan").arg(path).arg("--needle").arg(needle);
    command.output().expect("it starts").status.code()
}

#[test]
fn test_scan_has_an_exit_code_for_errors() {
    let needle = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(needle.path(), VALUE).expect("written");
    assert_eq!(scan(Path::new("/nowhere"), needle.path()), Some(2));
    assert_eq!(scan(needle.path(), Path::new("/nowhere")), Some(2));
    assert_eq!(scan(needle.path(), needle.path()), Some(1));
}
