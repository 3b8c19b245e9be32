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
pub struct TrustedVerifier(TrustedKeys);

impl TrustedVerifier {
    /// Of this state folder.
    pub fn load(root: &Path) -> Result<Self, ImageError> {
        TrustedKeys::load(root).map(Self)
    }
}

impl Verifier for TrustedVerifier {
    fn check(&self, key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> Trust {
        if !self.0.has(key) {
            Trust::UntrustedKey
        } else if self.0.has_signed(key, CONTEXT, message, signature) {
            Trust::Good
        } else {
            Trust::WrongSignature
        }
    }
}
