//! The monitor: one KVM virtual machine and its devices, and the protocol by which the keeper runs it.

pub mod protocol;
