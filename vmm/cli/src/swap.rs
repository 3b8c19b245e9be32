//! Whether this machine could write guest memory to its swap.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use cachot_devices::memory;

/// Where the kernel says what this module asks.
#[derive(Debug)]
pub struct Sources {
    swaps: PathBuf,
    cgroup: PathBuf,
    cgroups: PathBuf,
}

impl Default for Sources {
    fn default() -> Self {
        Self {
            swaps: "/proc/swaps".into(),
            cgroup: "/proc/self/cgroup".into(),
            cgroups: "/sys/fs/cgroup".into(),
        }
    }
}

impl Sources {
    /// Whether there is a swap area in use.
    pub fn swap_is_on(&self) -> bool {
        match fs::read_to_string(&self.swaps) {
            Ok(swaps) => memory::host_may_swap(&swaps, None),
            // A kernel without swap has no such file; one that hides it may have swap.
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }

    /// Whether memory of this process, and of those it starts, may be swapped out.
    pub fn may_swap(&self) -> bool {
        self.swap_is_on() && !self.cgroup_forbids()
    }

    /// Whether this process's cgroup (version 2), or one above it, allows no swap at all.
    fn cgroup_forbids(&self) -> bool {
        let own = read(&self.cgroup);
        let Some(own) = own.lines().find_map(|line| line.strip_prefix("0::/")) else {
            return false;
        };
        let forbids = |folder: &Path| {
            let limit = read(&self.cgroups.join(folder).join("memory.swap.max"));
            limit.trim() == "0"
        };
        Path::new(own).ancestors().any(forbids)
    }
}

/// A file of the kernel; one that cannot be read forbids nothing.
fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADING: &str = "Filename Type Size Used Priority\n";

    fn sources(folder: &Path, swaps: &str, limits: &[(&str, &str)]) -> Sources {
        fs::write(folder.join("swaps"), swaps).expect("written");
        fs::write(folder.join("cgroup"), "1:cpu:/other\n0::/above/own\n").expect("written");
        fs::create_dir_all(folder.join("cgroups/above/own")).expect("made");
        for (cgroup, limit) in limits {
            let file = folder.join("cgroups").join(cgroup).join("memory.swap.max");
            fs::write(file, limit).expect("written");
        }
        Sources {
            swaps: folder.join("swaps"),
            cgroup: folder.join("cgroup"),
            cgroups: folder.join("cgroups"),
        }
    }

    #[test]
    fn test_may_swap_needs_swap_and_no_cgroup_against_it() {
        let on = format!("{HEADING}/dev/sda2 partition 1 0 -2\n");
        for (swaps, limits, expected) in [
            (HEADING, &[][..], false),
            ("", &[], false),
            (&on, &[], true),
            (&on, &[("above/own", "max\n")], true),
            (&on, &[("above/own", "0\n")], false),
            (&on, &[("above/own", "max\n"), ("above", "0\n")], false),
        ] {
            let folder = tempfile::tempdir().expect("a folder");
            let sources = sources(folder.path(), swaps, limits);
            assert_eq!(sources.may_swap(), expected, "{swaps} {limits:?}");
        }
    }

    #[test]
    fn test_may_swap_with_a_hidden_list_is_assumed_and_with_none_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut sources = sources(folder.path(), HEADING, &[]);
        sources.swaps = folder.path().into();
        assert!(sources.may_swap());
        sources.swaps = folder.path().join("none");
        assert!(!sources.may_swap());
    }
}
