//! A folder with a host's state, and real images in it.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use cachot_snapshot::image::{
    CHUNK_LEN, Contents, CpuBaseline, Digest, Disk, Guest, Hits, HostKey, ImageWriter, Machine,
    MemoryRegion, OnResidue, PartName, Place as Where, Receipt, Recipient, Redactions,
    RestorePolicy, Secret, commitments,
};

/// The value of `API_KEY` in images, and of the variable `API_TOKEN` in commands.
pub const VALUE: &str = "tk-demo-X4hQ2xV9bLk7mZr81TsYc63NdWf5jPuG";

/// The value of `DB` in images, and in the file `db`.
pub const DB_VALUE: &str = "correct/horse+battery~staple";

/// Bytes of RAM in images: three chunks and a bit.
pub const MEMORY_LEN: u64 = 3 * CHUNK_LEN as u64 + 4096;

/// A folder with a state folder in it.
pub struct Place(tempfile::TempDir);

/// An image that differs from the usual one.
#[derive(Default)]
pub struct Special<'a> {
    /// What else is in its memory.
    pub memory: &'a [(u64, &'a [u8])],
    /// What is in its state.
    pub state: &'a [u8],
    /// What is at the end of its disk.
    pub disk: &'a [u8],
    pub residue_kept: bool,
    pub recipients: Vec<Recipient>,
    /// State folder of the host that makes it.
    pub host: Option<&'a Path>,
}

impl Place {
    pub fn new() -> Self {
        let place = Self(tempfile::tempdir().expect("a folder"));
        place.file("db", DB_VALUE.as_bytes());
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).expect("written");
        path
    }

    pub fn folder(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).expect("made");
        path
    }

    /// A file with these bytes at these places and noise everywhere else.
    pub fn noise(&self, name: &str, len: usize, plants: &[(usize, &[u8])]) -> PathBuf {
        let mut state = 0x9e37_79b9_u32;
        let mut content: Vec<u8> = (0..len)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                state.to_le_bytes()[3]
            })
            .collect();
        for (at, bytes) in plants {
            content[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        self.file(name, &content)
    }

    /// Replaces `@` in front of a name by the folder.
    fn word(&self, word: &str) -> String {
        word.replace('@', &format!("{}/", self.0.path().display()))
    }

    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cachot"));
        command
            .arg("snapshot")
            .args(words.iter().map(|word| self.word(word)))
            .env_clear()
            .env("CACHOT_STATE", self.path("state"))
            .env("API_TOKEN", VALUE)
            .current_dir(self.0.path())
            .stdin(Stdio::null());
        command
    }

    pub fn cachot(&self, words: &[&str]) -> Ran {
        Ran::of(&mut self.command(words))
    }

    /// Publishes the usual image, without residue.
    pub fn publish(&self, name: &str) -> PathBuf {
        self.publish_special(name, Special::default())
    }

    pub fn publish_special(&self, name: &str, special: Special<'_>) -> PathBuf {
        let state = self.path("state");
        let key = HostKey::load_or_create(special.host.unwrap_or(&state)).expect("a key");
        let path = self.path(name);
        let mut writer = ImageWriter::create(&path, special.recipients).expect("begun");
        let mut disk = vec![7; 100_000];
        disk.extend(special.disk);
        let disk_len = disk.len() as u64;
        let disk_part = writer.add_disk().expect("added");
        writer.set_memory_len(MEMORY_LEN).expect("a length");
        let write = |part: PartName, at: u64, bytes: &[u8]| {
            let file = writer.part(part).expect("a part");
            file.write_all_at(bytes, at).expect("written");
        };
        write(PartName::Memory, 10, b"a");
        for (at, bytes) in special.memory {
            write(PartName::Memory, *at, bytes);
        }
        write(disk_part, 0, &disk);
        write(PartName::State, 0, b"state of the machine");
        write(PartName::State, 20, special.state);
        let values = [VALUE, DB_VALUE].map(str::as_bytes);
        let needles = commitments(&key.commitment_key(writer.id()), values.into_iter());
        write(PartName::Needles, 0, &needles);
        let contents = contents(disk_len, special.residue_kept, &self.path("db"));
        writer.publish(contents, &key).expect("published");
        path
    }
}

fn contents(disk_len: u64, residue_kept: bool, db: &Path) -> Contents {
    let secret = |name: &str, reference: String| Secret {
        name: name.parse().expect("a name"),
        reference,
        mode: 0o440,
        uid: 1000,
        gid: 0,
        export_env: false,
        version: 3,
        policy: RestorePolicy::Reissue,
    };
    Contents {
        machine: Machine {
            cpus: 2,
            memory: vec![MemoryRegion {
                guest_start: 0,
                length: MEMORY_LEN,
                file_offset: 0,
            }],
            devices: vec!["secrets".into(), "vsock".into()],
            cpu: CpuBaseline {
                vendor: "AuthenticAMD".into(),
                features: ["sse2".into()].into(),
                fingerprint: Digest::of(b"cpuid"),
            },
        },
        guest: Guest {
            name: "example".into(),
            cmdline: Digest::of(b"console=ttyS0"),
            disks: vec![Disk {
                source: "/srv/data.img".into(),
                read_only: false,
                length: disk_len,
                part: Some(PartName::Disk(0)),
                blake3: None,
            }],
            vsock_cid: 3,
            keeper: serde_json::json!({ "command": ["sh"] }),
        },
        secrets: vec![
            secret("API_KEY", "env:API_TOKEN".into()),
            secret("DB", format!("file:{}", db.display())),
        ],
        receipt: Receipt {
            scanner: "cachot 0.1.0".into(),
            policy: OnResidue::Redact,
            residue_kept,
            needles: 2,
            degenerate_windows: 4,
            short_values: vec!["PIN".parse().expect("a name")],
            bytes_scanned: 123 << 20,
            hits: vec![Hits {
                place: Where::Ram,
                encoding: "base64".into(),
                count: 3,
            }],
            redactions: vec![Redactions {
                place: Where::AttachedPage,
                ranges: 2,
                bytes: 8192,
            }],
            residue: vec![],
            not_proved: vec!["what was computed from a value was not searched for".into()],
        },
        lineage: vec![[0xab; 16].into()],
    }
}

/// How a command ended.
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// Runs it. No command may ever say a value.
    pub fn of(command: &mut Command) -> Self {
        let Output {
            status,
            stdout,
            stderr,
        } = command.output().expect("it runs");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        let ran = Self {
            code: status.code(),
            out: text(stdout),
            err: text(stderr),
        };
        for value in [VALUE, DB_VALUE] {
            for piece in [&value[..12], &value[value.len() - 12..]] {
                assert!(!ran.out.contains(piece), "{}", ran.out);
                assert!(!ran.err.contains(piece), "{}", ran.err);
            }
        }
        ran
    }

    /// Its output, after it ended with this code.
    pub fn ended(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{}{}", self.out, self.err);
        self.out
    }

    /// Its output as JSON, after it ended with this code.
    pub fn json(self, code: i32) -> serde_json::Value {
        serde_json::from_str(&self.ended(code)).expect("JSON")
    }

    /// Its one line of complaint, after it ended with this code and no output.
    pub fn refused(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{}{}", self.out, self.err);
        assert_eq!(self.out, "");
        assert_eq!(self.err.lines().count(), 1, "{}", self.err);
        assert!(self.err.starts_with("cachot: "), "{}", self.err);
        self.err
    }
}

/// Changes a byte of a file.
pub fn flip(path: &Path, at: u64) {
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .expect("open");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("read");
    file.write_all_at(&[byte[0] ^ 1], at).expect("written");
}

/// Makes a file private.
pub fn private(path: &Path) {
    fs::set_permissions(path, PermissionsExt::from_mode(0o600)).expect("private");
}
