//! PID 1 of a cachot guest: prepares the machine, runs a workload and further commands for the keeper, switches off.
//!
//! It is the initramfs's `/init`. The program mounts what every workload
//! expects, loads modules, and enters [`supervisor`], which connects to the keeper over vsock (see
//! `cachot_control` for the messages), changes into the root file system that the keeper asks for,
//! forks the workload, relays its streams, reaps orphans and reports how it ended.
//! Further commands are sessions like it ([`sessions`]); all can be frozen while a snapshot is taken ([`freezer`]),
//! and a guest that is a copy of another one becomes one of its own ([`renew`]).
//!
//! PID 1 never holds a secret: the forked child reads the exported ones from `/run/secrets`
//! ([`environment`]), and the streams' bytes pass through pipes inside the kernel ([`pump`]).
//! Connections that break are opened again ([`link`]); the workload does not notice but for
//! back-pressure.
//!
//! There is one thread and no async runtime: every descriptor is non-blocking, and the loop tries
//! everything, then waits for anything.

pub mod askpass;
pub mod cgroup;
pub mod channel;
pub mod child;
pub mod control;
pub mod environment;
pub mod files;
pub mod freezer;
pub mod host_keys;
pub mod kernel;
pub mod link;
pub mod modules;
pub mod mounts;
pub mod power;
pub mod pump;
pub mod renew;
pub mod root;
pub mod session;
pub mod sessions;
pub mod supervisor;
pub mod sys;
pub mod users;
