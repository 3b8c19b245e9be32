//! One test for each script of `tests/e2e`.

use std::path::{Path, PathBuf};
use std::process::Command;

use cachot_tests::{root, run_script};

#[test]
fn secrets_are_delivered() {
    run_script("deliver", "4G", &[]);
}

#[test]
fn the_device_answers_and_goes() {
    run_script("device", "4G", &[]);
}

#[test]
fn values_are_nowhere_else() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let image = rootfs(folder.path());
    run_script("clean", "4G", &[image]);
}

#[test]
fn run_keeps_its_contract() {
    run_script("contract", "4G", &[]);
}

#[test]
fn machines_of_every_size_boot() {
    run_script("machine", "7G", &[]);
}

#[test]
fn the_power_button_is_heard() {
    run_script("power", "4G", &[]);
}

#[test]
fn bad_input_is_refused() {
    run_script("refuse", "4G", &[]);
}

#[test]
fn faults_leave_nothing_behind() {
    run_script("faults", "4G", &[]);
}

#[test]
fn vms_that_nobody_watches_can_be_managed() {
    run_script("vms", "4G", &[]);
}

#[test]
fn a_root_image_boots_and_stays_as_it_was() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let image = rootfs(folder.path());
    run_script("rootfs", "4G", &[image]);
}

#[test]
fn debians_kernel_boots_with_its_own_driver() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let kernel = PathBuf::from(stdout(&mut Command::new(
        root().join("tests/lab/debian-kernel"),
    )));
    let modules = folder.path().join("modules.cpio");
    stdout(
        Command::new(root().join("tests/debian-modules"))
            .arg(&kernel)
            .arg(&modules),
    );
    let image = rootfs(folder.path());
    run_script("debian", "4G", &[kernel.join("vmlinuz"), modules, image]);
}

/// What a command that must succeed prints, without the line's end.
fn stdout(command: &mut Command) -> String {
    let output = command.output().expect("the command can be run");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
    String::from_utf8_lossy(&output.stdout)
        .trim_end()
        .to_owned()
}

/// An ext4 image with busybox, a user `app` and a file that tells it apart.
fn rootfs(folder: &Path) -> PathBuf {
    let tree = folder.join("tree");
    let image = folder.join("rootfs.ext4");
    let script = r#"
        set -e
        mkdir -p "$0"/bin "$0"/etc "$0"/dev "$0"/proc "$0"/sys "$0"/run "$0"/tmp "$0"/root "$0"/home/app
        cp "$(command -v busybox)" "$0/bin/busybox"
        for tool in sh cat ls echo grep cut touch test id pwd tr; do ln -s busybox "$0/bin/$tool"; done
        echo an-image > "$0/etc/image-name"
        printf 'root:x:0:0:root:/root:/bin/sh\napp:x:1500:1500:app:/home/app:/bin/sh\n' > "$0/etc/passwd"
        printf 'root:x:0:\napp:x:1500:\n' > "$0/etc/group"
        PATH=$PATH:/usr/sbin:/sbin mke2fs -q -t ext4 -d "$0" "$1" 32M
    "#;
    stdout(
        Command::new("sh")
            .args(["-c", script])
            .args([&tree, &image]),
    );
    image
}
