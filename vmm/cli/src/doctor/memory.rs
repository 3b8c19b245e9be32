//! Huge pages, the limit of locked memory, swap, same-page merging.

use std::fs;

use rustix::process::{Resource, getrlimit};

use super::Finding;

/// Locked memory that 64 short secrets take, in bytes: two pages each, one of them while they are
/// resolved.
const LOCKED_FOR_SECRETS: u64 = 64 * 2 * 4096;

pub fn check() -> Vec<Finding> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let limit = match may_lock_anything(&read("/proc/self/status")) {
        true => None,
        // Raised to the hard limit when the program started.
        false => getrlimit(Resource::Memlock).current,
    };
    let cgroup = own_cgroup(&read("/proc/self/cgroup"))
        .map(|path| read(&format!("/sys/fs/cgroup{path}/memory.swap.max")));
    vec![
        huge_pages(&read("/sys/kernel/mm/transparent_hugepage/shmem_enabled")),
        locked(limit),
        swap(&read("/proc/swaps"), cgroup.as_deref(), limit),
        merging(&read("/sys/kernel/mm/ksm/run")),
    ]
}

/// Whether the process has CAP_IPC_LOCK (14), for which the limit does not count.
fn may_lock_anything(status: &str) -> bool {
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .is_some_and(|set| set & 1 << 14 != 0)
}

/// The path of this process's cgroup (version 2).
fn own_cgroup(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::"))
}

/// The word in brackets, of files such as `always [madvise] never`.
fn chosen(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once('[')?;
    Some(rest.split_once(']')?.0)
}

fn huge_pages(shared: &str) -> Finding {
    let policy = chosen(shared).unwrap_or("unsupported");
    let finding = match policy {
        "never" | "deny" | "unsupported" => Finding::warning(
            "huge-pages",
            format!("guest memory uses pages of 4 KiB only (policy for shared memory: {policy})"),
            "`echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled` for faster guests",
        ),
        _ => Finding::ok(
            "huge-pages",
            format!("guest memory can use huge pages (policy for shared memory: {policy})"),
        ),
    };
    finding.with("shmem_policy", policy)
}

fn locked(limit: Option<u64>) -> Finding {
    let finding = match limit {
        None => Finding::ok("memory-lock", "no limit on locked memory"),
        Some(limit) if limit < LOCKED_FOR_SECRETS => Finding::warning(
            "memory-lock",
            format!(
                "{} KiB may be locked, which is enough for few secrets",
                limit / 1024
            ),
            format!(
                "raise the limit to {} KiB or more: /etc/security/limits.conf (memlock), or LimitMEMLOCK= of a service",
                LOCKED_FOR_SECRETS / 1024
            ),
        ),
        Some(limit) => Finding::ok(
            "memory-lock",
            format!("{} KiB may be locked, enough for secrets", limit / 1024),
        ),
    };
    finding.with("limit_bytes", limit)
}

fn swap(swaps: &str, cgroup_max: Option<&str>, limit: Option<u64>) -> Finding {
    // The first line is a heading.
    let on = swaps.lines().skip(1).any(|line| !line.trim().is_empty());
    let finding = if !on {
        Finding::ok("swap", "off: guest memory stays in memory")
    } else if cgroup_max.is_some_and(|max| max.trim() == "0") {
        Finding::ok(
            "swap",
            "on, but not for this cgroup: guest memory stays in memory",
        )
    } else if limit.is_none() {
        Finding::ok("swap", "on; guest memory is locked against it")
    } else {
        Finding::warning(
            "swap",
            "on: guest memory beyond the limit of locked memory could be written to disk, so `cachot run` refuses it",
            "`swapoff -a`, or run it with `systemd-run --user --scope -p MemorySwapMax=0`, or raise the limit of locked memory",
        )
    };
    finding.with("on", on)
}

fn merging(run: &str) -> Finding {
    let on = run.trim() == "1";
    let summary = match on {
        true => "on; guest memory and secrets are excluded from same-page merging",
        false => "off",
    };
    Finding::ok("ksm", summary).with("on", on)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;

    #[test]
    fn test_huge_pages_policies() {
        let status = |text| huge_pages(text).status;
        assert_eq!(
            status("always within_size [advise] never deny force"),
            Status::Ok
        );
        assert_eq!(
            status("always within_size advise [never] deny force"),
            Status::Warning
        );
        assert_eq!(status(""), Status::Warning);
    }

    #[test]
    fn test_locked_limits() {
        assert_eq!(locked(None).status, Status::Ok);
        assert_eq!(locked(Some(8 << 20)).status, Status::Ok);
        let low = locked(Some(64 << 10));
        assert_eq!(low.status, Status::Warning);
        assert_eq!(low.values["limit_bytes"], 64 << 10);
    }

    #[test]
    fn test_swap_on_and_off() {
        const HEADING: &str = "Filename Type Size Used Priority\n";
        let on = format!("{HEADING}/dev/sda2 partition 1 0 -2\n");
        assert_eq!(swap(HEADING, None, Some(0)).status, Status::Ok);
        assert_eq!(swap(&on, None, Some(8 << 20)).status, Status::Warning);
        assert_eq!(
            swap(&on, Some("max\n"), Some(8 << 20)).status,
            Status::Warning
        );
        assert_eq!(swap(&on, Some("0\n"), Some(8 << 20)).status, Status::Ok);
        assert_eq!(swap(&on, None, None).status, Status::Ok);
    }

    #[test]
    fn test_may_lock_anything_is_capability_14() {
        assert!(may_lock_anything("Name:\tx\nCapEff:\t000001ffffffffff\n"));
        assert!(!may_lock_anything("CapEff:\t0000000000000000\n"));
        assert!(!may_lock_anything(""));
    }

    #[test]
    fn test_own_cgroup_is_the_unified_one() {
        assert_eq!(
            own_cgroup("1:cpu:/a\n0::/user.slice/x\n"),
            Some("/user.slice/x")
        );
        assert_eq!(own_cgroup(""), None);
    }
}
