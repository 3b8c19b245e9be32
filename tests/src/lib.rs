//! What the whole-system tests share: running a script against `cachot`, on this machine if it has hardware
//! KVM, and in the lab otherwise.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Exit codes of `lab` that say nothing of the script: it was killed, or the emulated host died.
const LAB_TIMED_OUT: i32 = 124;
const LAB_FAILED: i32 = 125;

/// How often a script is begun. QEMU's emulation of SVM now and then loses its only CPU; a script that is
/// itself at fault ends with another code, and `cachot` gives up on a silent guest after 120 seconds.
const ATTEMPTS: usize = 3;

/// The project's root.
#[must_use]
pub fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Runs `tests/e2e/NAME.sh`, with `inputs` in its folder of inputs, on a host of this much memory.
///
/// # Panics
/// If the script fails, made no checks, or did not reach its end.
pub fn run_script(name: &str, memory: &str, inputs: &[PathBuf]) {
    let scripts = root().join("tests/e2e");
    let mut lab = Command::new(root().join("tests/lab/lab"));
    lab.arg("auto").arg(scripts.join(name).with_extension("sh"));
    lab.args(["--memory", memory, "--timeout", "500"]);
    for library in ["lib.sh", "hold.sh"] {
        lab.arg("--in").arg(scripts.join(library));
    }
    // busybox has no `script`, no client for HTTP on a Unix socket, and its grep reads no binary files.
    lab.args(["--program", "script", "--program", "curl"]);
    lab.args(["--program", "grep"]);
    for input in inputs {
        lab.arg("--in").arg(input);
    }

    let mut output = lab.output().expect("tests/lab/lab can be run");
    for _ in 1..ATTEMPTS {
        if !matches!(output.status.code(), Some(LAB_TIMED_OUT | LAB_FAILED)) {
            break;
        }
        let errors = String::from_utf8_lossy(&output.stderr);
        println!("{name}: the lab itself failed, once more: {errors}");
        output = lab.output().expect("tests/lab/lab can be run");
    }

    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    println!("{stdout}\n{stderr}");
    let status = output.status;
    assert!(status.success(), "{name}: {status}\n{stderr}");
    // A script that ends early, or checks nothing, has shown nothing.
    let checks = stdout
        .lines()
        .filter(|line| line.starts_with("ok: "))
        .count();
    assert!(checks > 2, "{name} made {checks} checks");
    assert!(
        stdout.contains("ok: finished"),
        "{name} did not reach its end"
    );
}
