//! Secrets of other systems: read from their files as they are, and put into the store, all or none.
//!
//! `resources/imports.md` is the specification. A reader of a system makes a list of what it [`Found`], with no values lost
//! on the way; a [`Plan`] gives each a place in the store, or says why it has none.

mod aegis;
mod agentlab;
mod bhatti;
mod database;
mod dotenv;
mod error;
mod found;
mod plan;
mod sops;

pub use aegis::read as aegis;
pub use agentlab::read as agentlab;
pub use bhatti::read as bhatti;
pub use dotenv::read as dotenv;
pub use error::{ImportError, Problem, Refusals};
pub use found::Found;
pub use plan::{LeftOut, Plan, Planned, Rules};
pub use sops::read as sops;

/// Most secrets that are imported at once: each has a page of locked memory until all are stored.
pub const MAX_FOUND: usize = 10_000;
