//! Checkpoints: a signature of the host over all lines before.

use super::chain::Chain;
use super::error::AuditError;
use super::line::{Body, Checkpoint, LogId};

/// Bytes of what is signed: the log's id, the number of the line before as a little-endian u64, its hash.
pub(super) const MESSAGE_LEN: usize = 16 + 8 + 32;

/// Signs checkpoints. It keeps signatures of checkpoints apart from those that the same key makes for other purposes.
pub trait Signer: Send + Sync {
    /// The Ed25519 public key.
    fn key(&self) -> [u8; 32];

    /// Signs: of the same message always the same signature (RFC 8032).
    fn sign(&self, message: &[u8]) -> [u8; 64];
}

/// Checks signatures of checkpoints.
pub trait Verifier {
    /// Whether `key` is trusted and `signature` is its signature of `message`.
    fn check(&self, key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> Trust;
}

/// What a signature is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// This host's own key has made it.
    Good,
    /// A key that is trusted, and is not this host's own, has made it.
    Other,
    /// Some other key may have made it.
    UntrustedKey,
    /// Nobody has made it for this.
    WrongSignature,
}

/// What is signed when `before` is the end of the log.
pub(super) fn message(log: LogId, before: Chain) -> [u8; MESSAGE_LEN] {
    let mut message = [0; MESSAGE_LEN];
    message[..16].copy_from_slice(&log.0);
    message[16..24].copy_from_slice(&before.seq.to_le_bytes());
    message[24..].copy_from_slice(&before.hash.0);
    message
}

/// Ends a batch of lines; returns the checkpoint's bytes without line feed.
pub(super) fn push(
    chain: &mut Chain,
    log: LogId,
    signer: &dyn Signer,
    output: &mut Vec<u8>,
) -> Result<Vec<u8>, AuditError> {
    let checkpoint = Checkpoint {
        key: signer.key(),
        signature: signer.sign(&message(log, *chain)),
    };
    chain.push(Body::Checkpoint(checkpoint), output)
}

/// Checks the checkpoint that follows `before`.
pub(super) fn check(
    checkpoint: &Checkpoint,
    log: LogId,
    before: Chain,
    verifier: &dyn Verifier,
) -> Trust {
    verifier.check(
        &checkpoint.key,
        &message(log, before),
        &checkpoint.signature,
    )
}

/// Whether this signer has made the checkpoint that follows `before`.
pub(super) fn is_own(
    checkpoint: &Checkpoint,
    log: LogId,
    before: Chain,
    signer: &dyn Signer,
) -> bool {
    checkpoint.key == signer.key() && checkpoint.signature == signer.sign(&message(log, before))
}
