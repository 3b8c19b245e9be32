//! Taking values out of this process's own environment, where `/proc/PID/environ` shows them.

use std::ffi::{CStr, OsString, c_char};
use std::io;
use std::slice;
use std::thread;
use std::time::{Duration, Instant};

use zeroize::{Zeroize, Zeroizing};

/// How long threads that are ending are waited for; the kernel needs microseconds, and the rest is for a busy machine.
const PATIENCE: Duration = Duration::from_secs(1);

unsafe extern "C" {
    /// The C library's vector of `NAME=value` strings, ended by a null pointer (POSIX).
    static environ: *const *mut c_char;
}

/// Why the environment was left as it is.
#[derive(Debug, thiserror::Error)]
pub enum ScrubError {
    /// The process has more than one thread.
    #[error(
        "cannot remove secrets from the environment: {0} threads are running, and it must be done before any is started"
    )]
    Threads(usize),
    /// The number of threads could not be found out.
    #[error("cannot remove secrets from the environment: /proc/self/task is not readable")]
    Proc(#[source] io::Error),
}

/// Overwrites the values of these environment variables with zero bytes and removes the variables.
///
/// Removing a variable alone leaves its bytes where the kernel put them when the program was
/// started, and `/proc/PID/environ` goes on showing them to every process of the same user. After
/// this call the block holds `NAME=` and zero bytes. Names that are not set are passed over. The
/// process that started this one still has the variable: that one is the user's. If none is set, there is nothing to do, whatever threads run.
///
/// Call it once the values are resolved and before the first thread is started that goes on.
///
/// # Errors
/// See [`ScrubError`]; nothing has been changed then.
pub fn scrub_environment<N: AsRef<str>>(
    names: impl IntoIterator<Item = N>,
) -> Result<(), ScrubError> {
    // A copy of the value, which is wiped; names that no variable has have none.
    let copy = |name: &N| std::env::var_os(name.as_ref()).map(OsString::into_encoded_bytes);
    let names = names
        .into_iter()
        .filter(|name| copy(name).map(Zeroizing::new).is_some());
    let names: Vec<_> = names.collect();
    if names.is_empty() {
        return Ok(());
    }
    // Only this thread could start another one, so what is read here stays true to the end.
    let since = Instant::now();
    loop {
        match threads().map_err(ScrubError::Proc)? {
            1 => break,
            // A thread that was joined is still in the list for as long as the kernel takes it apart.
            _ if since.elapsed() < PATIENCE => thread::sleep(Duration::from_millis(1)),
            threads => return Err(ScrubError::Threads(threads)),
        }
    }
    for name in names {
        let name = name.as_ref();
        // `remove_var` panics on the two kinds of names that no variable has.
        if name.is_empty() || name.contains(['=', '\0']) {
            continue;
        }
        // SAFETY: there is no other thread that could read or change the environment meanwhile.
        unsafe {
            wipe_values(name.as_bytes());
            std::env::remove_var(name);
        }
    }
    Ok(())
}

/// How many threads this process has.
fn threads() -> io::Result<usize> {
    Ok(std::fs::read_dir("/proc/self/task")?.count())
}

/// Overwrites the value in every string of the environment that begins with `name` and `=`; there
/// can be several with the same name, of which `getenv` shows only the first.
///
/// # Safety
/// No other thread may use the environment during the call.
unsafe fn wipe_values(name: &[u8]) {
    // SAFETY: `environ` is null or a vector of pointers to C strings that ends with a null pointer,
    // and by the contract above nothing changes it meanwhile. The strings are writable: the
    // kernel's are on this process's stack, those of `setenv` (which is what Rust's `set_var`
    // calls) on its heap, and no code here calls `putenv`, which could add one of a third kind.
    // No Rust reference to them exists, as `std::env` returns copies.
    unsafe {
        let mut entry = environ;
        while !entry.is_null() && !(*entry).is_null() {
            let string = CStr::from_ptr(*entry).to_bytes();
            let value = string
                .strip_prefix(name)
                .and_then(|rest| rest.strip_prefix(b"="))
                .map(|value| (string.len() - value.len(), value.len()));
            if let Some((offset, len)) = value {
                let start = (*entry).cast::<u8>().add(offset);
                slice::from_raw_parts_mut(start, len).zeroize();
            }
            entry = entry.add(1);
        }
    }
}
