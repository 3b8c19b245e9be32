//! The secrets of an image, resolved again: which of their values were searched for when it was made.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use cachot_custody::UserId;
use cachot_custody::audit::Access;
use cachot_secrets::{
    Name, Reference, ResolveError, Resolved, Schemes, SecretValue, scrub_environment,
};
use cachot_snapshot::image::{DIGEST_LEN, HostKey, Image, Manifest, PartName, commitments};
use cachot_snapshot::needles::{EDGE_WINDOW, Value};
use serde::Serialize;
use zeroize::Zeroizing;

use super::ImagesError;
use crate::audit;
use crate::state_dir::Places;
use crate::text::{line, with_causes};

/// How one secret fared.
#[derive(Serialize)]
pub(super) struct Checked {
    name: Name,
    reference: String,
    status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    /// It has the value that was searched for; that is searched for again.
    Searched,
    /// It has another value by now; that is searched for.
    OtherValue,
    /// Its value is searched for; whether it was then cannot be known here.
    NotCompared,
    /// Its value is too short.
    TooShort,
    /// It has no value here.
    NotChecked,
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.name)?;
        match self.status {
            Status::Searched => f.write_str("the value that was searched for"),
            Status::OtherValue => f.write_str("another value than the one that was searched for"),
            Status::NotCompared => f.write_str("a value; which one was searched for is not known"),
            Status::TooShort => {
                f.write_str("not checked: its value is too short to be searched for")
            }
            Status::NotChecked => {
                let why = self.error.as_deref().unwrap_or_default();
                write!(f, "not checked: {}", line(why))
            }
        }
    }
}

/// What is known of the values that were searched for when the image was made; nothing, if another host made it.
pub(super) struct Known(Option<Committed>);

struct Committed {
    key: Zeroizing<[u8; 32]>,
    /// A commitment to each value.
    digests: BTreeSet<Vec<u8>>,
}

impl Committed {
    fn digest(&self, value: &SecretValue) -> Vec<u8> {
        commitments(&self.key, std::iter::once(value.expose()))
    }
}

impl Known {
    /// What the image has, if its key is here.
    pub fn load(image: &Image) -> Result<Self, ImagesError> {
        let key = HostKey::load(&Places::of_process().root()?)?
            .filter(|key| key.public() == image.manifest().host_key);
        let Some(key) = key else {
            return Ok(Self(None));
        };
        let digests = image.read(PartName::Needles)?;
        Ok(Self(Some(Committed {
            key: key.commitment_key(&image.manifest().id),
            digests: digests.chunks(DIGEST_LEN).map(<[u8]>::to_vec).collect(),
        })))
    }

    /// Whether this value was among them, if that can be known.
    fn has(&self, value: &SecretValue) -> Option<bool> {
        let committed = self.0.as_ref()?;
        Some(committed.digests.contains(&committed.digest(value)))
    }

    /// How many of them are among those of these values that can be searched for.
    pub fn count(&self, values: &[Value]) -> Option<u64> {
        let committed = self.0.as_ref()?;
        let again: BTreeSet<Vec<u8>> = values
            .iter()
            .filter(|value| value.bytes.len() >= EDGE_WINDOW)
            .map(|value| committed.digest(&value.bytes))
            .filter(|digest| committed.digests.contains(digest))
            .collect();
        Some(again.len() as u64)
    }
}

/// Refuses values for secrets that the image does not have.
pub(super) fn check_names(given: &[Resolved], manifest: &Manifest) -> Result<(), ImagesError> {
    let names: Vec<_> = manifest.secrets.iter().map(|secret| &secret.name).collect();
    let Some(foreign) = given.iter().find(|given| !names.contains(&&given.name)) else {
        return Ok(());
    };
    let known: Vec<_> = names.iter().map(|name| name.as_str()).collect();
    Err(ImagesError::NoSuchSecret {
        name: foreign.name.clone(),
        known: match known.is_empty() {
            true => "none".to_owned(),
            false => known.join(", "),
        },
    })
}

/// A secret of an image, and the value that was found for it.
pub(super) struct Candidate {
    name: Name,
    version: u64,
    reference: String,
    value: Result<SecretValue, String>,
}

/// Finds a value for each secret of the image: the given one, or that of its reference. To be done before there is a
/// second thread, as the environment is rid of values.
pub(super) fn resolve(
    manifest: &Manifest,
    given: Vec<Resolved>,
    schemes: &Schemes,
    user: &UserId,
) -> Result<Vec<Candidate>, ImagesError> {
    let given = given.into_iter().map(|given| (given.name.clone(), given));
    let mut given: BTreeMap<Name, Resolved> = given.collect();
    let mut candidates = vec![];
    let (mut places, mut recorded, mut uses) = (vec![], vec![], vec![]);
    for secret in &manifest.secrets {
        let (reference, value) = match given.remove(&secret.name) {
            Some(given) => (given.reference.to_string(), Ok(given.value)),
            None => {
                let unknown = match secret.reference.parse::<Reference>() {
                    Ok(reference) => {
                        places.push(candidates.len());
                        recorded.push(reference);
                        "it is resolved with the others".to_owned()
                    }
                    Err(error) => with_causes(&error),
                };
                (secret.reference.clone(), Err(unknown))
            }
        };
        candidates.push(Candidate {
            name: secret.name.clone(),
            version: secret.version,
            reference,
            value,
        });
    }
    let fetched = schemes.resolve_all(&recorded);
    for ((place, reference), fetched) in places.into_iter().zip(&recorded).zip(fetched) {
        let candidate: &mut Candidate = &mut candidates[place];
        uses.push(audit::Use {
            name: Some(candidate.name.clone()),
            scheme: schemes.of(reference).ok().map(|scheme| scheme.name()),
            result: fetched
                .as_ref()
                .map(|fetched| fetched.origin.clone())
                .map_err(ResolveError::refusal),
        });
        candidate.value = fetched
            .map(|fetched| fetched.value)
            .map_err(|error| with_causes(&error));
    }
    scrub_environment(recorded.iter().filter_map(|one| schemes.variable(one)))?;
    // Those that were given are recorded already.
    audit::used(
        Access::Check,
        user,
        uses.into_iter(),
        Some(manifest.id.to_string()),
    )?;
    Ok(candidates)
}

/// Compares the values with what is known; returns those that there are.
pub(super) fn compare(candidates: Vec<Candidate>, known: &Known) -> (Vec<Checked>, Vec<Value>) {
    let (mut checked, mut values) = (vec![], vec![]);
    for candidate in candidates {
        let value = candidate.value.as_ref();
        checked.push(Checked {
            name: candidate.name.clone(),
            reference: candidate.reference,
            status: value.map_or(Status::NotChecked, |value| status(value, known)),
            error: value.err().cloned(),
        });
        if let Ok(bytes) = candidate.value {
            values.push(Value {
                name: candidate.name,
                version: candidate.version,
                bytes,
            });
        }
    }
    (checked, values)
}

fn status(value: &SecretValue, known: &Known) -> Status {
    if value.len() < EDGE_WINDOW {
        return Status::TooShort;
    }
    match known.has(value) {
        Some(true) => Status::Searched,
        Some(false) => Status::OtherValue,
        None => Status::NotCompared,
    }
}
