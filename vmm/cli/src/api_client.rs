//! Requests to a VM's control socket (`resources/control-api.md`).

use std::io::{self, Read, Write};
use std::time::Duration;

use serde_json::Value;

use crate::vm::existing::Existing;

/// Longest answer, in bytes.
const MAX_ANSWER: u64 = 1 << 20;

/// How long the monitor may take: longer than it waits for vCPUs to come to rest.
const PATIENCE: Duration = Duration::from_secs(15);

/// Why a request was not fulfilled.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The monitor refused, and says why.
    #[error("{0}")]
    Refused(String),
    /// The socket, or what came out of it.
    #[error("cannot reach the VM's control socket")]
    Io(#[from] io::Error),
}

/// Sends a request without a body, and returns the body of the answer.
///
/// # Errors
/// See [`ApiError`].
pub fn request(vm: &Existing, method: &str, path: &str) -> Result<Value, ApiError> {
    let mut stream = vm.api()?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: vm\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer)?;
    let mut headers = [httparse::EMPTY_HEADER; 16];
    let mut response = httparse::Response::new(&mut headers);
    let parsed = response
        .parse(&answer)
        .map_err(|error| io::Error::other(error.to_string()))?;
    let httparse::Status::Complete(head) = parsed else {
        return Err(ApiError::Io(io::ErrorKind::UnexpectedEof.into()));
    };
    let body = match &answer[head..] {
        [] => Value::Null,
        body => serde_json::from_slice(body).map_err(io::Error::from)?,
    };
    match response.code {
        Some(200..300) => Ok(body),
        _ => Err(ApiError::Refused(
            body["error"].as_str().unwrap_or("refused").to_owned(),
        )),
    }
}
