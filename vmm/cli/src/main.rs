//! The cachot command.
fn main() {}
