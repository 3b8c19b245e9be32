//! Secret values, references and schemes: everything cachot knows of a secret before it reaches a guest.
//!
//! A *declaration* such as `API_KEY=env:API_TOKEN,mode=0400` names a secret and says where its value
//! is. [`Declarations`] resolves all of them, or reports every one that fails:
//!
//! ```
//! use cachot_secrets::{Declarations, Schemes};
//!
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("token");
//! # std::fs::write(&path, "tk-0123456789")?;
//! # let path = path.display();
//! let declarations = Declarations::parse([format!("API_KEY=file:{path},mode=0440")]);
//! for secret in declarations.resolve(&Schemes::default())? {
//!     let sealed = secret.value.seal()?;
//!     println!("{}: {} bytes, for the monitor", secret.name, sealed.len());
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | type | is |
//! |---|---|
//! | [`SecretValue`] | the bytes, in locked memory, wiped on drop |
//! | [`SealedValue`] | the bytes as another process gets them: a sealed memfd |
//! | [`Name`] | a secret's name, which is its file's name in the guest |
//! | [`Reference`] | where a value is: `scheme:locator` |
//! | [`Declaration`] | `NAME=scheme:locator` and the options of delivery |
//! | [`Scheme`], [`Schemes`] | what fetches a value |
//! | [`Fetched`], [`Origin`] | a value, and its scope and version where its place has such |
//! | [`Declarations`] | all secrets of a VM, resolved or refused together |
//!
//! A process that holds values calls [`harden_process`] first; one that took values from its own
//! environment calls [`scrub_environment`] once they are resolved.

mod check;
mod declarations;
mod environment;
mod failure;
mod fetch;
mod harden;
mod locked;
mod name;
mod reference;
mod schemes;
mod sealed;
mod value;

pub use check::Check;
pub use declarations::{Declarations, MAX_SECRETS, MAX_TOTAL_LEN, Resolved, Warning};
pub use environment::{ScrubError, scrub_environment};
pub use failure::{Failure, Failures, SecretError, Subject};
pub use harden::{HardenError, harden_process};
pub use locked::{LockError, LockedBuffer};
pub use name::{MAX_NAME_LEN, Name, NameError};
pub use reference::{Declaration, DeclarationError, Delivery, Reference, ReferenceError};
pub use schemes::{
    Dotenv, Env, Fetched, File, MAX_DOTENV_LEN, MAX_LINE_LEN, Origin, Refusal, ResolveError,
    Scheme, Schemes, TIME_LIMIT,
};
pub use sealed::{SealedError, SealedValue};
pub use value::{MAX_VALUE_LEN, SecretValue, ValueError};
