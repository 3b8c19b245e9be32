//! All secrets of a VM together: declared, checked against each other, resolved or refused as one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::check::Check;
use crate::failure::{Failure, Failures, SecretError, Subject};
use crate::fetch::{Fetch, fetch_all};
use crate::name::Name;
use crate::reference::{Declaration, DeclarationError, Delivery, Reference};
use crate::schemes::{Dotenv, Fetched, Origin, Scheme, Schemes, dotenv};
use crate::value::SecretValue;

/// Most bytes that the secrets of one VM have together: 16 MiB.
pub const MAX_TOTAL_LEN: usize = 16 << 20;

/// Most secrets of one VM.
pub const MAX_SECRETS: usize = 1024;

/// Shortest value that a snapshot can be searched for, in bytes.
const MIN_SEARCHABLE_LEN: usize = 8;

/// The secrets that a command declares.
///
/// Nothing fails before the end: [`Declarations::resolve`] reports every declaration that is wrong
/// and every reference that has no value, and gives no values at all if there is one.
#[derive(Debug, Default)]
pub struct Declarations {
    declared: Vec<Result<Declaration, Rejected>>,
    env_file: Option<PathBuf>,
}

/// A declaration that cannot be read.
#[derive(Debug)]
struct Rejected {
    subject: Subject,
    error: DeclarationError,
}

/// A secret that is ready for delivery.
#[derive(Debug)]
pub struct Resolved {
    /// Its name; no other secret of the VM has it.
    pub name: Name,
    /// Where its bytes came from.
    pub reference: Reference,
    /// How it appears in the guest.
    pub delivery: Delivery,
    /// Its bytes.
    pub value: SecretValue,
    /// Name of the scheme that the bytes came from.
    pub source: &'static str,
    /// Which of the values of their place they are.
    pub origin: Origin,
    /// What the user should know about it.
    pub warnings: Vec<Warning>,
}

/// What the user should know about a secret that is delivered all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Warning {
    /// Its place is not encrypted; with the scheme's name.
    Plaintext(&'static str),
    /// Its value is too short to tell from chance; with its length in bytes.
    Short(usize),
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plaintext(scheme) => write!(
                f,
                "secret scheme {scheme:?} is plaintext: not encrypted at rest, not for production"
            ),
            Self::Short(len) => write!(
                f,
                "a value of {len} bytes cannot be searched for in snapshots: use at least {MIN_SEARCHABLE_LEN}"
            ),
        }
    }
}

/// How one declaration fared.
pub(crate) struct Outcome {
    pub(crate) subject: Subject,
    pub(crate) source: Option<String>,
    pub(crate) result: Result<Resolved, SecretError>,
}

impl Declarations {
    /// Takes declarations as they stand on a command line; see [`Declaration`] for their form.
    pub fn parse<S: AsRef<str>>(declared: impl IntoIterator<Item = S>) -> Self {
        let parse = |(at, text): (usize, S)| {
            let (name, rest) = Declaration::split(text.as_ref()).map_err(|error| Rejected {
                subject: Subject::Declaration(at + 1),
                error,
            })?;
            Declaration::parse_rest(name.clone(), rest).map_err(|error| Rejected {
                subject: Subject::Secret(name),
                error,
            })
        };
        Self {
            declared: declared.into_iter().enumerate().map(parse).collect(),
            env_file: None,
        }
    }

    /// Adds every key of a dotenv file (see [`Dotenv`]) as a secret with the default delivery that
    /// is also exported to the workload's environment.
    #[must_use]
    pub fn with_env_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.env_file = Some(path.into());
        self
    }

    /// Adds declarations that were recorded before, but for those that are declared here again or `dropped`. One that
    /// is declared again without options keeps its recorded delivery.
    #[must_use]
    pub fn with_recorded(mut self, recorded: Vec<Declaration>, dropped: &BTreeSet<Name>) -> Self {
        for old in recorded {
            let again = self.declared.iter_mut().find(|declared| match declared {
                Ok(declaration) => declaration.name == old.name,
                Err(rejected) => rejected.subject == Subject::Secret(old.name.clone()),
            });
            match again {
                Some(Ok(again)) if again.delivery == Delivery::default() => {
                    again.delivery = old.delivery;
                }
                Some(_) => {}
                None if dropped.contains(&old.name) => {}
                None => self.declared.push(Ok(old)),
            }
        }
        self
    }

    /// Variables of this process that hold values or give access to them, for
    /// [`scrub_environment`](crate::scrub_environment).
    pub fn environment_variables<'a>(
        &'a self,
        schemes: &'a Schemes,
    ) -> impl Iterator<Item = &'a str> {
        self.declared
            .iter()
            .flatten()
            .filter_map(|declaration| schemes.variable(&declaration.reference))
    }

    /// Fetches all values, several at once, and returns them in the order of the declarations; the env file's
    /// come last, by name. Where there is no failure no thread is left over.
    ///
    /// # Errors
    /// Every failure, and no value, where there is one.
    pub fn resolve(&self, schemes: &Schemes) -> Result<Vec<Resolved>, Failures> {
        let mut resolved = Vec::new();
        let mut failures = Vec::new();
        for outcome in self.outcomes(schemes) {
            match outcome.result {
                Ok(secret) => resolved.push(secret),
                Err(error) => failures.push(Failure {
                    subject: outcome.subject,
                    scheme: error.scheme(outcome.source.as_ref()),
                    error,
                }),
            }
        }
        if failures.is_empty() {
            Ok(resolved)
        } else {
            Err(Failures(failures))
        }
    }

    /// Fetches all values, forgets them, and says how each fared.
    pub fn check(&self, schemes: &Schemes) -> Vec<Check> {
        self.outcomes(schemes)
            .into_iter()
            .map(Check::from)
            .collect()
    }

    fn outcomes(&self, schemes: &Schemes) -> Vec<Outcome> {
        let mut admission = Admission::default();
        let mut outcomes = Vec::new();
        let mut fetches = Vec::new();
        for declared in &self.declared {
            let (subject, source, entered) = match declared {
                Ok(declaration) => (
                    Subject::Secret(declaration.name.clone()),
                    Some(declaration.reference.scheme().to_owned()),
                    admission
                        .enter(&declaration.name)
                        .and_then(|()| Ok(schemes.of(&declaration.reference)?))
                        .map(|scheme| (declaration, scheme)),
                ),
                Err(Rejected { subject, error }) => {
                    let entered = match subject {
                        Subject::Secret(name) => admission.enter(name),
                        _ => Ok(()),
                    };
                    let error = entered.err().unwrap_or_else(|| error.clone().into());
                    (subject.clone(), None, Err(error))
                }
            };
            let at = outcomes.len();
            let result = match entered {
                Ok((declaration, scheme)) => {
                    let locator = declaration.reference.locator();
                    fetches.push(Fetch::new(at, scheme, locator));
                    Pending::Of(declaration, scheme)
                }
                Err(error) => Pending::Ended(Err(error)),
            };
            let full = matches!(result, Pending::Ended(Err(SecretError::TooMany)));
            outcomes.push((subject, source, result));
            if full {
                break;
            }
        }
        fetch_all(fetches, |at, fetched| {
            let pending = &mut outcomes[at].2;
            if let Pending::Of(declaration, scheme) = pending {
                let secret = fetched
                    .map_err(SecretError::from)
                    .map(|fetched| ready((*declaration).clone(), fetched, &***scheme))
                    .and_then(|secret| admission.check(secret));
                *pending = Pending::Ended(secret);
            }
        });
        let ended = |(subject, source, pending)| match pending {
            Pending::Ended(result) => Outcome {
                subject,
                source,
                result,
            },
            Pending::Of(..) => unreachable!("every fetch has a result"),
        };
        let mut outcomes: Vec<_> = outcomes.into_iter().map(ended).collect();
        let full = outcomes
            .last()
            .is_some_and(|last| matches!(last.result, Err(SecretError::TooMany)));
        if let (Some(path), false) = (&self.env_file, full) {
            read_env_file(path, &mut admission, &mut outcomes);
        }
        outcomes
    }
}

/// How a declaration fares.
enum Pending<'a> {
    /// Its value is being fetched.
    Of(&'a Declaration, &'a Arc<dyn Scheme>),
    /// It has its value or has failed.
    Ended(Result<Resolved, SecretError>),
}

/// What the secrets of one VM must hold to together.
#[derive(Default)]
struct Admission {
    names: BTreeSet<Name>,
    total: usize,
}

impl Admission {
    /// Takes note of a name, which must be new.
    fn enter(&mut self, name: &Name) -> Result<(), SecretError> {
        if self.names.contains(name) {
            return Err(SecretError::Duplicate);
        }
        if self.names.len() == MAX_SECRETS {
            return Err(SecretError::TooMany);
        }
        self.names.insert(name.clone());
        Ok(())
    }

    /// Lets a value pass, or drops it at once where it cannot be delivered.
    fn check(&mut self, secret: Resolved) -> Result<Resolved, SecretError> {
        if secret.delivery.export_env && secret.value.expose().contains(&0) {
            return Err(SecretError::ZeroByte);
        }
        // At most MAX_SECRETS times MAX_VALUE_LEN: no overflow.
        self.total += secret.value.len();
        if self.total > MAX_TOTAL_LEN {
            return Err(SecretError::TotalTooLong);
        }
        Ok(secret)
    }
}

fn ready(declaration: Declaration, fetched: Fetched, scheme: &dyn Scheme) -> Resolved {
    let Fetched { value, origin } = fetched;
    let mut warnings = Vec::new();
    if scheme.is_plaintext() {
        warnings.push(Warning::Plaintext(scheme.name()));
    }
    if value.len() < MIN_SEARCHABLE_LEN {
        warnings.push(Warning::Short(value.len()));
    }
    Resolved {
        name: declaration.name,
        reference: declaration.reference,
        delivery: declaration.delivery,
        value,
        source: scheme.name(),
        origin,
        warnings,
    }
}

/// Makes a secret of every key of a dotenv file. The file is read once, so it can be a pipe.
fn read_env_file(path: &Path, admission: &mut Admission, outcomes: &mut Vec<Outcome>) {
    let outcome = |subject, result| Outcome {
        subject,
        source: Some(Dotenv.name().to_owned()),
        result,
    };
    let of_file = || Subject::EnvFile(path.to_owned());
    let delivery = Delivery {
        export_env: true,
        ..Delivery::default()
    };
    // Of a key that occurs more than once the last line counts, as in every dotenv file.
    let mut values: BTreeMap<Name, Result<SecretValue, SecretError>> = BTreeMap::new();
    let read = dotenv::for_each_entry(path, |line, entry| {
        match String::from_utf8_lossy(entry.key).parse::<Name>() {
            Err(_) if outcomes.len() >= MAX_SECRETS => return Err(SecretError::TooMany),
            Err(error) => {
                let error = SecretError::Key { line, error };
                outcomes.push(outcome(of_file(), Err(error)));
            }
            Ok(name) => {
                let fresh = match values.get(&name) {
                    // Declared outside the file as well: no line of it can make that good.
                    Some(Err(SecretError::Duplicate)) => return Ok(()),
                    Some(_) => Ok(()),
                    None => admission.enter(&name),
                };
                if matches!(fresh, Err(SecretError::TooMany)) {
                    return fresh;
                }
                let value = fresh.and_then(|()| Ok(dotenv::value_of(path, &entry)?));
                values.insert(name, value);
            }
        }
        Ok(())
    });
    for (name, value) in values {
        let subject = Subject::Secret(name.clone());
        let declaration = Declaration {
            reference: Reference::in_env_file(path, &name),
            name,
            delivery,
        };
        let result = value
            .map(|value| ready(declaration, value.into(), &Dotenv))
            .and_then(|secret| admission.check(secret));
        outcomes.push(outcome(subject, result));
    }
    if let Err(error) = read {
        outcomes.push(outcome(of_file(), Err(error)));
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::locked::tests::one_at_a_time;
    use crate::schemes;
    use crate::schemes::ResolveError;

    /// `fixed:text` has the value `text`; `fixed:text@N` that of version N.
    struct Fixed;

    impl Scheme for Fixed {
        fn name(&self) -> &'static str {
            "fixed"
        }

        fn is_plaintext(&self) -> bool {
            false
        }

        fn resolve(&self, locator: &str) -> Result<Fetched, ResolveError> {
            let (text, origin) = match locator.split_once('@') {
                None => (locator, Origin::default()),
                Some((text, version)) => {
                    let origin = Origin {
                        scope: Some("workspace".into()),
                        version: version.parse().ok(),
                    };
                    (text, origin)
                }
            };
            let value = SecretValue::copy_of(text.as_bytes()).expect("a short value");
            Ok(Fetched { value, origin })
        }
    }

    pub(crate) fn schemes() -> Schemes {
        Schemes::default().with(Fixed)
    }

    fn env_file(content: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(&file, content).expect("written");
        file
    }

    fn messages(declarations: &Declarations) -> Vec<String> {
        let failures = declarations.resolve(&schemes()).expect_err("failures");
        failures.iter().map(Failure::to_string).collect()
    }

    #[test]
    fn test_resolve_all_in_order_with_their_delivery() {
        let declarations =
            Declarations::parse(["B=fixed:second-b@7,mode=0444,env", "A=fixed:first-a"]);

        let resolved = declarations.resolve(&schemes()).expect("all values");

        assert_eq!(resolved.len(), 2);
        assert_eq!(resolved[0].name.as_str(), "B");
        assert_eq!(resolved[0].value.expose(), b"second-b");
        assert_eq!(resolved[0].delivery.mode, 0o444);
        assert!(resolved[0].delivery.export_env);
        assert_eq!(resolved[0].source, "fixed");
        assert_eq!(resolved[0].origin.version, Some(7));
        assert_eq!(resolved[0].warnings, []);
        assert_eq!(resolved[1].name.as_str(), "A");
        assert_eq!(resolved[1].delivery, Delivery::default());
        assert_eq!(resolved[1].origin, Origin::default());
    }

    #[test]
    fn test_resolve_nothing_declared_is_nothing() {
        let resolved = Declarations::default().resolve(&schemes());
        assert!(resolved.expect("no failure").is_empty());
    }

    #[test]
    fn test_resolve_reports_every_failure_by_name_and_no_value() {
        let declarations = Declarations::parse([
            "GOOD=fixed:good-value",
            "MISSING=env:CACHOT_NOT_SET",
            "oops",
            "SCHEME=nope:x",
            "GOOD=fixed:other",
            "MODE=fixed:x,mode=0777",
            "FILE=file:/cachot/not/there",
            "MODE=fixed:again",
        ]);

        let failures = declarations.resolve(&schemes()).expect_err("failures");

        let text = failures.to_string();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 7, "{text}");
        let expected = [
            "secret MISSING: the environment variable \"CACHOT_NOT_SET\" is not set: set and export it for this command",
            "secret declaration 3: the declaration has no name: ",
            "secret SCHEME: there is no secret scheme \"nope\": use one of dotenv, env, file, fixed",
            "secret GOOD: the secret is declared more than once: ",
            "secret MODE: the option mode=0777 is not possible: ",
            "secret FILE: there is no file \"/cachot/not/there\": ",
            "secret MODE: the secret is declared more than once: ",
        ];
        for (line, expected) in lines.iter().zip(expected) {
            assert!(line.starts_with(expected), "{line}");
        }
        assert!(!text.contains("good-value"));
    }

    #[test]
    fn test_resolve_error_of_the_system_says_its_cause() {
        let messages = messages(&Declarations::parse(["A=file:/proc/self/mem"]));
        assert_eq!(messages.len(), 1);
        assert!(messages[0].contains("/proc/self/mem\": "), "{messages:?}");
    }

    #[test]
    fn test_env_file_every_key_is_an_exported_secret() {
        let file = env_file("ZED=last line counts not\n# c\nAPP=\"two words\"\nZED=zzzzzzzz\n");
        let declarations = Declarations::parse(["FIRST=fixed:one"]).with_env_file(file.path());

        let resolved = declarations.resolve(&schemes()).expect("all values");

        let seen: Vec<_> = resolved
            .iter()
            .map(|secret| (secret.name.as_str(), secret.value.expose(), secret.source))
            .collect();
        let expected: [(_, &[u8], _); 3] = [
            ("FIRST", b"one", "fixed"),
            ("APP", b"two words", "dotenv"),
            ("ZED", b"zzzzzzzz", "dotenv"),
        ];
        assert_eq!(seen, expected);
        assert!(!resolved[0].delivery.export_env);
        assert!(resolved[1].delivery.export_env);
        assert_eq!(resolved[1].delivery.mode, 0o400);
        assert_eq!(resolved[2].warnings, [Warning::Plaintext("dotenv")]);
    }

    #[test]
    fn test_env_file_reports_every_failure() {
        let file = env_file("TWICE=a\nBAD-KEY=b\nEMPTY=\nTWICE=c\n2BAD=d\nbroken\n");
        let declarations = Declarations::parse(["TWICE=fixed:one"]).with_env_file(file.path());

        let messages = messages(&declarations);

        let path = format!("{:?}", file.path());
        let expected = [
            format!("secret {path}: line 2: byte 4 of the secret's name "),
            format!("secret {path}: line 5: byte 1 of the secret's name "),
            format!("secret EMPTY: the key \"EMPTY\" of {path} is empty: "),
            "secret TWICE: the secret is declared more than once: ".to_owned(),
            format!("secret {path}: line 6 of {path} is not KEY=value: "),
        ];
        assert_eq!(messages.len(), expected.len(), "{messages:#?}");
        for (message, expected) in messages.iter().zip(expected) {
            assert!(message.starts_with(&expected), "{message}");
        }
    }

    #[test]
    fn test_env_file_missing_is_a_failure() {
        let declarations = Declarations::default().with_env_file("/cachot/not/there");
        let messages = messages(&declarations);
        assert_eq!(messages.len(), 1);
        assert!(messages[0].contains("there is no file"), "{messages:?}");
    }

    #[test]
    fn test_exported_value_with_a_zero_byte_is_refused() {
        let exported = Declarations::parse(["A=fixed:a\0b,env"]);
        let plain = Declarations::parse(["A=fixed:a\0b"]);
        assert!(messages(&exported)[0].contains("zero byte"));
        assert!(plain.resolve(&schemes()).is_ok());
    }

    #[test]
    fn test_count_at_and_over_the_limit() {
        let _turn = one_at_a_time();
        let mut declared: Vec<_> = (0..MAX_SECRETS).map(|n| format!("S{n}=fixed:v")).collect();
        assert_eq!(
            Declarations::parse(&declared)
                .resolve(&schemes())
                .expect("as many as allowed")
                .len(),
            MAX_SECRETS
        );

        declared.extend(["T1=fixed:v".to_owned(), "T2=fixed:v".to_owned()]);

        let messages = messages(&Declarations::parse(&declared));
        assert_eq!(messages.len(), 1, "the rest is not looked at");
        assert!(messages[0].starts_with("secret T1: a VM has at most 1024 secrets"));
    }

    #[test]
    fn test_env_file_count_over_the_limit_stops_early() {
        let _turn = one_at_a_time();
        let keys: String = (0..=MAX_SECRETS).map(|n| format!("S{n}=v\n")).collect();
        let file = env_file(&keys);
        let over = Declarations::default().with_env_file(file.path());
        assert!(matches!(
            over.resolve(&schemes())
                .expect_err("too many")
                .iter()
                .last(),
            Some(Failure {
                error: SecretError::TooMany,
                ..
            })
        ));

        let bad_keys = "bad-key=v\n".repeat(5000);
        let file = env_file(&bad_keys);
        let over = Declarations::default().with_env_file(file.path());
        assert_eq!(messages(&over).len(), MAX_SECRETS + 1);
    }

    #[test]
    fn test_recorded_declarations_are_taken_over_unless_declared_again_or_dropped() {
        let recorded = ["A=env:OLD,mode=0440,env", "B=env:B", "C=env:C", "D=env:D"]
            .map(|text| text.parse().expect("a declaration"));
        let dropped = ["C".parse().expect("a name")].into();

        let declared = Declarations::parse(["A=env:NEW", "B=env:NEW,uid=7", "E=env:E"])
            .with_recorded(recorded.into(), &dropped);

        let all: Vec<_> = declared.declared.iter().flatten().collect();
        let names: Vec<_> = all.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["A", "B", "E", "D"]);
        assert_eq!(all[0].reference.to_string(), "env:NEW");
        assert_eq!(
            (all[0].delivery.mode, all[0].delivery.export_env),
            (0o440, true)
        );
        assert_eq!((all[1].delivery.mode, all[1].delivery.uid), (0o400, 7));
    }

    #[test]
    fn test_total_at_and_over_the_limit() {
        let secret = |len| {
            let value = SecretValue::copy_of(&vec![1; len]).expect("a value");
            let declaration = Declaration::parse_rest("A".parse().expect("a name"), "fixed:x");
            ready(declaration.expect("a reference"), value.into(), &Fixed)
        };
        let mut admission = Admission {
            total: MAX_TOTAL_LEN - 10,
            ..Admission::default()
        };
        assert!(admission.check(secret(10)).is_ok());
        let over = admission.check(secret(1));
        assert!(matches!(over, Err(SecretError::TotalTooLong)));
    }

    #[test]
    fn test_environment_variables_are_those_of_env_references() {
        let declarations = Declarations::parse([
            "A=env:ONE",
            "B=file:/env",
            "C=env:TWO,mode=0444,env",
            "D=nope:x",
            "broken",
        ]);
        let schemes = schemes();
        let variables: Vec<_> = declarations.environment_variables(&schemes).collect();
        assert_eq!(variables, ["ONE", "TWO"]);
    }

    #[test]
    fn test_line_limit_fits_the_largest_value_of_a_file() {
        // A dotenv line holds its key too, so its value is always within MAX_VALUE_LEN.
        const { assert!(schemes::MAX_LINE_LEN <= crate::value::MAX_VALUE_LEN) };
    }
}
