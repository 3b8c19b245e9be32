//! Requests on the control socket: one that is complete is so at its last byte, whatever follows.

use cachot_vmm::api::http::parse;

/// What has arrived on a connection.
///
/// # Panics
/// Where a promise is broken.
pub fn run(input: &[u8]) -> bool {
    let mut arrived = input;
    let mut accepted = false;
    loop {
        match parse(arrived) {
            Ok(None) => return accepted,
            Ok(Some((request, len))) => {
                assert!(0 < len && len <= arrived.len());
                assert_eq!(parse(&arrived[..len]), Ok(Some((request, len))));
                assert_eq!(parse(&arrived[..len - 1]), Ok(None));
                arrived = &arrived[len..];
                accepted = true;
            }
            Err(answer) => {
                assert!((400..500).contains(&answer.status));
                return accepted;
            }
        }
    }
}
