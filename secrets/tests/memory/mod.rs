//! Looking for something in all of this process's own memory.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::sync::Mutex;

/// How often something of `len` bytes is in this process's readable memory; `count` says how often it is in a part.
///
/// # Panics
/// Where the memory cannot be read.
pub fn count(len: usize, count: impl Fn(&[u8]) -> usize) -> usize {
    // Not on the heap, and wiped after every use: it is searched as well.
    static WINDOW: Mutex<[u8; 1 << 20]> = Mutex::new([0; 1 << 20]);
    let mut window = WINDOW.lock().expect("no panic");
    let maps = fs::read_to_string("/proc/self/maps").expect("readable");
    let mut memory = File::open("/proc/self/mem").expect("readable");
    let mut found = 0;
    for line in maps.lines() {
        let mut fields = line.split_whitespace();
        let range = fields.next().expect("a range");
        let readable = fields.next().expect("permissions").starts_with('r');
        if !readable || line.ends_with("[vvar]") || line.ends_with("[vvar_vclock]") {
            continue;
        }
        let (start, end) = range.split_once('-').expect("two addresses");
        let address = |text| u64::from_str_radix(text, 16).expect("an address");
        let (mut at, end) = (address(start), address(end));
        while at < end {
            let size = usize::try_from(end - at)
                .expect("64 bits")
                .min(window.len());
            memory.seek(SeekFrom::Start(at)).expect("an address");
            // Some special mappings cannot be read; none of them is memory of the program.
            if memory.read_exact(&mut window[..size]).is_err() {
                assert!(line.contains('['), "cannot read {line}");
                break;
            }
            found += count(&window[..size]);
            window.fill(0);
            // Overlapping, as a copy may straddle two windows.
            at += match at + size as u64 == end {
                true => size,
                false => size - (len - 1),
            } as u64;
        }
    }
    found
}
