//! Copies in the registers of a thread that spins, and nowhere else while it does.

use std::arch::asm;
use std::arch::is_x86_feature_detected as has;
use std::mem::offset_of;
use std::rc::Rc;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Context;

use super::place::Place;
use super::wipe;

/// Bytes in vector registers: YMM4 to YMM7, or XMM4 to XMM11 if there is no AVX.
pub const VECTORS: usize = 128;
/// Bytes in R8 to R15.
pub const GENERAL: usize = 64;

const VECTOR_WORDS: usize = VECTORS / 8;
const WORDS: usize = (VECTORS + GENERAL) / 8;

/// What the thread gets and gives back.
#[repr(C)]
struct Exchange {
    /// What goes into the registers, vectors first. Zeros while it is there.
    words: [AtomicU64; WORDS],
    /// Not 0: put it back.
    stop: AtomicU32,
    /// Not 0: it is in the registers.
    loaded: AtomicU32,
    turn: Barrier,
}

/// The thread.
pub struct Spinner(&'static Exchange);

impl Spinner {
    /// Puts the first bytes of `value` into vector registers, and again into general ones.
    pub fn start(value: &[u8]) -> anyhow::Result<Rc<Self>> {
        let exchange: &Exchange = Box::leak(Box::new(Exchange {
            words: [const { AtomicU64::new(0) }; WORDS],
            stop: AtomicU32::new(0),
            loaded: AtomicU32::new(0),
            turn: Barrier::new(2),
        }));
        let (vectors, general) = exchange.words.split_at(VECTOR_WORDS);
        for words in [vectors, general] {
            for (word, bytes) in words.iter().zip(value.chunks(8)) {
                let mut eight = [0; 8];
                eight[..bytes.len()].copy_from_slice(bytes);
                word.store(u64::from_le_bytes(eight), Ordering::Release);
            }
        }
        thread::Builder::new()
            .name("registers".into())
            .spawn(|| spin_forever(exchange))
            .context("cannot start a thread")?;
        let spinner = Self(exchange);
        spinner.until_loaded();
        Ok(Rc::new(spinner))
    }

    fn until_loaded(&self) {
        while self.0.loaded.load(Ordering::Acquire) == 0 {
            // To sleep, for the thread has the lowest priority, and there may be one processor.
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Has the registers put into `words` for as long as `read` takes.
    fn stop(&self, read: impl FnOnce(&[AtomicU64; WORDS])) {
        self.0.stop.store(1, Ordering::Release);
        self.0.turn.wait();
        read(&self.0.words);
        self.0.loaded.store(0, Ordering::Release);
        self.0.stop.store(0, Ordering::Release);
        self.0.turn.wait();
        self.until_loaded();
    }
}

/// The vector registers of the thread.
pub struct Vectors(pub Rc<Spinner>);
/// Its general-purpose registers.
pub struct General(pub Rc<Spinner>);

impl Place for Vectors {
    fn look(&mut self, bytes: &mut [u8]) -> anyhow::Result<()> {
        self.0.stop(|words| copy(&words[..VECTOR_WORDS], bytes));
        Ok(())
    }
}

impl Place for General {
    fn look(&mut self, bytes: &mut [u8]) -> anyhow::Result<()> {
        self.0.stop(|words| copy(&words[VECTOR_WORDS..], bytes));
        Ok(())
    }
}

fn copy(words: &[AtomicU64], bytes: &mut [u8]) {
    for (word, bytes) in words.iter().zip(bytes.chunks_mut(8)) {
        let eight = word.load(Ordering::Acquire).to_le_bytes();
        bytes.copy_from_slice(&eight[..bytes.len()]);
    }
}

fn spin_forever(exchange: &Exchange) -> ! {
    // A guest with one processor has other things to do too. Without it they are only slower.
    if let Err(error) = rustix::process::nice(19) {
        eprintln!("the spinning thread stays at its priority: {error}");
    }
    let avx = has!("avx");
    loop {
        wipe::traces();
        if avx {
            // SAFETY: the processor has it.
            unsafe { spin_avx(exchange) };
        } else {
            spin_sse(exchange);
        }
        exchange.turn.wait();
        exchange.turn.wait();
    }
}

/// R8 to R15 from the words and back.
macro_rules! general {
    (load) => {
        concat!(
            "mov r8, [rdi + 128]\n mov r9, [rdi + 136]\n mov r10, [rdi + 144]\n mov r11, [rdi + 152]\n",
            "mov r12, [rdi + 160]\n mov r13, [rdi + 168]\n mov r14, [rdi + 176]\n mov r15, [rdi + 184]",
        )
    };
    (store) => {
        concat!(
            "mov [rdi + 128], r8\n mov [rdi + 136], r9\n mov [rdi + 144], r10\n mov [rdi + 152], r11\n",
            "mov [rdi + 160], r12\n mov [rdi + 168], r13\n mov [rdi + 176], r14\n mov [rdi + 184], r15\n",
            "xor r8d, r8d\n xor r9d, r9d\n xor r10d, r10d\n xor r11d, r11d\n",
            "xor r12d, r12d\n xor r13d, r13d\n xor r14d, r14d\n xor r15d, r15d",
        )
    };
}

/// Wipes the words, says so, and goes round until it is stopped. (PAUSE might leave a guest each time.)
macro_rules! wait {
    () => {
        concat!(
            "mov ecx, {words}\n 2: mov qword ptr [rdi + 8 * rcx - 8], 0\n dec ecx\n jnz 2b\n",
            "mov dword ptr [rdi + {loaded}], 1\n 3: cmp dword ptr [rdi + {stop}], 0\n je 3b",
        )
    };
}

/// # Safety
/// The processor must have AVX.
unsafe fn spin_avx(exchange: &Exchange) {
    // SAFETY: it reads and writes the exchange alone, and changes only registers that are listed.
    unsafe {
        asm!(
            "vmovdqu ymm4, [rdi]", "vmovdqu ymm5, [rdi + 32]",
            "vmovdqu ymm6, [rdi + 64]", "vmovdqu ymm7, [rdi + 96]",
            general!(load),
            wait!(),
            "vmovdqu [rdi], ymm4", "vmovdqu [rdi + 32], ymm5",
            "vmovdqu [rdi + 64], ymm6", "vmovdqu [rdi + 96], ymm7",
            general!(store),
            "vzeroall",
            words = const WORDS,
            loaded = const offset_of!(Exchange, loaded),
            stop = const offset_of!(Exchange, stop),
            in("rdi") exchange,
            out("rcx") _,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            out("r12") _, out("r13") _, out("r14") _, out("r15") _,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
            out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
            out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
            out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
            options(nostack)
        );
    }
}

fn spin_sse(exchange: &Exchange) {
    // SAFETY: it reads and writes the exchange alone, and changes only registers that are listed.
    unsafe {
        asm!(
            "movdqu xmm4, [rdi]", "movdqu xmm5, [rdi + 16]",
            "movdqu xmm6, [rdi + 32]", "movdqu xmm7, [rdi + 48]",
            "movdqu xmm8, [rdi + 64]", "movdqu xmm9, [rdi + 80]",
            "movdqu xmm10, [rdi + 96]", "movdqu xmm11, [rdi + 112]",
            general!(load),
            wait!(),
            "movdqu [rdi], xmm4", "movdqu [rdi + 16], xmm5",
            "movdqu [rdi + 32], xmm6", "movdqu [rdi + 48], xmm7",
            "movdqu [rdi + 64], xmm8", "movdqu [rdi + 80], xmm9",
            "movdqu [rdi + 96], xmm10", "movdqu [rdi + 112], xmm11",
            general!(store),
            "pxor xmm4, xmm4", "pxor xmm5, xmm5", "pxor xmm6, xmm6", "pxor xmm7, xmm7",
            "pxor xmm8, xmm8", "pxor xmm9, xmm9", "pxor xmm10, xmm10", "pxor xmm11, xmm11",
            words = const WORDS,
            loaded = const offset_of!(Exchange, loaded),
            stop = const offset_of!(Exchange, stop),
            in("rdi") exchange,
            out("rcx") _,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            out("r12") _, out("r13") _, out("r14") _, out("r15") _,
            out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
            out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
            options(nostack)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{pattern, process};

    #[test]
    fn test_registers_hold_the_value_and_memory_does_not() {
        for len in [40, 4096] {
            let value = pattern::bytes(120, len);
            let spinner = Spinner::start(&value).expect("a thread");
            for _ in 0..3 {
                let mut bytes = vec![0; len.min(VECTORS)];
                Vectors(spinner.clone()).look(&mut bytes).expect("it stops");
                assert_eq!(bytes, value[..bytes.len()]);
                let mut bytes = vec![0; len.min(GENERAL)];
                General(spinner.clone()).look(&mut bytes).expect("it stops");
                assert_eq!(bytes, value[..bytes.len()]);
            }

            let words = spinner.0.words.as_ptr().addr() as u64;
            let in_words = || {
                let scan = process::scan(std::process::id(), &value[..40]).expect("readable");
                let inside = |address: u64| (words..words + 192).contains(&address);
                scan.hits.iter().filter(|hit| inside(hit.address)).count()
            };
            assert_eq!(in_words(), 0);
            // The positive control: while it stops, the value is there twice.
            spinner.stop(|_| assert_eq!(in_words(), 2));
        }
    }

    #[test]
    fn test_registers_without_avx() {
        let value = pattern::bytes(121, VECTORS + GENERAL);
        let exchange: &Exchange = Box::leak(Box::new(Exchange {
            words: std::array::from_fn(|at| {
                let bytes = value[at * 8..].first_chunk().expect("8 bytes");
                AtomicU64::new(u64::from_le_bytes(*bytes))
            }),
            stop: AtomicU32::new(0),
            loaded: AtomicU32::new(0),
            turn: Barrier::new(2),
        }));
        let thread = thread::spawn(|| spin_sse(exchange));
        Spinner(exchange).until_loaded();
        assert!(
            exchange
                .words
                .iter()
                .all(|word| word.load(Ordering::Acquire) == 0)
        );

        exchange.stop.store(1, Ordering::Release);
        thread.join().expect("it ends");

        let mut bytes = vec![0; value.len()];
        copy(&exchange.words, &mut bytes);
        assert_eq!(bytes, value);
    }
}
