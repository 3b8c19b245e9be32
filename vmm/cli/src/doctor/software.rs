//! The kernel, the monitor, the guest, and what it takes to build them.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::Finding;
use crate::guest_files::{Role, guest_folders, open_or_default};
use crate::monitor_process::{MONITOR_VARIABLE, monitor_program};
use crate::settings;

/// Oldest Linux that everything is meant for: the oldest supported one.
const OLDEST: (u32, u32) = (5, 10);

/// Debian packages that building and testing take (`resources/install-deps.sh`), each with a file
/// that shows that it is there; a name without a slash is looked up in `PATH`.
const PACKAGES: [(&str, &str); 18] = [
    ("age", "age"),
    ("bc", "bc"),
    ("bison", "bison"),
    ("build-essential", "cc"),
    ("busybox-static", "busybox"),
    ("cpio", "cpio"),
    ("e2fsprogs", "mkfs.ext4"),
    ("flex", "flex"),
    ("kmod", "depmod"),
    ("libelf-dev", "/usr/include/libelf.h"),
    ("linux-source-6.12", "/usr/src/linux-source-6.12.tar.xz"),
    ("python3-pip", "pip"),
    ("qemu-system-x86", "qemu-system-x86_64"),
    ("shellcheck", "shellcheck"),
    ("sqlite3", "sqlite3"),
    ("util-linux", "script"),
    ("xz-utils", "xz"),
    ("zstd", "zstd"),
];

pub fn check() -> Vec<Finding> {
    let program = std::env::current_exe().ok();
    let release = rustix::system::uname();
    vec![
        kernel(&release.release().to_string_lossy()),
        monitor(&monitor_program(settings::monitor(), program.as_deref())),
        guest(&guest_folders(settings::guest(), program.as_deref())),
        packages(&missing(&search_path())),
    ]
}

fn kernel(release: &str) -> Finding {
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next(), numbers.next());
    let finding = match version {
        (Some(major), Some(minor)) if (major, minor) >= OLDEST => {
            Finding::ok("kernel", format!("Linux {release}"))
        }
        _ => Finding::warning(
            "kernel",
            format!("Linux {release} is older than all that cachot is tried on"),
            format!("use Linux {}.{} or later", OLDEST.0, OLDEST.1),
        ),
    };
    finding.with("release", release)
}

fn monitor(path: &Path) -> Finding {
    let executable = path
        .metadata()
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0);
    let finding = match executable {
        true => Finding::ok("monitor", path.display().to_string()),
        false => Finding::error(
            "monitor",
            format!("there is no program {}", path.display()),
            format!("build it with `make`, or set {MONITOR_VARIABLE}"),
        ),
    };
    finding
        .with("present", executable)
        .with("path", path.display().to_string())
}

fn guest(folders: &[PathBuf]) -> Finding {
    let find = |role| open_or_default(role, None, folders);
    let finding = match (find(Role::Kernel), find(Role::Initrd)) {
        (Ok(kernel), Ok(initrd)) => Finding::ok(
            "guest",
            format!("{}, {}", kernel.path.display(), initrd.path.display()),
        ),
        (Err(error), _) | (_, Err(error)) => Finding::warning(
            "guest",
            format!("{error}"),
            "build it with `make guest`, or run with --kernel and --initrd",
        ),
    };
    let present = finding.advice.is_none();
    finding.with("present", present)
}

fn packages(missing: &[&str]) -> Finding {
    let finding = match missing {
        [] => Finding::ok("packages", "all that building the guest and the lab take"),
        missing => Finding::warning(
            "packages",
            format!("not installed: {}", missing.join(" ")),
            "only to build cachot and its guest and to use the lab: run resources/install-deps.sh",
        ),
    };
    finding.with("missing", missing.to_vec())
}

fn search_path() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian has administrators' tools outside users' PATH.
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .collect()
}

fn missing(path: &[PathBuf]) -> Vec<&'static str> {
    let present = |file: &str| match file.starts_with('/') {
        true => Path::new(file).exists(),
        false => path.iter().any(|folder| folder.join(file).exists()),
    };
    PACKAGES
        .iter()
        .filter(|(_, file)| !present(file))
        .map(|(package, _)| *package)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;

    #[test]
    fn test_kernel_versions() {
        for (release, status) in [
            ("6.12.9-amd64", Status::Ok),
            ("5.10.0", Status::Ok),
            ("10.0-rc1", Status::Ok),
            ("5.4.1", Status::Warning),
            ("strange", Status::Warning),
        ] {
            assert_eq!(kernel(release).status, status, "{release}");
        }
    }

    #[test]
    fn test_monitor_present_or_not() {
        assert_eq!(monitor(Path::new("/bin/sh")).status, Status::Ok);
        assert_eq!(monitor(Path::new("/nonexistent")).status, Status::Error);
        assert_eq!(monitor(Path::new("/etc/passwd")).status, Status::Error);
    }

    #[test]
    fn test_guest_missing_is_a_warning_with_the_folders() {
        let finding = guest(&["/nonexistent/guest".into()]);
        assert_eq!(finding.status, Status::Warning);
        assert!(
            finding.summary.contains("/nonexistent/guest"),
            "{finding:?}"
        );
        assert_eq!(finding.values["present"], false);
    }

    #[test]
    fn test_missing_packages_are_named_with_the_command() {
        assert!(missing(&[]).contains(&"flex"));
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("flex"), "").expect("written");
        assert!(!missing(&[folder.path().to_owned()]).contains(&"flex"));
        let finding = packages(&["flex", "bison"]);
        assert!(finding.summary.ends_with("flex bison"));
        assert_eq!(packages(&[]).status, Status::Ok);
    }
}
