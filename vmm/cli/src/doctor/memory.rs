//! Huge pages, the limit of locked memory, swap, same-page merging.

use std::fs;

use rustix::process::{Resource, getrlimit};

use super::Finding;
use crate::swap;

/// Locked memory that 64 short secrets take, in bytes: two pages each, one of them while they are
/// resolved.
const LOCKED_FOR_SECRETS: u64 = 64 * 2 * 4096;

/// Guest memory of `cachot run` by default, in bytes.
const DEFAULT_MEMORY: u64 = 256 << 20;

pub fn check() -> Vec<Finding> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let limit = match may_lock_anything(&read("/proc/self/status")) {
        true => None,
        // Raised to the hard limit when the program started.
        false => getrlimit(Resource::Memlock).current,
    };
    let sources = swap::Sources::default();
    vec![
        huge_pages(&read("/sys/kernel/mm/transparent_hugepage/enabled")),
        locked(limit),
        swap(sources.swap_is_on(), sources.may_swap(), limit),
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

/// The word in brackets, of files such as `always [madvise] never`.
fn chosen(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once('[')?;
    Some(rest.split_once(']')?.0)
}

fn huge_pages(enabled: &str) -> Finding {
    let policy = chosen(enabled).unwrap_or("unsupported");
    let finding = match policy {
        "always" | "madvise" => Finding::ok(
            "huge-pages",
            format!("guest memory can use huge pages (policy: {policy})"),
        ),
        _ => Finding::warning(
            "huge-pages",
            format!("guest memory uses pages of 4 KiB only (policy: {policy})"),
            "`echo madvise > /sys/kernel/mm/transparent_hugepage/enabled` for faster guests",
        ),
    };
    finding.with("policy", policy)
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

fn swap(on: bool, may_swap: bool, limit: Option<u64>) -> Finding {
    let finding = match limit {
        _ if !on => Finding::ok("swap", "off: guest memory stays in memory"),
        _ if !may_swap => Finding::ok(
            "swap",
            "on, but not for this cgroup: guest memory stays in memory",
        ),
        Some(limit) if limit < DEFAULT_MEMORY => Finding::warning(
            "swap",
            format!(
                "on, and only {} MiB may be locked against it: `cachot run` refuses guests with more memory",
                limit >> 20
            ),
            "`swapoff -a`, or run in a cgroup with memory.swap.max=0 (systemd-run --scope -p MemorySwapMax=0), \
             or raise the limit of locked memory",
        ),
        _ => Finding::ok("swap", "on; guest memory is locked against it"),
    };
    finding.with("on", on).with("may_swap", may_swap)
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
        assert_eq!(status("always [madvise] never"), Status::Ok);
        assert_eq!(status("[always] madvise never"), Status::Ok);
        assert_eq!(status("always madvise [never]"), Status::Warning);
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
    fn test_swap_is_a_warning_only_where_guests_are_refused() {
        let status = |on, may_swap, limit| swap(on, may_swap, limit).status;
        assert_eq!(status(false, false, Some(0)), Status::Ok);
        assert_eq!(status(true, false, Some(0)), Status::Ok);
        assert_eq!(status(true, true, None), Status::Ok);
        assert_eq!(status(true, true, Some(1 << 30)), Status::Ok);
        assert_eq!(status(true, true, Some(8 << 20)), Status::Warning);
    }

    #[test]
    fn test_may_lock_anything_is_capability_14() {
        assert!(may_lock_anything("Name:\tx\nCapEff:\t000001ffffffffff\n"));
        assert!(!may_lock_anything("CapEff:\t0000000000000000\n"));
        assert!(!may_lock_anything(""));
    }
}
