//! The user's terminal: its size, and raw mode that ends however the program does.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Mutex, Once, PoisonError};

use cachot_control::WindowSize;
use rustix::stdio;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

/// Settings to put back, while the terminal is in raw mode.
static ORIGINAL: Mutex<Option<Termios>> = Mutex::new(None);

/// Raw mode of standard input; ends on drop, and before a panic is reported.
#[derive(Debug)]
pub struct RawMode(());

impl RawMode {
    /// Puts standard input into raw mode; `None` if it is not a terminal.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn enter() -> io::Result<Option<Self>> {
        if !isatty(stdio::stdin()) {
            return Ok(None);
        }
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let report = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                restore();
                report(panic);
            }));
        });
        let original = tcgetattr(stdio::stdin())?;
        let mut raw = original.clone();
        raw.make_raw();
        *ORIGINAL.lock().unwrap_or_else(PoisonError::into_inner) = Some(original);
        let entered = Self(());
        tcsetattr(stdio::stdin(), OptionalActions::Now, &raw)?;
        Ok(Some(entered))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    let original = ORIGINAL
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    if let Some(original) = original {
        // A terminal that is gone needs no settings.
        tcsetattr(stdio::stdin(), OptionalActions::Now, &original).ok();
    }
}

/// Size of the terminal that standard input, output or error is, the first that is one.
pub fn size() -> Option<WindowSize> {
    [stdio::stdin(), stdio::stdout(), stdio::stderr()]
        .iter()
        .find_map(|descriptor| tcgetwinsize(descriptor.as_fd()).ok())
        .map(|size| WindowSize {
            rows: size.ws_row,
            cols: size.ws_col,
        })
}
