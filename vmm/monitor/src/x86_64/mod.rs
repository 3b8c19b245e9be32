//! What is particular to x86-64: the state a vCPU starts with.

pub mod cpuid;
pub mod interrupts;
pub mod msr;
pub mod registers;
