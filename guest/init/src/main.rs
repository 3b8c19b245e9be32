//! The program that the kernel starts as PID 1; see the library for how it works.

use anyhow::{Context, anyhow, ensure};
use cachot_init::cgroup::Cgroups;
use cachot_init::child::Places;
use cachot_init::kernel::Linux;
use cachot_init::link::Vsock;
use cachot_init::supervisor::{Supervisor, Surroundings};
use cachot_init::{askpass, modules, mounts, power, renew, root, sys};
use std::path::Path;

/// What the guest calls itself.
const HOSTNAME: &str = "cachot";

fn main() -> anyhow::Result<()> {
    ensure!(
        rustix::process::getpid().is_init(),
        "cachot-init is the first process of a cachot guest and does nothing anywhere else"
    );
    // If PID 1 died, the kernel would panic: switch off instead, with the reason on the console.
    std::panic::set_hook(Box::new(|panic| {
        report(&panic.to_string());
        if rustix::process::getpid().is_init() {
            power::off();
        }
    }));
    if let Err(error) = serve() {
        report(&format!("{error:#}"));
    }
    power::off();
}

fn serve() -> anyhow::Result<()> {
    mounts::mount_all().map_err(|message| anyhow!(message))?;
    rustix::system::sethostname(HOSTNAME.as_bytes()).context("cannot set the hostname")?;
    sys::loopback_up().context("cannot bring the loopback interface up")?;
    for message in modules::load_all() {
        report(&message);
    }
    if let Err(message) = mounts::mount_secrets() {
        report(&message);
    }
    askpass::place(Path::new(cachot_control::GIT_ASKPASS))
        .with_context(|| format!("cannot write {}", cachot_control::GIT_ASKPASS))?;
    let supervisor = Supervisor::new(Surroundings {
        transport: Vsock,
        change_root: root::change,
        places: Places::default(),
        buttons: power::buttons(),
        cgroups: Cgroups::open(Path::new(mounts::CGROUPS))
            .context("cannot create the control group of the sessions")?,
        renewed: renew::Places::default(),
        kernel: Box::new(Linux),
    })?;
    supervisor.run()?;
    Ok(())
}

/// Prints a line on the console, which the kernel has made PID 1's standard error.
fn report(message: &str) {
    eprintln!("cachot-init: {message}");
}
