//! Writers of images that are killed, or whose system calls fail, at every step.
//!
//! The program runs itself once a case, with the case's name in the environment, because a case changes
//! the process that it runs in. Whatever happens, there is a whole image at the target or none, and nothing
//! else but, after a kill, one folder that the next writer removes.

#[path = "../src/image/example.rs"]
#[allow(dead_code, reason = "shared with the unit tests, which use all of it")]
mod example;

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use cachot_snapshot::image::*;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::process::Signal;
use rustix::thread::{UnshareFlags, unshare_unsafe};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

const CASE: &str = "CACHOT_TEST_CASE";
const FOLDER: &str = "CACHOT_TEST_FOLDER";
const SYSCALL: &str = "CACHOT_TEST_SYSCALL";

type Case = (&'static str, fn());

const CASES: [Case; 5] = [
    ("killed_writer_is_swept_by_the_next", killed_writer),
    (
        "writer_killed_at_any_system_call_publishes_nothing",
        killed_at_calls,
    ),
    (
        "writer_killed_at_any_moment_publishes_all_or_nothing",
        killed_at_moments,
    ),
    (
        "writer_whose_system_calls_fail_leaves_nothing",
        failing_calls,
    ),
    ("writer_on_a_full_disk_leaves_nothing", full_disk),
];

/// Parts of cases that are processes of their own.
const HELPERS: [Case; 4] = [
    ("wait", wait),
    ("publish", publish),
    ("die_at_call", die_at_call),
    ("fail_at_call", fail_at_call),
];

/// System calls of a writer, all before the image is published.
const CALLS: [(&str, i64); 10] = [
    ("getrandom", libc::SYS_getrandom),
    ("mkdirat", libc::SYS_mkdirat),
    ("openat", libc::SYS_openat),
    ("flock", libc::SYS_flock),
    ("ftruncate", libc::SYS_ftruncate),
    ("pwrite64", libc::SYS_pwrite64),
    ("pread64", libc::SYS_pread64),
    ("write", libc::SYS_write),
    ("fsync", libc::SYS_fsync),
    ("renameat2", libc::SYS_renameat2),
];

fn main() -> ExitCode {
    if let Ok(case) = env::var(CASE) {
        let (_, run) = CASES
            .iter()
            .chain(&HELPERS)
            .find(|(name, _)| *name == case)
            .expect("a case of this program");
        run();
        return ExitCode::SUCCESS;
    }
    let filter = env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let mut failed = 0;
    for (name, _) in CASES {
        if filter.as_ref().is_some_and(|part| !name.contains(part)) {
            continue;
        }
        let folder = tempfile::tempdir().expect("a folder");
        let status = again(name, folder.path()).status().expect("it starts");
        println!(
            "test {name} ... {}",
            if status.success() { "ok" } else { "FAILED" }
        );
        failed += usize::from(!status.success());
    }
    ExitCode::from(u8::from(failed > 0))
}

/// This program, to run a case or a helper.
fn again(case: &str, folder: &Path) -> Command {
    let mut command = Command::new(env::current_exe().expect("its path"));
    command.env(CASE, case).env(FOLDER, folder);
    command
}

fn folder() -> PathBuf {
    env::var_os(FOLDER).expect("set for every case").into()
}

fn key() -> HostKey {
    HostKey::load_or_create(&folder().join("state")).expect("a key")
}

/// Where the images of a case are; beside them is only what a writer left.
fn images() -> PathBuf {
    let images = folder().join("images");
    fs::create_dir_all(&images).expect("made");
    images
}

/// Publishes the example image in `images`, with a disk of `disk` bytes.
fn attempt(images: &Path, key: &HostKey, disk: u64) -> Result<(), ImageError> {
    let source = tempfile::tempfile().expect("a file");
    std::os::unix::fs::FileExt::write_all_at(&source, &vec![7; 100_000], 0).expect("written");
    source.set_len(disk).expect("a length");
    attempt_with(images, key, &source, disk)
}

fn attempt_with(images: &Path, key: &HostKey, disk: &fs::File, len: u64) -> Result<(), ImageError> {
    let mut writer = ImageWriter::create(&images.join("image"), vec![])?;
    example::add_disk(&mut writer, disk)?;
    example::fill(&writer, key).map_err(|source| ImageError::System {
        action: "fill",
        path: images.to_owned(),
        source,
    })?;
    let mut contents = example::contents();
    contents.guest.disks[0].length = len;
    writer.publish(contents, key)?;
    Ok(())
}

/// What is in the folder: the image, whole, or nothing; and how many folders that a writer left.
fn state_of(images: &Path, key: &HostKey) -> (bool, usize) {
    let names = fs::read_dir(images).expect("a folder");
    let names: Vec<_> = names
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    let published = names.iter().any(|name| name == "image");
    if published {
        let trusted = TrustedKeys::only(&key.public()).expect("a key");
        let image = Image::open(&images.join("image"), &trusted).expect("a whole image");
        image.verify_all().expect("a whole image");
    }
    let left = names.iter().filter(|name| {
        let name = name.to_str().expect("text");
        name.starts_with(".cachot-image-")
    });
    let left = left.count();
    assert_eq!(names.len(), left + usize::from(published), "{names:?}");
    (published, left)
}

/// The next writer finds nothing that disturbs it, and removes what was left.
fn next_writer_cleans_up(images: &Path, key: &HostKey) {
    if images.join("image").exists() {
        delete(&images.join("image")).expect("deleted");
    }
    attempt(images, key, 100_000).expect("published");
    assert_eq!(state_of(images, key), (true, 0));
    delete(&images.join("image")).expect("deleted");
}

fn killed_writer() {
    let (images, key) = (images(), key());
    let mut child = again("wait", &folder())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut line = String::new();
    let stdout = child.stdout.take().expect("a pipe");
    BufReader::new(stdout).read_line(&mut line).expect("a line");
    // While it lives nobody takes its folder away.
    assert_eq!(sweep(&images.join("image")).expect("swept"), 0);
    assert_eq!(state_of(&images, &key), (false, 1));
    child.kill().expect("killed");
    child.wait().expect("ended");
    assert_eq!(state_of(&images, &key), (false, 1));
    next_writer_cleans_up(&images, &key);
}

/// Writes all of an image, says so, and waits to be killed.
fn wait() {
    let writer = ImageWriter::create(&images().join("image"), vec![]).expect("begun");
    example::fill(&writer, &key()).expect("filled");
    println!("written");
    std::thread::sleep(Duration::from_secs(60));
}

fn killed_at_calls() {
    let (images, key) = (images(), key());
    for (name, number) in CALLS {
        let status = again("die_at_call", &folder())
            .env(SYSCALL, number.to_string())
            .status()
            .expect("it starts");
        assert_eq!(
            status.signal(),
            Some(Signal::SYS.as_raw()),
            "{name}: {status}"
        );
        let (published, left) = state_of(&images, &key);
        assert!(!published && left <= 1, "{name}: {left} folders left");
        next_writer_cleans_up(&images, &key);
    }
}

fn die_at_call() {
    attempt_under(SeccompAction::KillProcess).expect("not reached");
}

fn failing_calls() {
    let (images, key) = (images(), key());
    for (name, number) in CALLS {
        let status = again("fail_at_call", &folder())
            .env(SYSCALL, number.to_string())
            .status()
            .expect("it starts");
        assert!(status.success(), "{name}: {status}");
        assert_eq!(state_of(&images, &key), (false, 0), "{name}");
    }
}

fn fail_at_call() {
    let errno = libc::EIO.cast_unsigned();
    let result = attempt_under(SeccompAction::Errno(errno));
    let Err(ImageError::System { source, .. }) = result else {
        panic!("no error of the system: {result:?}");
    };
    assert_eq!(source.raw_os_error(), Some(libc::EIO), "{source}");
}

/// Publishes while the system call of the environment ends as `action` says.
fn attempt_under(action: SeccompAction) -> Result<(), ImageError> {
    let (images, key) = (images(), key());
    let disk = tempfile::tempfile().expect("a file");
    std::os::unix::fs::FileExt::write_all_at(&disk, &[7; 100_000], 0).expect("written");
    let number: i64 = env::var(SYSCALL).expect("set").parse().expect("a number");
    let rules = [(number, vec![])].into();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, action, TargetArch::x86_64);
    let program: BpfProgram = filter.expect("a filter").try_into().expect("a program");
    seccompiler::apply_filter(&program).expect("applied");
    attempt_with(&images, &key, &disk, 100_000)
}

fn killed_at_moments() {
    let (images, key) = (images(), key());
    let begun = Instant::now();
    assert!(
        again("publish", &folder())
            .status()
            .expect("it starts")
            .success()
    );
    let whole = begun.elapsed();
    assert_eq!(state_of(&images, &key), (true, 0));
    delete(&images.join("image")).expect("deleted");
    for step in 0..40 {
        let mut child = again("publish", &folder()).spawn().expect("it starts");
        std::thread::sleep(whole * step / 40);
        child.kill().expect("killed or ended");
        child.wait().expect("ended");
        let (published, left) = state_of(&images, &key);
        assert!(left + usize::from(published) <= 1);
        next_writer_cleans_up(&images, &key);
    }
}

fn publish() {
    attempt(&images(), &key(), 8 << 20).expect("published");
}

fn full_disk() {
    let key = key();
    let disk = tempfile::tempfile().expect("a file");
    std::os::unix::fs::FileExt::write_all_at(&disk, &[7; 100_000], 0).expect("written");
    let full = folder().join("full");
    fs::create_dir(&full).expect("made");
    // Without privileges, as the root of a user namespace.
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    let namespaces = match user.is_root() {
        true => UnshareFlags::NEWNS,
        false => UnshareFlags::NEWNS | UnshareFlags::NEWUSER,
    };
    // SAFETY: no file descriptors are unshared, so that no object that owns one is affected.
    unsafe { unshare_unsafe(namespaces) }.expect("a mount namespace");
    if !user.is_root() {
        fs::write("/proc/self/uid_map", format!("0 {} 1", user.as_raw())).expect("mapped");
        fs::write("/proc/self/setgroups", "deny").expect("denied");
        fs::write("/proc/self/gid_map", format!("0 {} 1", group.as_raw())).expect("mapped");
    }
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).expect("private");
    mount(
        "tmpfs",
        &full,
        "tmpfs",
        MountFlags::empty(),
        c"size=1m,mode=700",
    )
    .expect("mounted");
    let images = full.join("images");
    fs::create_dir(&images).expect("made");

    // Room for one page more every time, until the image fits: so each of its writes fails once.
    let (pages, mut refusals) = (256, 0);
    let filler = full.join("filler");
    for free in 0..pages {
        fs::write(&filler, vec![1; (pages - free) * 4096]).expect("room for it");
        let result = attempt_with(&images, &key, &disk, 100_000);
        let Err(error) = result else {
            assert_eq!(state_of(&images, &key), (true, 0));
            assert!(refusals > 30, "{refusals} refusals");
            return;
        };
        let ImageError::System { source, .. } = &error else {
            panic!("no error of the system: {error}");
        };
        assert_eq!(source.raw_os_error(), Some(libc::ENOSPC), "{error}");
        assert_eq!(
            state_of(&images, &key),
            (false, 0),
            "with {free} pages free"
        );
        refusals += 1;
        fs::remove_file(&filler).expect("removed");
    }
    panic!("the image never fits");
}
