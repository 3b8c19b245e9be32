//! The host's key and the trusted keys, for audit logs.

use std::path::Path;

use cachot_custody::audit::{Signer, Trust, Verifier};
use cachot_snapshot::image::{HostKey, ImageError, TrustedKeys};

/// What the host's key signs checkpoints for.
const CONTEXT: &str = "cachot audit checkpoint v1";

/// The host's key.
pub struct HostSigner(HostKey);

impl HostSigner {
    /// Of this state folder; made if there is none yet.
    pub fn load_or_create(root: &Path) -> Result<Self, ImageError> {
        HostKey::load_or_create(root).map(Self)
    }
}

impl Signer for HostSigner {
    fn key(&self) -> [u8; 32] {
        self.0.public().to_bytes()
    }

    fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign_for(CONTEXT, message)
    }
}

/// The host's key and those in `trusted-keys`.
pub struct TrustedVerifier {
    /// Where the host has one.
    own: Option<[u8; 32]>,
    keys: TrustedKeys,
}

impl TrustedVerifier {
    /// Of this state folder.
    pub fn load(root: &Path) -> Result<Self, ImageError> {
        Ok(Self {
            own: HostKey::load(root)?.map(|key| key.public().to_bytes()),
            keys: TrustedKeys::load(root)?,
        })
    }
}

impl Verifier for TrustedVerifier {
    fn check(&self, key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> Trust {
        if !self.keys.has(key) {
            Trust::UntrustedKey
        } else if !self.keys.has_signed(key, CONTEXT, message, signature) {
            Trust::WrongSignature
        } else if self.own != Some(*key) {
            Trust::Other
        } else {
            Trust::Good
        }
    }
}
