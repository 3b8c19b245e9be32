//! The redaction plan: which bytes are left out of an image, and of which value they were. Never a value.
//!
//! A plan comes from a scan ([`PlanBuilder`]) and goes into the image; it comes back as untrusted bytes
//! ([`Plan::from_bytes`]). Its redactions are sorted, apart, and outside the attached pages, which are left out
//! whole and which the device fills again.

mod settle;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use cachot_secrets::{LockError, LockedBuffer, Name};
use serde::{Deserialize, Serialize};

use crate::needles::{Encoding, Needles, Origin};
use crate::scan::Hit;

/// Most redactions of a plan. So many copies mean that a guest fills its memory with them.
pub const MAX_REDACTIONS: usize = 1 << 20;

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// There are too many copies.
    #[error(
        "the guest's memory holds more than {MAX_REDACTIONS} copies of secrets: stop what copies them, then try again"
    )]
    TooMany,
    /// What is left out makes new residue again and again.
    #[error(
        "leaving copies of a secret out makes new ones of what is around them, {} times over: stop what fills the \
         guest's memory with zeros and parts of the secret, then try again",
        settle::MAX_ROUNDS
    )]
    Unsettled,
    /// There is no locked memory for what may be residue.
    #[error(transparent)]
    Locked(#[from] LockError),
    /// The bytes are not a plan.
    #[error("the redaction plan is malformed: the image is damaged, or another version's")]
    Malformed(#[from] postcard::Error),
    /// The fields contradict each other.
    #[error("the redaction plan is not consistent: {0}")]
    Inconsistent(&'static str),
}

/// Where a redaction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// Guest RAM; positions are guest-physical addresses.
    Ram,
    /// Registers of the vCPU with this number; positions are in its register file.
    Vcpu(u8),
}

/// A run of bytes that is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Redaction {
    /// Where.
    pub place: Place,
    /// Position of its first byte.
    pub start: u64,
    /// Its length in bytes, not 0.
    pub len: u32,
    /// Index of the value among [`Plan::values`].
    pub value: u32,
    /// The form of the value that was there.
    pub encoding: Encoding,
    /// Where the run begins in that form.
    pub offset: u32,
    /// Whether the bytes just before and behind it, which are not left out, have bits of the value: characters of
    /// base64.
    pub shared_ends: [bool; 2],
}

impl Redaction {
    /// Its positions.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.start..self.start + u64::from(self.len)
    }

    /// The part of it at these positions, which are some of its own.
    fn part(&self, positions: &Range<u64>) -> Self {
        let narrow = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        let skipped = positions.start - self.start;
        let [before, behind] = self.shared_ends;
        Self {
            start: positions.start,
            // Parts of its numbers, which fit.
            len: narrow(positions.end - positions.start),
            offset: self.offset + narrow(skipped),
            shared_ends: [
                before && skipped == 0,
                behind && positions.end == self.range().end,
            ],
            ..*self
        }
    }
}

/// A value of which something is left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanValue {
    /// Its secret.
    pub name: Name,
    /// Its version.
    pub version: u64,
    /// Its length in bytes.
    pub len: u64,
    /// Keyed BLAKE3 of it, with the image's commitment key: tells who has the key whether another value is the same.
    pub commitment: [u8; 32],
    /// Length of each of its forms of which something is left out, in bytes.
    pub forms: BTreeMap<Encoding, u32>,
}

/// What is left out of an image.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    values: Vec<PlanValue>,
    attached: Vec<Range<u64>>,
    redactions: Vec<Redaction>,
}

impl Plan {
    /// The values, by index.
    #[must_use]
    pub fn values(&self) -> &[PlanValue] {
        &self.values
    }

    /// Attached guest memory, sorted and apart.
    #[must_use]
    pub fn attached(&self) -> &[Range<u64>] {
        &self.attached
    }

    /// All redactions, sorted by place and position, and apart.
    #[must_use]
    pub fn redactions(&self) -> &[Redaction] {
        &self.redactions
    }

    /// The redactions of one place.
    #[must_use]
    pub fn at(&self, place: Place) -> &[Redaction] {
        let first = self.redactions.partition_point(|one| one.place < place);
        let len = self.redactions[first..].partition_point(|one| one.place == place);
        &self.redactions[first..first + len]
    }

    /// Guest-physical addresses that are left out, sorted and apart.
    #[must_use]
    pub fn left_out(&self) -> Vec<Range<u64>> {
        let copies = self.at(Place::Ram).iter().map(Redaction::range);
        let mut all: Vec<_> = self.attached.iter().cloned().chain(copies).collect();
        all.sort_unstable_by_key(|range| range.start);
        all
    }

    /// The plan as bytes.
    ///
    /// # Errors
    /// Never in practice: a plan is plain data.
    pub fn to_bytes(&self) -> Result<Vec<u8>, PlanError> {
        Ok(postcard::to_allocvec(self)?)
    }

    /// Reads what [`Self::to_bytes`] has written, and checks it.
    ///
    /// # Errors
    /// [`PlanError::Malformed`] or [`PlanError::Inconsistent`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PlanError> {
        let (plan, rest): (Self, _) = postcard::take_from_bytes(bytes)?;
        if !rest.is_empty() {
            return Err(PlanError::Inconsistent("bytes follow it"));
        }
        plan.check().map_err(PlanError::Inconsistent)?;
        Ok(plan)
    }

    fn check(&self) -> Result<(), &'static str> {
        let apart = |ranges: &[Range<u64>]| {
            ranges.iter().all(|range| range.start < range.end)
                && ranges.is_sorted_by(|left, right| left.end <= right.start)
        };
        if !apart(&self.attached) {
            return Err("attached ranges are empty or overlap");
        }
        for one in &self.redactions {
            if one.len == 0 || one.start.checked_add(one.len.into()).is_none() {
                return Err("a redaction is empty or has no end");
            }
            let value = self.values.get(one.value as usize);
            let form_len = value.and_then(|value| value.forms.get(&one.encoding));
            let end = one.offset.checked_add(one.len);
            if form_len.zip(end).is_none_or(|(len, end)| end > *len) {
                return Err("a redaction is of no form");
            }
        }
        let in_order = self.redactions.is_sorted_by(|left, right| {
            (left.place, left.range().end) <= (right.place, right.start) || left.place < right.place
        });
        if !in_order || !apart(&self.left_out()) {
            return Err("redactions overlap or are not sorted");
        }
        Ok(())
    }
}

/// Collects hits and makes a plan of them.
pub struct PlanBuilder<'a> {
    needles: &'a Needles,
    values: Vec<PlanValue>,
    attached: Vec<Range<u64>>,
    hits: Vec<Redaction>,
    /// Ends of what [`Self::settle`] knows to be left out, by place and start.
    taken: BTreeMap<(Place, u64), u64>,
    /// Number of the hits that are in it.
    settled: usize,
    /// What [`Self::settle`] searches, kept from one call to the next: it is called while a machine rests.
    written: Option<LockedBuffer>,
    too_many: bool,
}

impl<'a> PlanBuilder<'a> {
    /// A plan that leaves out these attached ranges of guest memory. `key` is the image's commitment key.
    #[must_use]
    pub fn new(
        needles: &'a Needles,
        key: &[u8; 32],
        attached: impl IntoIterator<Item = Range<u64>>,
    ) -> Self {
        let value = |(number, origin): (usize, &Origin)| PlanValue {
            name: origin.name.clone(),
            version: origin.version,
            len: origin.len as u64,
            commitment: needles.commitment(number, key),
            forms: needles.form_lengths(number),
        };
        let mut attached: Vec<_> = attached.into_iter().collect();
        attached.sort_unstable_by_key(|range| range.start);
        Self {
            needles,
            values: needles.origins().iter().enumerate().map(value).collect(),
            taken: taken_by(&attached),
            settled: 0,
            written: None,
            attached,
            hits: Vec::new(),
            too_many: false,
        }
    }

    /// The attached ranges, sorted.
    #[must_use]
    pub fn attached(&self) -> &[Range<u64>] {
        &self.attached
    }

    /// Adds a hit in a haystack that begins at `base`. What is in attached pages is left out anyway.
    pub fn add(&mut self, place: Place, base: u64, haystack: &[u8], hit: &Hit) {
        match self.redaction(place, base, haystack, hit) {
            Some(redaction) if self.hits.len() < MAX_REDACTIONS => self.hits.push(redaction),
            _ => self.too_many = true,
        }
    }

    /// A hit as a redaction, unless its numbers are too great: forms are far shorter.
    fn redaction(&self, place: Place, base: u64, haystack: &[u8], hit: &Hit) -> Option<Redaction> {
        let narrow = |number: usize| u32::try_from(number).ok();
        Some(Redaction {
            place,
            start: base + hit.start as u64,
            len: narrow(hit.len)?,
            value: narrow(hit.value)?,
            encoding: hit.encoding,
            offset: narrow(hit.offset)?,
            shared_ends: self.needles.shares_ends(haystack, hit),
        })
    }

    /// Whether there are more hits than a plan can have, so that going on is of no use.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.too_many
    }

    /// Makes hits that overlap into redactions that do not: a byte goes to the longest of its hits, because
    /// that one is the likeliest to be what somebody put there.
    ///
    /// # Errors
    /// [`PlanError::TooMany`].
    pub fn build(mut self) -> Result<Plan, PlanError> {
        if self.too_many {
            return Err(PlanError::TooMany);
        }
        self.hits
            .sort_by_key(|hit| (std::cmp::Reverse(hit.len), hit.place, hit.start));
        let mut taken = taken_by(&self.attached);
        let mut redactions = Vec::with_capacity(self.hits.len());
        for hit in &self.hits {
            for free in free_parts(&taken, hit) {
                taken.insert((hit.place, free.start), free.end);
                redactions.push(hit.part(&free));
            }
        }
        if redactions.len() > MAX_REDACTIONS {
            return Err(PlanError::TooMany);
        }
        redactions.sort_unstable_by_key(|one| (one.place, one.start));
        let used: BTreeSet<_> = redactions
            .iter()
            .map(|one| (one.value, one.encoding))
            .collect();
        for (number, value) in (0..).zip(&mut self.values) {
            value
                .forms
                .retain(|encoding, _| used.contains(&(number, *encoding)));
        }
        Ok(Plan {
            values: self.values,
            attached: self.attached,
            redactions,
        })
    }
}

/// Ends of the attached pages, by place and start.
fn taken_by(attached: &[Range<u64>]) -> BTreeMap<(Place, u64), u64> {
    let ends = attached.iter();
    ends.map(|range| ((Place::Ram, range.start), range.end))
        .collect()
}

/// The parts of a hit that nothing has taken yet.
fn free_parts(taken: &BTreeMap<(Place, u64), u64>, hit: &Redaction) -> Vec<Range<u64>> {
    let Range { mut start, end } = hit.range();
    let mut free = Vec::new();
    let before = taken.range(..=(hit.place, start)).next_back();
    if let Some(((place, _), taken_end)) = before
        && *place == hit.place
    {
        start = start.max(*taken_end);
    }
    for ((_, taken_start), taken_end) in
        taken.range((hit.place, start)..(hit.place, end.max(start)))
    {
        if start < *taken_start {
            free.push(start..*taken_start);
        }
        start = *taken_end;
    }
    if start < end {
        free.push(start..end);
    }
    free
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::needles::Value;
    use cachot_secrets::SecretValue;
    use proptest::prelude::*;

    fn needles() -> Needles {
        let value = SecretValue::copy_of(
            b"a value that is long enough for all of these tests, which take up to 65 bytes",
        );
        let value = value.expect("a value");
        Needles::new(vec![Value {
            name: "A".parse().expect("a name"),
            version: 3,
            bytes: value,
        }])
        .expect("memory")
    }

    fn hit(start: usize, len: usize) -> Hit {
        Hit {
            start,
            len,
            value: 0,
            encoding: Encoding::Raw,
            offset: 5,
        }
    }

    fn built(attached: &[Range<u64>], hits: &[(Place, usize, usize)]) -> Plan {
        let needles = needles();
        let mut builder = PlanBuilder::new(&needles, &[7; 32], attached.iter().cloned());
        for (place, start, len) in hits {
            builder.add(*place, 0, &[], &hit(*start, *len));
        }
        builder.build().expect("few hits")
    }

    #[test]
    fn test_build_longest_hit_wins_and_attached_pages_take_all() {
        let plan = built(
            std::slice::from_ref(&(4096..8192)),
            &[
                (Place::Ram, 100, 20),
                (Place::Ram, 110, 40),
                (Place::Ram, 4090, 30),
                (Place::Ram, 5000, 30),
                (Place::Vcpu(1), 110, 8),
            ],
        );

        let parts: Vec<_> = plan
            .redactions()
            .iter()
            .map(|one| (one.place, one.start, one.len, one.offset))
            .collect();
        assert_eq!(
            parts,
            [
                (Place::Ram, 100, 10, 5),
                (Place::Ram, 110, 40, 5),
                (Place::Ram, 4090, 6, 5),
                (Place::Vcpu(1), 110, 8, 5),
            ]
        );
        assert_eq!(
            plan.left_out(),
            [100..110, 110..150, 4090..4096, 4096..8192]
        );
        assert_eq!(plan.at(Place::Vcpu(1)).len(), 1);
        assert_eq!(plan.at(Place::Vcpu(0)), []);
    }

    #[test]
    fn test_build_more_hits_than_the_limit_is_refused() {
        let needles = needles();
        let mut builder = PlanBuilder::new(&needles, &[7; 32], []);
        for index in 0..=MAX_REDACTIONS {
            assert!(!builder.is_full());
            builder.add(Place::Ram, 0, &[], &hit(100 * index, 20));
        }
        assert!(builder.is_full());
        assert!(matches!(builder.build(), Err(PlanError::TooMany)));
    }

    #[test]
    fn test_from_bytes_plans_that_cannot_be_are_refused() {
        let good = built(
            std::slice::from_ref(&(4096..8192)),
            &[(Place::Ram, 100, 20), (Place::Ram, 200, 20)],
        );
        let bytes = good.to_bytes().expect("plain data");
        assert_eq!(Plan::from_bytes(&bytes).expect("it is good"), good);
        for break_it in [
            |plan: &mut Plan| plan.redactions.swap(0, 1),
            |plan: &mut Plan| plan.redactions[0].len = 101,
            |plan: &mut Plan| plan.redactions[0].len = 0,
            |plan: &mut Plan| plan.redactions[1].start = u64::MAX - 1,
            |plan: &mut Plan| plan.redactions[0].value = 1,
            |plan: &mut Plan| plan.redactions[0].encoding = Encoding::Hex,
            |plan: &mut Plan| plan.redactions[0].offset = 58,
            |plan: &mut Plan| plan.redactions[0].offset = u32::MAX,
            |plan: &mut Plan| plan.redactions[1].start = 5000,
            |plan: &mut Plan| plan.attached[0].end = 4096,
            |plan: &mut Plan| plan.attached.push(8191..9000),
        ] {
            let mut plan = good.clone();
            break_it(&mut plan);
            let bytes = plan.to_bytes().expect("plain data");
            assert!(
                matches!(Plan::from_bytes(&bytes), Err(PlanError::Inconsistent(_))),
                "{plan:?}"
            );
        }
        for len in 0..bytes.len() {
            assert!(Plan::from_bytes(&bytes[..len]).is_err());
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(matches!(
            Plan::from_bytes(&longer),
            Err(PlanError::Inconsistent("bytes follow it"))
        ));
    }

    proptest! {
        #[test]
        fn test_build_leaves_out_exactly_what_hits_and_pages_cover(
            hits in prop::collection::vec((0..600_usize, 1..60_usize), 0..30),
            pages in prop::collection::btree_set(0..10_u64, 0..4),
        ) {
            let attached: Vec<_> = pages.iter().map(|page| 64 * page..64 * page + 64).collect();
            let all: Vec<_> = hits.iter().map(|(start, len)| (Place::Ram, *start, *len)).collect();

            let plan = built(&attached, &all);

            prop_assert!(plan.check().is_ok());
            for position in 0..700_u64 {
                let inside = |ranges: &[Range<u64>]| ranges.iter().any(|range| range.contains(&position));
                let by_hit = hits.iter().any(|(start, len)| {
                    (*start as u64..(start + len) as u64).contains(&position)
                });
                prop_assert_eq!(inside(&plan.left_out()), by_hit || inside(&attached));
            }
        }
    }
}
