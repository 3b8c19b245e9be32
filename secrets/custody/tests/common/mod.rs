//! A server that speaks as much HTTP as a test wants it to, and environments for schemes.

#![allow(dead_code, reason = "no test uses all of it")]

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use cachot_custody::schemes::Environment;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// An environment of these variables only.
pub fn environment(variables: &[(&str, &str)]) -> Environment {
    let variables: Vec<(String, OsString)> = variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), OsString::from(value)))
        .collect();
    Environment::new(move |wanted| {
        let found = variables.iter().find(|(name, _)| name == wanted);
        found.map(|(_, value)| value.clone())
    })
}

/// A server on a port of its own, for as long as the test's process lives.
pub struct Server {
    /// `127.0.0.1:PORT`, or `localhost:PORT` with TLS.
    pub authority: String,
    requests: Arc<Mutex<Vec<String>>>,
}

/// Both directions of a connection.
pub trait Stream: Read + Write {}

impl<T: Read + Write> Stream for T {}

impl Server {
    /// Calls `answer` for each request, with the request's lines up to the empty one.
    pub fn start(
        answer: impl Fn(&str, &mut dyn Stream) -> io::Result<()> + Send + 'static,
    ) -> Self {
        Self::listen("127.0.0.1", answer, |stream| Ok(Box::new(stream)))
    }

    /// The same with TLS.
    pub fn start_tls(
        config: ServerConfig,
        answer: impl Fn(&str, &mut dyn Stream) -> io::Result<()> + Send + 'static,
    ) -> Self {
        let config = Arc::new(config);
        Self::listen("localhost", answer, move |stream| {
            let connection =
                ServerConnection::new(Arc::clone(&config)).map_err(io::Error::other)?;
            Ok(Box::new(StreamOwned::new(connection, stream)))
        })
    }

    /// One that gives the same answer to all.
    pub fn always(answer: &[u8]) -> Self {
        let answer = answer.to_owned();
        Self::start(move |_, stream| stream.write_all(&answer))
    }

    fn listen(
        host: &str,
        answer: impl Fn(&str, &mut dyn Stream) -> io::Result<()> + Send + 'static,
        wrap: impl Fn(TcpStream) -> io::Result<Box<dyn Stream>> + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let requests = Arc::new(Mutex::new(vec![]));
        let seen = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // A client that goes away is no failure of the server.
                let serve = || -> io::Result<()> {
                    let mut stream = wrap(stream?)?;
                    let request = head(&mut stream)?;
                    seen.lock().expect("no panic").push(request.clone());
                    answer(&request, &mut stream)
                };
                serve().ok();
            }
        });
        Self {
            authority: format!("{host}:{port}"),
            requests,
        }
    }

    /// What it was asked, request by request.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().expect("no panic").clone()
    }
}

fn head(stream: &mut dyn Stream) -> io::Result<String> {
    let mut head = String::new();
    let mut reader = BufReader::with_capacity(1, stream);
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(head)
}

/// An HTTP answer.
pub fn answer(status: &str, headers: &str, body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n{body}",
        body.len()
    )
    .into_bytes()
}
