//! A search for residue of values in files and folders: the second opinion on what a snapshot proves.
//!
//! It shares no code with the scanner that is being tested, and prefers the obvious way to the fast one.

mod forms;
mod residue;

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use rustix::io::Errno;

use residue::{Found, Hit, Needles, PAGE, Piece};

/// Bytes that are searched at once.
const STEP: u64 = 4 << 20;

/// The shortest value that can be told from chance.
const SHORTEST: usize = 8;

/// Searches `paths` for residue of the contents of the files `needles`, prints to `out` and answers how many hits
/// there are.
pub fn scan(paths: &[PathBuf], needles: &[PathBuf], out: &mut impl Write) -> anyhow::Result<usize> {
    let files = files(paths)?;
    let mut forms = Vec::new();
    for path in needles {
        let value = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        ensure!(
            value.len() >= SHORTEST,
            "{} has fewer than {SHORTEST} bytes, which occur by chance",
            path.display()
        );
        forms.extend(forms::all(&value));
    }
    let needles = Needles::new(forms);
    if needles.degenerate > 0 {
        let count = needles.degenerate;
        writeln!(out, "{count} windows of few distinct bytes do not count")?;
    }
    let (mut bytes, mut count) = (0, 0);
    for path in files {
        let (read, hits) =
            search(&path, &needles).with_context(|| format!("cannot search {}", path.display()))?;
        for hit in &hits {
            let (name, encoding) = (path.display(), hit.encoding);
            writeln!(out, "hit {name} {} {encoding} {}", hit.start, hit.len)?;
        }
        bytes += read;
        count += hits.len();
    }
    writeln!(out, "scanned {bytes} bytes, {count} hits")?;
    Ok(count)
}

/// The files that are named or in folders that are named; links in folders are not followed.
fn files(paths: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = Vec::new();
    for path in paths {
        let kind = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
        let list = if kind.is_dir() {
            &mut folders
        } else {
            &mut files
        };
        list.push(path.clone());
    }
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder);
        let entries = entries.with_context(|| format!("cannot list {}", folder.display()))?;
        for entry in entries {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Bytes that are not in holes, and all hits in the file that are in no larger one.
fn search(path: &Path, needles: &Needles) -> anyhow::Result<(u64, Vec<Hit>)> {
    let mut file = File::open(path)?;
    let size = file.seek(SeekFrom::End(0))?;
    let around = needles.longest() as u64;
    let mut found = Found::new();
    let mut hits = Vec::new();
    let (mut at, mut read) = (0, 0);
    while let Some(data) = data_from(&file, at)?.filter(|data| *data < size) {
        // Holes are zeros, and runs may begin in them: the grams of those end in the data.
        at = data;
        let from = data.saturating_sub(SHORTEST as u64 - 1);
        let to = size.min(data + STEP);
        let start = data.saturating_sub(around);
        let mut bytes = vec![0; usize::try_from(size.min(to + around) - start)?];
        file.read_exact_at(&mut bytes, start)
            .context("it became shorter")?;
        let piece = Piece {
            bytes: &bytes,
            start,
        };
        let (from, to) = (usize::try_from(from - start)?, usize::try_from(to - start)?);
        needles.search(&piece, from, to, &mut found, |hit| hits.push(hit));
        let next = start + to as u64;
        read += next - at;
        at = next;
    }
    Ok((read, without_contained(hits)))
}

/// Where data begins, at or behind this offset; nothing if only a hole is left.
fn data_from(file: &File, at: u64) -> anyhow::Result<Option<u64>> {
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)) {
        // Whole pages, so that zeros which belong to a page are not taken for a hole.
        Ok(data) => Ok(Some(at.max(data - data % PAGE as u64))),
        Err(Errno::NXIO) => Ok(None),
        // Disks have no holes that could be asked for.
        Err(Errno::INVAL) => Ok(Some(at)),
        Err(error) => Err(error).context("cannot look for holes"),
    }
}

/// A text may be the same in several forms, or repeat itself: one hit is enough.
fn without_contained(mut hits: Vec<Hit>) -> Vec<Hit> {
    hits.sort_by_key(|hit| (hit.start, usize::MAX - hit.len));
    let mut end = 0;
    hits.retain(|hit| {
        let last = hit.start + hit.len as u64;
        let more = last > end;
        end = end.max(last);
        more
    });
    hits
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;
    use crate::pattern;

    fn run(paths: &[&Path], value: &[u8]) -> String {
        let needle = tempfile::NamedTempFile::new().expect("a file");
        fs::write(needle.path(), value).expect("written");
        let paths: Vec<_> = paths.iter().map(|path| path.to_path_buf()).collect();
        let mut out = Vec::new();
        scan(&paths, &[needle.path().to_path_buf()], &mut out).expect("searched");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn test_scan_finds_runs_in_sparse_files_and_folders_across_steps() {
        let value = pattern::bytes(3, 40);
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("inner/memory");
        fs::create_dir(folder.path().join("inner")).expect("a folder");
        std::os::unix::fs::symlink(&path, folder.path().join("link")).expect("a link");
        let file = File::create(&path).expect("a file");
        file.set_len(1 << 32).expect("sparse");
        let mut wanted = String::new();
        // At the start, in the middle of nowhere, across the first and the second step of 4 MiB behind a hole, at
        // the end.
        let base = (1 << 30) + 8192;
        file.write_all_at(&vec![7; 9 << 20], base).expect("written");
        for (offset, len) in [
            (0, 40),
            (50_000, 17),
            (base + STEP - 20, 40),
            (base + 2 * STEP - 1, 30),
            ((1 << 32) - 40, 40),
        ] {
            let run = &value[..len];
            file.write_all_at(run, offset).expect("written");
            writeln!(wanted, "hit {} {offset} raw {len}", path.display()).expect("text");
        }

        let out = run(&[folder.path()], &value);

        let (hits, summary) = out.split_at(wanted.len());
        assert_eq!(hits, wanted);
        assert!(summary.ends_with(" bytes, 5 hits\n"), "{summary}");
        assert!(summary.len() < "scanned 99999999 bytes, 5 hits\n".len() + 1);
    }

    #[test]
    fn test_scan_of_something_else_has_no_hits() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), pattern::bytes(5, 100_000)).expect("written");
        let out = run(&[file.path()], b"no pattern has the steps of a sentence");
        assert_eq!(out, "scanned 100000 bytes, 0 hits\n");
        // The same file with its own value
        let out = run(&[file.path()], &pattern::bytes(5, 300));
        let wanted = format!("hit {} 0 raw 300\n", file.path().display());
        assert!(out.starts_with(&wanted), "{out}");
    }

    #[test]
    fn test_scan_shows_encodings_once_each() {
        let value = b"Token+with/some:reserved characters?";
        let file = tempfile::NamedTempFile::new().expect("a file");
        for form in forms::all(value) {
            fs::write(file.path(), &form.bytes).expect("written");
            let wanted = format!(
                "hit {} 0 {} {}\n",
                file.path().display(),
                form.encoding,
                form.bytes.len()
            );
            let out = run(&[file.path()], value);
            assert!(out.contains(&wanted), "{}: {out}", form.encoding);
            assert!(out.ends_with(" 1 hits\n"), "{out}");
        }
    }

    #[test]
    fn test_scan_refuses_short_values_and_missing_files() {
        let needle = tempfile::NamedTempFile::new().expect("a file");
        fs::write(needle.path(), b"1234567").expect("written");
        let needle = [needle.path().to_path_buf()];
        assert!(scan(&[], &needle, &mut Vec::new()).is_err());
        assert!(scan(&["/nowhere".into()], &[], &mut Vec::new()).is_err());
    }
}
