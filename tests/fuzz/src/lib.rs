//! Fuzz targets for all that is hostile: what comes from an image, a guest, a socket, a file of secrets or an audit log.
//!
//! A [`Target`] is a function of bytes that panics where a promise is broken. libFuzzer searches for such bytes
//! (`tests/fuzz/run`), and a test runs every target over its corpus (`tests/fuzz/corpus/TARGET`): over
//! what `src/bin/seeds.rs` has made of real images, and all that was ever found.

pub mod audit;
pub mod bundle;
pub mod devices;
pub mod dotenv;
pub mod driver;
pub mod frames;
pub mod http;
pub mod import;
pub mod manifest;
pub mod plan;
pub mod reference;
pub mod rig;
pub mod sops;
pub mod state;
pub mod values;

/// A function that must return, whatever the bytes are.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, which is that of its corpus.
    pub name: &'static str,
    /// The function; it tells whether the bytes were accepted, at least some of them.
    pub run: fn(&[u8]) -> bool,
}

/// All targets.
pub const TARGETS: [Target; 13] = [
    Target {
        name: "manifest",
        run: manifest::run,
    },
    Target {
        name: "plan",
        run: plan::run,
    },
    Target {
        name: "state",
        run: state::run,
    },
    Target {
        name: "devices",
        run: devices::run,
    },
    Target {
        name: "driver",
        run: driver::run,
    },
    Target {
        name: "http",
        run: http::run,
    },
    Target {
        name: "frames",
        run: frames::run,
    },
    Target {
        name: "dotenv",
        run: dotenv::run,
    },
    Target {
        name: "audit",
        run: audit::run,
    },
    Target {
        name: "reference",
        run: reference::run,
    },
    Target {
        name: "bundle",
        run: bundle::run,
    },
    Target {
        name: "sops",
        run: sops::run,
    },
    Target {
        name: "import",
        run: import::run,
    },
];

/// The target of this name.
#[must_use]
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
