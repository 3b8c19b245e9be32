//! Firecracker with a configuration file, its API switched off.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

/// The machine that the peer is given; cachot is given the same.
pub struct Machine<'a> {
    pub kernel: &'a Path,
    pub initrd: Option<&'a Path>,
    pub memory_mib: u32,
    pub cmdline: &'a str,
    /// Unix socket that guest connections to port P find as this path with `_P` behind it.
    pub vsock: Option<PathBuf>,
}

/// The command that boots `machine`; `folder` receives its configuration.
pub fn command(program: &Path, machine: &Machine<'_>, folder: &Path) -> anyhow::Result<Command> {
    let mut config = json!({
        "boot-source": {
            "kernel_image_path": machine.kernel,
            "initrd_path": machine.initrd,
            "boot_args": machine.cmdline,
        },
        "drives": [],
        "machine-config": { "vcpu_count": 1, "mem_size_mib": machine.memory_mib },
    });
    if let Some(path) = &machine.vsock {
        config["vsock"] = json!({ "guest_cid": 3, "uds_path": path });
        config["entropy"] = json!({});
    }
    let file = folder.join("firecracker.json");
    fs::write(&file, serde_json::to_vec(&config)?)?;
    let mut command = Command::new(program);
    // Its log would be the first byte otherwise.
    command
        .args(["--no-api", "--level", "Off", "--config-file"])
        .arg(file);
    Ok(command)
}
