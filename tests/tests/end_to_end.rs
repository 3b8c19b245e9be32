//! Whole-system tests: each runs one script of `tests/e2e` against `cachot`, on this machine if it has hardware
//! KVM and in the lab otherwise.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The project's root.
fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Runs `tests/e2e/NAME.sh`, with `inputs` in its folder of inputs, on a host of this much memory.
fn run(name: &str, memory: &str, inputs: &[PathBuf]) {
    let scripts = root().join("tests/e2e");
    let mut lab = Command::new(root().join("tests/lab/lab"));
    lab.arg("auto").arg(scripts.join(name).with_extension("sh"));
    lab.args(["--memory", memory, "--timeout", "1200"]);
    lab.arg("--in").arg(scripts.join("lib.sh"));
    // busybox has no `script`, and a `setpriv` without users.
    lab.args(["--program", "script", "--program", "setpriv"]);
    for input in inputs {
        lab.arg("--in").arg(input);
    }

    let output = lab.output().expect("tests/lab/lab can be run");

    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    println!("{stdout}\n{stderr}");
    assert!(
        output.status.success(),
        "{name}: {}\n{stderr}",
        output.status
    );
    // A script that ends early, or checks nothing, has shown nothing.
    let checks = stdout
        .lines()
        .filter(|line| line.starts_with("ok: "))
        .count();
    assert!(checks > 2, "{name} made {checks} checks");
    assert!(
        stdout.contains("ok: no process is left"),
        "{name} did not reach its end"
    );
}

#[test]
fn secrets_are_delivered() {
    run("deliver", "4G", &[]);
}

#[test]
fn values_are_nowhere_else() {
    run("clean", "4G", &[]);
}

#[test]
fn run_keeps_its_contract() {
    run("contract", "4G", &[]);
}

#[test]
fn machines_of_every_size_boot() {
    run("machine", "7G", &[]);
}

#[test]
fn bad_input_is_refused() {
    run("refuse", "4G", &[]);
}

#[test]
fn faults_leave_nothing_behind() {
    run("faults", "4G", &[]);
}

#[test]
fn a_root_image_boots_and_stays_as_it_was() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let image = rootfs(folder.path());
    run("rootfs", "4G", &[image]);
}

/// An ext4 image with busybox, a user `app` and a file that tells it apart.
fn rootfs(folder: &Path) -> PathBuf {
    let tree = folder.join("tree");
    let image = folder.join("rootfs.ext4");
    let script = r#"
        set -e
        mkdir -p "$0"/bin "$0"/etc "$0"/dev "$0"/proc "$0"/sys "$0"/run "$0"/tmp "$0"/root "$0"/home/app
        cp "$(command -v busybox)" "$0/bin/busybox"
        for tool in sh cat ls echo grep cut touch test id pwd; do ln -s busybox "$0/bin/$tool"; done
        echo an-image > "$0/etc/image-name"
        printf 'root:x:0:0:root:/root:/bin/sh\napp:x:1500:1500:app:/home/app:/bin/sh\n' > "$0/etc/passwd"
        printf 'root:x:0:\napp:x:1500:\n' > "$0/etc/group"
        PATH=$PATH:/usr/sbin:/sbin mke2fs -q -t ext4 -d "$0" "$1" 32M
    "#;
    let made = Command::new("sh")
        .args(["-c", script])
        .args([&tree, &image])
        .output()
        .expect("sh can be run");
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    image
}
