//! What of the secrets that were found goes where in the store.

use std::collections::{BTreeSet, HashMap};

use cachot_secrets::{Name, SecretValue};

use super::error::Shown;
use super::found::{Content, Found, Owner};
use super::{ImportError, Problem, Refusals};
use crate::requester::Requester;
use crate::store::{Incoming, Scope, Store, StoreError};

/// What the user wants.
#[derive(Debug, Clone)]
pub struct Rules {
    /// On whose behalf secrets are stored that have no owner.
    pub requester: Requester,
    /// Where they go.
    pub scope: Scope,
    /// Where those of an app of aegis or a user of bhatti go, instead of `instance:APP` and `user:ID`.
    pub owners: Vec<(String, Scope)>,
    /// Other names for what is called so in its system.
    pub renames: Vec<(String, Name)>,
    /// What is left out, whatever it is.
    pub skip: Vec<String>,
    /// Whether what is empty is left out instead of refused.
    pub skip_empty: bool,
}

/// One secret that is to be stored.
#[derive(Debug)]
pub struct Planned {
    /// Where it was found.
    pub from: String,
    /// What it will be called.
    pub name: Name,
    /// Whom it will be for.
    pub scope: Scope,
    /// What else its system knows and the store does not keep.
    pub note: Option<String>,
    requester: Requester,
    value: SecretValue,
}

impl Planned {
    /// Length of its value, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.value.len()
    }
}

/// What is not stored, as the user wants it or because it is no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// Where it was found.
    pub from: String,
    /// Why.
    pub why: String,
}

/// What goes where.
#[derive(Debug)]
pub struct Plan {
    /// What is to be stored, in the order in which it was found.
    pub planned: Vec<Planned>,
    /// What is not.
    pub left_out: Vec<LeftOut>,
}

impl Plan {
    /// Finds a place for all that was found.
    ///
    /// # Errors
    /// [`ImportError::Refused`] with every secret that has none, [`ImportError::Unused`].
    pub fn new(found: Vec<Found>, rules: &Rules) -> Result<Self, ImportError> {
        let renames: HashMap<&str, &Name> = pairs(&rules.renames).collect();
        let owners: HashMap<&str, &Scope> = pairs(&rules.owners).collect();
        let mut used = BTreeSet::new();
        let mut refusals = Vec::new();
        let mut places: HashMap<(Scope, Name), String> = HashMap::new();
        let mut plan = Self {
            planned: Vec::new(),
            left_out: Vec::new(),
        };
        for found in found {
            let renamed = renames.get_key_value(found.from.as_str());
            let owned = found.owner.id().and_then(|id| owners.get_key_value(id));
            used.extend(renamed.map(|(from, _)| ("--rename", *from)));
            used.extend(owned.map(|(id, _)| ("--app or --user", *id)));
            let skipped = rules.skip.iter().find(|skip| **skip == found.from);
            if let Some(from) = skipped {
                used.insert(("--skip", from));
                let (from, why) = (found.shown, "--skip".to_owned());
                plan.left_out.push(LeftOut { from, why });
                continue;
            }
            let value = match found.content {
                Content::Value(value) => value,
                Content::LeftOut(why) => {
                    let from = found.shown;
                    plan.left_out.push(LeftOut { from, why });
                    continue;
                }
                Content::Empty if rules.skip_empty => {
                    let (from, why) = (found.shown, "it is empty".to_owned());
                    plan.left_out.push(LeftOut { from, why });
                    continue;
                }
                Content::Empty => {
                    refusals.push((found.shown, Problem::Empty));
                    continue;
                }
                Content::Problem(problem) => {
                    refusals.push((found.shown, problem));
                    continue;
                }
            };
            let name = match renamed {
                Some((_, name)) => Ok((*name).clone()),
                None => found.name.parse().map_err(Problem::Name),
            };
            let scope = match owned {
                Some((_, scope)) => Ok((*scope).clone()),
                None => found.owner.scope(rules),
            };
            let (name, scope) = match (name, scope) {
                (Ok(name), Ok(scope)) => (name, scope),
                (Err(problem), _) | (_, Err(problem)) => {
                    refusals.push((found.shown, problem));
                    continue;
                }
            };
            let place = (scope, name);
            if let Some(other) = places.get(&place) {
                refusals.push((found.shown, Problem::Same(Shown(other).to_string())));
                continue;
            }
            places.insert(place.clone(), found.shown);
            let (scope, name) = place;
            plan.planned.push(Planned {
                from: found.from,
                name,
                requester: found.owner.requester(&scope, rules),
                scope,
                note: found.note,
                value,
            });
        }
        if !refusals.is_empty() {
            return Err(ImportError::Refused(Refusals(refusals)));
        }
        let renames = rules.renames.iter().map(|(from, _)| ("--rename", from));
        let owners = rules.owners.iter().map(|(id, _)| ("--app or --user", id));
        let skips = rules.skip.iter().map(|from| ("--skip", from));
        for (option, of) in renames.chain(owners).chain(skips) {
            if !used.contains(&(option, of.as_str())) {
                return Err(ImportError::Unused(format!("{option} {}", Shown(of))));
            }
        }
        Ok(plan)
    }

    fn incoming(&self) -> Vec<Incoming<'_>> {
        let planned = self.planned.iter();
        planned
            .map(|planned| Incoming {
                requester: &planned.requester,
                scope: &planned.scope,
                name: &planned.name,
                value: &planned.value,
            })
            .collect()
    }

    /// The version that each of them has in the store already.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn versions(&self, store: &mut Store) -> Result<Vec<Option<u64>>, StoreError> {
        store.versions(&self.incoming())
    }

    /// Stores all, or none.
    ///
    /// # Errors
    /// See [`StoreError`]; [`StoreError::Taken`], unless `replace`, if some are there already.
    pub fn store(&self, store: &mut Store, replace: bool) -> Result<(), StoreError> {
        store.import(&self.incoming(), replace)
    }
}

fn pairs<T>(list: &[(String, T)]) -> impl Iterator<Item = (&str, &T)> {
    list.iter().map(|(from, to)| (from.as_str(), to))
}

impl Owner {
    fn id(&self) -> Option<&str> {
        match self {
            Self::Nobody => None,
            Self::App(id) | Self::User(id) => Some(id),
        }
    }

    /// Where their secrets go if the user does not say it.
    fn scope(&self, rules: &Rules) -> Result<Scope, Problem> {
        match self {
            Self::Nobody => Ok(rules.scope.clone()),
            Self::App(app) => app.parse().map(Scope::Instance).map_err(|_| {
                Problem::Owner(
                    "the id of its app is not the name of an instance: --app ID=SCOPE says where its secrets go",
                )
            }),
            Self::User(user) => user.parse().map(Scope::User).map_err(|_| {
                Problem::Owner(
                    "the id of its user is not one of ours: --user ID=SCOPE says where its secrets go",
                )
            }),
        }
    }

    /// On whose behalf one of their secrets is stored in this scope: of a database of many users, each user's own.
    fn requester(&self, scope: &Scope, rules: &Rules) -> Requester {
        match (self, scope) {
            (Self::User(_), Scope::User(user)) => Requester {
                user: user.clone(),
                instance: None,
            },
            _ => rules.requester.clone(),
        }
    }
}
