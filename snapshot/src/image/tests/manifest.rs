//! The manifest's text: what is written is read again, and what is not one is refused.

use std::time::{Duration, SystemTime};

use cachot_secrets::Name;
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;

use super::*;

/// Guest pages, in bytes.
const PAGE: u64 = 4096;

fn digest() -> impl Strategy<Value = Digest> {
    any::<[u8; 32]>().prop_map(Digest::from)
}

fn place() -> impl Strategy<Value = Place> {
    prop::sample::select(vec![
        Place::AttachedPage,
        Place::Ram,
        Place::Vcpu,
        Place::DeviceState,
        Place::Disk,
        Place::Console,
    ])
}

fn name() -> impl Strategy<Value = Name> {
    "[A-Za-z_][A-Za-z0-9_]{0,20}".prop_map(|text| text.parse().expect("a name"))
}

prop_compose! {
    fn machine()(
        cpus in 1u8..,
        regions in vec((0u64..1 << 20, 1u64..1 << 20), 1..4),
        devices in vec(".*", 0..4),
        vendor in ".*",
        features in btree_set("[a-z0-9_]{1,9}", 0..5),
        fingerprint in digest(),
    ) -> Machine {
        let (mut address, mut file_offset) = (0, 0);
        let memory = regions.into_iter().map(|(gap, pages)| {
            let (guest_start, length) = (address + gap * PAGE, pages * PAGE);
            let region = MemoryRegion { guest_start, length, file_offset };
            address = guest_start + length;
            file_offset += length;
            region
        });
        let memory = memory.collect();
        Machine { cpus, memory, devices, cpu: CpuBaseline { vendor, features, fingerprint } }
    }
}

prop_compose! {
    fn receipt()(
        scanner in ".*",
        refuse in any::<bool>(),
        residue_kept in any::<bool>(),
        needles in 0..=MAX_NEEDLES,
        numbers in any::<(u64, u64)>(),
        short_values in vec(name(), 0..3),
        hits in vec((place(), ".*", any::<u64>()), 0..3),
        redactions in vec((place(), any::<(u64, u64)>()), 0..3),
        not_proved in vec(".*", 0..3),
    ) -> Receipt {
        let hits: Vec<_> = hits
            .into_iter()
            .map(|(place, encoding, count)| Hits { place, encoding, count })
            .collect();
        let redactions = redactions
            .into_iter()
            .map(|(place, (ranges, bytes))| Redactions { place, ranges, bytes });
        Receipt {
            scanner,
            policy: if refuse { OnResidue::Refuse } else { OnResidue::Redact },
            residue_kept,
            needles,
            degenerate_windows: numbers.0,
            short_values,
            bytes_scanned: numbers.1,
            residue: if residue_kept { hits.clone() } else { vec![] },
            hits,
            redactions: redactions.collect(),
            not_proved,
        }
    }
}

prop_compose! {
    fn secret()(
        name in name(),
        reference in "[a-z]{1,5}:.{1,9}",
        mode in 0u32..0o777,
        owner in any::<(u32, u32, bool, u64)>(),
    ) -> Secret {
        let (uid, gid, export_env, version) = owner;
        let policy = RestorePolicy::Reissue;
        Secret { name, reference, mode: mode & 0o444, uid, gid, export_env, version, policy }
    }
}

prop_compose! {
    fn manifest()(
        machine in machine(),
        receipt in receipt(),
        mut secrets in vec(secret(), 0..4),
        disks in vec((".*", 0..=MAX_DISK_LEN / 4, prop::option::of(digest()), any::<bool>()), 0..4),
        id in any::<[u8; 16]>(),
        lineage in vec(any::<[u8; 16]>(), 0..=MAX_LINEAGE),
        texts in any::<(String, String)>(),
        seconds in 0u64..200_000_000_000,
        lengths in (0..=MAX_STATE_LEN, 0..=MAX_PLAN_LEN),
        encrypted in any::<bool>(),
        vsock_cid in any::<u64>(),
        blake3 in digest(),
    ) -> Manifest {
        secrets.sort_by(|a, b| a.name.cmp(&b.name));
        secrets.dedup_by(|a, b| a.name == b.name);
        let (cachot, name) = texts;
        let mut parts = vec![
            (PartName::Memory, machine.memory.iter().map(|region| region.length).sum()),
            (PartName::State, lengths.0),
            (PartName::Plan, lengths.1),
            (PartName::Needles, receipt.needles * 32),
        ];
        let mut number = 0;
        let disks = disks.into_iter().map(|(source, length, blake3, read_only)| {
            let part = (!read_only).then(|| {
                let name = PartName::Disk(number);
                number += 1;
                parts.push((name, length));
                name
            });
            Disk { source, read_only, length, part, blake3 }
        });
        let disks = disks.collect();
        let parts: Vec<_> = parts
            .into_iter()
            .map(|(name, length): (_, u64)| {
                let stored = if encrypted { length / 2 + 200 } else { length };
                let stored = stored.min(name.limit());
                Part { name, length, stored }
            })
            .collect();
        let chunks: u64 = parts.iter().map(|part| chunk_count(part.stored)).sum();
        let features: &[&str] = if encrypted { &[FEATURE_AGE] } else { &[] };
        Manifest {
            format: FORMAT_VERSION,
            required_features: features.iter().map(|&name| name.to_owned()).collect(),
            optional_features: [].into(),
            cachot,
            id: id.into(),
            lineage: lineage.into_iter().map(ImageId::from).collect(),
            created: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
            host_key: serde_json::from_value(serde_json::json!("ab".repeat(32))).expect("a key"),
            machine,
            guest: Guest {
                name,
                cmdline: blake3,
                disks,
                vsock_cid,
                keeper: serde_json::json!({ "any": [1, "thing"] }),
            },
            secrets,
            receipt,
            parts,
            digests: Digests { length: chunks * 32, blake3 },
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn test_manifest_round_trip(manifest in manifest()) {
        let json = manifest.to_json().expect("json");
        prop_assert_eq!(parse(&json).expect("a manifest"), manifest);
    }

    #[test]
    fn test_changed_manifests_are_read_or_refused_but_never_panic(
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut json = example_json();
        for (place, byte) in changes {
            *place.get_mut(&mut json) = byte;
        }
        parse(&json).ok();
        parse(&json[..cut.index(json.len())]).ok();
    }

    #[test]
    fn test_arbitrary_bytes_are_no_manifest(bytes in vec(any::<u8>(), 0..200)) {
        prop_assert!(parse(&bytes).is_err());
    }
}

fn example_json() -> Vec<u8> {
    let host = example::Host::new();
    let path = host.publish("image");
    std::fs::read(path.join("manifest.json")).expect("read")
}

#[test]
fn test_manifest_is_readable() {
    let json = String::from_utf8(example_json()).expect("text");
    assert!(json.starts_with("{\n  \"format\": 1,\n"), "{json}");
    for line in [
        "\"name\": \"memory\"",
        "\"reference\": \"env:API_KEY\"",
        "\"policy\": \"reissue\"",
        "\"residue_kept\": false",
        "\"place\": \"attached_page\"",
    ] {
        assert!(json.contains(line), "{line} is not in {json}");
    }
}

#[test]
fn test_deeply_nested_json_is_refused() {
    let bomb = format!("{{\"format\":1,\"x\":{}", "[".repeat(1 << 20));
    assert!(matches!(
        parse(bomb.as_bytes()),
        Err(ManifestError::Json(_))
    ));
}

#[test]
fn test_too_long_manifest_is_refused() {
    let long = vec![b' '; usize::try_from(MAX_MANIFEST_LEN).expect("small") + 1];
    assert!(matches!(parse(&long), Err(ManifestError::TooLong(_))));
}

#[test]
fn test_what_follows_the_manifest_is_refused() {
    let mut json = example_json();
    json.extend(b"{}");
    assert!(matches!(parse(&json), Err(ManifestError::Json(_))));
}

#[test]
fn test_longest_honest_manifest_is_under_the_limit() {
    let json = example_json();
    let mut manifest = parse(&json).expect("a manifest");
    let secret = manifest.secrets[0].clone();
    manifest.secrets = (0..MAX_NEEDLES)
        .map(|number| Secret {
            name: format!("NAME_OF_A_SECRET_{number}")
                .parse()
                .expect("a name"),
            reference: format!("file:/run/credentials/name-of-a-secret-{number}"),
            ..secret.clone()
        })
        .collect();
    manifest.lineage = vec![manifest.id; MAX_LINEAGE];
    let json = manifest.to_json().expect("json");
    assert!((json.len() as u64) < MAX_MANIFEST_LEN, "{}", json.len());
    parse(&json).expect("a manifest");
}

#[test]
fn test_lineage_grows_by_one_and_forgets_the_oldest() {
    let mut manifest = parse(&example_json()).expect("a manifest");
    for _ in 0..2 * MAX_LINEAGE {
        let lineage = manifest.descent();
        assert_eq!(lineage[0], manifest.id);
        assert!(lineage.len() <= MAX_LINEAGE);
        manifest = Manifest {
            id: ImageId::random().expect("an id"),
            lineage,
            ..manifest
        };
    }
    assert_eq!(manifest.lineage.len(), MAX_LINEAGE);
}

#[test]
fn test_a_chunk_consists_of_pages() {
    assert_eq!(CHUNK_LEN as u64 % PAGE, 0);
}
