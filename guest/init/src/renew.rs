//! Makes this guest, a copy of another one, one of its own.
//!
//! | in common with other copies | becomes |
//! |---|---|
//! | state of the kernel's random generator | mixed with 64 bytes of the host's |
//! | time of day, hostname | the host's |
//! | `/etc/machine-id` | another one, if it was set; on a read-only root under a bind mount |
//! | ssh host keys | new ones, see [`host_keys`](crate::host_keys) |
//! | `/proc/sys/kernel/random/boot_id` | hidden under a bind mount: the kernel keeps its own |
//!
//! In this order: what is generated needs the entropy, and certificates the clock.
//!
//! Limits: programs that hold random state, a key or an id in memory keep it. The mounts are in the workload's
//! own namespace: a proc that is mounted anew shows the old boot id, and Linux refuses one to an unprivileged user
//! namespace below a proc that is partly hidden.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cachot_control::Renewal;
use rustix::process::{Pid, WaitStatus};
use rustix::rand::{GetRandomFlags, getrandom};
use zeroize::{Zeroize, Zeroizing};

use crate::files;
use crate::host_keys::HostKeys;
use crate::kernel::Kernel;
use crate::link::Interest;
use crate::mounts::make_private_directory;

/// Hexadecimal digits of a machine id (machine-id(5)).
const MACHINE_ID_DIGITS: usize = 32;

/// Where things are; the guest's own files but in tests.
#[derive(Debug, Clone)]
pub struct Places {
    /// The machine id.
    pub machine_id: PathBuf,
    /// Where the ssh host keys are.
    pub ssh: PathBuf,
    /// The kernel's boot id.
    pub boot_id: PathBuf,
    /// A directory of PID 1's own, in memory.
    pub run: PathBuf,
    /// Where programs are looked for.
    pub programs: Vec<PathBuf>,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            machine_id: "/etc/machine-id".into(),
            ssh: "/etc/ssh".into(),
            boot_id: "/proc/sys/kernel/random/boot_id".into(),
            run: "/run/cachot".into(),
            programs: ["/usr/bin", "/bin", "/usr/local/bin", "/usr/sbin"]
                .map(PathBuf::from)
                .into(),
        }
    }
}

impl Places {
    /// Replaces a file, or, where that cannot be done, hides it under another one.
    ///
    /// # Errors
    /// Why neither could be done: two failures in a line.
    pub fn renew(&self, kernel: &dyn Kernel, path: &Path, content: &[u8]) -> Result<(), String> {
        // A link may lead to where the file can be replaced.
        let path = path.canonicalize().map_err(|error| error.to_string())?;
        let Err(error) = files::replace(&path, content) else {
            return Ok(());
        };
        self.hide(kernel, &path, content)
            .map_err(|second| format!("{error}; {second}"))
    }

    /// Hides a file under another one.
    fn hide(&self, kernel: &dyn Kernel, path: &Path, content: &[u8]) -> Result<(), String> {
        let name = path.file_name().ok_or("it is no file")?;
        let stand_in = self.run.join(name);
        let mount = |file: &Path, over: &Path| kernel.bind_mount(file, over);
        make_private_directory(&self.run)
            .and_then(|()| files::cover(path, &stand_in, content, mount))
            .map_err(|error| format!("cannot mount a file over it: {error}"))
    }
}

/// A renewal that has begun.
pub struct Renewing {
    failures: Vec<String>,
    keys: Option<HostKeys>,
}

impl Renewing {
    /// Renews all that can be renewed at once, and begins the rest.
    pub fn begin(mut renewal: Renewal, places: &Places, kernel: &dyn Kernel, now: Instant) -> Self {
        let entropy = Zeroizing::new(std::mem::take(&mut renewal.entropy));
        let mut failures = Vec::new();
        let mut step = |what: &str, result: Result<(), String>| {
            let failure = result
                .err()
                .map(|why| format!("cannot renew {what}: {why}"));
            failures.extend(failure);
        };
        step("the random generator", add_entropy(kernel, &entropy));
        let clock = kernel.set_clock(Duration::from_nanos(renewal.realtime_ns));
        step("the clock", clock.map_err(|error| error.to_string()));
        let hostname = kernel.set_hostname(&renewal.hostname);
        step("the hostname", hostname.map_err(|error| error.to_string()));
        let machine_id = renew_machine_id(places, kernel, &renewal.machine_id);
        step(&places.machine_id.display().to_string(), machine_id);
        let keys = HostKeys::begin(places, now).unwrap_or_else(|why| {
            step("the ssh host keys", Err(why));
            None
        });
        Self { failures, keys }
    }

    /// Takes note of a process that has ended.
    pub fn reaped(&mut self, pid: Pid, status: WaitStatus) {
        if let Some(keys) = &mut self.keys {
            keys.reaped(pid, status);
        }
    }

    /// Goes on if it can. Once all is done, returns what could not be renewed.
    pub fn advance(
        &mut self,
        places: &Places,
        kernel: &dyn Kernel,
        now: Instant,
    ) -> Option<Vec<String>> {
        if let Some(keys) = &mut self.keys {
            let failures = keys.advance(places, kernel, now)?;
            let named = |why| format!("cannot renew the ssh host keys: {why}");
            self.failures.extend(failures.into_iter().map(named));
            self.keys = None;
        }
        let boot_id = renew_boot_id(places, kernel);
        let named = |why| format!("cannot renew {}: {why}", places.boot_id.display());
        self.failures.extend(boot_id.err().map(named));
        Some(std::mem::take(&mut self.failures))
    }

    /// What wakes it, beside the end of processes.
    pub fn interest(&self, interest: &mut Interest<'_>) {
        if let Some(keys) = &self.keys {
            interest.at(keys.deadline());
        }
    }
}

fn add_entropy(kernel: &dyn Kernel, entropy: &[u8]) -> Result<(), String> {
    if entropy.len() != Renewal::ENTROPY_LEN {
        return Err(format!(
            "the host has sent {} random bytes instead of {}",
            entropy.len(),
            Renewal::ENTROPY_LEN
        ));
    }
    kernel
        .add_entropy(entropy)
        .map_err(|error| error.to_string())
}

fn renew_machine_id(places: &Places, kernel: &dyn Kernel, id: &str) -> Result<(), String> {
    let Some(old) = files::read_text(&places.machine_id).map_err(|error| error.to_string())? else {
        return Ok(());
    };
    // One that is empty or `uninitialized` will be made by whom it concerns.
    if !is_machine_id(old.trim_end()) {
        return Ok(());
    }
    if !is_machine_id(id) {
        return Err(format!(
            "the host has sent an id that is not {MACHINE_ID_DIGITS} lower-case hexadecimal digits"
        ));
    }
    let line = format!("{id}\n");
    places.renew(kernel, &places.machine_id, line.as_bytes())
}

fn is_machine_id(text: &str) -> bool {
    let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    text.len() == MACHINE_ID_DIGITS && text.bytes().all(digit)
}

fn renew_boot_id(places: &Places, kernel: &dyn Kernel) -> Result<(), String> {
    let mut random = [0; 16];
    // So few bytes come at once, or not at all.
    getrandom(&mut random, GetRandomFlags::NONBLOCK)
        .map_err(|error| format!("no random bytes: {error}"))?;
    let line = format!("{}\n", uuid(random));
    random.zeroize();
    places.hide(kernel, &places.boot_id, line.as_bytes())
}

/// A random UUID (RFC 9562, version 4), as the kernel prints its boot id.
fn uuid(mut random: [u8; 16]) -> String {
    random[6] = random[6] & 0x0f | 0x40;
    random[8] = random[8] & 0x3f | 0x80;
    let digits = format!("{:032x}", u128::from_be_bytes(random));
    let groups = [0..8, 8..12, 12..16, 16..20, 20..32].map(|range| &digits[range]);
    groups.join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_uuid_has_version_4_and_the_variant_of_the_rfc() {
        assert_eq!(uuid([0; 16]), "00000000-0000-4000-8000-000000000000");
        assert_eq!(uuid([0xff; 16]), "ffffffff-ffff-4fff-bfff-ffffffffffff");
    }

    #[test]
    fn test_is_machine_id_only_of_32_lower_case_digits() {
        assert!(is_machine_id("0123456789abcdef0123456789abcdef"));
        for other in [
            "",
            "0123456789abcdef0123456789abcde",
            "0123456789ABCDEF0123456789ABCDEF",
            "0123456789abcdef0123456789abcdeg",
            "0123456789abcdef0123456789abcdef0",
        ] {
            assert!(!is_machine_id(other), "{other}");
        }
    }
}
