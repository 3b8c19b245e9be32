//! The monitor: one KVM virtual machine and its devices, and the protocol by which the keeper runs it.

pub mod acpi;
pub mod api;
pub mod boot;
pub mod bus;
pub mod gate;
pub mod keeper;
pub mod kvm;
pub mod layout;
pub mod life;
pub mod machine;
pub mod metrics;
pub mod monitor;
pub mod protocol;
pub mod restore;
pub mod seccomp;
pub mod signals;
pub mod snapshot;
pub mod state;
pub mod supervisor;
pub mod vcpu;
pub mod x86_64;

pub use snapshot::host_cpu;
