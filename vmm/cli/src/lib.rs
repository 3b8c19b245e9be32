//! The `cachot` command and the keeper process behind it.
//!
//! `cachot run` is the keeper of one VM: it resolves secrets with the invoking user's permissions,
//! opens every file, starts the monitor (`cachot-vmm`) with all of that as descriptors, and connects
//! the command in the guest to the user's standard streams.

pub mod args;
pub mod doctor;
pub mod guest_files;
pub mod monitor_process;
pub mod resources;
pub mod run;
pub mod secret_check;
pub mod session;
pub mod signals;
pub mod spawn;
pub mod state_dir;
pub mod swap;
pub mod tail;
pub mod terminal;
