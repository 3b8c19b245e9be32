//! Files of secrets (dotenv): looking one key up, taking all keys, and importing them find the same values.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;

use cachot_custody::import::{self, Plan, Rules};
use cachot_custody::store::Scope;
use cachot_custody::{Requester, UserId};
use cachot_secrets::{Declarations, Dotenv, Scheme, Schemes};
use rustix::fs::MemfdFlags;

/// One file.
///
/// # Panics
/// Where a promise is broken.
pub fn run(input: &[u8]) -> bool {
    let fd = rustix::fs::memfd_create("dotenv", MemfdFlags::CLOEXEC).expect("a file in memory");
    let mut file = File::from(fd);
    file.write_all(input).expect("written");
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());

    let all = Declarations::default()
        .with_env_file(&path)
        .resolve(&Schemes::default());
    let one = Dotenv.resolve(&format!("{path}#KEY"));

    let Ok(all) = all else {
        return false;
    };
    let key = all.iter().find(|secret| secret.name.as_str() == "KEY");
    let of_all = key.map(|secret| secret.value.expose());
    assert_eq!(one.as_ref().ok().map(|one| one.value.expose()), of_all);
    // An import takes the same keys.
    let rules = Rules {
        requester: Requester {
            user: UserId::of_this_process(),
            instance: None,
        },
        scope: Scope::Workspace,
        owners: Vec::new(),
        renames: Vec::new(),
        skip: Vec::new(),
        skip_empty: false,
    };
    let found = import::dotenv(Path::new(&path)).expect("it is read");
    let plan = Plan::new(found, &rules).expect("every key has a place");
    let imported: BTreeMap<_, _> = plan
        .planned
        .iter()
        .map(|one| (&one.name, one.bytes()))
        .collect();
    let expected = all.iter().map(|secret| (&secret.name, secret.value.len()));
    assert_eq!(imported, expected.collect());
    for secret in &all {
        let fetched = Dotenv
            .resolve(&format!("{path}#{}", secret.name))
            .expect("it is there");
        assert_eq!(fetched.value.expose(), secret.value.expose());
    }
    !all.is_empty()
}
