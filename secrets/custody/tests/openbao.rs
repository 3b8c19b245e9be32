//! `vault:` against a real server, OpenBao, over TLS: what its own program stores is what is read.

mod common;

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cachot_custody::schemes::Vault;
use cachot_secrets::Scheme;
use common::environment;

const ROOT_TOKEN: &str = "root-token-of-a-test";

/// How long the server may take to come up, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(120);

/// A server in memory, and its user's home folder.
struct OpenBao {
    program: PathBuf,
    home: tempfile::TempDir,
    address: String,
    process: Child,
}

impl Drop for OpenBao {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

impl OpenBao {
    fn start() -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/openbao");
        let found = Command::new(script).stderr(Stdio::inherit()).output();
        let found = found.expect("the script starts");
        assert!(found.status.success(), "there is no program of OpenBao");
        let program = String::from_utf8(found.stdout).expect("a path");
        let program = PathBuf::from(program.trim_end());
        let home = tempfile::tempdir().expect("a folder");
        let port = {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            listener.local_addr().expect("an address").port()
        };
        let process = Command::new(&program)
            .args(["server", "-dev", "-dev-tls"])
            .arg(format!("-dev-listen-address=127.0.0.1:{port}"))
            .arg(format!("-dev-root-token-id={ROOT_TOKEN}"))
            .arg(format!("-dev-tls-cert-dir={}", home.path().display()))
            .env_clear()
            .env("HOME", home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        let server = Self {
            program,
            home,
            address: format!("https://127.0.0.1:{port}"),
            process,
        };
        let since = Instant::now();
        while !server.command(&["status"]).status().expect("run").success() {
            assert!(since.elapsed() < PATIENCE, "the server does not come up");
            std::thread::sleep(Duration::from_millis(100));
        }
        server
    }

    fn certificates(&self) -> String {
        let pem = fs::read_dir(self.home.path())
            .expect("listed")
            .map(|entry| entry.expect("an entry").path())
            .find(|path| path.to_string_lossy().ends_with("-ca.pem"));
        pem.map_or_else(String::new, |path| path.to_string_lossy().into_owned())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .env_clear()
            .env("HOME", self.home.path())
            .env("BAO_ADDR", &self.address)
            .env("BAO_CACERT", self.certificates())
            .env("BAO_TOKEN", ROOT_TOKEN)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .stdout(Stdio::null());
        command
    }

    /// Runs the server's own program as its administrator; what it prints.
    fn run(&self, arguments: &[&str]) -> String {
        let output = self
            .command(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .output()
            .expect("run");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
        String::from_utf8(output.stdout).expect("text")
    }

    fn vault(&self, more: &[(&str, &str)]) -> Vault {
        let certificates = self.certificates();
        let home = self.home.path().to_string_lossy();
        let mut variables = vec![
            ("VAULT_ADDR", self.address.as_str()),
            ("VAULT_CACERT", &certificates),
            ("HOME", &home),
        ];
        variables.extend(more);
        Vault::new(environment(&variables))
    }
}

fn value(vault: &Vault, locator: &str) -> String {
    let fetched = vault.resolve(locator).expect("a value");
    String::from_utf8(fetched.value.expose().to_vec()).expect("text")
}

fn version(vault: &Vault, locator: &str) -> Option<u64> {
    vault.resolve(locator).expect("a value").origin.version
}

fn message(vault: &Vault, locator: &str) -> String {
    vault.resolve(locator).expect_err("no value").to_string()
}

#[test]
fn test_openbao_values_and_errors() {
    let server = OpenBao::start();
    let root = server.vault(&[("VAULT_TOKEN", ROOT_TOKEN)]);
    let odd = "two\nlines \"quoted\" \\ é 😀";
    server.run(&["kv", "put", "-mount=secret", "app/db", "password=first"]);
    server.run(&[
        "kv",
        "put",
        "-mount=secret",
        "app/db",
        &format!("password={odd}"),
        "user=me",
    ]);
    server.run(&["kv", "put", "-mount=secret", "a b%é", "f=spaced"]);

    // Values and versions.
    assert_eq!(value(&root, "secret/data/app/db#password"), odd);
    assert_eq!(value(&root, "secret/data/app/db#user"), "me");
    assert_eq!(
        value(&root, "secret/data/app/db?version=1#password"),
        "first"
    );
    assert_eq!(value(&root, "secret/data/a b%é#f"), "spaced");
    assert_eq!(version(&root, "secret/data/app/db#user"), Some(2));
    assert_eq!(
        version(&root, "secret/data/app/db?version=1#password"),
        Some(1)
    );

    // What is not there.
    assert!(message(&root, "secret/data/none#f").contains("there is no secret"));
    assert!(message(&root, "none/data/db#f").contains("there is no secret"));
    assert!(message(&root, "secret/data/app/db?version=9#f").contains("there is no secret"));
    assert!(message(&root, "secret/data/app/db#none").contains("has no field \"none\""));
    server.run(&["kv", "delete", "-mount=secret", "-versions=1", "app/db"]);
    assert!(message(&root, "secret/data/app/db?version=1#password").contains("was deleted"));
    server.run(&["secrets", "enable", "-path=one", "-version=1", "kv"]);
    server.run(&[
        "kv",
        "put",
        "-mount=one",
        "data/db",
        "password=of-version-1",
    ]);
    let version_1 = message(&root, "one/data/db#password");
    assert!(
        version_1.contains("is not that of a key-value store"),
        "{version_1}"
    );

    // Who may not.
    let stranger = server.vault(&[("VAULT_TOKEN", "s.stranger")]);
    assert!(message(&stranger, "secret/data/app/db#password").contains("is denied (403)"));
    let created = server.run(&["token", "create", "-policy=default", "-field=token"]);
    let other = server.vault(&[("VAULT_TOKEN", created.trim_end())]);
    assert!(message(&other, "secret/data/app/db#password").contains("is denied (403)"));

    // A login's token.
    fs::remove_file(server.home.path().join(".vault-token")).ok();
    assert!(message(&server.vault(&[]), "secret/data/app/db#user").contains("there is no token"));
    server.run(&["login", "-no-print", ROOT_TOKEN]);
    assert_eq!(value(&server.vault(&[]), "secret/data/app/db#user"), "me");

    // A namespace.
    server.run(&["namespace", "create", "team"]);
    server.run(&[
        "secrets",
        "enable",
        "-namespace=team",
        "-path=kv",
        "-version=2",
        "kv",
    ]);
    server.run(&[
        "kv",
        "put",
        "-namespace=team",
        "-mount=kv",
        "db",
        "password=of the team",
    ]);
    let team = server.vault(&[("VAULT_TOKEN", ROOT_TOKEN), ("VAULT_NAMESPACE", "team")]);
    assert_eq!(value(&team, "kv/data/db#password"), "of the team");
    assert!(message(&root, "kv/data/db#password").contains("there is no secret"));

    // A server that cannot answer.
    server.run(&["operator", "seal"]);
    assert!(message(&root, "secret/data/app/db#user").contains("is sealed"));
}
