//! What the crate does to the process it runs in, each case in a process of its own.
//!
//! The program runs itself once a case, with the case's name in the environment. A case gets the value
//! of a secret in a variable and in a folder's files (`file`, and `env` as the dotenv key KEY), and
//! looks for it in masked form: its memory must not hold a copy that the crate did not make.

mod memory;

use std::env;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use cachot_secrets::{
    Declarations, LockError, Schemes, ScrubError, SealedValue, SecretValue, ValueError,
    harden_process, scrub_environment,
};
use rustix::process::{DumpableBehavior, Resource, Rlimit, Signal, getrlimit, setrlimit};

const CASE: &str = "CACHOT_TEST_CASE";
const TOKEN: &str = "CACHOT_TEST_TOKEN";
const FOLDER: &str = "CACHOT_TEST_FOLDER";

/// The secret, each byte of it XORed with [`MASK`].
const MASKED: [u8; 24] = *b"\x31\x2e\x6d\x62\x6d\x36\x33\x28\x6d\x3b\x2f\x3c\x69\x38\x6a\x62\x3e\x6f\x39\x63\x3d\x2d\x34\x32";
const MASK: u8 = 0x5a;

/// Bytes in front of the secret in its value: the allocator writes over the first bytes of what is
/// freed, and a copy left there has to be found all the same.
const PADDING: [u8; 200] = [b'.'; 200];

/// User and group without any right (`nobody` on most systems).
const NOBODY: u32 = 65_534;

type Case = (&'static str, fn());

const CASES: [Case; 11] = [
    ("scrubbed_value_is_gone_from_the_environment", scrub),
    (
        "scrub_overwrites_every_variable_of_the_name",
        scrub_repeated,
    ),
    ("scrub_with_a_second_thread_is_refused", scrub_with_threads),
    ("no_thread_is_left_when_values_are_fetched", no_thread_left),
    ("dropped_values_leave_no_copy_in_memory", no_copies),
    ("file_without_permission_is_a_distinct_error", no_permission),
    ("memory_lock_limit_is_an_error_with_a_hint", lock_limit),
    ("hardened_process_has_every_protection", hardened),
    (
        "hardened_process_is_closed_to_its_own_user",
        hardened_from_outside,
    ),
    ("core_dump_is_prevented_and_would_hold_no_value", core_dump),
    (
        "sealed_value_is_read_by_another_process",
        sealed_across_processes,
    ),
];

fn main() -> ExitCode {
    if let Ok(case) = env::var(CASE) {
        let (_, run) = CASES
            .iter()
            .chain(&HELPERS)
            .find(|(name, _)| *name == case)
            .expect("a case of this program");
        run();
        return ExitCode::SUCCESS;
    }
    let filter = env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let mut failed = 0;
    for (name, _) in CASES {
        if filter.as_ref().is_some_and(|part| !name.contains(part)) {
            continue;
        }
        let folder = tempfile::tempdir().expect("a folder");
        let token = String::from_utf8(value()).expect("ASCII");
        fs::write(folder.path().join("file"), &token).expect("written");
        fs::write(folder.path().join("env"), format!("KEY='{token}'")).expect("written");
        let output = again(name)
            .env(TOKEN, &token)
            .env(FOLDER, folder.path())
            .output()
            .expect("this program starts");
        let good = output.status.success();
        println!("test {name} ... {}", if good { "ok" } else { "FAILED" });
        print!("{}", String::from_utf8_lossy(&output.stdout));
        if !good {
            failed += 1;
            println!("{}", output.status);
            println!("{}", String::from_utf8_lossy(&output.stderr));
        }
    }
    ExitCode::from(u8::from(failed > 0))
}

/// Parts of cases that are processes of their own.
const HELPERS: [Case; 4] = [
    ("repeated", repeated),
    ("wait_hardened", wait_hardened),
    ("abort", abort),
    ("read_sealed", read_sealed),
];

/// This program, to run a case or a helper.
fn again(case: &str) -> Command {
    let mut command = Command::new(env::current_exe().expect("its path"));
    command.env(CASE, case);
    command
}

/// The value: padding, then the secret.
fn value() -> Vec<u8> {
    let secret = MASKED.iter().map(|byte| byte ^ MASK);
    PADDING.into_iter().chain(secret).collect()
}

fn is_value(bytes: &[u8]) -> bool {
    bytes.strip_prefix(&PADDING).is_some_and(is_token)
}

/// How often the secret is in these bytes.
fn count(bytes: &[u8]) -> usize {
    bytes.windows(MASKED.len()).filter(|w| is_token(w)).count()
}

fn is_token(bytes: &[u8]) -> bool {
    bytes.len() == MASKED.len() && bytes.iter().zip(MASKED).all(|(byte, m)| byte ^ MASK == m)
}

fn proc_environ() -> Vec<u8> {
    fs::read("/proc/self/environ").expect("it is readable")
}

fn folder() -> PathBuf {
    env::var_os(FOLDER).expect("set for every case").into()
}

fn scrub() {
    assert_eq!(count(&proc_environ()), 1);
    let declarations = Declarations::parse([format!("API_KEY=env:{TOKEN}")]);
    let resolved = declarations
        .resolve(&Schemes::default())
        .expect("the value");

    scrub_environment(declarations.environment_variables(&Schemes::default())).expect("scrubbed");

    let after = proc_environ();
    assert_eq!(count(&after), 0);
    let blank = [TOKEN.as_bytes(), b"=", &[0; PADDING.len() + MASKED.len()]].concat();
    assert!(after.windows(blank.len()).any(|window| window == blank));
    assert_eq!(env::var_os(TOKEN), None);
    assert!(
        env::var_os(FOLDER).is_some(),
        "other variables are left alone"
    );
    assert!(is_value(resolved[0].value.expose()));
    scrub_environment([TOKEN, "CACHOT_NOT_SET", "", "=", "A=B", "\0"])
        .expect("names that are not set are passed over");
}

fn scrub_repeated() {
    let text = |text: &[u8]| CString::new(text).expect("no zero byte");
    let token = value();
    let program = text(env::current_exe().expect("its path").as_os_str().as_bytes());
    let environment = [
        text(&[TOKEN.as_bytes(), b"=", &token].concat()),
        text(&[CASE, "=repeated"].concat().into_bytes()),
        text(&[TOKEN.as_bytes(), b"=", &token].concat()),
        text(&[TOKEN.as_bytes(), b"_2=", &token].concat()),
        text(b"=odd"),
        text(b"odder"),
    ];
    let argv = [program.as_ptr(), std::ptr::null()];
    let mut envp: Vec<_> = environment.iter().map(|entry| entry.as_ptr()).collect();
    envp.push(std::ptr::null());
    // SAFETY: both vectors are of C strings that are alive, and end with a null pointer.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    panic!("execve: {}", std::io::Error::last_os_error());
}

fn repeated() {
    assert_eq!(count(&proc_environ()), 3);

    scrub_environment([TOKEN]).expect("scrubbed");

    assert_eq!(
        count(&proc_environ()),
        1,
        "the variable with the longer name stays"
    );
    assert_eq!(env::var_os(TOKEN), None);
    scrub_environment([format!("{TOKEN}_2")]).expect("scrubbed");
    assert_eq!(count(&proc_environ()), 0);
}

fn scrub_with_threads() {
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || stopped.recv().is_err());

    scrub_environment(["CACHOT_NOT_SET"]).expect("nothing is to be done");
    let refused = scrub_environment([TOKEN]);

    assert!(matches!(refused, Err(ScrubError::Threads(2))));
    assert_eq!(count(&proc_environ()), 1);
    drop(stop);
    assert!(thread.join().expect("ended"));
    scrub_environment([TOKEN]).expect("scrubbed");
}

fn no_thread_left() {
    let file = folder().join("file");
    let declared = (0..200).map(|at| format!("S{at}=file:{}", file.display()));
    let declarations = Declarations::parse(declared);
    for _ in 0..10 {
        let resolved = declarations.resolve(&Schemes::default());
        assert_eq!(resolved.expect("all values").len(), 200);

        // SAFETY: no thread is left, which is what is tested, and none that is ending reads the environment.
        unsafe { env::set_var("CACHOT_SET", "x") };
        scrub_environment(["CACHOT_SET"]).expect("one thread is left");
    }
}

/// How often the secret is in this process's readable memory.
fn count_in_memory() -> usize {
    memory::count(MASKED.len(), count)
}

fn no_copies() {
    let folder = folder();
    let before = count_in_memory();
    assert_eq!(before, 1, "the variable itself is found");
    let declarations = Declarations::parse([
        format!("A=env:{TOKEN}"),
        format!("B=file:{}", folder.join("file").display()),
        format!("C=dotenv:{}#KEY", folder.join("env").display()),
    ])
    .with_env_file(folder.join("env"));

    let resolved = declarations
        .resolve(&Schemes::default())
        .expect("all values");
    assert!(
        resolved
            .iter()
            .all(|secret| is_value(secret.value.expose()))
    );
    assert_eq!(
        count_in_memory(),
        before + resolved.len(),
        "each value is in memory once"
    );
    let sealed: Vec<_> = resolved
        .iter()
        .map(|secret| secret.value.seal().expect("sealed"))
        .collect();
    assert_eq!(
        count_in_memory(),
        before + 2 * resolved.len(),
        "and once in its sealed file"
    );
    drop(sealed);
    drop(resolved);

    assert_eq!(count_in_memory(), before);
    scrub_environment(declarations.environment_variables(&Schemes::default())).expect("scrubbed");
    assert_eq!(count_in_memory(), before - 1);
}

/// Gives up all privileges, so that limits and permissions count for this process.
fn become_nobody() {
    if rustix::process::geteuid().is_root() {
        // SAFETY: plain system calls; this process has one thread.
        let done = unsafe {
            libc::setgroups(0, std::ptr::null()) == 0
                && libc::setgid(NOBODY) == 0
                && libc::setuid(NOBODY) == 0
        };
        assert!(done, "{}", std::io::Error::last_os_error());
    }
    assert!(!rustix::process::geteuid().is_root());
}

fn no_permission() {
    let path = folder().join("file");
    let declarations = Declarations::parse([format!("A=file:{}", path.display())]);
    assert!(declarations.resolve(&Schemes::default()).is_ok());
    let mode = |mode| std::os::unix::fs::PermissionsExt::from_mode(mode);
    fs::set_permissions(folder(), mode(0o755)).expect("set");
    fs::set_permissions(&path, mode(0o000)).expect("set");
    become_nobody();

    let failures = declarations
        .resolve(&Schemes::default())
        .expect_err("refused");

    let message = failures.to_string();
    assert!(
        message.starts_with("secret A: no permission to read "),
        "{message}"
    );
}

fn lock_limit() {
    become_nobody();
    let limit = Rlimit {
        current: Some(64 << 10),
        maximum: Some(64 << 10),
    };
    setrlimit(Resource::Memlock, limit).expect("lowered");
    let mut values = Vec::new();

    let error = loop {
        match SecretValue::copy_of(b"value") {
            Ok(value) => values.push(value),
            Err(error) => break error,
        }
        assert!(values.len() <= 16, "the limit is 16 pages");
    };

    assert_eq!(values.len(), 16);
    assert!(matches!(
        error,
        ValueError::Lock(LockError::Limit {
            needed: 4096,
            limit: Some(65_536)
        })
    ));
    let message = error.to_string();
    assert!(message.contains("ulimit -l"), "{message}");
    assert!(
        values[0].seal().is_err(),
        "the sealed copy is locked as well"
    );
    values.pop();
    assert!(values[0].seal().is_ok());
}

fn hardened() {
    harden_process().expect("hardened");

    let core = getrlimit(Resource::Core);
    assert_eq!((core.current, core.maximum), (Some(0), Some(0)));
    assert_eq!(
        rustix::process::dumpable_behavior().expect("known"),
        DumpableBehavior::NotDumpable
    );
    let status = fs::read_to_string("/proc/self/status").expect("readable");
    assert!(status.contains("NoNewPrivs:\t1\n"), "{status}");
    let locked = getrlimit(Resource::Memlock);
    assert_eq!(locked.current, locked.maximum);
    harden_process().expect("a second time changes nothing");
    // The process itself still works with its values and descriptors.
    scrub_environment([TOKEN]).expect("scrubbed");
    let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
    rustix::io::write(&writer, b"piped").expect("written");
    drop(writer);
    let fd = std::os::fd::AsRawFd::as_raw_fd(&reader);
    let declarations = Declarations::parse([format!("A=file:/dev/fd/{fd}")]);
    assert!(declarations.resolve(&Schemes::default()).is_ok());
}

/// Says that it runs, and waits to be ended.
fn wait_hardened() {
    if env::var_os("CACHOT_TEST_HARDEN").is_some() {
        harden_process().expect("hardened");
    }
    println!("ready");
    std::io::stdin()
        .read_to_end(&mut Vec::new())
        .expect("read to its end");
}

fn hardened_from_outside() {
    // The program must be readable where nobody runs it, or it would not be dumpable to begin with.
    let program = folder().join("program");
    fs::copy(env::current_exe().expect("its path"), &program).expect("copied");
    let mode = |mode| std::os::unix::fs::PermissionsExt::from_mode(mode);
    fs::set_permissions(folder(), mode(0o755)).expect("set");
    fs::set_permissions(&program, mode(0o755)).expect("set");
    become_nobody();
    let environ_of_child = |harden: bool| {
        let mut command = Command::new(&program);
        command.env(CASE, "wait_hardened");
        if harden {
            command.env("CACHOT_TEST_HARDEN", "1");
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut ready = [0; 6];
        let stdout = child.stdout.as_mut().expect("a pipe");
        stdout.read_exact(&mut ready).expect("it is ready");
        let environ = fs::read(format!("/proc/{}/environ", child.id()));
        let memory = File::open(format!("/proc/{}/mem", child.id()));
        drop(child.stdin.take());
        assert!(child.wait().expect("it ends").success());
        (environ, memory)
    };

    let (environ, memory) = environ_of_child(false);
    assert_eq!(count(&environ.expect("an open process")), 1);
    assert!(memory.is_ok());
    let (environ, memory) = environ_of_child(true);

    let denied = std::io::ErrorKind::PermissionDenied;
    assert_eq!(environ.expect_err("a closed process").kind(), denied);
    assert_eq!(memory.expect_err("a closed process").kind(), denied);
}

/// Holds the secret as a value, and its masked form in ordinary memory, and dies.
fn abort() {
    if env::var_os("CACHOT_TEST_HARDEN").is_some() {
        harden_process().expect("hardened");
    }
    let file = folder().join("file");
    let declarations = Declarations::parse([format!("A=file:{}", file.display())]);
    let resolved = declarations
        .resolve(&Schemes::default())
        .expect("the value");
    let sealed = resolved[0].value.seal().expect("sealed");
    let ordinary = MASKED.to_vec();
    rustix::process::kill_process(rustix::process::getpid(), Signal::ABORT).expect("sent");
    // The signal of a process with one thread is delivered before `kill` returns.
    unreachable!("SIGABRT ends the process of {sealed:?} and {ordinary:?}");
}

/// How a helper that holds the secret dies: whether the kernel says that it wrote a core dump.
fn dies_with_core(harden: bool) -> bool {
    let hard = getrlimit(Resource::Core).maximum;
    let mut command = again("abort");
    command.current_dir(folder()).env_remove(TOKEN);
    if harden {
        command.env("CACHOT_TEST_HARDEN", "1");
    }
    let raise = move || {
        let all = Rlimit {
            current: hard,
            maximum: hard,
        };
        Ok(setrlimit(Resource::Core, all)?)
    };
    // SAFETY: the closure makes one system call.
    unsafe { command.pre_exec(raise) };
    let status = command.stderr(Stdio::null()).status().expect("it starts");
    assert_eq!(status.signal(), Some(libc::SIGABRT));
    status.core_dumped()
}

fn core_files() -> Vec<Vec<u8>> {
    fs::read_dir(folder())
        .expect("readable")
        .map(|entry| entry.expect("an entry"))
        .filter(|entry| entry.file_name() != "file" && entry.file_name() != "env")
        .map(|entry| fs::read(entry.path()).expect("readable"))
        .collect()
}

fn core_dump() {
    assert!(!dies_with_core(true));
    assert!(core_files().is_empty());

    // Without hardening there is a core file, and the value is not in it. That needs a machine
    // that writes core files to the working directory; on others the kernel hands the dump to a
    // program, or has none made, and there is no file to look at.
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").expect("readable");
    let to_file = !pattern.trim().is_empty() && !pattern.starts_with(['|', '/']);
    if !to_file || getrlimit(Resource::Core).maximum == Some(0) {
        println!("note: no core file to search here: core_pattern is {pattern:?}");
        return;
    }
    assert!(dies_with_core(false));
    let cores = core_files();
    assert_eq!(cores.len(), 1);
    let control = cores[0].windows(MASKED.len()).any(|w| w == MASKED);
    assert!(control, "ordinary memory is in the core file");
    assert_eq!(count(&cores[0]), 0);
}

fn sealed_across_processes() {
    let value = SecretValue::copy_of(&value()).expect("a value");
    let sealed = value.seal().expect("sealed");
    let fd = std::os::fd::AsFd::as_fd(&sealed)
        .try_clone_to_owned()
        .expect("a descriptor");

    let status = again("read_sealed")
        .env_remove(TOKEN)
        .stdin(Stdio::from(fd))
        .status()
        .expect("it starts");

    assert!(status.success());
}

fn read_sealed() {
    let stdin = std::os::fd::AsFd::as_fd(&std::io::stdin())
        .try_clone_to_owned()
        .expect("a descriptor");
    let sealed = SealedValue::try_from(stdin).expect("a sealed value");
    let mut bytes = vec![0; sealed.len()];
    sealed.pread_into(0, &mut bytes).expect("all bytes");
    assert!(is_value(&bytes));
}
