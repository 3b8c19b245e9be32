//! An image to test with.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::*;

/// Bytes of guest RAM: three chunks and a bit, so that the last chunk is short.
pub(super) const MEMORY_LEN: u64 = 3 * CHUNK_LEN as u64 + 4096;

/// What the example has in its state.
pub(super) const STATE: &[u8] = b"state of the machine";

/// What the example has in its plan.
pub(super) const PLAN: &[u8] = b"plan";

/// A folder with a state folder in it, and the key of that.
pub(super) struct Host {
    pub(super) folder: tempfile::TempDir,
    pub(super) key: HostKey,
}

impl Host {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let key = HostKey::load_or_create(&folder.path().join("state")).expect("a key");
        Self { folder, key }
    }

    pub(super) fn trusted(&self) -> TrustedKeys {
        TrustedKeys::load(&self.folder.path().join("state")).expect("keys")
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Publishes the example image under this name.
    pub(super) fn publish(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        let (writer, contents) = self.begin(&path);
        writer.publish(contents, &self.key).expect("published");
        path
    }

    /// The example image, all but published.
    pub(super) fn begin(&self, path: &Path) -> (ImageWriter, Contents) {
        let mut writer = ImageWriter::create(path, vec![]).expect("begun");
        let disk = self.path("source-disk");
        std::fs::write(&disk, vec![7; 100_000]).expect("a disk");
        add_disk(&mut writer, &File::open(&disk).expect("a disk")).expect("copied");
        fill(&writer, &self.key).expect("filled");
        (writer, contents())
    }
}

/// Copies a disk into the image, as the monitor does.
pub(super) fn add_disk(writer: &mut ImageWriter, disk: &File) -> Result<(), ImageError> {
    let name = writer.add_disk()?;
    let copy = writer.part(name).expect("it was just added");
    copy_disk(disk, copy).map_err(|source| ImageError::System {
        action: "copy a disk to",
        path: name.to_string().into(),
        source,
    })
}

/// Writes what the monitor writes.
pub(super) fn fill(writer: &ImageWriter, key: &HostKey) -> io::Result<()> {
    writer
        .set_memory_len(MEMORY_LEN)
        .map_err(io::Error::other)?;
    let file = |name| writer.part(name).expect("a part");
    let memory = memory();
    // The second chunk stays a hole.
    let (first, rest) = memory.split_at(CHUNK_LEN);
    let rest = &rest[CHUNK_LEN..];
    let write = |bytes: &[u8], at| file(PartName::Memory).write_all_at(bytes, at);
    write(&first[..4096], 0)?;
    write(rest, 2 * CHUNK_LEN as u64)?;
    let mut hasher = ChunkHasher::new(writer.digests(), 0);
    hasher.update(first)?;
    hasher.zeros(CHUNK_LEN as u64)?;
    hasher.update(rest)?;
    hasher.finish()?;

    let write = |name, bytes: &[u8]| file(name).write_all_at(bytes, 0);
    write(PartName::State, STATE)?;
    write(PartName::Plan, PLAN)?;
    let commitments = commitments(
        &key.commitment_key(writer.id()),
        [&b"first value"[..], b"second value"].into_iter(),
    );
    write(PartName::Needles, &commitments)
}

/// The example's guest RAM.
pub(super) fn memory() -> Vec<u8> {
    let mut memory = vec![0; usize::try_from(MEMORY_LEN).expect("small")];
    memory[10] = 1;
    memory[2 * CHUNK_LEN + 5000] = 2;
    memory[3 * CHUNK_LEN + 4095] = 3;
    memory
}

/// What the example's writer says.
pub(super) fn contents() -> Contents {
    let secret = |name: &str, version| Secret {
        name: name.parse().expect("a name"),
        reference: format!("env:{name}"),
        mode: 0o400,
        uid: 0,
        gid: 0,
        export_env: false,
        version,
        policy: RestorePolicy::Reissue,
    };
    Contents {
        machine: Machine {
            cpus: 1,
            memory: vec![
                MemoryRegion {
                    guest_start: 0,
                    length: 2 * CHUNK_LEN as u64,
                    file_offset: 0,
                },
                MemoryRegion {
                    guest_start: 1 << 32,
                    length: MEMORY_LEN - 2 * CHUNK_LEN as u64,
                    file_offset: 2 * CHUNK_LEN as u64,
                },
            ],
            devices: vec!["secrets".into(), "vsock".into(), "block".into()],
            cpu: CpuBaseline {
                vendor: "AuthenticAMD".into(),
                features: ["sse2".into(), "avx2".into()].into(),
                fingerprint: Digest::of(b"cpuid"),
            },
        },
        guest: Guest {
            name: "example".into(),
            cmdline: Digest::of(b"console=ttyS0"),
            disks: vec![Disk {
                source: "/srv/data.img".into(),
                read_only: false,
                length: 100_000,
                part: Some(PartName::Disk(0)),
                blake3: None,
            }],
            vsock_cid: 3,
            keeper: serde_json::json!({ "command": ["sh"] }),
        },
        secrets: vec![secret("API_KEY", 1), secret("DB_PASSWORD", 2)],
        receipt: Receipt {
            scanner: "cachot 0.1.0".into(),
            policy: OnResidue::Redact,
            residue_kept: false,
            needles: 2,
            degenerate_windows: 1,
            short_values: vec![],
            bytes_scanned: 123,
            hits: vec![Hits {
                place: Place::Ram,
                encoding: "base64".into(),
                count: 3,
            }],
            redactions: vec![Redactions {
                place: Place::AttachedPage,
                ranges: 2,
                bytes: 23,
            }],
            residue: vec![],
            not_proved: vec!["what was computed from a value was not searched for".into()],
        },
        lineage: vec![],
    }
}
