//! The interrupt of one virtio-mmio device: an irqfd and the status register behind it.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use vmm_sys_util::eventfd::EventFd;

/// Raises a device's edge-triggered interrupt line; shared with whoever may raise it.
#[derive(Debug)]
pub struct Interrupt {
    status: AtomicU32,
    line: EventFd,
}

impl Interrupt {
    /// An interrupt whose line is an eventfd that KVM watches (`KVM_IRQFD`).
    ///
    /// # Errors
    /// When no eventfd can be made.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            status: AtomicU32::new(0),
            line: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
        })
    }

    /// The eventfd to register with KVM.
    #[must_use]
    pub fn line(&self) -> &EventFd {
        &self.line
    }

    /// Tells the driver that a buffer was used.
    pub fn used_buffer(&self) {
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    /// Tells the driver that the configuration space or the device status changed.
    pub fn config_change(&self) {
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    fn raise(&self, cause: u32) {
        self.status.fetch_or(cause, Ordering::SeqCst);
        // An eventfd write fails only with a full counter, and then the line is already raised.
        drop(self.line.write(1));
    }

    /// Raises the line again for what the driver has not acknowledged yet. An interrupt too many does no
    /// harm, one that got lost would.
    pub fn raise_pending(&self) {
        let causes = self.status();
        if causes != 0 {
            self.raise(causes);
        }
    }

    /// The `InterruptStatus` register.
    #[must_use]
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// The `InterruptACK` register.
    pub fn acknowledge(&self, causes: u32) {
        self.status.fetch_and(!causes, Ordering::SeqCst);
    }

    /// Sets the status without raising the line: reset, and restore of a saved device.
    pub fn set_status(&self, status: u32) {
        self.status.store(status, Ordering::SeqCst);
    }
}
