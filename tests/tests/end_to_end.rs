//! One test for each script of `tests/e2e`.

use std::path::{Path, PathBuf};
use std::process::Command;

use age::secrecy::ExposeSecret;
use cachot_tests::{root, run_script};

/// Files with this content in a folder.
fn files<const COUNT: usize>(folder: &Path, contents: [(&str, String); COUNT]) -> [PathBuf; COUNT] {
    contents.map(|(name, content)| {
        let path = folder.join(name);
        std::fs::write(&path, content).expect("written");
        path
    })
}

#[test]
fn secrets_are_delivered() {
    run_script("deliver", "4G", &[]);
}

#[test]
fn stored_secrets_are_whose_they_are() {
    run_script("store", "4G", &[]);
}

#[test]
fn aegis_secrets_are_injected_and_not_left_anywhere() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let fixtures = root().join("secrets/custody/tests/imports/fixtures");
    let inputs = [
        rootfs(folder.path()),
        fixtures.join("aegis-older.db"),
        fixtures.join("master.key"),
    ];
    run_script("aegis", "4G", &inputs);
}

#[test]
fn the_device_answers_and_goes() {
    run_script("device", "4G", &[]);
}

#[test]
fn values_are_nowhere_else() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let image = rootfs(folder.path());
    let identity = age::x25519::Identity::generate();
    let [identity] = files(
        folder.path(),
        [("identity", identity.to_string().expose_secret().to_owned())],
    );
    run_script("clean", "4G", &[image, identity]);
}

#[test]
fn snapshots_forget_and_restores_do_not() {
    run_script("forget", "4G", &[]);
}

#[test]
fn copies_have_their_own_values() {
    run_script("children", "4G", &[]);
}

#[test]
fn no_value_on_a_disk_is_in_a_snapshot() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let image = rootfs(folder.path());
    run_script("disks", "4G", &[image]);
}

#[test]
fn bundles_are_delivered_and_restored() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mine, other) = (
        age::x25519::Identity::generate(),
        age::x25519::Identity::generate(),
    );
    let paths = files(
        folder.path(),
        [
            ("identity", mine.to_string().expose_secret().to_owned()),
            ("recipient", other.to_public().to_string()),
        ],
    );
    run_script("bundle", "4G", &paths);
}

#[test]
fn encrypted_images_and_changed_ones() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (identity, other) = (
        age::x25519::Identity::generate(),
        age::x25519::Identity::generate(),
    );
    let paths = files(
        folder.path(),
        [
            ("identity", identity.to_string().expose_secret().to_owned()),
            ("recipient", identity.to_public().to_string()),
            ("stranger", other.to_string().expose_secret().to_owned()),
        ],
    );
    run_script("sealed", "4G", &paths);
}

#[test]
fn copies_are_not_alike() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let image = rootfs(folder.path());
    run_script("unique", "4G", &[image]);
}

#[test]
fn running_vms_are_forked_and_sessions_restored() {
    run_script("live", "4G", &[]);
}

#[test]
fn what_changes_or_is_full_during_a_snapshot_hurts_nobody() {
    run_script("moments", "4G", &[]);
}

#[test]
fn uses_of_secrets_are_recorded() {
    run_script("audit", "4G", &[]);
}

#[test]
fn output_is_masked() {
    run_script("masked", "4G", &[]);
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
fn faults_during_snapshots_leave_all_or_nothing() {
    run_script("snapshot-faults", "4G", &[]);
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

/// An ext4 image with busybox, a user `app`, a file that tells it apart, a machine id, and an ssh host key with
/// something that makes others.
fn rootfs(folder: &Path) -> PathBuf {
    let tree = folder.join("tree");
    let image = folder.join("rootfs.ext4");
    let script = r#"
        set -e
        mkdir -p "$0"/bin "$0"/etc "$0"/dev "$0"/proc "$0"/sys "$0"/run "$0"/tmp "$0"/root "$0"/home/app
        cp "$(command -v busybox)" "$0/bin/busybox"
        for tool in sh cat ls echo grep cut touch test id pwd tr; do ln -s busybox "$0/bin/$tool"; done
        echo an-image > "$0/etc/image-name"
        echo 0123456789abcdef0123456789abcdef > "$0/etc/machine-id"
        mkdir "$0/etc/ssh"
        echo the-key-of-the-image > "$0/etc/ssh/ssh_host_ed25519_key"
        cat > "$0/bin/ssh-keygen" <<'S'
#!/bin/sh
# ssh-keygen -A -f DIR
key=$3/etc/ssh/ssh_host_ed25519_key
[ -e "$key" ] || busybox head -c 32 /dev/urandom | busybox base64 -w 0 >"$key"
S
        chmod 755 "$0/bin/ssh-keygen"
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
