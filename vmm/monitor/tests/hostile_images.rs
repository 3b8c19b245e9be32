//! States and plans that were changed: a machine runs or the keeper is told why not; the monitor never breaks.
//!
//! A keeper checks an image's signature before the monitor sees any of it. This is what stands behind that.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use cachot_vmm::protocol::{FileRole, OnResidue, ToKeeper, ToMonitor};
use common::file;
use common::forget::{Guest, Parts, VALUE, forget_config};
use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, TestRunner};

/// A change of one part.
#[derive(Debug, Clone)]
enum Change {
    /// A byte becomes another one.
    Byte(prop::sample::Index, u8),
    /// A number of eight bytes becomes one at the limits of what there is.
    Number(prop::sample::Index, u64),
    /// The end is missing.
    Cut(prop::sample::Index),
    /// Something is in the middle that was not there.
    Insert(prop::sample::Index, Vec<u8>),
}

impl Change {
    fn any() -> impl Strategy<Value = Self> {
        let at = any::<prop::sample::Index>;
        let limits = prop::sample::select(vec![0, 1, 32 << 20, (32 << 20) - 1, 1 << 32, u64::MAX]);
        prop_oneof![
            4 => (at(), any::<u8>()).prop_map(|(at, byte)| Self::Byte(at, byte)),
            2 => (at(), limits).prop_map(|(at, number)| Self::Number(at, number)),
            1 => at().prop_map(Self::Cut),
            1 => (at(), prop::collection::vec(any::<u8>(), 1..20)).prop_map(|(at, bytes)| Self::Insert(at, bytes)),
        ]
    }

    fn apply(&self, part: &mut Vec<u8>) {
        match self {
            Self::Byte(at, byte) => {
                let at = at.index(part.len());
                part[at] = *byte;
            }
            Self::Number(at, number) => {
                let at = at.index(part.len());
                let end = part.len().min(at + 8);
                part[at..end].copy_from_slice(&number.to_le_bytes()[..end - at]);
            }
            Self::Cut(at) => part.truncate(at.index(part.len())),
            Self::Insert(at, bytes) => {
                let at = at.index(part.len());
                part.splice(at..at, bytes.iter().copied());
            }
        }
    }
}

/// Restores this, and lets it run for a moment.
fn restore(parts: &Parts, state: &[u8], plan: &[u8]) -> Result<(), TestCaseError> {
    let mut files = parts.image();
    files.truncate(1);
    files.push((FileRole::ImageState, rewound(state)));
    files.push((FileRole::ImagePlan, rewound(plan)));
    let mut guest = Guest::prepare(forget_config(), VALUE, files);
    guest.monitor.send(&ToMonitor::Boot);
    // An end without a word would be an error here.
    let mut message = guest.monitor.message();
    while matches!(message, ToKeeper::LeftZero { .. }) {
        message = guest.monitor.message();
    }
    match message {
        ToKeeper::Failed { message } => {
            prop_assert!(message.len() > 10, "{message}");
            prop_assert!(!message.contains("tk-"), "{message}");
            prop_assert_eq!(guest.monitor.wait().code(), Some(1));
        }
        ToKeeper::Running => {
            std::thread::sleep(Duration::from_millis(5));
            if let Some(status) = guest.monitor.child.try_wait().unwrap() {
                prop_assert!(status.code().is_some_and(|code| code <= 1), "{status}");
                let told = matches!(
                    guest.monitor.message(),
                    ToKeeper::Stopped { .. } | ToKeeper::Failed { .. }
                );
                prop_assert!(told);
            }
        }
        other => return Err(TestCaseError::fail(format!("{other:?}"))),
    }
    Ok(())
}

fn rewound(bytes: &[u8]) -> std::os::fd::OwnedFd {
    let mut file = std::fs::File::from(file(bytes));
    std::io::Seek::rewind(&mut file).unwrap();
    file.into()
}

#[test]
fn test_changed_states_and_plans_run_or_are_refused() {
    let source = Guest::boot(VALUE);
    let (parts, _) = source.snapshot(OnResidue::Redact);
    let (state, plan) = (parts.bytes("state"), parts.bytes("plan"));
    restore(&parts, &state, &plan).unwrap();
    let changes = (
        prop::collection::vec(Change::any(), 0..3),
        prop::collection::vec(Change::any(), 0..3),
    );
    let mut runner = TestRunner::new(Cases {
        cases: 250,
        failure_persistence: None,
        ..Cases::default()
    });

    let outcome = runner.run(&changes, |(of_state, of_plan)| {
        let (mut state, mut plan) = (state.clone(), plan.clone());
        let non_empty = |part: &mut Vec<u8>, change: &Change| {
            if !part.is_empty() {
                change.apply(part);
            }
        };
        of_state
            .iter()
            .for_each(|change| non_empty(&mut state, change));
        of_plan
            .iter()
            .for_each(|change| non_empty(&mut plan, change));
        restore(&parts, &state, &plan)
    });

    outcome.unwrap();
}
