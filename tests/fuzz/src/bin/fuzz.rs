//! What `tests/fuzz/run` starts: libFuzzer, and the target that `CACHOT_FUZZ_TARGET` names.
#![no_main]

use std::sync::LazyLock;

use cachot_fuzz::{Target, target};

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("CACHOT_FUZZ_TARGET").unwrap_or_default();
    target(&name).unwrap_or_else(|| panic!("CACHOT_FUZZ_TARGET={name} is none of the targets"))
});

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    (TARGET.run)(input);
});
