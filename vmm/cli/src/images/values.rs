//! The values that are searched for: resolved, taken out of the environment, made needles of.

use std::path::Path;

use cachot_custody::UserId;
use cachot_custody::audit::Access;
use cachot_secrets::{Declarations, Name, Resolved, Schemes, scrub_environment};
use cachot_snapshot::needles::{Needles, Value};

use super::ImagesError;
use crate::audit::{self, Use};

/// Resolves all of these references, or says what is wrong with each that has no value.
pub(super) fn resolve(
    secrets: &[String],
    env_file: Option<&Path>,
    schemes: &Schemes,
    user: &UserId,
) -> Result<Vec<Resolved>, ImagesError> {
    let mut declarations = Declarations::parse(secrets);
    if let Some(path) = env_file {
        declarations = declarations.with_env_file(path);
    }
    let resolved = declarations
        .resolve(schemes)
        .inspect_err(|failures| audit::check_failed(failures, user))?;
    let uses = resolved.iter().map(|secret| Use {
        name: Some(secret.name.clone()),
        scheme: Some(secret.source),
        result: Ok(secret.origin.clone()),
    });
    audit::used(Access::Check, user, uses, None)?;
    scrub_environment(declarations.environment_variables(schemes))?;
    Ok(resolved)
}

/// Values to search for, each once.
pub(super) struct Distinct {
    pub needles: Needles,
    /// Secrets whose value another one has too, under whose name it is found.
    pub same: Vec<Same>,
}

impl Distinct {
    /// Number of values that are long enough to be searched for.
    pub fn searchable(&self) -> usize {
        self.needles.origins().len() - self.needles.unsearchable().count()
    }
}

/// Two secrets with one value.
#[derive(Debug, serde::Serialize)]
pub(super) struct Same {
    pub secret: Name,
    pub as_secret: Name,
}

/// Prepares the search for values.
pub(super) fn needles(values: Vec<Value>) -> Result<Distinct, ImagesError> {
    let mut distinct: Vec<Value> = Vec::with_capacity(values.len());
    let mut same = Vec::new();
    for value in values {
        let first = distinct
            .iter()
            .find(|other| other.bytes.expose() == value.bytes.expose());
        match first {
            Some(first) => same.push(Same {
                secret: value.name,
                as_secret: first.name.clone(),
            }),
            None => distinct.push(value),
        }
    }
    Ok(Distinct {
        needles: Needles::new(distinct)?,
        same,
    })
}
