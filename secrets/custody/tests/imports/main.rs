//! What other systems keep, put into a store; named after the systems. The files are those that `fixtures/generate.py`
//! makes, which has nothing of this program.

mod hostile;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use cachot_custody::bundle::Bundles;
use cachot_custody::import::{self, Found, ImportError, Plan, Rules};
use cachot_custody::store::Scope;
use cachot_custody::{Requester, Store};
use tempfile::TempDir;

/// A folder with copies of fixtures that only this user reads, and with a store.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A copy of a fixture.
    fn file(&self, name: &str) -> PathBuf {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
        let fixture = fixtures.join("imports/fixtures").join(name);
        self.put(name, &fs::read(fixture).expect("a fixture"))
    }

    fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("its mode");
        path
    }

    fn store(&self, user: &str) -> Store {
        let requester = requester(user);
        Store::open_or_create(&self.path("store"), requester).expect("a store")
    }

    fn aegis(&self, name: &str) -> Result<Vec<Found>, ImportError> {
        import::aegis(&self.file(name), &self.file("master.key"))
    }

    fn bhatti(&self, name: &str) -> Result<Vec<Found>, ImportError> {
        import::bhatti(&self.file(name), &self.file("age.key"))
    }

    /// The value that a user has.
    fn value(&self, user: &str, selector: &str) -> Option<String> {
        let selector = selector.parse().expect("a selector");
        let fetched = self.store(user).get(&selector).ok()?;
        let bytes = fetched.value.expose().to_vec();
        Some(String::from_utf8(bytes).expect("text"))
    }
}

fn requester(user: &str) -> Requester {
    Requester {
        user: user.parse().expect("a user"),
        instance: None,
    }
}

fn rules() -> Rules {
    Rules {
        requester: requester("0"),
        scope: Scope::Workspace,
        owners: Vec::new(),
        renames: Vec::new(),
        skip: Vec::new(),
        skip_empty: false,
    }
}

fn rename(from: &str, name: &str) -> (String, cachot_secrets::Name) {
    (from.to_owned(), name.parse().expect("a name"))
}

fn owner(id: &str, scope: &str) -> (String, Scope) {
    (id.to_owned(), scope.parse().expect("a scope"))
}

/// What goes where: `FROM NAME SCOPE BYTES`.
fn lines(plan: &Plan) -> Vec<String> {
    let line = |planned: &import::Planned| {
        let bytes = planned.bytes();
        format!(
            "{} {} {} {bytes}",
            planned.from, planned.name, planned.scope
        )
    };
    plan.planned.iter().map(line).collect()
}

/// The lines of the error of something refused.
#[track_caller]
fn refused(plan: Result<Plan, ImportError>) -> Vec<String> {
    match plan {
        Err(ImportError::Refused(refusals)) => {
            refusals.to_string().lines().map(str::to_owned).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn test_aegis_secrets_of_the_workspace() {
    let place = Place::new();
    let plan = Plan::new(place.aegis("aegis.db").expect("read"), &rules()).expect("a plan");

    plan.store(&mut place.store("0"), false).expect("stored");

    let expected = [
        "API_KEY API_KEY workspace 14",
        "DB_PASSWORD DB_PASSWORD workspace 14",
    ];
    assert_eq!(lines(&plan), expected);
    let value = place.value("0", "API_KEY");
    assert_eq!(value.as_deref(), Some("aegis-7c1d0101"));
    let value = place.value("alice", "DB_PASSWORD");
    assert_eq!(value.as_deref(), Some("aegis-7c1d0102"));
}

#[test]
fn test_aegis_older_an_app_wins() {
    let place = Place::new();
    let rules = Rules {
        owners: vec![owner("app-job", "user:0")],
        ..rules()
    };
    let plan = Plan::new(place.aegis("aegis-older.db").expect("read"), &rules).expect("a plan");

    plan.store(&mut place.store("0"), false).expect("stored");

    let of = |instance: Option<&str>| {
        let requester = Requester {
            instance: instance.map(str::to_owned),
            ..requester("0")
        };
        let mut store = Store::open(&place.path("store"), requester).expect("a store");
        let fetched = store.get(&"API_KEY".parse().expect("a selector"));
        fetched.expect("a value").value.expose().to_vec()
    };
    assert_eq!(of(Some("app-web")), b"aegis-7c1d0105");
    assert_eq!(of(Some("other")), b"aegis-7c1d0104");
    assert_eq!(of(None), b"aegis-7c1d0104");
    let value = place.value("0", "user:0/JOB_KEY");
    assert_eq!(value.as_deref(), Some("aegis-7c1d0106"));
}

#[test]
fn test_aegis_empty_and_oddly_named_secrets_are_refused_until_the_user_says() {
    let place = Place::new();
    let found = || place.aegis("aegis-odd.db").expect("read");

    let lines_of = refused(Plan::new(found(), &rules()));
    assert_eq!(lines_of.len(), 2, "{lines_of:?}");
    assert!(
        lines_of[0].starts_with("EMPTY: its value is empty"),
        "{lines_of:?}"
    );
    assert!(lines_of[1].starts_with("my-key: byte 3 "), "{lines_of:?}");

    let rules = Rules {
        renames: vec![rename("my-key", "MY_KEY")],
        skip_empty: true,
        ..rules()
    };
    let plan = Plan::new(found(), &rules).expect("a plan");
    assert_eq!(lines(&plan)[2], "my-key MY_KEY workspace 14");
    assert_eq!(plan.left_out.len(), 1);
    assert_eq!(plan.left_out[0].from, "EMPTY");
}

#[test]
fn test_bhatti_each_user_has_their_own() {
    let place = Place::new();
    let plan = Plan::new(place.bhatti("bhatti.db").expect("read"), &rules()).expect("a plan");

    plan.store(&mut place.store("0"), false).expect("stored");

    let values = [
        ("usr_alice", "API_KEY", Some("bhatti-7c1d0201")),
        (
            "usr_alice",
            "SSH_KEY",
            Some("bhatti-7c1d0202\nof two lines\n"),
        ),
        ("usr_bob", "API_KEY", Some("bhatti-7c1d0203")),
        ("usr_bob", "SSH_KEY", None),
        ("usr_bob", "user:usr_alice/API_KEY", None),
        ("0", "API_KEY", None),
    ];
    for (user, selector, value) in values {
        let stored = place.value(user, selector);
        assert_eq!(stored.as_deref(), value, "{user} {selector}");
    }
    let list = place.store("usr_bob").list(true).expect("a list");
    assert_eq!(list.len(), 1, "{list:?}");
    let note = plan.planned[1].note.as_deref();
    assert_eq!(note, Some("had the path /home/user/.ssh/id"));
}

#[test]
fn test_bhatti_rows_of_no_user_and_values_in_files_are_refused_until_the_user_says() {
    let place = Place::new();
    let found = || place.bhatti("bhatti-odd.db").expect("read");

    let lines_of = refused(Plan::new(found(), &rules()));
    assert_eq!(lines_of.len(), 2, "{lines_of:?}");
    assert!(
        lines_of[0].starts_with("/OLD_KEY: the id of its user"),
        "{lines_of:?}"
    );
    assert!(lines_of[1].starts_with("usr_bob/IN_FILE: "), "{lines_of:?}");

    let rules = Rules {
        owners: vec![owner("", "workspace"), owner("usr_bob", "user:1000")],
        skip: vec!["usr_bob/IN_FILE".to_owned()],
        ..rules()
    };
    let plan = Plan::new(found(), &rules).expect("a plan");
    plan.store(&mut place.store("0"), false).expect("stored");
    let value = place.value("1000", "API_KEY");
    assert_eq!(value.as_deref(), Some("bhatti-7c1d0203"));
    let value = place.value("usr_alice", "OLD_KEY");
    assert_eq!(value.as_deref(), Some("bhatti-7c1d0204"));
}

#[test]
fn test_agentlab_bundles_have_the_names_that_run_gives_them() {
    let place = Place::new();
    let bundles = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bundles/fixtures");
    for (from, to) in [
        ("default.age", "default.age"),
        ("mine.key", "mine.key"),
        ("two.age", "two.age"),
    ] {
        place.put(to, &fs::read(bundles.join(from)).expect("a fixture"));
    }
    let bundles = Bundles {
        folder: place.path(""),
        key: place.path("mine.key"),
        sops: None,
        allow_plaintext: false,
    };
    let names = bundles.names().expect("listed");
    assert_eq!(
        names.iter().map(|name| name.as_str()).collect::<Vec<_>>(),
        ["default", "two"]
    );

    let found = import::agentlab(&bundles, &names[..1]).expect("read");
    let plan = Plan::new(found, &rules()).expect("a plan");

    let names_of: Vec<_> = plan
        .planned
        .iter()
        .map(|planned| planned.name.as_str())
        .collect();
    let expected = [
        "GIT_TOKEN",
        "GIT_SSH_KEY",
        "GIT_KNOWN_HOSTS",
        "CLAUDE_SETTINGS",
        "ARTIFACT_TOKEN",
        "SSH_KEY_DEPLOY",
        "ANTHROPIC_API_KEY",
        "PORT",
    ];
    assert_eq!(names_of, expected);
    let left: Vec<_> = plan
        .left_out
        .iter()
        .map(|left| left.from.as_str())
        .collect();
    let expected = [
        "default#git.username",
        "default#git.ssh_public_key",
        "default#artifact.endpoint",
        "default#later",
    ];
    assert_eq!(left, expected);
    plan.store(&mut place.store("0"), false).expect("stored");
    let value = place.value("0", "GIT_TOKEN");
    assert_eq!(value.as_deref(), Some("git-token-7c1d0001"));

    // Two bundles with the same names.
    let both = import::agentlab(&bundles, &names).expect("read");
    let lines_of = refused(Plan::new(both, &rules()));
    assert_eq!(lines_of.len(), 8, "{lines_of:?}");
    assert!(
        lines_of[0].starts_with("two#git.token: it would be the same secret as default#git.token")
    );
}

#[test]
fn test_dotenv_all_keys_and_the_last_of_several_counts() {
    let place = Place::new();
    let plan = Plan::new(
        import::dotenv(&place.file("app.env")).expect("read"),
        &rules(),
    );
    let plan = plan.expect("a plan");

    plan.store(&mut place.store("0"), false).expect("stored");

    for (name, value) in [
        ("API_KEY", "dotenv-7c1d0401"),
        ("DB_PASSWORD", "dotenv 7c1d0402"),
        ("TWICE", "dotenv-7c1d0404"),
    ] {
        assert_eq!(place.value("0", name).as_deref(), Some(value));
    }
    assert_eq!(plan.left_out.len(), 1, "{:?}", plan.left_out);
    assert_eq!(plan.left_out[0].from, "TWICE");
}

#[test]
fn test_dotenv_key_that_is_no_name_is_not_repeated() {
    let place = Place::new();
    let file = place.put("env", b"GOOD=x\nMIIEpartofakey7c1d/+=\n2nd=y\nE=\n");
    let lines_of = refused(Plan::new(import::dotenv(&file).expect("read"), &rules()));
    assert_eq!(lines_of.len(), 3, "{lines_of:?}");
    assert!(lines_of[0].starts_with("line 2: "), "{lines_of:?}");
    assert!(lines_of[1].starts_with("line 3: byte 1 "), "{lines_of:?}");
    assert!(
        lines_of[2].starts_with("E: its value is empty"),
        "{lines_of:?}"
    );
    assert!(!lines_of.concat().contains("7c1d"), "{lines_of:?}");

    let rules = Rules {
        renames: vec![rename("2nd", "SECOND")],
        skip: vec!["MIIEpartofakey7c1d/+".to_owned(), "E".to_owned()],
        ..rules()
    };
    let plan = Plan::new(import::dotenv(&file).expect("read"), &rules).expect("a plan");
    assert_eq!(
        lines(&plan),
        ["GOOD GOOD workspace 1", "2nd SECOND workspace 1"]
    );
}

#[test]
fn test_sops_nested_keys_become_names() {
    let place = Place::new();
    let (file, key) = (place.file("nested.yaml"), place.file("age.key"));
    let found = || import::sops(&file, &key).expect("read");

    let lines_of = refused(Plan::new(found(), &rules()));
    assert_eq!(lines_of.len(), 1, "{lines_of:?}");
    assert!(
        lines_of[0].starts_with("flags.none: its value is empty"),
        "{lines_of:?}"
    );

    let rules = Rules {
        skip_empty: true,
        ..rules()
    };
    let plan = Plan::new(found(), &rules).expect("a plan");
    let expected = [
        "api-key api_key workspace 15",
        "db.password db_password workspace 15",
        "db.port db_port workspace 4",
        "db.replicas.0 db_replicas_0 workspace 15",
        "db.replicas.1 db_replicas_1 workspace 15",
        "flags.debug flags_debug workspace 4",
    ];
    assert_eq!(lines(&plan), expected);
    plan.store(&mut place.store("0"), false).expect("stored");
    let value = place.value("0", "db_replicas_1");
    assert_eq!(value.as_deref(), Some("nested-7c1d0304"));
}

#[test]
fn test_import_of_names_that_are_taken_stores_nothing_unless_they_are_replaced() {
    let place = Place::new();
    let mut store = place.store("0");
    let plan = |name| Plan::new(place.aegis(name).expect("read"), &rules()).expect("a plan");
    let first = plan("aegis.db");
    first.store(&mut store, false).expect("stored");

    let second = plan("aegis-older.db");
    let error = second.store(&mut store, false).expect_err("one is taken");
    assert!(
        error.to_string().contains("API_KEY in workspace: nothing"),
        "{error}"
    );
    assert_eq!(place.value("0", "instance:app-web/API_KEY"), None);
    let error = first.store(&mut store, false).expect_err("both are taken");
    let both = "API_KEY in workspace, DB_PASSWORD in workspace: nothing";
    assert!(error.to_string().contains(both), "{error}");
    assert_eq!(
        second.versions(&mut store).expect("read"),
        [Some(1), None, None]
    );

    second.store(&mut store, true).expect("stored");
    let value = place.value("0", "API_KEY");
    assert_eq!(value.as_deref(), Some("aegis-7c1d0104"));
    let value = place.value("0", "API_KEY@1");
    assert_eq!(value.as_deref(), Some("aegis-7c1d0101"));
}

#[test]
fn test_option_that_fits_nothing_is_an_error() {
    let place = Place::new();
    let of = |rules: &Rules| {
        let found = place.aegis("aegis.db").expect("read");
        let error = Plan::new(found, rules).expect_err("refused");
        assert!(matches!(error, ImportError::Unused(_)), "{error:?}");
    };
    of(&Rules {
        renames: vec![rename("API_KEYS", "A")],
        ..rules()
    });
    of(&Rules {
        skip: vec!["NONE".to_owned()],
        ..rules()
    });
    of(&Rules {
        owners: vec![owner("app-web", "workspace")],
        ..rules()
    });
}
