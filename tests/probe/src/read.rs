//! All the ways to read a file, and to try to change one.

use std::ffi::c_void;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};
use rustix::pipe::SpliceFlags;

use crate::pattern;

/// Compares `path` with `value` in every way; answers their names.
pub fn verify(path: &Path, value: &[u8]) -> anyhow::Result<Vec<&'static str>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let size = file.metadata()?.len();
    ensure!(
        size == value.len() as u64,
        "its size is {size}, not {}",
        value.len()
    );
    type Way = fn(&File, usize) -> anyhow::Result<Vec<u8>>;
    let ways: [(&'static str, Way); 6] = [
        ("read", by_read),
        ("read of odd sizes", by_odd_reads),
        ("pread backwards", by_pread_backwards),
        ("mmap", by_mmap),
        ("sendfile", by_sendfile),
        ("splice", by_splice),
    ];
    for (way, read) in ways {
        let got = read(&file, value.len()).with_context(|| format!("{way} failed"))?;
        ensure!(got.len() == value.len(), "{way} gave {} bytes", got.len());
        if let Some(at) = got.iter().zip(value).position(|(a, b)| a != b) {
            bail!("{way} differs at byte {at}");
        }
    }
    Ok(ways.map(|(way, _)| way).into())
}

/// Compares `path` with a value byte by byte in a mapping: nothing of it is copied to memory.
pub fn look(path: &Path, seed: u64, len: usize) -> anyhow::Result<()> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mapping = Mapping::new(&file, len)?;
    for at in 0..len {
        ensure!(
            mapping.byte(at) == pattern::byte(seed, at),
            "differs at byte {at}"
        );
    }
    Ok(())
}

fn by_read(mut file: &File, len: usize) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(len);
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn by_odd_reads(mut file: &File, len: usize) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(len);
    let mut piece = [0; 997];
    file.rewind()?;
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(bytes),
            more => bytes.extend_from_slice(&piece[..more]),
        }
    }
}

fn by_pread_backwards(file: &File, len: usize) -> anyhow::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let mut end = len;
    while end > 0 {
        let start = end.saturating_sub(4099);
        file.read_exact_at(&mut bytes[start..end], start as u64)?;
        end = start;
    }
    ensure!(
        file.read_at(&mut [0], len as u64)? == 0,
        "there are bytes after the end"
    );
    Ok(bytes)
}

fn by_mmap(file: &File, len: usize) -> anyhow::Result<Vec<u8>> {
    let mapping = Mapping::new(file, len)?;
    Ok((0..len).map(|at| mapping.byte(at)).collect())
}

fn by_sendfile(mut file: &File, len: usize) -> anyhow::Result<Vec<u8>> {
    let mut copy = File::from(rustix::fs::memfd_create("copy", MemfdFlags::CLOEXEC)?);
    file.rewind()?;
    while rustix::fs::sendfile(&copy, file, None, len)? > 0 {}
    let mut bytes = Vec::with_capacity(len);
    copy.rewind()?;
    copy.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn by_splice(mut file: &File, len: usize) -> anyhow::Result<Vec<u8>> {
    let (reader, writer) = rustix::pipe::pipe()?;
    let mut reader = File::from(reader);
    let mut bytes = Vec::with_capacity(len);
    file.seek(SeekFrom::Start(0))?;
    loop {
        let moved = rustix::pipe::splice(
            file,
            None,
            writer.as_fd(),
            None,
            65536,
            SpliceFlags::empty(),
        )?;
        if moved == 0 {
            return Ok(bytes);
        }
        let start = bytes.len();
        bytes.resize(start + moved, 0);
        reader.read_exact(&mut bytes[start..])?;
    }
}

/// Tries to open, map and change `path` for writing; answers the error of each way.
pub fn refuses_writes(path: &Path) -> anyhow::Result<Vec<(&'static str, Errno)>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let map = |protection, flags| {
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours; if
        // it succeeds the test fails and the process ends.
        unsafe { rustix::mm::mmap(std::ptr::null_mut(), 1, protection, flags, &file, 0) }.err()
    };
    let readable = Mapping::new(&file, 1)?;
    let io = |result: std::io::Result<()>| {
        result
            .err()
            .map(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    };
    let write = ProtFlags::READ | ProtFlags::WRITE;
    let ways = [
        (
            "open for writing",
            io(OpenOptions::new().append(true).open(path).map(drop)),
        ),
        (
            "truncate",
            io(OpenOptions::new()
                .write(true)
                .truncate(true)
                .open(path)
                .map(drop)),
        ),
        ("unlink", io(std::fs::remove_file(path))),
        (
            "rename",
            io(std::fs::rename(path, path.with_extension("moved"))),
        ),
        (
            "create beside it",
            io(File::create(path.with_extension("new")).map(drop)),
        ),
        ("map shared writable", map(write, MapFlags::SHARED)),
        ("map private writable", map(write, MapFlags::PRIVATE)),
        (
            "map executable",
            map(ProtFlags::READ | ProtFlags::EXEC, MapFlags::PRIVATE),
        ),
        ("make a mapping writable", readable.protect(write)),
        (
            "make a mapping executable",
            readable.protect(ProtFlags::READ | ProtFlags::EXEC),
        ),
    ];
    ways.into_iter()
        .map(|(way, errno)| Ok((way, errno.with_context(|| format!("{way} was possible"))?)))
        .collect()
}

/// A read-only mapping of a whole file.
pub struct Mapping {
    start: *mut c_void,
    len: usize,
}

impl Mapping {
    pub fn new(file: &File, len: usize) -> anyhow::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let start = unsafe {
            let (protection, flags) = (ProtFlags::READ, MapFlags::SHARED);
            rustix::mm::mmap(std::ptr::null_mut(), len, protection, flags, file, 0)
        }
        .context("cannot map it")?;
        Ok(Self { start, len })
    }

    pub fn byte(&self, at: usize) -> u8 {
        assert!(at < self.len);
        // SAFETY: `at` lies in the mapping, which lives as long as `self`; the host may change the
        // byte at any time, hence volatile.
        unsafe { self.start.cast::<u8>().add(at).read_volatile() }
    }

    fn protect(&self, flags: ProtFlags) -> Option<Errno> {
        let bits = rustix::mm::MprotectFlags::from_bits_retain(flags.bits());
        // SAFETY: the mapping is ours alone and holds no Rust object.
        unsafe { rustix::mm::mprotect(self.start, self.len, bits) }.err()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` and nothing refers to it any more.
        let unmapped = unsafe { rustix::mm::munmap(self.start, self.len) };
        debug_assert_eq!(unmapped, Ok(()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn test_verify_same_and_changed_value() {
        let value = pattern::bytes(3, 70_000);
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(&value).expect("written");
        assert_eq!(verify(file.path(), &value).expect("the same").len(), 6);
        look(file.path(), 3, value.len()).expect("the same");

        let mut other = value.clone();
        other[69_999] ^= 1;
        assert!(verify(file.path(), &other).is_err());
        assert!(look(file.path(), 4, value.len()).is_err());
    }

    #[test]
    fn test_refuses_writes_of_a_plain_file_fails() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(b"x").expect("written");
        assert!(refuses_writes(file.path()).is_err());
    }
}
