//! Whether there is KVM, whether this user may use it, and whether a processor is behind it.
//!
//! A `/dev/kvm` without hardware support opens and works, but interprets every instruction of the
//! guest, a thousand times slower, and few kernels get far on it. So a loop is run and timed.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_API_VERSION, kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use super::Finding;

/// Guest instructions a second below which a `/dev/kvm` is taken to interpret. Interpreters were
/// seen at 1 million; the slowest processor, itself emulated, at 1,200 million.
const INTERPRETING_BELOW: f64 = 20e6;

/// Rounds of a short run: 10,000 instructions, 15 ms for an interpreter.
const SHORT: u32 = 5_000;

/// Short runs, of which the fastest counts: the first ones also pay for pages, for caches that are
/// cold, and on an emulated processor for the translation of all that takes part.
const TRIES: u32 = 5;

/// A short run that takes this long is slow by itself, not by what surrounds it.
const SLOW: Duration = Duration::from_millis(10);

/// How long a long run is to take.
const LONG_TIME: Duration = Duration::from_millis(20);

pub fn check(path: &Path) -> Vec<Finding> {
    let kvm = match open(path) {
        Ok(kvm) => kvm,
        Err(error) => return vec![unavailable(path, &error)],
    };
    let version = kvm.get_api_version();
    if u32::try_from(version) != Ok(KVM_API_VERSION) {
        let finding = Finding::error(
            "kvm",
            format!(
                "{} has version {version} of the KVM interface",
                path.display()
            ),
            format!("use a kernel with version {KVM_API_VERSION}: every one since 2.6.22"),
        );
        return vec![with_access(finding, true, true).with("api_version", version)];
    }
    let finding = Finding::ok(
        "kvm",
        format!("{} is present and permitted", path.display()),
    );
    let finding = with_access(finding, true, true).with("api_version", version);
    vec![finding, speed(&kvm)]
}

fn open(path: &Path) -> Result<Kvm, io::Error> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    Kvm::new_with_path(&name).map_err(system)
}

fn unavailable(path: &Path, error: &io::Error) -> Finding {
    let path_text = path.display();
    match error.kind() {
        io::ErrorKind::NotFound => with_access(
            Finding::error(
                "kvm",
                format!("there is no {path_text}"),
                "`modprobe kvm-intel` or `modprobe kvm-amd`; if that fails, enable virtualisation in the firmware, \
                 or nested virtualisation on the machine's host",
            ),
            false,
            false,
        ),
        io::ErrorKind::PermissionDenied => with_access(
            Finding::error(
                "kvm",
                format!("{path_text} is present, but this user may not use it"),
                "`usermod -aG kvm USER`, then log in again",
            ),
            true,
            false,
        ),
        _ => with_access(
            Finding::error(
                "kvm",
                format!("{path_text} cannot be used: {error}"),
                "see the kernel's log (`dmesg | grep -i kvm`)",
            ),
            path.exists(),
            false,
        ),
    }
}

fn with_access(finding: Finding, present: bool, permitted: bool) -> Finding {
    finding
        .with("present", present)
        .with("permitted", permitted)
}

fn speed(kvm: &Kvm) -> Finding {
    let rate = match measure(kvm) {
        Ok(rate) => rate,
        Err(error) => {
            return Finding::error(
                "speed",
                format!("a loop of three instructions does not run in a VM: {error}"),
                "see the kernel's log (`dmesg | grep -i kvm`)",
            )
            .with("hardware", false);
        }
    };
    let millions = rate / 1e6;
    let finding = if rate < INTERPRETING_BELOW {
        Finding::error(
            "speed",
            format!(
                "KVM interprets guest instructions here ({millions:.1} million a second): Linux guests do not run"
            ),
            "use a machine with hardware virtualisation, or the lab: tests/lab/lab",
        )
    } else {
        Finding::ok(
            "speed",
            format!("hardware-backed ({millions:.0} million guest instructions a second)"),
        )
    };
    finding
        .with("hardware", rate >= INTERPRETING_BELOW)
        .with("instructions_per_second", rate.round())
}

/// Guest instructions a second.
fn measure(kvm: &Kvm) -> io::Result<f64> {
    let mut guest = Loop::new(kvm)?;
    let short = guest.fastest(SHORT)?;
    if short >= SLOW {
        return Ok(rate(SHORT, short));
    }
    let factor = LONG_TIME.as_nanos() / short.as_nanos().max(1);
    let long = u128::from(SHORT).saturating_mul(factor);
    let long = u32::try_from(long).unwrap_or(u32::MAX);
    Ok(rate(long, guest.fastest(long)?))
}

fn rate(rounds: u32, time: Duration) -> f64 {
    2.0 * f64::from(rounds) / time.as_secs_f64()
}

/// One page of memory for the guest.
struct Page(*mut u8);

const PAGE: usize = 4096;

impl Page {
    fn new() -> io::Result<Self> {
        // SAFETY: the kernel chooses the address, so no existing mapping is touched.
        let start = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                PAGE,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )?
        };
        Ok(Self(start.cast()))
    }

    fn write(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= PAGE, "the loop is shorter than a page");
        // SAFETY: the mapping has PAGE writable bytes, and no guest runs during the copy.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.0, bytes.len()) };
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: the mapping is this object's, and the VM that used it was dropped before.
        unsafe { munmap(self.0.cast(), PAGE).ok() };
    }
}

/// A VM with a loop of two instructions in it. The fields are dropped in this order.
struct Loop {
    vcpu: VcpuFd,
    _vm: VmFd,
    _page: Page,
}

impl Loop {
    fn new(kvm: &Kvm) -> io::Result<Self> {
        let mut page = Page::new()?;
        // dec ecx; jnz back to it; hlt
        page.write(&[0x49, 0x75, 0xfd, 0xf4]);
        let vm = kvm.create_vm().map_err(system)?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: PAGE as u64,
            userspace_addr: page.0.addr() as u64,
        };
        // SAFETY: the region is one mapping of this size, which outlives the VM.
        unsafe { vm.set_user_memory_region(region).map_err(system)? };
        let vcpu = vm.create_vcpu(0).map_err(system)?;
        let mut sregs = vcpu.get_sregs().map_err(system)?;
        let flat = kvm_segment {
            base: 0,
            limit: u32::MAX,
            present: 1,
            s: 1,
            db: 1,
            g: 1,
            ..Default::default()
        };
        // 32-bit protected mode with flat segments: readable code, writable data.
        sregs.cs = kvm_segment {
            selector: 8,
            type_: 11,
            ..flat
        };
        for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.ss] {
            *segment = kvm_segment {
                selector: 16,
                type_: 3,
                ..flat
            };
        }
        sregs.cr0 |= 1;
        vcpu.set_sregs(&sregs).map_err(system)?;
        Ok(Self {
            vcpu,
            _vm: vm,
            _page: page,
        })
    }

    /// The least time that `rounds` rounds take.
    fn fastest(&mut self, rounds: u32) -> io::Result<Duration> {
        let mut fastest = self.run(rounds)?;
        for _ in 1..TRIES {
            fastest = fastest.min(self.run(rounds)?);
        }
        Ok(fastest)
    }

    fn run(&mut self, rounds: u32) -> io::Result<Duration> {
        let regs = kvm_regs {
            rip: 0,
            rcx: u64::from(rounds),
            // Bit 1 of the flags register is always set.
            rflags: 2,
            ..Default::default()
        };
        self.vcpu.set_regs(&regs).map_err(system)?;
        let begin = Instant::now();
        match self.vcpu.run().map_err(system)? {
            VcpuExit::Hlt => Ok(begin.elapsed()),
            other => Err(io::Error::other(format!("unexpected exit {other:?}"))),
        }
    }
}

fn system(error: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;

    #[test]
    fn test_check_missing_device_is_an_error_with_advice() {
        let findings = check(Path::new("/nonexistent/kvm"));
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].status, Status::Error);
        assert_eq!(findings[0].values["present"], false);
        assert!(
            findings[0]
                .advice
                .as_ref()
                .is_some_and(|advice| advice.contains("modprobe"))
        );
    }

    #[test]
    fn test_check_not_a_kvm_device_is_an_error() {
        let findings = check(Path::new("/dev/null"));
        assert_eq!(findings[0].status, Status::Error, "{findings:?}");
    }

    #[test]
    fn test_rate_counts_both_instructions() {
        assert!((rate(500, Duration::from_millis(1)) - 1e6).abs() < 1.0);
    }
}
