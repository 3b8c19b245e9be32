//! Copies that the kernel keeps: in a pipe, in a socket, and in the page cache of a file system.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, ensure};
use rustix::net::RecvFlags;
use rustix::pipe::PipeFlags;

use super::place::Place;

/// Name of the files.
const NAME: &str = "held";

/// `f_type` of tmpfs, and of ramfs, which has no pages elsewhere either (linux/magic.h).
const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];

/// Both ends of a pipe.
pub struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
}

impl Pipe {
    pub fn new(bytes: &[u8]) -> anyhow::Result<Self> {
        let flags = PipeFlags::CLOEXEC | PipeFlags::NONBLOCK;
        let (reader, writer) = rustix::pipe::pipe_with(flags).context("cannot make a pipe")?;
        let pipe = Self { reader, writer };
        pipe.put(bytes)?;
        Ok(pipe)
    }

    fn put(&self, bytes: &[u8]) -> anyhow::Result<()> {
        let written = rustix::io::write(&self.writer, bytes).context("cannot write to the pipe")?;
        ensure!(written == bytes.len(), "the pipe took {written} bytes");
        Ok(())
    }
}

impl Place for Pipe {
    fn look(&mut self, bytes: &mut [u8]) -> anyhow::Result<()> {
        let read = rustix::io::read(&self.reader, &mut *bytes).context("cannot read the pipe")?;
        ensure!(read == bytes.len(), "the pipe had {read} bytes");
        self.put(bytes)
    }
}

/// Both ends of a Unix socket.
pub struct Socket {
    reader: UnixStream,
    _writer: UnixStream,
}

impl Socket {
    pub fn new(bytes: &[u8]) -> anyhow::Result<Self> {
        let (reader, mut writer) = UnixStream::pair().context("cannot make a socket")?;
        writer
            .write_all(bytes)
            .context("cannot write to the socket")?;
        Ok(Self {
            reader,
            _writer: writer,
        })
    }
}

impl Place for Socket {
    /// It stays in the socket: reading it would free the buffer, and leave one more copy.
    fn look(&mut self, bytes: &mut [u8]) -> anyhow::Result<()> {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let (read, _) = rustix::net::recv(&self.reader, &mut *bytes, flags)
            .context("cannot read the socket")?;
        ensure!(read == bytes.len(), "the socket has {read} bytes");
        Ok(())
    }
}

/// A file whose pages are in the page cache.
pub struct CachedFile(File);

impl CachedFile {
    /// Writes `folder/held`, and to the disk only if told to `sync`.
    pub fn new(folder: &Path, bytes: &[u8], sync: bool) -> anyhow::Result<Self> {
        let path = folder.join(NAME);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        file.write_all_at(bytes, 0)
            .with_context(|| format!("cannot write {}", path.display()))?;
        if sync {
            file.sync_all()
                .with_context(|| format!("cannot sync {}", path.display()))?;
        }
        Ok(Self(file))
    }

    /// The same in a folder of a file system that has no disk.
    pub fn in_memory(folder: &Path, bytes: &[u8]) -> anyhow::Result<Self> {
        let system = rustix::fs::statfs(folder)
            .with_context(|| format!("cannot look at {}", folder.display()))?;
        ensure!(
            IN_MEMORY.contains(&system.f_type),
            "{} is not on tmpfs; give another folder with --tmpfs",
            folder.display()
        );
        Self::new(folder, bytes, false)
    }
}

impl Place for CachedFile {
    fn look(&mut self, bytes: &mut [u8]) -> anyhow::Result<()> {
        self.0
            .read_exact_at(bytes, 0)
            .context("cannot read the file")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pattern;

    #[test]
    fn test_pipe_socket_and_file_hold_the_value() {
        let folder = tempfile::tempdir().expect("a folder");
        let shared = tempfile::tempdir_in("/dev/shm").expect("a folder");
        for len in [40, 4096] {
            let value = pattern::bytes(130, len);
            let places: [Box<dyn Place>; 4] = [
                Box::new(Pipe::new(&value).expect("a pipe")),
                Box::new(Socket::new(&value).expect("a socket")),
                Box::new(CachedFile::new(folder.path(), &value, true).expect("a file")),
                Box::new(CachedFile::in_memory(shared.path(), &value).expect("a file")),
            ];
            for mut place in places {
                for _ in 0..3 {
                    let mut bytes = vec![0; len];
                    place.look(&mut bytes).expect("readable");
                    assert_eq!(bytes, value);
                }
            }
        }
        // Other than the memory, the files can be seen from outside.
        for folder in [folder, shared] {
            let content = std::fs::read(folder.path().join(NAME)).expect("readable");
            assert_eq!(content, pattern::bytes(130, 4096));
        }
    }

    #[test]
    fn test_in_memory_refuses_another_file_system() {
        assert!(CachedFile::in_memory(Path::new("/proc"), b"value").is_err());
    }
}
