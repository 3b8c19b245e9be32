//! Schemes that need more than this process: what references to them are resolved with.

mod store;

pub use store::StoreScheme;
