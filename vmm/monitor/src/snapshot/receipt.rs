//! What was searched for, found and left out, for the manifest.

use std::collections::BTreeMap;

use cachot_snapshot::image::{Hits, OnResidue as Policy, Place, Receipt, Redactions};
use cachot_snapshot::needles::{EDGE_WINDOW, Encoding, Needles, WINDOW};
use cachot_snapshot::plan::{self, Plan};

use crate::protocol::OnResidue;

/// Hits by place and form.
#[derive(Debug, Default)]
pub struct Tally(BTreeMap<(Place, &'static str), u64>);

impl Tally {
    /// Counts one.
    pub fn count(&mut self, place: Place, encoding: Encoding) {
        *self.0.entry((place, encoding.name())).or_default() += 1;
    }

    /// Adds what another one has counted.
    pub fn add(&mut self, other: &Self) {
        for (hit, count) in &other.0 {
            *self.0.entry(*hit).or_default() += count;
        }
    }

    /// In words, without a value.
    pub fn describe(&self) -> String {
        let each = self.0.iter().map(|((place, encoding), count)| {
            let place = match place {
                Place::AttachedPage => "attached pages",
                Place::Ram => "other memory",
                Place::Vcpu => "registers",
                Place::DeviceState => "machine state",
                Place::Disk => "disks",
                Place::Console => "the console log",
            };
            format!("{count} in {place} ({encoding})")
        });
        each.collect::<Vec<_>>().join(", ")
    }

    fn hits(&self) -> Vec<Hits> {
        let each = self.0.iter().map(|((place, encoding), count)| Hits {
            place: *place,
            encoding: (*encoding).to_owned(),
            count: *count,
        });
        each.collect()
    }
}

/// The receipt of a snapshot.
pub fn receipt(
    needles: &Needles,
    on_residue: OnResidue,
    plan: &Plan,
    found: &Tally,
    residue: &Tally,
    bytes_scanned: u64,
) -> Receipt {
    Receipt {
        scanner: format!("cachot {}", env!("CARGO_PKG_VERSION")),
        policy: match on_residue {
            OnResidue::Refuse => Policy::Refuse,
            OnResidue::Redact | OnResidue::Keep => Policy::Redact,
        },
        residue_kept: on_residue == OnResidue::Keep,
        needles: needles.origins().len() as u64,
        degenerate_windows: needles.degenerate_windows(),
        short_values: needles.unsearchable().map(|origin| origin.name.clone()).collect(),
        bytes_scanned,
        hits: found.hits(),
        redactions: redactions(plan),
        residue: residue.hits(),
        not_proved: vec![
            "that nothing is there which was computed from a value: hashes, tokens, compressed or encrypted copies".into(),
            format!("that no single run of fewer than {WINDOW} bytes is there, or of fewer than {EDGE_WINDOW} at the end of a page or register"),
            "that no words of a value are there in an order that is neither its own nor the reverse, as in registers that were loaded in no order".into(),
        ],
    }
}

fn redactions(plan: &Plan) -> Vec<Redactions> {
    let mut by_place: BTreeMap<Place, (u64, u64)> = BTreeMap::new();
    let mut add = |place, len| {
        let (ranges, bytes) = by_place.entry(place).or_default();
        *ranges += 1;
        *bytes += len;
    };
    for range in plan.attached() {
        add(Place::AttachedPage, range.end - range.start);
    }
    for one in plan.redactions() {
        let place = match one.place {
            plan::Place::Ram => Place::Ram,
            plan::Place::Vcpu(_) => Place::Vcpu,
        };
        add(place, u64::from(one.len));
    }
    let each = by_place.into_iter();
    each.map(|(place, (ranges, bytes))| Redactions {
        place,
        ranges,
        bytes,
    })
    .collect()
}
