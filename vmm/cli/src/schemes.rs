//! The schemes that the references of a command may use.

use cachot_custody::schemes::{Environment, with_providers};
use cachot_secrets::Schemes;

/// All that there are, with the settings of this process's environment.
pub fn schemes() -> Schemes {
    with_providers(Schemes::default(), &Environment::of_this_process())
}
