//! What microagent does with references to secrets, done here: its schemes, its check, and failing closed.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use cachot_custody::schemes::with_providers;
use cachot_secrets::{Declarations, MAX_LINE_LEN, Schemes};
use common::{Server, answer, environment};

const TOKEN: &str = "hvs.token-of-a-test";

/// The schemes with these variables.
fn schemes(variables: &[(&str, &str)]) -> Schemes {
    with_providers(Schemes::default(), &environment(variables))
}

/// The value of a reference, or the line that says why there is none.
fn resolve(schemes: &Schemes, reference: &str) -> Result<Vec<u8>, String> {
    let declarations = Declarations::parse([format!("S={reference}")]);
    match declarations.resolve(schemes) {
        Ok(resolved) => Ok(resolved[0].value.expose().to_vec()),
        Err(failures) => Err(failures.to_string()),
    }
}

fn error(schemes: &Schemes, reference: &str) -> String {
    resolve(schemes, reference).expect_err("no value")
}

fn write(folder: &Path, name: &str, content: &[u8]) -> String {
    let path = folder.join(name);
    fs::write(&path, content).expect("written");
    path.to_str().expect("text").to_owned()
}

/// A helper that does what a shell script says.
fn helper(folder: &Path, script: &str) -> String {
    let path = write(
        folder,
        "helper",
        format!("#!/bin/sh\n{script}\n").as_bytes(),
    );
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("set");
    path
}

#[test]
fn test_microagent_env() {
    let expected = std::env::var("PATH").expect("text").into_bytes();
    assert_eq!(resolve(&schemes(&[]), "env:PATH"), Ok(expected));
    let missing = error(&schemes(&[]), "env:CACHOT_NOT_SET");
    assert!(
        missing.contains("\"CACHOT_NOT_SET\" is not set"),
        "{missing}"
    );
}

#[test]
fn test_microagent_file_is_verbatim() {
    let folder = tempfile::tempdir().expect("a folder");
    let content = b" \xff\0 two\r\nlines\n\n";
    let path = write(folder.path(), "token", content);
    assert_eq!(
        resolve(&schemes(&[]), &format!("file:{path}")),
        Ok(content.to_vec())
    );
}

#[test]
fn test_microagent_dotenv() {
    let folder = tempfile::tempdir().expect("a folder");
    let content = "# a comment\n\nPLAIN=a b # c\nexport EXPORTED=yes\nDOUBLE=\"in \\\"quotes\\\"\"\n\
                   SINGLE='it''s'\nNESTED=\"'one pair'\"\nEMPTY=\nQUOTED_EMPTY=\"\"\n";
    let path = write(folder.path(), "app.env", content.as_bytes());
    let schemes = schemes(&[]);
    for (key, value) in [
        ("PLAIN", "a b # c"),
        ("EXPORTED", "yes"),
        ("DOUBLE", "in \\\"quotes\\\""),
        ("SINGLE", "it''s"),
        ("NESTED", "'one pair'"),
    ] {
        let got = resolve(&schemes, &format!("dotenv:{path}#{key}"));
        assert_eq!(got, Ok(value.as_bytes().to_vec()), "{key}");
    }
    for key in ["EMPTY", "QUOTED_EMPTY"] {
        assert!(error(&schemes, &format!("dotenv:{path}#{key}")).contains("is empty"));
    }
    assert!(error(&schemes, &format!("dotenv:{path}#NONE")).contains("has no key \"NONE\""));
    assert!(error(&schemes, &format!("dotenv:{path}")).contains("which key"));
}

#[test]
fn test_microagent_dotenv_line_of_a_mebibyte() {
    let folder = tempfile::tempdir().expect("a folder");
    let value = "v".repeat(MAX_LINE_LEN - "A=".len());
    let path = write(folder.path(), "fits", format!("A={value}\n").as_bytes());
    let got = resolve(&schemes(&[]), &format!("dotenv:{path}#A"));
    assert_eq!(got.map(|value| value.len()), Ok(value.len()));
    let path = write(folder.path(), "over", format!("A={value}v\n").as_bytes());
    let over = error(&schemes(&[]), &format!("dotenv:{path}#A"));
    assert!(
        over.contains("line 1") && over.contains("over the limit"),
        "{over}"
    );
    assert_eq!(MAX_LINE_LEN, 1 << 20);
}

fn vault(server: &Server) -> Schemes {
    let address = format!("http://{}", server.authority);
    schemes(&[("VAULT_ADDR", &address), ("VAULT_TOKEN", TOKEN)])
}

#[test]
fn test_microagent_vault() {
    let body =
        r#"{"data":{"data":{"password":"from vault","port":5432},"metadata":{"version":4}}}"#;
    let server = Server::always(&answer("200 OK", "", body));
    let schemes = vault(&server);

    let value = resolve(&schemes, "vault:secret/data/app/db#password");

    assert_eq!(value, Ok(b"from vault".to_vec()));
    let request = server.requests().remove(0);
    assert!(request.starts_with("GET /v1/secret/data/app/db HTTP/1.1\r\n"));
    assert!(
        request
            .to_lowercase()
            .contains(&format!("x-vault-token: {TOKEN}\r\n"))
    );
    assert!(error(&schemes, "vault:secret/data/app/db#none").contains("has no field \"none\""));
    assert!(error(&schemes, "vault:secret/data/app/db#port").contains("is not text"));
}

#[test]
fn test_microagent_vault_errors_are_distinct() {
    let mut seen = std::collections::BTreeSet::new();
    for status in ["401 a", "403 b", "404 c", "503 d", "500 e", "400 f"] {
        let server = Server::always(&answer(status, "", r#"{"errors":[]}"#));
        let said = error(&vault(&server), "vault:secret/data/app/db#password");
        let said = said.replace(&server.authority, "");
        assert!(said.starts_with("secret S: vault: "), "{said}");
        assert!(seen.insert(said.clone()), "{said}");
    }
    let address = ("VAULT_ADDR", "http://127.0.0.1:1");
    for variables in [
        &[("VAULT_TOKEN", TOKEN)][..],
        &[address],
        &[address, ("VAULT_TOKEN", TOKEN)],
    ] {
        let said = error(&schemes(variables), "vault:secret/data/app/db#password");
        assert!(seen.insert(said.clone()), "{said}");
    }
}

#[test]
fn test_microagent_helper_gets_one_argument_and_loses_one_newline() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = helper(folder.path(), "printf '%s/%s\\n\\n' $# \"$1\"");
    let schemes = schemes(&[("CACHOT_SECRET_HELPER", &path)]);
    let value = resolve(&schemes, "helper:team one/db; id");
    assert_eq!(value, Ok(b"1/team one/db; id\n".to_vec()));
}

#[test]
fn test_microagent_helper_that_fails_withholds_the_secret() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = helper(
        folder.path(),
        "echo not-a-value-to-deliver; echo locked >&2; exit 4",
    );
    let failing = schemes(&[("CACHOT_SECRET_HELPER", &path)]);
    let said = error(&failing, "helper:db");
    assert!(said.ends_with("ended with exit code 4: locked"), "{said}");
    assert!(error(&schemes(&[]), "helper:db").contains("no program is configured"));
}

#[test]
fn test_microagent_helper_has_30_seconds() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = helper(folder.path(), "sleep 1000");
    let hanging = schemes(&[("CACHOT_SECRET_HELPER", &path)]);
    let since = std::time::Instant::now();

    let said = error(&hanging, "helper:db");

    assert!(
        said.starts_with("secret S: helper: did not answer within 30 s"),
        "{said}"
    );
    let took = since.elapsed();
    assert!(
        took >= Duration::from_secs(30) && took < Duration::from_secs(40),
        "{took:?}"
    );
}

#[test]
fn test_microagent_fails_closed() {
    let folder = tempfile::tempdir().expect("a folder");
    let empty = write(folder.path(), "empty", b"");
    let good = write(folder.path(), "good", b"a good value");
    let schemes = schemes(&[]);
    for (reference, expected) in [
        ("no-scheme".to_owned(), "has no scheme"),
        (":a".to_owned(), "has no scheme"),
        ("nope:a".to_owned(), "there is no secret scheme \"nope\""),
        ("file:".to_owned(), "ends after its scheme"),
        (format!("file:{empty}"), "is empty"),
        ("exec:/bin/true".to_owned(), "is empty"),
    ] {
        let declarations =
            Declarations::parse([format!("GOOD=file:{good}"), format!("BAD={reference}")]);
        let failures = declarations.resolve(&schemes).expect_err("no value at all");
        let said = failures.to_string();
        assert!(
            said.starts_with("secret BAD: ") && said.contains(expected),
            "{said}"
        );
    }
}

#[test]
fn test_microagent_check_shows_sizes_and_warnings() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = write(folder.path(), "token", &[b't'; 40]);
    let declarations = Declarations::parse([
        format!("API_KEY=file:{path}"),
        "TOKEN=exec:/bin/echo printed-by-a-program".to_owned(),
        "MISSING=env:CACHOT_NOT_SET".to_owned(),
    ]);

    let checks = declarations.check(&schemes(&[]));

    let lines: Vec<_> = checks.iter().map(ToString::to_string).collect();
    assert_eq!(
        lines[0],
        "API_KEY ok source=file bytes=40 warning: secret scheme \"file\" is plaintext: not encrypted at rest, \
         not for production"
    );
    assert_eq!(lines[1], "TOKEN ok source=exec bytes=20");
    assert!(lines[2].starts_with("MISSING error source=env: "));
    assert!(!lines.concat().contains("printed-by-a-program"));
}
