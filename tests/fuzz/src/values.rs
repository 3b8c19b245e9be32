//! Values of secrets that the targets deliver.

use std::os::fd::AsFd;
use std::sync::LazyLock;

use cachot_devices::virtio::secrets::Secret;
use cachot_secrets::{Name, SealedValue, SecretValue};

/// Names and values: one that can be exchanged, one that can only be recognised, one that cannot be searched for,
/// one of several pages.
pub const VALUES: [(&str, &[u8]); 4] = [
    ("TOKEN", b"tk-demo-0123456789abcdef0123456789abcdef"),
    ("PIN", b"12345678"),
    ("BIT", b"\x01"),
    ("KEY", &[0x5a; 9000]),
];

/// The commitment key of the images.
pub const COMMITMENT_KEY: [u8; 32] = [7; 32];

static SEALED: LazyLock<Vec<SealedValue>> = LazyLock::new(|| {
    let sealed = |(_, bytes): &(&str, &[u8])| value(bytes).seal().expect("a sealed file");
    VALUES.iter().map(sealed).collect()
});

/// The name number `index`, counted around.
///
/// # Panics
/// Never.
#[must_use]
pub fn name(index: usize) -> Name {
    let (name, _) = VALUES[index % VALUES.len()];
    name.parse().expect("a legal name")
}

/// A value in locked memory.
///
/// # Panics
/// When there is no memory to lock.
#[must_use]
pub fn value(bytes: &[u8]) -> SecretValue {
    SecretValue::copy_of(bytes).expect("locked memory")
}

/// The value number `index`, counted around, as the monitor gets it.
///
/// # Panics
/// When there are no descriptors left.
#[must_use]
pub fn sealed(index: usize) -> SealedValue {
    let value = SEALED[index % SEALED.len()].as_fd();
    let fd = value.try_clone_to_owned().expect("a descriptor");
    SealedValue::try_from(fd).expect("sealed")
}

/// The secrets whose bit in `mask` is set.
#[must_use]
pub fn secrets(mask: u8) -> Vec<Secret> {
    let secret = |index| Secret {
        name: name(index),
        mode: 0o400,
        uid: 7,
        gid: 8,
        value: sealed(index),
    };
    (0..VALUES.len())
        .filter(|index| mask >> index & 1 != 0)
        .map(secret)
        .collect()
}
