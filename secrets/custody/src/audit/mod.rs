//! Who had which secret: append-only logs whose lines are chained and signed.
//!
//! A log is a private folder: `log.jsonl`, which grows; `log.000001.jsonl` and so on, which were full;
//! `log.head`, its newest checkpoint but for those of the last moments; and `lock`, which appenders take
//! turns with. What exactly a line is, what a log proves and what it does not: `resources/audit-log.md`.
//!
//! | to | use |
//! |---|---|
//! | write records, before a value is given out | [`Log`] |
//! | print what was recorded, and wait for more | [`Reader`] |
//! | find out whether anything was changed | [`verify()`] |

mod chain;
mod checkpoint;
mod error;
mod layout;
mod line;
mod lines;
mod log;
mod read;
mod record;
mod report;
mod tail;
#[cfg(test)]
mod tests;
mod verify;

pub use chain::Hash;
pub use checkpoint::{Signer, Trust, Verifier};
pub use error::AuditError;
pub use line::{Anchor, LogId};
pub use log::{Entry, Head, Log};
pub use read::{Read, Reader};
pub use record::{Access, Decision, Record};
pub use report::{Finding, Flaw, Report};
pub use verify::verify;
