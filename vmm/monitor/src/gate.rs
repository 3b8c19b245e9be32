//! Where vCPU threads rest while the machine is paused.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A gate that vCPU threads pass before every entry into the guest.
pub struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
    /// Copy of `!state.open` that is looked at before every entry into the guest.
    closed: AtomicBool,
}

struct GateState {
    open: bool,
    resting: usize,
}

impl Gate {
    /// A closed gate, nobody resting at it.
    pub fn closed() -> Self {
        Self {
            state: Mutex::new(GateState {
                open: false,
                resting: 0,
            }),
            changed: Condvar::new(),
            closed: AtomicBool::new(true),
        }
    }

    /// Lets everybody through.
    pub fn open(&self) {
        let mut state = self.lock();
        state.open = true;
        self.closed.store(false, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// Lets nobody through any more.
    pub fn close(&self) {
        let mut state = self.lock();
        state.open = false;
        self.closed.store(true, Ordering::SeqCst);
    }

    /// Whether [`Self::rest`] would wait.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Rests until the gate is open.
    pub fn rest(&self) {
        let mut state = self.lock();
        state.resting += 1;
        self.changed.notify_all();
        state = self
            .changed
            .wait_while(state, |state| !state.open)
            .unwrap_or_else(PoisonError::into_inner);
        state.resting -= 1;
    }

    /// Rests for good: a vCPU that has ended counts as one that rests.
    pub fn rest_forever(&self) -> ! {
        let mut state = self.lock();
        state.resting += 1;
        self.changed.notify_all();
        loop {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until so many threads rest; false if `timeout` is over first.
    pub fn wait_for_rest(&self, threads: usize, timeout: Duration) -> bool {
        let (_state, waited) = self
            .changed
            .wait_timeout_while(self.lock(), timeout, |state| state.resting < threads)
            .unwrap_or_else(PoisonError::into_inner);
        !waited.timed_out()
    }

    /// Locks on through poisoning: a panic ends the monitor.
    fn lock(&self) -> MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    const LONG: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_millis(50);

    #[test]
    fn test_gate_threads_rest_while_it_is_closed() {
        let gate = Arc::new(Gate::closed());
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let gate = Arc::clone(&gate);
                std::thread::spawn(move || gate.rest())
            })
            .collect();

        assert!(gate.wait_for_rest(3, LONG));
        assert!(!gate.wait_for_rest(4, SHORT), "there are only three");
        gate.open();

        for thread in threads {
            thread.join().expect("it goes on");
        }
        assert!(!gate.is_closed());
        assert!(!gate.wait_for_rest(1, SHORT), "nobody rests");
    }

    #[test]
    fn test_gate_closed_again_before_threads_have_woken_holds_them() {
        let gate = Arc::new(Gate::closed());
        let resting = Arc::clone(&gate);
        let thread = std::thread::spawn(move || resting.rest());
        assert!(gate.wait_for_rest(1, LONG));

        for _ in 0..1000 {
            gate.open();
            gate.close();
            if thread.is_finished() {
                break;
            }
            assert!(gate.is_closed());
        }

        gate.open();
        thread.join().expect("it goes on");
    }
}
