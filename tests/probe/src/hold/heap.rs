//! Copies on the heap, on what was the heap, and on the stack of a thread that sleeps.

use std::hint::black_box;
use std::sync::{Arc, Barrier, mpsc};
use std::thread;

use anyhow::{Context, ensure};
use zeroize::Zeroizing;

use super::form::{Bytes, MAX_LEN};
use super::place::Memory;
use super::wipe;

/// A chunk of the heap.
pub fn heap(bytes: &[u8]) -> Memory {
    let start = Box::into_raw(bytes.to_vec().into_boxed_slice());
    // SAFETY: nobody frees it, and nobody else knows of it.
    unsafe { Memory::new(start.cast()) }
}

/// A chunk that was freed: the allocator wrote over its first bytes. It belongs to a thread that sleeps, so nobody
/// else gets it.
pub fn freed_heap(bytes: &[u8]) -> anyhow::Result<()> {
    let copy: Bytes = Zeroizing::new(bytes.to_vec());
    let freed = Arc::new(Barrier::new(2));
    let (outcome, made) = mpsc::channel();
    let signal = freed.clone();
    sleeper("freed-heap", move || {
        // SAFETY: any length can be asked for.
        let (chunk, guard) = unsafe { (libc::malloc(copy.len()), libc::malloc(64)) };
        let chunk = black_box(chunk.cast::<u8>());
        let fits = !chunk.is_null() && !guard.is_null();
        if fits {
            for (at, byte) in copy.iter().enumerate() {
                // SAFETY: it has as many bytes; volatile, so that it is not left out as nobody reads it.
                unsafe { chunk.add(at).write_volatile(*byte) };
            }
        }
        if outcome.send(fits).is_err() {
            return;
        }
        drop(copy);
        drop(outcome);
        // The last use of the heap in this thread: what comes next might get the chunk. The one behind it keeps it
        // from becoming a part of the free end of the heap.
        // SAFETY: it was allocated above, or is null.
        unsafe { libc::free(chunk.cast()) };
        black_box(guard);
        wipe::traces();
        signal.wait();
    })?;
    ensure!(made.recv()?, "no memory");
    freed.wait();
    Ok(())
}

/// An array on the stack of a thread that sleeps.
pub fn stack(bytes: &[u8]) -> anyhow::Result<Memory> {
    ensure!(bytes.len() <= MAX_LEN, "the stack has no room for it");
    let copy: Bytes = Zeroizing::new(bytes.to_vec());
    let (address, told) = mpsc::channel();
    thread::Builder::new()
        .name("stack".into())
        .spawn(move || {
            let mut array = [0_u8; MAX_LEN];
            array[..copy.len()].copy_from_slice(&copy);
            drop(copy);
            wipe::registers();
            if address
                .send(black_box(array.as_mut_ptr()).expose_provenance())
                .is_ok()
            {
                sleep_forever();
            }
        })
        .context("cannot start a thread")?;
    let start = std::ptr::with_exposed_provenance(told.recv()?);
    // SAFETY: the thread never returns, and does nothing with the array.
    Ok(unsafe { Memory::new(start) })
}

/// A thread that does `first` and then nothing.
fn sleeper(name: &str, first: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    let body = move || {
        first();
        sleep_forever();
    };
    thread::Builder::new()
        .name(name.into())
        .spawn(body)
        .context("cannot start a thread")?;
    Ok(())
}

pub fn sleep_forever() -> ! {
    loop {
        thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::super::place::Place;
    use super::*;
    use crate::{pattern, process};

    fn hits(needle: &[u8]) -> Vec<u64> {
        let scan = process::scan(std::process::id(), needle).expect("own memory can be read");
        scan.hits.iter().map(|hit| hit.address).collect()
    }

    #[test]
    fn test_heap_and_stack_hold_the_value() {
        for len in [40, 4096] {
            let value = pattern::bytes(100, len);
            for mut place in [heap(&value), stack(&value).expect("a thread")] {
                let mut bytes = vec![0; len];
                place.look(&mut bytes).expect("readable");
                assert_eq!(bytes, value);
                assert!(hits(&value).contains(&place.address()));
            }
        }
    }
}
