//! System-call filters, one a kind of thread. `resources/seccomp.md` says what each call is for.

use std::collections::BTreeMap;
use std::sync::Arc;

use kvm_bindings::{KVMIO, kvm_regs};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};
use vmm_sys_util::ioctl::{_IOC_NONE, _IOC_READ, ioctl_expr};

/// What a thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadKind {
    /// Runs the devices, the control socket and the machine's life.
    Main,
    /// Runs one vCPU.
    Vcpu,
    /// Searches and writes guest RAM.
    Snapshot,
}

/// Why a thread is without a filter; it must not go on.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// The rules do not make a program.
    #[error("cannot make a system-call filter")]
    Compile(#[from] BackendError),
    /// The kernel refused it.
    #[error("cannot install a system-call filter")]
    Install(#[from] seccompiler::Error),
}

/// An allowed argument value: (argument number, comparison, value).
type Condition = (u8, SeccompCmpOp, u64);

/// A call and its conditions, one of which has to be met if there are any.
type Allowed = (libc::c_long, fn() -> Vec<Condition>);

/// Any argument values.
const ANY: fn() -> Vec<Condition> = Vec::new;

/// Calls that the Rust and C libraries make for any thread.
const COMMON: &[Allowed] = &[
    (libc::SYS_brk, ANY),
    (libc::SYS_clock_gettime, ANY),
    (libc::SYS_close, ANY),
    (libc::SYS_epoll_ctl, ANY),
    (libc::SYS_exit_group, ANY),
    // Debug builds check that a descriptor is open before they close it.
    #[cfg(debug_assertions)]
    (libc::SYS_fcntl, get_flags),
    (libc::SYS_futex, ANY),
    (libc::SYS_getpid, ANY),
    (libc::SYS_getrandom, ANY),
    (libc::SYS_gettid, ANY),
    (libc::SYS_madvise, ANY),
    (libc::SYS_mmap, not_executable),
    (libc::SYS_mprotect, not_executable),
    (libc::SYS_mremap, ANY),
    (libc::SYS_munmap, ANY),
    (libc::SYS_read, ANY),
    (libc::SYS_restart_syscall, ANY),
    (libc::SYS_rt_sigprocmask, ANY),
    (libc::SYS_rt_sigreturn, ANY),
    (libc::SYS_sched_yield, ANY),
    (libc::SYS_shutdown, ANY),
    (libc::SYS_tgkill, own_signals),
    (libc::SYS_timerfd_settime, ANY),
    (libc::SYS_write, ANY),
];

/// Calls of the main thread.
const MAIN: &[Allowed] = &[
    (libc::SYS_accept4, ANY),
    (libc::SYS_connect, ANY),
    (libc::SYS_epoll_pwait, ANY),
    (libc::SYS_epoll_wait, ANY),
    (libc::SYS_fdatasync, ANY),
    (libc::SYS_getcwd, ANY),
    (libc::SYS_ioctl, save_ioctl),
    (libc::SYS_pread64, ANY),
    (libc::SYS_pwrite64, ANY),
    (libc::SYS_recvfrom, ANY),
    (libc::SYS_recvmsg, ANY),
    (libc::SYS_rmdir, ANY),
    (libc::SYS_sendmsg, ANY),
    (libc::SYS_sendto, ANY),
    (libc::SYS_socket, unix_socket),
    (libc::SYS_unlink, ANY),
];

/// Calls of a vCPU thread.
const VCPU: &[Allowed] = &[(libc::SYS_ioctl, vcpu_ioctl)];

/// Calls of the snapshot thread: files that it was handed, and its locked memory.
const SNAPSHOT: &[Allowed] = &[
    (libc::SYS_ftruncate, ANY),
    (libc::SYS_ioctl, clone_file),
    (libc::SYS_lseek, ANY),
    (libc::SYS_mincore, ANY),
    (libc::SYS_mlock, ANY),
    (libc::SYS_munlock, ANY),
    (libc::SYS_pread64, ANY),
    (libc::SYS_prlimit64, ask_only),
    (libc::SYS_pwrite64, ANY),
    (libc::SYS_sync_file_range, ANY),
    (libc::SYS_sysinfo, ANY),
];

fn not_executable() -> Vec<Condition> {
    let exec = u64::from(libc::PROT_EXEC.unsigned_abs());
    vec![(2, SeccompCmpOp::MaskedEq(exec), 0)]
}

#[cfg(debug_assertions)]
fn get_flags() -> Vec<Condition> {
    vec![(1, SeccompCmpOp::Eq, u64::from(libc::F_GETFD.unsigned_abs()))]
}

/// A copy of a disk by reference.
fn clone_file() -> Vec<Condition> {
    vec![(1, SeccompCmpOp::Eq, libc::FICLONE)]
}

/// `prlimit64` that sets nothing, for the message of a lock that failed.
fn ask_only() -> Vec<Condition> {
    vec![(2, SeccompCmpOp::Eq, 0)]
}

/// The kick of a vCPU thread, and what `abort` sends: to this process only.
fn own_signals() -> Vec<Condition> {
    vec![(0, SeccompCmpOp::Eq, std::process::id().into())]
}

fn unix_socket() -> Vec<Condition> {
    vec![(0, SeccompCmpOp::Eq, u64::from(libc::AF_UNIX.unsigned_abs()))]
}

/// `KVM_RUN`, and `KVM_GET_REGS` for an error's message.
fn vcpu_ioctl() -> Vec<Condition> {
    // Numbers: Linux, `include/uapi/linux/kvm.h`. Sizes of such structures are small.
    #[expect(clippy::cast_possible_truncation)]
    let regs_len = size_of::<kvm_regs>() as u32;
    let run = ioctl_expr(_IOC_NONE, KVMIO, 0x80, 0);
    let get_regs = ioctl_expr(_IOC_READ, KVMIO, 0x81, regs_len);
    [run, get_regs]
        .map(|request| (1, SeccompCmpOp::Eq, request))
        .to_vec()
}

/// Calls that read a resting machine's state, and change nothing. Numbers as above.
fn save_ioctl() -> Vec<Condition> {
    const GET_MSR_INDEX_LIST: u32 = 0x02;
    const GET_IRQCHIP: u32 = 0x62;
    const GET_CLOCK: u32 = 0x7c;
    const GET_REGS: u32 = 0x81;
    const GET_SREGS: u32 = 0x83;
    const GET_MSRS: u32 = 0x88;
    const GET_LAPIC: u32 = 0x8e;
    const GET_MP_STATE: u32 = 0x98;
    const GET_VCPU_EVENTS: u32 = 0x9f;
    const GET_DEBUGREGS: u32 = 0xa1;
    const GET_TSC_KHZ: u32 = 0xa3;
    const GET_XSAVE: u32 = 0xa4;
    const GET_XCRS: u32 = 0xa6;
    // Without direction and size of the argument, which follow from the number.
    const TYPE_AND_NUMBER: u64 = 0xffff;
    [
        GET_MSR_INDEX_LIST,
        GET_IRQCHIP,
        GET_CLOCK,
        GET_REGS,
        GET_SREGS,
        GET_MSRS,
        GET_LAPIC,
        GET_MP_STATE,
        GET_VCPU_EVENTS,
        GET_DEBUGREGS,
        GET_TSC_KHZ,
        GET_XSAVE,
        GET_XCRS,
    ]
    .map(|number| {
        let request = u64::from(KVMIO << 8 | number);
        (1, SeccompCmpOp::MaskedEq(TYPE_AND_NUMBER), request)
    })
    .to_vec()
}

/// The filter of `kind`; a call that it does not allow leads to `otherwise`.
fn program(kind: ThreadKind, otherwise: SeccompAction) -> Result<BpfProgram, BackendError> {
    let own = match kind {
        ThreadKind::Main => MAIN,
        ThreadKind::Vcpu => VCPU,
        ThreadKind::Snapshot => SNAPSHOT,
    };
    let mut rules = BTreeMap::new();
    for (call, conditions) in COMMON.iter().chain(own) {
        // Each condition is a rule of its own: any of them allows the call.
        let alternatives = conditions()
            .into_iter()
            .map(|(argument, comparison, value)| {
                let condition =
                    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, comparison, value)?;
                SeccompRule::new(vec![condition])
            })
            .collect::<Result<Vec<_>, _>>()?;
        rules.insert(*call, alternatives);
    }
    SeccompFilter::new(rules, otherwise, SeccompAction::Allow, TargetArch::x86_64)?.try_into()
}

/// A filter that is ready to be installed.
#[derive(Debug, Clone)]
pub struct Filter(Arc<BpfProgram>);

impl Filter {
    /// Makes the filter of `kind`.
    ///
    /// # Errors
    /// [`SeccompError::Compile`].
    pub fn new(kind: ThreadKind) -> Result<Self, SeccompError> {
        #[cfg(debug_assertions)]
        let otherwise = SeccompAction::Trap;
        #[cfg(not(debug_assertions))]
        let otherwise = SeccompAction::KillProcess;
        Ok(Self(Arc::new(program(kind, otherwise)?)))
    }

    /// Installs it for the calling thread. From then on a call that is not allowed ends the process; a debug build
    /// says which one it was.
    ///
    /// # Errors
    /// [`SeccompError::Install`].
    pub fn install(&self) -> Result<(), SeccompError> {
        #[cfg(debug_assertions)]
        debug::report_violations();
        Ok(seccompiler::apply_filter(&self.0)?)
    }
}

/// Naming the call that was not allowed.
#[cfg(debug_assertions)]
mod debug {
    use std::io::Write;

    /// Offset of `si_syscall` in `siginfo_t` on x86-64 (`include/uapi/asm-generic/siginfo.h`).
    const SI_SYSCALL: usize = 24;

    /// Exit code of a process that a signal killed, as shells report it.
    const EXIT_CODE: i32 = 128 + libc::SIGSYS;

    pub fn report_violations() {
        vmm_sys_util::signal::register_signal_handler(libc::SIGSYS, handle)
            .expect("SIGSYS can be handled");
    }

    extern "C" fn handle(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        // SAFETY: the kernel passes a whole structure to the handler, which for SIGSYS has the number there.
        let number = unsafe {
            info.cast::<u8>()
                .add(SI_SYSCALL)
                .cast::<i32>()
                .read_unaligned()
        };
        let mut line = [0; 80];
        let mut rest = &mut line[..];
        // Formatting a number into a buffer allocates nothing; it fits.
        drop(writeln!(
            rest,
            "cachot-vmm: system call {number} is not allowed in this thread"
        ));
        let len = 80 - rest.len();
        // SAFETY: the buffer is valid for its length; `_exit` may be called in a handler.
        unsafe {
            libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), len);
            libc::_exit(EXIT_CODE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `call` under the filter in a child process; returns the signal that ended it, if one did.
    fn signal_of(kind: ThreadKind, call: fn()) -> Option<i32> {
        let program = program(kind, SeccompAction::KillProcess).expect("the rules are good");
        // SAFETY: the child makes system calls only.
        let child = unsafe { libc::fork() };
        assert!(child >= 0, "fork works");
        if child == 0 {
            let code = i32::from(seccompiler::apply_filter(&program).is_err());
            call();
            // SAFETY: ends the child without running anything of the parent's.
            unsafe { libc::_exit(code) };
        }
        let mut status = 0;
        // SAFETY: the status is written to a local variable.
        let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
        assert_eq!(waited, child);
        if libc::WIFSIGNALED(status) {
            return Some(libc::WTERMSIG(status));
        }
        assert_eq!(libc::WEXITSTATUS(status), 0, "the filter was installed");
        None
    }

    fn nothing() {}

    fn open() {
        // SAFETY: opens a file that exists; nobody uses the descriptor.
        unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY) };
    }

    fn execve() {
        let arguments = [std::ptr::null()];
        // SAFETY: the arguments are empty lists.
        unsafe {
            libc::execve(
                c"/bin/true".as_ptr(),
                arguments.as_ptr(),
                arguments.as_ptr(),
            )
        };
    }

    fn map_executable() {
        let protection = libc::PROT_READ | libc::PROT_EXEC;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: makes a new mapping that nobody uses.
        unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) };
    }

    fn map_data() {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: as above.
        unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) };
    }

    fn ptrace() {
        // SAFETY: asks nothing of memory.
        unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) };
    }

    fn other_socket() {
        // SAFETY: makes a descriptor that nobody uses.
        unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) };
    }

    fn unix_socket() {
        // SAFETY: as above.
        unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0) };
    }

    fn other_ioctl() {
        let mut size = 0;
        // SAFETY: writes a number to a local variable.
        unsafe { libc::ioctl(0, libc::FIONREAD, &raw mut size) };
    }

    fn kill_other() {
        // SAFETY: the signal number 0 only asks whether the process is there.
        unsafe { libc::syscall(libc::SYS_tgkill, 1, 1, libc::SIGKILL) };
    }

    #[test]
    fn test_filters_kill_what_no_thread_needs() {
        for kind in [ThreadKind::Main, ThreadKind::Vcpu, ThreadKind::Snapshot] {
            for call in [
                open,
                execve,
                map_executable,
                ptrace,
                other_socket,
                other_ioctl,
                kill_other,
            ] {
                assert_eq!(signal_of(kind, call), Some(libc::SIGSYS), "{kind:?}");
            }
            for call in [nothing, map_data] {
                assert_eq!(signal_of(kind, call), None, "{kind:?}");
            }
        }
    }

    #[test]
    fn test_filters_differ_by_thread() {
        assert_eq!(signal_of(ThreadKind::Main, unix_socket), None);
        for kind in [ThreadKind::Vcpu, ThreadKind::Snapshot] {
            assert_eq!(signal_of(kind, unix_socket), Some(libc::SIGSYS));
        }
    }
}
