//! The redaction plan: what is read is the same when it is written and read again, and refilling writes
//! to where the plan leaves something out, and nowhere else.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use cachot_secrets::{Name, SecretValue};
use cachot_snapshot::plan::{Place, Plan};
use cachot_snapshot::refill::{Target, refill};

use crate::values::{COMMITMENT_KEY, VALUES, name, value};

/// Where RAM and registers of the machine end: RAM as in the images that the corpus comes from.
const END: u64 = 64 << 20;

static SECRETS: LazyLock<BTreeMap<Name, SecretValue>> = LazyLock::new(|| {
    let secret = |(index, (_, bytes)): (usize, &(&str, &[u8]))| (name(index), value(bytes));
    VALUES.iter().enumerate().map(secret).collect()
});

/// One plan.
///
/// # Panics
/// Where a promise is broken.
pub fn run(input: &[u8]) -> bool {
    let Ok(plan) = Plan::from_bytes(input) else {
        return false;
    };
    let bytes = plan.to_bytes().expect("plain data");
    assert_eq!(Plan::from_bytes(&bytes).expect("it was read before"), plan);
    let left_out = plan.left_out();
    assert!(left_out.is_sorted_by(|left, right| left.end <= right.start));

    let mut restored = 0;
    for key in [None, Some(&COMMITMENT_KEY)] {
        let mut machine = Machine {
            plan: &plan,
            written: 0,
        };
        if let Ok(done) = refill(&plan, &SECRETS, key, &mut machine) {
            let zero: u64 = done.left_zero.values().sum();
            assert_eq!(done.restored + zero, plan.redactions().len() as u64);
            assert!(machine.written >= done.restored);
            restored += done.restored;
        }
    }
    restored > 0
}

/// A machine that knows where it may be written to.
struct Machine<'a> {
    plan: &'a Plan,
    written: u64,
}

impl Machine<'_> {
    /// Whether one byte just before or behind a redaction shares bits with it.
    fn is_shared_end(&self, place: Place, at: u64) -> bool {
        self.plan.at(place).iter().any(|one| {
            let range = one.range();
            let [before, behind] = one.shared_ends;
            before && at.checked_add(1) == Some(range.start) || behind && at == range.end
        })
    }
}

impl Target for Machine<'_> {
    type Error = ();

    fn write(&mut self, place: Place, at: u64, bytes: &[u8]) -> Result<(), ()> {
        let len = bytes.len() as u64;
        let end = at.checked_add(len).expect("redactions have an end");
        let redactions = self.plan.at(place);
        let found = redactions.binary_search_by_key(&at, |one| one.start);
        let is_redaction = found.is_ok_and(|index| redactions[index].range() == (at..end));
        assert!(is_redaction || len == 1 && self.is_shared_end(place, at));
        self.written += 1;
        if end > END { Err(()) } else { Ok(()) }
    }

    fn read(&self, _place: Place, at: u64) -> Option<u8> {
        // All characters of base64, and others.
        (at < END).then(|| at.to_le_bytes()[0])
    }
}
