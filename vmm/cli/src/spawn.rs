//! Starting the monitor: its descriptors, its working directory, nothing else of this process.

use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

use cachot_vmm::protocol::SOCKET_FD;
use rustix::process::Pid;

/// What the new process gets.
pub struct Inherited<'a> {
    /// Its working directory.
    pub folder: BorrowedFd<'a>,
    /// Its descriptor [`SOCKET_FD`].
    pub socket: BorrowedFd<'a>,
    /// Its standard error; input and output are `/dev/null`.
    pub log: BorrowedFd<'a>,
}

/// Starts `program` with an empty environment, in a process group of its own (the terminal's Ctrl-C
/// is the keeper's affair), with default signal handling and none of the keeper's descriptors but
/// those given. The C library does it without copying this process's page tables.
///
/// # Errors
/// What the kernel said, of the program itself above all (`ENOENT`, `EACCES`).
pub fn spawn(program: &Path, argument: &CStr, inherited: &Inherited<'_>) -> io::Result<Pid> {
    let path = CString::new(program.as_os_str().as_bytes())?;
    let actions = Actions::new(inherited)?;
    let attributes = Attributes::new()?;
    let argv = [
        path.as_ptr().cast_mut(),
        argument.as_ptr().cast_mut(),
        ptr::null_mut(),
    ];
    let environment: [*mut libc::c_char; 1] = [ptr::null_mut()];
    let mut pid = 0;
    // SAFETY: every pointer is to an object that lives across the call and has the form that
    // posix_spawn(3) asks for: initialised actions and attributes, and vectors of C strings that end
    // with a null pointer, which the call does not write to.
    let error = unsafe {
        libc::posix_spawn(
            &raw mut pid,
            path.as_ptr(),
            &raw const actions.0,
            &raw const attributes.0,
            argv.as_ptr(),
            environment.as_ptr(),
        )
    };
    check(error)?;
    Pid::from_raw(pid).ok_or_else(|| io::Error::other("the new process has no number"))
}

/// These functions return the error's number instead of setting `errno`.
fn check(error: libc::c_int) -> io::Result<()> {
    match error {
        0 => Ok(()),
        number => Err(io::Error::from_raw_os_error(number)),
    }
}

/// What the child does between its creation and the new program.
struct Actions(libc::posix_spawn_file_actions_t);

impl Actions {
    fn new(inherited: &Inherited<'_>) -> io::Result<Self> {
        let mut actions = MaybeUninit::uninit();
        // SAFETY: the function initialises what it is given.
        check(unsafe { libc::posix_spawn_file_actions_init(actions.as_mut_ptr()) })?;
        // SAFETY: it returned success.
        let mut actions = Self(unsafe { actions.assume_init() });
        let this = &raw mut actions.0;
        // The order matters: a descriptor is used before another one may take its number.
        // SAFETY: `this` is initialised; the path is a C string, which the function copies.
        unsafe {
            check(libc::posix_spawn_file_actions_addfchdir_np(
                this,
                inherited.folder.as_raw_fd(),
            ))?;
            check(libc::posix_spawn_file_actions_adddup2(
                this,
                inherited.log.as_raw_fd(),
                libc::STDERR_FILENO,
            ))?;
            check(libc::posix_spawn_file_actions_adddup2(
                this,
                inherited.socket.as_raw_fd(),
                SOCKET_FD,
            ))?;
            for (descriptor, flags) in [
                (libc::STDIN_FILENO, libc::O_RDONLY),
                (libc::STDOUT_FILENO, libc::O_WRONLY),
            ] {
                let null = c"/dev/null".as_ptr();
                check(libc::posix_spawn_file_actions_addopen(
                    this, descriptor, null, flags, 0,
                ))?;
            }
            check(libc::posix_spawn_file_actions_addclosefrom_np(
                this,
                SOCKET_FD + 1,
            ))?;
        }
        Ok(actions)
    }
}

impl Drop for Actions {
    fn drop(&mut self) {
        // SAFETY: initialised by `new` and used no more.
        unsafe { libc::posix_spawn_file_actions_destroy(&raw mut self.0) };
    }
}

/// What state the child begins in.
struct Attributes(libc::posix_spawnattr_t);

impl Attributes {
    fn new() -> io::Result<Self> {
        let mut attributes = MaybeUninit::uninit();
        // SAFETY: the function initialises what it is given.
        check(unsafe { libc::posix_spawnattr_init(attributes.as_mut_ptr()) })?;
        // SAFETY: it returned success.
        let mut attributes = Self(unsafe { attributes.assume_init() });
        let this = &raw mut attributes.0;
        let mut none = MaybeUninit::uninit();
        let mut all = MaybeUninit::uninit();
        // SAFETY: `this` is initialised, and so are the two sets before they are read.
        unsafe {
            libc::sigemptyset(none.as_mut_ptr());
            libc::sigfillset(all.as_mut_ptr());
            check(libc::posix_spawnattr_setsigmask(this, none.as_ptr()))?;
            check(libc::posix_spawnattr_setsigdefault(this, all.as_ptr()))?;
            check(libc::posix_spawnattr_setpgroup(this, 0))?;
        }
        let flags = libc::POSIX_SPAWN_SETSIGMASK
            | libc::POSIX_SPAWN_SETSIGDEF
            | libc::POSIX_SPAWN_SETPGROUP;
        let flags = libc::c_short::try_from(flags).expect("the three flags are 0x2, 0x4 and 0x8");
        // SAFETY: `this` is initialised.
        check(unsafe { libc::posix_spawnattr_setflags(this, flags) })?;
        Ok(attributes)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: initialised by `new` and used no more.
        unsafe { libc::posix_spawnattr_destroy(&raw mut self.0) };
    }
}
