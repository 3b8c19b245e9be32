//! When to look at the places: a new epoch, or a file that appears.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use rustix::event::{PollFlags, Timespec};

use crate::device::Device;

const INTERVAL: Duration = Duration::from_millis(100);

/// What there is to wait for.
pub struct News {
    device: Option<Device>,
    trigger: Option<PathBuf>,
}

impl News {
    /// Events of the device from now on, if `watch`, and the file `trigger`, if there is one.
    pub fn new(watch: bool, trigger: Option<PathBuf>) -> anyhow::Result<Self> {
        let device = watch.then(Device::open).transpose()?;
        if let Some(device) = &device {
            device.epoch().context("cannot read the epoch")?;
        }
        Ok(Self { device, trigger })
    }

    /// Waits, and says what has come; nothing if the device is gone.
    pub fn wait(&self) -> anyhow::Result<Option<String>> {
        loop {
            if let Some(trigger) = &self.trigger {
                // It is removed first: one that comes while places are looked at is for the next time.
                match fs::remove_file(trigger) {
                    Ok(()) => return Ok(Some("triggered".into())),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => {
                        return Err(error)
                            .with_context(|| format!("cannot remove {}", trigger.display()));
                    }
                }
            }
            let Some(device) = &self.device else {
                thread::sleep(INTERVAL);
                continue;
            };
            let interval = Timespec::try_from(INTERVAL).context("cannot wait")?;
            let events = device.poll(Some(&interval)).context("cannot wait")?;
            if events.contains(PollFlags::HUP) {
                return Ok(None);
            }
            if events.contains(PollFlags::IN) {
                let epoch = device.epoch().context("cannot read the epoch")?;
                return Ok(Some(format!("epoch {epoch}")));
            }
        }
    }
}
