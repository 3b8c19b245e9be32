//! What other systems do with secrets, done with the `cachot` command, as far as that needs no VM; a file a system.
//! `resources/conformance.md` says where the rest is shown.

mod aegis;
mod agentlab;
mod bhatti;
mod choiros;
mod place;
