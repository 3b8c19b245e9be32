//! How fast a machine comes out of an image that was verified: in a monitor that waits for it, and from exec on.

use std::time::Instant;

use super::machine::{console, read_until};
use super::{Host, Image, Machine, Monitor};
use crate::scan::{Random, values};
use crate::stats::Samples;

/// Sizes of the guest, in MiB.
const MEMORY_MIB: [u64; 2] = [128, 1024];

/// Prints the times for each size.
pub fn bench(host: &Host, runs: usize) -> anyhow::Result<()> {
    println!("restore of a verified image with a secret, in ms:");
    let values = values(1, 0, &mut Random(0x0123_4567_89ab_cdef));
    for memory_mib in MEMORY_MIB {
        let machine = Machine {
            memory_mib,
            cmdline: "tiny=forget hold=1",
            values: &values,
        };
        let image = Image::of(host, &machine, "holding\n")?;
        let (mut request, mut first_byte) = (Samples::default(), Samples::default());
        // The first turn warms caches and is not counted.
        for turn in 0..=runs {
            let waiting = Monitor::start(host)?;
            waiting.settle()?;
            let asked = waiting.run(&machine, &image.files()?)?;
            drop(waiting);

            let (mut output, console) = console()?;
            let mut files = image.files()?;
            files.push(console);
            let start = Instant::now();
            let monitor = Monitor::start(host)?;
            monitor.run(&machine, &files)?;
            read_until(&mut output, "p")?;
            let printed = start.elapsed();
            if turn > 0 {
                request.push(asked);
                first_byte.push(printed);
            }
        }
        println!(
            "  {memory_mib} MiB: request to the first KVM_RUN, in a monitor that waits: {request}"
        );
        println!("  {memory_mib} MiB: exec to the guest's first byte: {first_byte}");
    }
    Ok(())
}
