//! The memory of a monitor that is not its guest's.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, bail};

/// Kibibytes that process `pid` alone has in RAM, without its largest mapping, the guest's RAM.
pub fn own_kib(pid: u32) -> anyhow::Result<u64> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let mut mappings: Vec<(u64, u64)> = Vec::new();
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let (Some(key), Some(value)) = (words.next(), words.next()) else {
            continue;
        };
        let number = || {
            value
                .parse::<u64>()
                .with_context(|| format!("{line:?} in smaps"))
        };
        match key {
            "Size:" => mappings.push((number()?, 0)),
            "Private_Clean:" | "Private_Dirty:" => {
                let last = mappings.last_mut().context("smaps begins with a size")?;
                last.1 += number()?;
            }
            _ => {}
        }
    }
    let guest = mappings
        .iter()
        .max()
        .context("the process has no mappings")?
        .1;
    Ok(mappings.iter().map(|(_, private)| private).sum::<u64>() - guest)
}

/// Kibibytes that process `pid` alone has in RAM.
pub fn private_kib(pid: u32) -> anyhow::Result<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let mut kib = 0;
    for line in rollup.lines() {
        if let Some(rest) = line.strip_prefix("Private_")
            && let Some(number) = rest.split_whitespace().nth(1)
        {
            kib += number
                .parse::<u64>()
                .with_context(|| format!("{line:?} in smaps_rollup"))?;
        }
    }
    Ok(kib)
}

/// The monitor that keeper `pid` started.
pub fn monitor_of(pid: u32) -> anyhow::Result<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    let child = children.split_whitespace().next();
    Ok(child.context("the keeper has no monitor")?.parse()?)
}

/// Waits until the folder of running VMs is empty.
pub fn wait_until_empty(folder: &Path) -> anyhow::Result<()> {
    for _ in 0..1000 {
        if fs::read_dir(folder)?.next().is_none() {
            return Ok(());
        }
        sleep(Duration::from_millis(2));
    }
    bail!("a VM is still there 2 s after its keeper ended");
}
