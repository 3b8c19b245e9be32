//! Snapshots that forget: the image format, needles and scan, the redaction plan, and what is put back
//! after a restore; and the filter that masks needles in output. Knows bytes and ranges, not KVM.

pub mod image;
pub mod mask;
pub mod needles;
pub mod plan;
pub mod refill;
pub mod scan;
pub mod stream;
