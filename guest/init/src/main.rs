//! PID 1 of a cachot guest.
fn main() {}
