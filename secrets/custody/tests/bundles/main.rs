//! Bundles that other programs have made, read and changed; named after agentlab, whose format they have.

mod agentlab;
mod folder;
mod sops;
