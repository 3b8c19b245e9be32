//! Loads the kernel modules that the initramfs lists, for kernels that have the drivers as modules.

use std::fs::{File, read_to_string};
use std::io;

use rustix::io::Errno;
use rustix::system::finit_module;

/// One absolute path a line, in the order in which they are to be loaded; `#` begins a comment.
const LIST: &str = "/lib/modules/load.list";

/// Loads the modules of the list and returns a message for each that could not be loaded. No list
/// means no modules.
pub fn load_all() -> Vec<String> {
    let list = match read_to_string(LIST) {
        Ok(list) => list,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => return vec![format!("cannot read {LIST}: {error}")],
    };
    paths(&list)
        .filter_map(|path| {
            let error = load(path).err()?;
            Some(format!("cannot load the module {path}: {error}"))
        })
        .collect()
}

fn paths(list: &str) -> impl Iterator<Item = &str> {
    list.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn load(path: &str) -> io::Result<()> {
    match finit_module(File::open(path)?, c"", 0) {
        // Built in, or loaded already.
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_paths_keeps_order_and_skips_blank_lines_and_comments() {
        let list = "/a.ko\n\n  # why\n\t/b.ko \n/a.ko";
        assert_eq!(paths(list).collect::<Vec<_>>(), ["/a.ko", "/b.ko", "/a.ko"]);
    }

    #[test]
    fn test_load_missing_file_is_an_error() {
        let error = load("/nonexistent.ko").expect_err("there is no such file");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
