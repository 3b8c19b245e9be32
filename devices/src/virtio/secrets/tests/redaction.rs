//! What a snapshot is told of the device: values to look for, and pages that hold them.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::*;
use crate::virtio::secrets::{HostError, MAX_DELIVERED, MAX_DELIVERED_LEN};

/// Name, version and value of everything that was delivered.
fn delivered(device: &SecretsDevice) -> Vec<(String, u64, Vec<u8>)> {
    device
        .delivered()
        .map(|(name, version, value)| (name.to_string(), version, content(value)))
        .collect()
}

fn rotate(device: &mut SecretsDevice, text: &str, value: &[u8]) -> Result<(), HostError> {
    device.rotate(&name(text), sealed(value))
}

#[test]
fn test_every_value_ever_declared_is_kept_once() {
    let rig = rig();
    let a = pattern(40, 0xa0);
    rig.transport().with_device(|device, mem| {
        rotate(device, "A", b"second").expect("declared");
        device.revoke(&name("C"), mem).expect("declared");
        // A value that B had, one that differs in the last byte only, and one that is new.
        let mut almost = pattern(10_000, 0xb0);
        almost[9_999] ^= 1;
        let fresh = vec![
            secret("A", &pattern(10_000, 0xb0)),
            secret("B", &almost),
            secret("D", b"new"),
        ];
        device.rehydrate(fresh, mem).expect("deliverable");

        let wanted = [
            ("A", 1, a),
            // It was B's first, but A has it now.
            ("A", 4, pattern(10_000, 0xb0)),
            ("C", 1, vec![0xc1]),
            ("A", 2, b"second".to_vec()),
            ("B", 4, almost),
            ("D", 4, b"new".to_vec()),
        ];
        let wanted = wanted.map(|(name, version, value)| (name.to_owned(), version, value));
        assert_eq!(delivered(device), wanted);
    });
}

#[test]
fn test_equal_values_of_two_secrets_count_once() {
    let secrets = vec![secret("A", b"the same"), secret("B", b"the same")];
    let mut device = SecretsDevice::new(secrets).expect("within the limits");
    let same = |name: &str, version| (name.to_owned(), version, b"the same".to_vec());
    assert_eq!(delivered(&device), [same("A", 1)]);

    rotate(&mut device, "A", b"another").expect("declared");

    let another = ("A".to_owned(), 2, b"another".to_vec());
    assert_eq!(delivered(&device), [same("B", 1), another]);
}

#[test]
fn test_attached_ranges_tell_name_and_version_by_address() {
    let mut rig = rig();
    rig.attached(
        "B",
        &[(PAGES + 8 * PAGE, PAGE), (PAGES + 2 * PAGE, 2 * PAGE)],
    );
    rig.attached("A", &[(PAGES + 6 * PAGE, PAGE)]);
    let gone = rig.attached("A", &[(PAGES, PAGE)]);
    rig.attached("C", &[(PAGES + 5 * PAGE, PAGE)]);
    rig.transport().with_device(|device, mem| {
        rotate(device, "A", b"second").expect("declared");
        device.revoke(&name("C"), mem).expect("declared");
    });
    rig.attached("A", &[(PAGES + 4 * PAGE, PAGE)]);
    assert_eq!(rig.ask_status(&detach(gone)), OK);

    rig.transport().with_device(|device, _| {
        let attached: Vec<_> = device
            .attached()
            .map(|range| {
                let page = (range.start - PAGES) / PAGE;
                (range.name.as_str(), range.version, page, range.len / PAGE)
            })
            .collect();
        let wanted = [
            ("B", Some(1), 2, 2),
            ("A", Some(2), 4, 1),
            ("C", None, 5, 1),
            ("A", Some(1), 6, 1),
            ("B", Some(1), 8, 1),
        ];
        assert_eq!(attached, wanted);
    });
}

#[test]
fn test_value_over_the_limit_of_bytes_is_refused() {
    let largest = 1 << 20;
    let seed = |seed: usize| pattern(largest, u8::try_from(2 * seed).expect("few"));
    let mut device = SecretsDevice::new(vec![secret("A", &seed(0))]).expect("within the limits");
    for count in 1..MAX_DELIVERED_LEN / largest {
        rotate(&mut device, "A", &seed(count)).expect("within the limits");
    }
    let epoch = device.epoch();

    let refused = rotate(&mut device, "A", b"x");

    let message = refused.expect_err("too many bytes").to_string();
    assert!(
        message.starts_with("the value of A is refused"),
        "{message}"
    );
    assert_eq!(device.epoch(), epoch, "nothing has changed");
    let last = delivered(&device).pop().expect("many");
    assert_eq!((last.1, last.2 == seed(15)), (epoch, true));
    rotate(&mut device, "A", &seed(3)).expect("an old value is no new one");
}

#[test]
fn test_value_over_the_limit_of_numbers_is_refused() {
    let limit = getrlimit(Resource::Nofile);
    let current = limit.maximum.map_or(8192, |maximum| maximum.min(8192));
    let raised = Rlimit {
        current: Some(current),
        ..limit
    };
    setrlimit(Resource::Nofile, raised).expect("within the hard limit");
    let number = |n: usize| n.to_le_bytes();
    let mut device = SecretsDevice::new(vec![secret("A", &number(0))]).expect("within the limits");
    for n in 1..MAX_DELIVERED {
        rotate(&mut device, "A", &number(n)).expect("within the limits");
    }
    assert_eq!(device.delivered().len(), MAX_DELIVERED);

    let refused = rotate(&mut device, "A", &number(MAX_DELIVERED));

    assert!(matches!(refused, Err(HostError::Limit(_))), "{refused:?}");
    let mut kept: Vec<_> = delivered(&device).into_iter().map(|kept| kept.2).collect();
    kept.sort_unstable();
    kept.dedup();
    assert_eq!(kept.len(), MAX_DELIVERED, "all different");
}

#[test]
fn test_rehydrate_over_the_limit_leaves_the_device_frozen() {
    let mut rig = rig();
    rig.attached("A", &[(PAGES, PAGE)]);
    let fresh = (0..17_u8)
        .map(|n| secret(&format!("S{n}"), &pattern(1 << 20, 2 * n)))
        .collect();

    let refused = rig
        .transport()
        .with_device(|device, mem| device.rehydrate(fresh, mem));

    assert!(matches!(refused, Err(HostError::Limit(_))), "{refused:?}");
    assert_eq!(rig.ask_status(&get("A")), FROZEN);
}
