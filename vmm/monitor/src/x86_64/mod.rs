//! What is particular to x86-64: the state a vCPU starts with, and the state of a machine as data.

pub mod cpuid;
pub mod interrupts;
pub mod msr;
pub mod msr_state;
pub mod register_file;
pub mod registers;
pub mod vcpu_state;
pub mod vm_state;
