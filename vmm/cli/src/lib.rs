//! The `cachot` command and the keeper process behind it.
//!
//! `cachot run` is the keeper of one VM: it resolves secrets with the invoking user's permissions,
//! opens every file, starts the monitor (`cachot-vmm`) with all of that as descriptors, and connects
//! the command in the guest to the user's standard streams.

pub mod api_client;
pub mod args;
pub mod audit;
pub mod bundle;
pub mod custody;
pub mod detach;
pub mod doctor;
pub mod guest_files;
pub mod images;
pub mod input;
pub mod keeper;
pub mod keeper_client;
pub mod launch;
pub mod log;
pub mod monitor_process;
pub mod progress;
pub mod resources;
pub mod restore;
pub mod run;
pub mod settings;
pub mod signals;
pub mod spawn;
pub mod state_dir;
pub mod swap;
pub mod tail;
pub mod terminal;
pub mod text;
pub mod vm;
pub mod vm_name;
pub mod vms;
