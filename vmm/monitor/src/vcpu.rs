//! vCPU threads: each runs one vCPU, serves its exits, and rests whenever the gate is closed.

use std::cell::Cell;
use std::io;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use cachot_devices::power::PowerRequest;
use kvm_bindings::{
    KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES,
    kvm_cpuid_entry2,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::bus::Bus;
use crate::gate::Gate;
use crate::metrics::{ExitKind, ExitReport, Exits};
use crate::protocol::StopReason;
use crate::seccomp::Filter;
use crate::x86_64::vcpu_state::{VcpuState, VcpuStateError};

/// Stack of a vCPU thread, in bytes: several times what it uses, and far below a huge page, which the kernel
/// would otherwise spend on it.
const STACK_SIZE: usize = 128 << 10;

/// How long the threads may take to come to rest before the monitor gives up on them.
const REST_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a machine has come to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// Orderly.
    Stopped(StopReason),
    /// It cannot go on; one line.
    Failed(String),
}

/// Failures of [`Crew`].
#[derive(Debug, thiserror::Error)]
pub enum CrewError {
    /// No thread.
    #[error("cannot start a thread for a vCPU: raise the limit of processes (`ulimit -u`)")]
    Spawn(#[source] io::Error),
    /// No signal handler or eventfd.
    #[error("cannot prepare the vCPU threads")]
    Prepare(#[source] io::Error),
    /// A vCPU did not stop in time.
    #[error("a vCPU did not come to rest within {} s", REST_TIMEOUT.as_secs())]
    Rest,
    /// A vCPU cannot be saved.
    #[error(transparent)]
    State(#[from] VcpuStateError),
}

/// How vCPU threads tell that the machine has ended; the first one wins.
#[derive(Debug)]
pub struct Ender {
    end: Mutex<Option<End>>,
    event: EventFd,
}

impl Ender {
    fn new() -> io::Result<Self> {
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(Self {
            end: Mutex::new(None),
            event,
        })
    }

    /// Becomes readable at the end.
    #[must_use]
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// Why the machine has ended, if it has.
    #[must_use]
    pub fn end(&self) -> Option<End> {
        lock(&self.end).clone()
    }

    fn set(&self, end: End) {
        lock(&self.end).get_or_insert(end);
        // Fails only with a full counter, and then the event is readable already.
        drop(self.event.write(1));
    }
}

/// All vCPU threads of a machine.
pub struct Crew {
    gate: Arc<Gate>,
    ender: Arc<Ender>,
    exits: Vec<Arc<Exits>>,
    vcpus: Vec<Arc<Mutex<VcpuFd>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Crew {
    /// Starts a thread for each vCPU, under this filter; they wait for [`Self::resume`].
    ///
    /// # Errors
    /// See [`CrewError`].
    pub fn new(vcpus: Vec<VcpuFd>, bus: &Arc<Bus>, filter: &Filter) -> Result<Self, CrewError> {
        register_signal_handler(kick_signal(), handle_kick)
            .map_err(|error| CrewError::Prepare(error.into()))?;
        let mut crew = Self {
            gate: Arc::new(Gate::closed()),
            ender: Arc::new(Ender::new().map_err(CrewError::Prepare)?),
            exits: Vec::with_capacity(vcpus.len()),
            vcpus: Vec::with_capacity(vcpus.len()),
            threads: Vec::with_capacity(vcpus.len()),
        };
        for (index, fd) in vcpus.into_iter().enumerate() {
            let exits = Arc::new(Exits::default());
            let fd = Arc::new(Mutex::new(fd));
            let vcpu = Vcpu {
                index,
                fd: Arc::clone(&fd),
                bus: Arc::clone(bus),
                gate: Arc::clone(&crew.gate),
                ender: Arc::clone(&crew.ender),
                exits: Arc::clone(&exits),
                filter: filter.clone(),
            };
            let thread = Builder::new()
                .name(format!("vcpu{index}"))
                .stack_size(STACK_SIZE)
                .spawn(move || vcpu.serve())
                .map_err(CrewError::Spawn)?;
            crew.exits.push(exits);
            crew.vcpus.push(fd);
            crew.threads.push(thread);
        }
        Ok(crew)
    }

    /// Tells of the machine's end.
    #[must_use]
    pub fn ender(&self) -> &Arc<Ender> {
        &self.ender
    }

    /// Lets all vCPUs run.
    pub fn resume(&self) {
        self.gate.open();
    }

    /// Stops all vCPUs between two guest instructions, with no access to a device half done.
    ///
    /// # Errors
    /// When one does not stop.
    pub fn pause(&self) -> Result<(), CrewError> {
        self.gate.close();
        for thread in &self.threads {
            thread
                .kill(kick_signal())
                .expect("vCPU threads do not end, and the number is a real-time signal's");
        }
        if self.gate.wait_for_rest(self.threads.len(), REST_TIMEOUT) {
            Ok(())
        } else {
            Err(CrewError::Rest)
        }
    }

    /// All registers of all vCPUs, which rest; `cpuids` are their CPUID tables, and `msrs` the numbers of the
    /// model-specific registers.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn states(
        &self,
        cpuids: &[Vec<kvm_cpuid_entry2>],
        msrs: &[u32],
    ) -> Result<Vec<VcpuState>, CrewError> {
        let vcpus = self.vcpus.iter().zip(cpuids);
        vcpus
            .map(|(vcpu, cpuid)| Ok(VcpuState::read(&lock(vcpu), cpuid, msrs)?))
            .collect()
    }

    /// Exits of each vCPU.
    pub fn exits(&self) -> impl Iterator<Item = ExitReport> {
        self.exits.iter().map(|exits| exits.report())
    }
}

/// Locks on through poisoning: a panic ends the monitor.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The signal that makes a vCPU leave the guest.
fn kick_signal() -> i32 {
    SIGRTMIN()
}

thread_local! {
    /// `kvm_run.immediate_exit` of this thread's vCPU. Neither its initialisation nor its use allocates, so a
    /// signal handler may read it.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

/// Makes the next entry into the guest come back at once: a signal that arrives between the last look at
/// the gate and the entry would otherwise be lost.
extern "C" fn handle_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    IMMEDIATE_EXIT.with(|flag| {
        let flag = flag.get();
        if !flag.is_null() {
            // SAFETY: it points into the mapping of this thread's vCPU, which lives as long as the thread.
            unsafe { flag.write_volatile(1) };
        }
    });
}

/// One vCPU and what it needs to serve its exits.
struct Vcpu {
    index: usize,
    /// Locked while the vCPU may run.
    fd: Arc<Mutex<VcpuFd>>,
    bus: Arc<Bus>,
    gate: Arc<Gate>,
    ender: Arc<Ender>,
    exits: Arc<Exits>,
    filter: Filter,
}

impl Vcpu {
    fn serve(self) {
        let flag = &raw mut lock(&self.fd).get_kvm_run().immediate_exit;
        IMMEDIATE_EXIT.with(|own| own.set(flag));
        if let Err(error) = self.filter.install() {
            self.ender.set(End::Failed(error.to_string()));
            self.gate.rest_forever();
        }
        loop {
            self.gate.rest();
            let end = self.run_until_closed(&mut lock(&self.fd));
            if let Some(end) = end {
                self.ender.set(end);
                self.gate.rest_forever();
            }
        }
    }

    /// Runs the guest until the gate is closed, or to the machine's end.
    fn run_until_closed(&self, fd: &mut VcpuFd) -> Option<End> {
        while !self.gate.is_closed() {
            let end = self.run(fd);
            if end.is_some() {
                return end;
            }
        }
        self.finish_access(fd)
    }

    /// Completes the instruction whose exit was served last, without beginning another one: KVM does that
    /// at the next entry, before it looks at the flag. An access that KVM splits causes further exits.
    fn finish_access(&self, fd: &mut VcpuFd) -> Option<End> {
        fd.set_kvm_immediate_exit(1);
        while fd.get_kvm_run().immediate_exit != 0 {
            if let Some(end) = self.run(fd) {
                return Some(end);
            }
        }
        None
    }

    /// Runs the guest until its next exit and serves that. Returns the machine's end, if this was it.
    fn run(&self, fd: &mut VcpuFd) -> Option<End> {
        let (kind, end) = match fd.run() {
            Ok(VcpuExit::IoIn(port, data)) => {
                self.bus.io_read(port, data);
                (ExitKind::Io, None)
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                let end = self.bus.io_write(port, data).map(|request| match request {
                    PowerRequest::Off => End::Stopped(StopReason::PowerOff),
                    PowerRequest::Reset => End::Stopped(StopReason::Reset),
                });
                (ExitKind::Io, end)
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                self.bus.mmio_read(address, data);
                (ExitKind::MmioRead, None)
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                self.bus.mmio_write(address, data);
                (ExitKind::MmioWrite, None)
            }
            Ok(VcpuExit::Shutdown) => {
                (ExitKind::Other, Some(End::Stopped(StopReason::TripleFault)))
            }
            Ok(VcpuExit::InternalError) => {
                let message = self.internal_error(fd);
                (ExitKind::Other, Some(End::Failed(message)))
            }
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                let message = format!(
                    "KVM cannot enter the guest on vCPU {}: hardware reason {reason:#x} on CPU {cpu}; \
                     the host's KVM module or its nesting is at fault, see `cachot doctor`",
                    self.index
                );
                (ExitKind::Other, Some(End::Failed(message)))
            }
            Ok(other) => {
                let message = format!(
                    "vCPU {} came back with an unexpected exit: {other:?}",
                    self.index
                );
                (ExitKind::Other, Some(End::Failed(message)))
            }
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                fd.set_kvm_immediate_exit(0);
                (ExitKind::Interrupted, None)
            }
            Err(error) => {
                let message = format!("vCPU {} cannot run: KVM_RUN failed: {error}", self.index);
                (ExitKind::Other, Some(End::Failed(message)))
            }
        };
        self.exits.count(kind);
        end
    }

    /// Says what KVM could not do.
    fn internal_error(&self, fd: &mut VcpuFd) -> String {
        let index = self.index;
        let rip = fd.get_regs().map_or(0, |regs| regs.rip);
        let run = fd.get_kvm_run();
        // SAFETY: the exit reason, KVM_EXIT_INTERNAL_ERROR, says that this member of the union is valid.
        let (suberror, ndata) = unsafe {
            let internal = &run.__bindgen_anon_1.internal;
            (internal.suberror, internal.ndata)
        };
        if suberror != KVM_INTERNAL_ERROR_EMULATION {
            return format!(
                "KVM failed on vCPU {index} at rip {rip:#x}: internal error {suberror}"
            );
        }
        // SAFETY: with KVM_INTERNAL_ERROR_EMULATION this member is valid; its fields are part of the data whose
        // length is checked below.
        let failure = unsafe { run.__bindgen_anon_1.emulation_failure };
        // SAFETY: as above; the structure has one variant.
        let details = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
        let flag = u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES);
        let bytes = if ndata >= 3 && failure.flags & flag != 0 {
            let len = usize::from(details.insn_size).min(details.insn_bytes.len());
            details.insn_bytes[..len]
                .iter()
                .map(|byte| format!(" {byte:02x}"))
                .collect()
        } else {
            " unknown".to_owned()
        };
        format!(
            "KVM cannot emulate an instruction of vCPU {index} at rip {rip:#x} (bytes:{bytes}); on a host \
             without hardware virtualisation KVM interprets guests, and stock kernels do not run: see \
             `cachot doctor`"
        )
    }
}
