//! Many children of one image at the same time.

use super::{Host, Image, Machine, Monitor};
use crate::memory;
use crate::scan::{Random, values};
use crate::stats::Samples;

/// MiB of RAM of each.
const MEMORY_MIB: u64 = 128;

/// Prints how long each child took, in a monitor that waited for it, and how much memory it has for itself.
pub fn bench(host: &Host, count: usize) -> anyhow::Result<()> {
    let values = values(1, 0, &mut Random(0x0123_4567_89ab_cdef));
    let machine = Machine {
        memory_mib: MEMORY_MIB,
        cmdline: "tiny=read hold=2",
        values: &values,
    };
    let image = Image::of(host, &machine, "holding\n")?;
    let mut children = Vec::with_capacity(count);
    let mut times = Samples::default();
    let mut why = None;
    for _ in 0..count {
        match child(host, &machine, &image) {
            Ok((monitor, time)) => {
                times.push(time);
                children.push(monitor);
            }
            Err(error) => {
                why = Some(error);
                break;
            }
        }
    }
    println!(
        "children of one image of {MEMORY_MIB} MiB, all there at the same time: {}",
        children.len()
    );
    if let Some(error) = why {
        println!("  the next one failed: {error:#}");
    }
    println!("  request to the first KVM_RUN, in a monitor that waits, in ms: {times}");
    let mut kib = Samples::default();
    for child in &children {
        #[expect(clippy::cast_precision_loss, reason = "kibibytes of a process")]
        kib.0.push(memory::private_kib(child.pid())? as f64);
    }
    println!("  private memory of an idle child, all of it, in KiB: {kib}");
    Ok(())
}

fn child(
    host: &Host,
    machine: &Machine<'_>,
    image: &Image,
) -> anyhow::Result<(Monitor, std::time::Duration)> {
    let files = image.files()?;
    let monitor = Monitor::start(host)?;
    monitor.settle()?;
    let time = monitor.run(machine, &files)?;
    Ok((monitor, time))
}
