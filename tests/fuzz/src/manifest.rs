//! The manifest of an image: what is read is the same when it is written and read again.

use cachot_snapshot::image::parse;

/// One manifest.
///
/// # Panics
/// Where a promise is broken.
pub fn run(input: &[u8]) -> bool {
    let Ok(manifest) = parse(input) else {
        return false;
    };
    let json = serde_json::to_vec(&manifest).expect("plain data");
    let again = parse(&json).expect("it was read before");
    assert_eq!(again, manifest);
    true
}
