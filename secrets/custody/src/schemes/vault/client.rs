//! One request to the server: its address, the token, what may go wrong.

use std::error::Error as StdError;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cachot_secrets::{ResolveError, SecretValue, ValueError};
use ureq::http::header::{HeaderValue, LOCATION};
use ureq::http::{StatusCode, Uri};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout, time};
use ureq::{Agent, Timeout};
use zeroize::Zeroizing;

use super::error::VaultError;
use super::place::Place;
use super::{ADDRESS_VARIABLE, Environment, SCHEME, TOKEN_VARIABLE};
use crate::files::{self, Access, FileError};

/// How long a connection may take, TLS included.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Most bytes of a token's file; tokens have about a hundred.
const MAX_TOKEN_LEN: u64 = 16 << 10;

/// Most bytes of a file of certificates; that of all public authorities has 250,000.
const MAX_CERTIFICATES_LEN: u64 = 4 << 20;

/// A server, and what it is asked with.
pub(super) struct Client {
    agent: Agent,
    /// Scheme, host and port, and the path in front of the interface's, without a slash at the end.
    address: String,
    namespace: Option<HeaderValue>,
    token: SecretValue,
    limit: Duration,
}

impl Client {
    /// Reads all settings.
    pub fn new(environment: &Environment, limit: Duration) -> Result<Self, ResolveError> {
        let Address {
            text: address,
            is_tls,
        } = Address::read(environment)?;
        let namespace = match environment.get("VAULT_NAMESPACE") {
            Some(namespace) => Some(header("namespace", &namespace.into_vec())?),
            None => None,
        };
        let mut config = Agent::config_builder()
            .user_agent(concat!("cachot/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            // Whoever sets a proxy for pages does not mean that it should see the token.
            .proxy(None)
            // A connection that is kept has the token and the last answer in its buffers.
            .max_idle_connections(0)
            .timeout_connect(Some(CONNECT_LIMIT.min(limit)))
            .timeout_global(Some(limit));
        if is_tls {
            let provider = rustls::crypto::ring::default_provider();
            let tls = TlsConfig::builder()
                .root_certs(certificates(environment)?)
                .unversioned_rustls_crypto_provider(provider.into())
                .build();
            config = config.tls_config(tls);
        }
        Ok(Self {
            agent: Agent::with_parts(
                config.build(),
                DefaultConnector::default(),
                Inline::default(),
            ),
            address,
            namespace,
            token: token(environment)?,
            limit,
        })
    }

    /// The body of the answer.
    pub fn get(&self, place: &Place) -> Result<SecretValue, ResolveError> {
        let mut request = self
            .agent
            .get(format!("{}{}", self.address, place.request()))
            .header("X-Vault-Token", header("token", self.token.expose())?)
            // Agents that stand in front of a server can demand it, as no web page can set it.
            .header("X-Vault-Request", "true");
        if let Some(namespace) = &self.namespace {
            request = request.header("X-Vault-Namespace", namespace);
        }
        let mut answer = request.call().map_err(|error| self.failed(error))?;
        self.check(answer.status(), answer.headers().get(LOCATION), place)?;
        SecretValue::read_from(&mut answer.body_mut().as_reader()).map_err(|error| match error {
            ValueError::Empty => VaultError::NotKeyValue {
                secret: place.secret.clone(),
            }
            .into(),
            ValueError::TooLong => ResolveError::TooLong {
                place: format!("vault: the answer for {:?}", place.secret),
            },
            ValueError::Lock(error) => ResolveError::Lock(error),
            ValueError::Read(error) => self.failed(error.into()),
        })
    }

    fn check(
        &self,
        status: StatusCode,
        location: Option<&HeaderValue>,
        place: &Place,
    ) -> Result<(), VaultError> {
        let address = self.address.clone();
        let secret = place.secret.clone();
        Err(match status.as_u16() {
            200 => return Ok(()),
            status @ 300..=399 => VaultError::Redirect {
                address,
                to: location.map_or_else(|| "nowhere".to_owned(), host),
                status,
            },
            400 => VaultError::BadRequest { secret },
            status @ (401 | 403) => VaultError::Denied { secret, status },
            404 => VaultError::NotFound { secret },
            503 => VaultError::Unavailable { address },
            status @ 500.. => VaultError::Server { address, status },
            status => VaultError::Status { address, status },
        })
    }

    /// What the client's error means.
    fn failed(&self, error: ureq::Error) -> ResolveError {
        let address = self.address.clone();
        let source = |error: ureq::Error| -> Box<dyn StdError + Send + Sync> {
            match error {
                ureq::Error::Io(error) => error.into(),
                other => other.into(),
            }
        };
        let failed = match error {
            error @ (ureq::Error::Timeout(Timeout::Connect) | ureq::Error::HostNotFound) => {
                VaultError::Unreachable {
                    address,
                    source: source(error),
                }
            }
            ureq::Error::Timeout(_) => {
                return ResolveError::TimedOut {
                    scheme: SCHEME,
                    limit: self.limit,
                };
            }
            error if is_tls(&error) => VaultError::Tls {
                address,
                source: source(error),
            },
            ureq::Error::Io(error) if is_cut(&error) => VaultError::Cut {
                address,
                source: error.into(),
            },
            error @ (ureq::Error::Io(_) | ureq::Error::ConnectionFailed) => {
                VaultError::Unreachable {
                    address,
                    source: source(error),
                }
            }
            error => VaultError::NotHttp {
                address,
                source: source(error),
            },
        };
        failed.into()
    }
}

fn is_tls(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::Tls(_) | ureq::Error::Rustls(_) => true,
        // That is how a handshake fails.
        ureq::Error::Io(error) => error
            .get_ref()
            .is_some_and(|inner| inner.is::<rustls::Error>()),
        _ => false,
    }
}

fn is_cut(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}

/// The address in `VAULT_ADDR`, checked.
struct Address {
    text: String,
    is_tls: bool,
}

impl Address {
    fn read(environment: &Environment) -> Result<Self, VaultError> {
        let text = environment
            .get(ADDRESS_VARIABLE)
            .ok_or(VaultError::NoAddress)?
            .into_string()
            .map_err(|_| VaultError::BadAddress)?;
        let uri: Uri = text.parse().map_err(|_| VaultError::BadAddress)?;
        // By the URI's scheme, not the text: `HTTPS://` is the same.
        let is_tls = match uri.scheme_str().map(str::to_ascii_lowercase).as_deref() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(VaultError::BadAddress),
        };
        let is_good = uri.host().is_some_and(|host| !host.is_empty())
            && uri
                .authority()
                .is_some_and(|one| !one.as_str().contains('@'))
            && uri.query().is_none()
            && !text.contains('#');
        match is_good {
            true => Ok(Self {
                text: text.trim_end_matches('/').to_owned(),
                is_tls,
            }),
            false => Err(VaultError::BadAddress),
        }
    }
}

/// Of where a redirection leads: scheme, host and port, as the rest is the server's to choose.
fn host(location: &HeaderValue) -> String {
    let uri = location
        .to_str()
        .ok()
        .and_then(|text| text.parse::<Uri>().ok());
    match uri
        .as_ref()
        .map(|uri| (uri.scheme_str(), uri.host(), uri.port_u16()))
    {
        Some((Some(scheme), Some(host), Some(port))) => format!("{scheme}://{host}:{port}"),
        Some((Some(scheme), Some(host), None)) => format!("{scheme}://{host}"),
        _ => "another path".to_owned(),
    }
}

/// What is sent in a header, and shown in no log.
fn header(what: &'static str, bytes: &[u8]) -> Result<HeaderValue, VaultError> {
    let mut value = HeaderValue::from_bytes(bytes).map_err(|_| VaultError::BadHeader(what))?;
    if value.to_str().is_err() {
        return Err(VaultError::BadHeader(what));
    }
    value.set_sensitive(true);
    Ok(value)
}

/// The token in `VAULT_TOKEN`, or in the file that a login writes.
fn token(environment: &Environment) -> Result<SecretValue, ResolveError> {
    let unreadable = |error: ValueError| match error {
        ValueError::Lock(error) => ResolveError::Lock(error),
        ValueError::Empty => VaultError::NoToken.into(),
        error => VaultError::Unreadable {
            what: "token",
            source: error.into(),
        }
        .into(),
    };
    if let Some(token) = environment.get(TOKEN_VARIABLE) {
        let token = Zeroizing::new(token.into_vec());
        return SecretValue::copy_of(&token).map_err(unreadable);
    }
    let home = environment.get("HOME").ok_or(VaultError::NoToken)?;
    let path = PathBuf::from(home).join(".vault-token");
    let mut file = match files::open(&path, Access::Private, MAX_TOKEN_LEN) {
        Err(FileError::Absent(_)) => return Err(VaultError::NoToken.into()),
        other => other.map_err(|source| VaultError::File {
            what: "token",
            source,
        })?,
    };
    SecretValue::read_line_from(&mut file).map_err(unreadable)
}

/// The certificates that are trusted: those in the file `VAULT_CACERT`, or the system's.
fn certificates(environment: &Environment) -> Result<RootCerts, VaultError> {
    let certificates: Vec<_> = match environment.get("VAULT_CACERT") {
        Some(path) => certificates_of(path)?,
        None => rustls_native_certs::load_native_certs()
            .certs
            .iter()
            .map(|certificate| Certificate::from_der(certificate).to_owned())
            .collect(),
    };
    if certificates.is_empty() {
        return Err(VaultError::NoCertificates);
    }
    Ok(certificates.into())
}

fn certificates_of(path: OsString) -> Result<Vec<Certificate<'static>>, VaultError> {
    let what = "trusted certificates";
    let mut file = files::open(Path::new(&path), Access::Trusted, MAX_CERTIFICATES_LEN)
        .map_err(|source| VaultError::File { what, source })?;
    let mut pem = vec![];
    io::Read::read_to_end(&mut file, &mut pem).map_err(|error| VaultError::Unreadable {
        what,
        source: error.into(),
    })?;
    let mut certificates = vec![];
    for item in parse_pem(&pem) {
        match item {
            Ok(PemItem::Certificate(certificate)) => certificates.push(certificate),
            Ok(_) => {}
            Err(error) => {
                return Err(VaultError::Unreadable {
                    what,
                    source: error.into(),
                });
            }
        }
    }
    Ok(certificates)
}

/// Looks names up on the thread that asks. The client's own way starts a thread that it does not wait for; here the
/// whole of a request is on a thread that is.
#[derive(Debug, Default)]
struct Inline(DefaultResolver);

impl Resolver for Inline {
    fn resolve(
        &self,
        uri: &Uri,
        config: &ureq::config::Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let never = NextTimeout {
            after: time::Duration::NotHappening,
            ..timeout
        };
        self.0.resolve(uri, config, never)
    }
}
