//! `vault:` against a server that speaks the documented interface, and against ones that do not.

mod common;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cachot_custody::schemes::{Vault, with_providers};
use cachot_secrets::{
    Declarations, Fetched, MAX_VALUE_LEN, ResolveError, Scheme, Schemes, TIME_LIMIT,
};
use common::{Server, answer, environment};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;

const TOKEN: &str = "hvs.test-token-0123456789";

/// What Vault answers for a secret with these fields.
fn secret(fields: &str) -> Vec<u8> {
    let body = format!(
        r#"{{"request_id":"1","lease_id":"","renewable":false,"lease_duration":0,"data":{{"data":{fields},"metadata":{{"version":1,"destroyed":false}}}},"wrap_info":null,"warnings":null,"auth":null}}"#
    );
    answer("200 OK", "Content-Type: application/json\r\n", &body)
}

fn vault(server: &Server) -> Vault {
    let address = format!("http://{}", server.authority);
    Vault::new(environment(&[
        ("VAULT_ADDR", &address),
        ("VAULT_TOKEN", TOKEN),
    ]))
}

fn ask(server: &Server) -> Result<Fetched, ResolveError> {
    vault(server).resolve("secret/data/app/db#password")
}

fn message(value: Result<Fetched, ResolveError>) -> String {
    let error = value.expect_err("no value");
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    assert!(!text.contains(TOKEN), "{text}");
    assert!(!format!("{error:?}").contains(TOKEN), "{error:?}");
    text
}

#[test]
fn test_vault_field_of_a_secret_is_its_text() {
    let server = Server::always(&secret(
        r#"{"user":"me","password":"pa\"ss\nw\u00f6rd \ud83d\ude00","n":1}"#,
    ));

    let fetched = ask(&server).expect("a value");

    assert_eq!(fetched.origin.version, Some(1));
    assert_eq!(fetched.value.expose(), "pa\"ss\nwörd 😀".as_bytes());
    let requests = server.requests();
    let lines: Vec<_> = requests[0].lines().map(str::to_lowercase).collect();
    assert_eq!(lines[0], "get /v1/secret/data/app/db http/1.1");
    assert!(lines.contains(&format!("x-vault-token: {TOKEN}")));
    assert!(lines.contains(&"x-vault-request: true".to_owned()));
    assert!(!requests[0].to_lowercase().contains("namespace"));
}

#[test]
fn test_vault_version_namespace_and_prefix_are_sent() {
    let server = Server::always(&secret(r#"{"password":"old"}"#));
    let address = format!("http://{}/behind/proxy/", server.authority);
    let vault = Vault::new(environment(&[
        ("VAULT_ADDR", &address),
        ("VAULT_TOKEN", TOKEN),
        ("VAULT_NAMESPACE", "team/a"),
    ]));

    vault
        .resolve("kv/data/a b?version=3#password")
        .expect("a value");

    let request = server.requests().remove(0);
    assert!(request.starts_with("GET /behind/proxy/v1/kv/data/a%20b?version=3 "));
    let request = request.to_lowercase();
    assert!(
        request.contains("x-vault-namespace: team/a\r\n"),
        "{request}"
    );
}

#[test]
fn test_vault_every_status_is_a_distinct_error() {
    let body = format!(r#"{{"errors":["permission denied for {TOKEN}"]}}"#);
    let said = |status: &str| message(ask(&Server::always(&answer(status, "", &body))));
    for (status, expected) in [
        ("400 Bad Request", "does not understand the request"),
        (
            "401 Unauthorized",
            "is denied (401): the token is not valid",
        ),
        ("403 Forbidden", "is denied (403): the token is not valid"),
        ("404 Not Found", "there is no secret \"secret/data/app/db\""),
        ("429 Too Many Requests", "answers with the status 429"),
        ("500 Internal Server Error", "failed (500): see its log"),
        ("502 Bad Gateway", "failed (502): see its log"),
        ("503 Service Unavailable", "is sealed, or stands by"),
        ("204 No Content", "answers with the status 204"),
        ("418 I'm a teapot", "answers with the status 418"),
    ] {
        let said = said(status);
        assert!(said.contains(expected), "{status}: {said}");
    }
}

#[test]
fn test_vault_redirection_is_refused_and_the_token_does_not_follow() {
    let other = Server::always(&secret(r#"{"password":"theirs"}"#));
    for status in ["301 Moved", "302 Found", "307 Temporary", "308 Permanent"] {
        let location = format!("Location: http://{}/v1/x?{TOKEN}\r\n", other.authority);
        let said = message(ask(&Server::always(&answer(status, &location, ""))));
        assert!(said.contains(&format!("sends to http://{}", other.authority)));
    }
    let said = message(ask(&Server::always(&answer(
        "307 T",
        "Location: /x\r\n",
        "",
    ))));
    assert!(said.contains("sends to another path (307)"), "{said}");
    assert!(other.requests().is_empty());
}

#[test]
fn test_vault_answer_that_is_no_secret_is_a_distinct_error() {
    let body = |body: &str| message(ask(&Server::always(&answer("200 OK", "", body))));
    for other in [
        "",
        "<html>",
        "[]",
        "{}",
        r#"{"data":null}"#,
        r#"{"data":{"data":null}}"#,
        r#"{"data":{"password":"kv1-value"}}"#,
        r#"{"data":{"data":"a-value-here"}}"#,
        r#"{"data":{"data":{"password":"a"}}"#,
        r#"{"data":{"data":{"password":"a"}}}trailing"#,
    ] {
        let said = body(other);
        assert!(
            said.contains("is not that of a key-value store"),
            "{other}: {said}"
        );
        assert!(
            !said.contains("value-here") && !said.contains("kv1"),
            "{said}"
        );
    }
    let fields = |fields: &str| message(ask(&Server::always(&secret(fields))));
    assert!(fields(r#"{"other":"a"}"#).contains("has no field \"password\""));
    for not_text in [
        "1",
        "null",
        "true",
        "[\"a\"]",
        "{\"a\":\"b\"}",
        r#""\ud800""#,
    ] {
        let said = fields(&format!(r#"{{"password":{not_text}}}"#));
        assert!(said.contains("is not text"), "{not_text}: {said}");
    }
    assert!(fields(r#"{"password":""}"#).contains("is empty"));
}

#[test]
fn test_vault_answer_that_is_cut_or_no_http_is_a_distinct_error() {
    let whole = secret(r#"{"password":"a-long-enough-value"}"#);
    let cut = message(ask(&Server::always(&whole[..whole.len() - 5])));
    assert!(cut.contains("ended too soon"), "{cut}");
    let nothing = message(ask(&Server::always(b"")));
    assert!(nothing.contains("ended too soon"), "{nothing}");
    let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n";
    let chunked = message(ask(&Server::always(chunked)));
    assert!(chunked.contains("as HTTP demands"), "{chunked}");
    let ssh = message(ask(&Server::always(b"SSH-2.0-OpenSSH_9.2p1\r\n\r\n")));
    assert!(ssh.contains("as HTTP demands"), "{ssh}");
    let mut headers = b"HTTP/1.1 200 OK\r\n".to_vec();
    headers.extend(b"X: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n".repeat(5000));
    let headers = message(ask(&Server::always(&headers)));
    assert!(headers.contains("as HTTP demands"), "{headers}");
}

#[test]
fn test_vault_answer_that_is_too_long_is_not_read_to_its_end() {
    let long = "v".repeat(MAX_VALUE_LEN);
    let fields = format!(r#"{{"password":"{long}"}}"#);
    assert!(message(ask(&Server::always(&secret(&fields)))).contains("over the limit"));
    let endless = Server::start(|_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n{\"data\":\"")?;
        loop {
            stream.write_all(&[b'v'; 4096])?;
        }
    });
    assert!(message(ask(&endless)).contains("over the limit"));
    // The control: one that just fits.
    let fits = "v".repeat(MAX_VALUE_LEN - 1000);
    let fields = format!(r#"{{"password":"{fits}"}}"#);
    let fetched = ask(&Server::always(&secret(&fields))).expect("a value");
    assert_eq!(fetched.value.len(), fits.len());
}

#[test]
fn test_vault_server_that_hangs_is_given_up() {
    let silent = Server::start(|_, _| {
        std::thread::sleep(Duration::from_secs(60));
        Ok(())
    });
    // A byte now and then, of the head and of the body: no single wait is long.
    let slow = |start: &'static [u8]| {
        Server::start(move |_, stream| {
            stream.write_all(start)?;
            loop {
                std::thread::sleep(Duration::from_millis(50));
                stream.write_all(b"a")?;
                stream.flush()?;
            }
        })
    };
    let servers = [
        silent,
        slow(b"HTTP/1.1 200 OK\r\nX: "),
        slow(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n{\"data\":\""),
    ];
    for server in &servers {
        let since = Instant::now();
        let late = vault(server)
            .with_time_limit(Duration::from_millis(500))
            .resolve("secret/data/app/db#password");
        assert!(
            matches!(
                late,
                Err(ResolveError::TimedOut {
                    scheme: "vault",
                    ..
                })
            ),
            "{late:?}"
        );
        assert!(since.elapsed() < Duration::from_secs(5));
    }
    assert_eq!(vault(&servers[0]).time_limit(), Some(TIME_LIMIT));
}

#[test]
fn test_vault_server_that_is_not_there_is_a_distinct_error() {
    let closed = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.local_addr().expect("an address")
    };
    for address in [
        format!("http://{closed}"),
        "http://nowhere.invalid".to_owned(),
    ] {
        let vault = Vault::new(environment(&[
            ("VAULT_ADDR", &address),
            ("VAULT_TOKEN", TOKEN),
        ]));
        let said = message(vault.resolve("a/data/b#c"));
        assert!(
            said.contains(&format!("no connection to {address}")),
            "{said}"
        );
    }
}

#[test]
fn test_vault_token_is_a_variable_to_be_scrubbed() {
    let schemes = with_providers(Schemes::default(), &environment(&[]));
    let declarations = Declarations::parse(["A=vault:a/data/b#c", "B=env:B", "C=exec:/bin/a"]);
    let variables: Vec<_> = declarations.environment_variables(&schemes).collect();
    assert_eq!(variables, ["VAULT_TOKEN", "B"]);
}

#[test]
fn test_vault_settings_that_are_missing_or_wrong_are_distinct_errors() {
    let said = |variables: &[(&str, &str)]| {
        message(Vault::new(environment(variables)).resolve("a/data/b#c"))
    };
    assert!(said(&[("VAULT_TOKEN", TOKEN)]).contains("no server is named"));
    let address = ("VAULT_ADDR", "http://127.0.0.1:1");
    assert!(said(&[address]).contains("there is no token"));
    for bad in [
        "127.0.0.1:8200",
        "vault.example.org",
        "ftp://a",
        "unix:///run/bao",
        "http://",
        "http://me:hunter2@host",
        "http://host/?a=b",
        "http://host/#a",
        "http://a b",
    ] {
        let said = said(&[("VAULT_ADDR", bad), ("VAULT_TOKEN", TOKEN)]);
        assert!(
            said.contains("VAULT_ADDR is not an address"),
            "{bad}: {said}"
        );
        assert!(!said.contains("hunter2"), "{said}");
    }
    assert!(said(&[address, ("VAULT_TOKEN", "a\nb")]).contains("token cannot be sent"));
    let namespace = ("VAULT_NAMESPACE", "a\r\nX: y");
    assert!(
        said(&[address, ("VAULT_TOKEN", TOKEN), namespace]).contains("namespace cannot be sent")
    );
    assert!(said(&[address, ("VAULT_TOKEN", TOKEN)]).contains("no connection"));
}

#[test]
fn test_vault_token_of_a_login_is_used_if_it_is_private() {
    let server = Server::always(&secret(r#"{"password":"value"}"#));
    let home = tempfile::tempdir().expect("a folder");
    let address = format!("http://{}", server.authority);
    let home_path = home.path().to_str().expect("text");
    let ask = || {
        let variables = [("VAULT_ADDR", address.as_str()), ("HOME", home_path)];
        Vault::new(environment(&variables)).resolve("a/data/b#password")
    };
    assert!(message(ask()).contains("there is no token"));
    let file = home.path().join(".vault-token");
    fs::write(&file, format!("{TOKEN}\n")).expect("written");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("set");
    assert!(message(ask()).contains("open to others"));
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("set");

    assert_eq!(ask().expect("a value").value.expose(), b"value");

    let request = server.requests().remove(0).to_lowercase();
    assert!(request.contains(&format!("x-vault-token: {TOKEN}\r\n")));
}

/// A server for `localhost`, and its authority's certificate as PEM.
fn tls_server() -> (Server, String) {
    let mut params = CertificateParams::new(vec![]).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    let authority = CertifiedIssuer::self_signed(params, key).expect("an authority");
    let key = KeyPair::generate().expect("a key");
    let certificate = CertificateParams::new(vec!["localhost".to_owned()])
        .expect("a name")
        .signed_by(&key, &authority)
        .expect("signed");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .expect("a configuration");
    let answer = secret(r#"{"password":"over tls"}"#);
    let server = Server::start_tls(config, move |_, stream| {
        stream.write_all(&answer)?;
        stream.flush()
    });
    (server, authority.pem())
}

#[test]
fn test_vault_over_tls_with_an_authority_of_its_own() {
    let (server, pem) = tls_server();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("ca.pem");
    fs::write(&file, pem).expect("written");
    let address = format!("https://{}", server.authority);
    let ask = |address: &str, ca: Option<&str>| {
        let mut variables = vec![("VAULT_ADDR", address), ("VAULT_TOKEN", TOKEN)];
        variables.extend(ca.map(|ca| ("VAULT_CACERT", ca)));
        Vault::new(environment(&variables)).resolve("a/data/b#password")
    };
    let ca = file.to_str();

    // The scheme of a URI has no case.
    let upper = address.replace("https", "HTTPS");
    for address in [&address, &upper] {
        let value = ask(address, ca).expect("a value").value;
        assert_eq!(value.expose(), b"over tls", "{address}");
    }

    // The system's authorities do not know this one, where there are any.
    let said = message(ask(&address, None));
    let unknown = said.contains("does not prove who it is");
    assert!(
        unknown || said.contains("no certificate authority"),
        "{said}"
    );
    let (stranger, _) = tls_server();
    let stranger = format!("https://{}", stranger.authority);
    let other_name = address.replace("localhost", "127.0.0.1");
    let stranger_upper = stranger.replace("https", "HTTPS");
    for address in [&stranger, &stranger_upper, &other_name] {
        let said = message(ask(address, ca));
        assert!(said.contains("does not prove who it is"), "{said}");
    }
    assert_eq!(server.requests().len(), 2, "nothing is sent to a stranger");
    let plain = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = plain.local_addr().expect("an address").port();
    let plain_server = std::thread::spawn(move || {
        let (mut stream, _) = plain.accept().expect("a client");
        stream
            .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .expect("sent");
        // Until it goes, or the rest of what it says would reset the connection.
        std::io::copy(&mut stream, &mut std::io::sink()).ok();
    });
    let plain = format!("https://localhost:{port}");
    assert!(message(ask(&plain, ca)).contains("does not prove who it is"));
    plain_server.join().expect("ended");
    let empty = folder.path().join("empty.pem");
    fs::write(&empty, "").expect("written");
    assert!(message(ask(&address, empty.to_str())).contains("no certificate authority is trusted"));
    assert!(message(ask(&address, Some("/cachot/none"))).contains("there is no"));
    fs::write(
        &empty,
        "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n",
    )
    .expect("written");
    let broken = message(ask(&address, empty.to_str()));
    assert!(
        broken.contains("cannot read the trusted certificates"),
        "{broken}"
    );
}
