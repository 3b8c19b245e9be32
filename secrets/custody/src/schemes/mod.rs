//! Schemes that need more than this process: what each fetches values from.

mod bundle;

pub use bundle::Bundle;
