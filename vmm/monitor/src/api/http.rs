//! HTTP/1.1 as far as the control socket needs it: small requests, JSON answers, nothing chunked.

/// Longest request line and header, in bytes.
pub const MAX_HEAD: usize = 4 << 10;

/// Longest body, in bytes: the only body there is is a fiftieth of it.
pub const MAX_BODY: usize = 1 << 10;

/// Most header lines.
const MAX_HEADERS: usize = 32;

/// A complete request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Method, as sent.
    pub method: String,
    /// Target, as sent.
    pub path: String,
    /// Body; empty where none was sent.
    pub body: Vec<u8>,
    /// Whether the client wants to go on with this connection.
    pub keep_alive: bool,
}

/// An answer; its body is JSON or nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Body.
    pub body: Option<serde_json::Value>,
}

impl Response {
    /// Done, with nothing to say.
    #[must_use]
    pub fn done() -> Self {
        Self {
            status: 204,
            body: None,
        }
    }

    /// Done, with an answer.
    #[must_use]
    pub fn ok(body: serde_json::Value) -> Self {
        Self {
            status: 200,
            body: Some(body),
        }
    }

    /// Not done; `message` says why.
    #[must_use]
    pub fn error(status: u16, message: &str) -> Self {
        Self {
            status,
            body: Some(serde_json::json!({ "error": message })),
        }
    }

    /// The bytes to send.
    #[must_use]
    pub fn to_bytes(&self, keep_alive: bool) -> Vec<u8> {
        let connection = if keep_alive { "keep-alive" } else { "close" };
        let mut text = format!(
            "HTTP/1.1 {} {}\r\nConnection: {connection}\r\n",
            self.status,
            reason(self.status)
        );
        match &self.body {
            Some(body) => {
                let body = body.to_string();
                let len = body.len();
                text.push_str("Content-Type: application/json\r\n");
                text.push_str(&format!("Content-Length: {len}\r\n\r\n{body}"));
            }
            None => text.push_str("\r\n"),
        }
        text.into_bytes()
    }
}

/// Reason phrases of the status codes in use (RFC 9110, section 15).
fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Content Too Large",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        _ => "Internal Server Error",
    }
}

/// Takes the first request from what has arrived so far; `None` if it is not complete yet. The number is
/// that of the bytes it takes up.
///
/// # Errors
/// The answer to a request that is not acceptable, after which the connection cannot go on.
pub fn parse(arrived: &[u8]) -> Result<Option<(Request, usize)>, Response> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let head = match request.parse(arrived) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) if arrived.len() < MAX_HEAD => return Ok(None),
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return Err(Response::error(431, "the request's header is too long"));
        }
        Err(_) => return Err(Response::error(400, "this is not an HTTP/1.1 request")),
    };
    if head > MAX_HEAD {
        return Err(Response::error(431, "the request's header is too long"));
    }
    let value = |name: &str| {
        let mut values = request
            .headers
            .iter()
            .filter(|header| header.name.eq_ignore_ascii_case(name))
            .map(|header| header.value);
        let first = values.next();
        // Two lengths are how requests are smuggled.
        if values.next().is_some() {
            Err(Response::error(400, "a header comes twice"))
        } else {
            Ok(first)
        }
    };
    if value("Transfer-Encoding")?.is_some() {
        return Err(Response::error(411, "send the body with a Content-Length"));
    }
    let len = match value("Content-Length")? {
        None => 0,
        Some(text) => decimal(text)
            .ok_or_else(|| Response::error(400, "the Content-Length is not a number"))?,
    };
    if len > MAX_BODY {
        return Err(Response::error(413, "the body is too long"));
    }
    let Some(body) = arrived.get(head..head + len) else {
        return Ok(None);
    };
    let asked = value("Connection")?.unwrap_or_default();
    // HTTP/1.0 ends a connection unless asked otherwise, HTTP/1.1 keeps it.
    let keep_alive = match request.version {
        Some(1) => !asked.eq_ignore_ascii_case(b"close"),
        _ => asked.eq_ignore_ascii_case(b"keep-alive"),
    };
    let request = Request {
        method: request.method.unwrap_or_default().to_owned(),
        path: request.path.unwrap_or_default().to_owned(),
        body: body.to_vec(),
        keep_alive,
    };
    Ok(Some((request, head + len)))
}

/// Digits only: `usize::from_str` would take a sign.
fn decimal(text: &[u8]) -> Option<usize> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(arrived: &[u8]) -> u16 {
        parse(arrived).expect_err("it is refused").status
    }

    #[test]
    fn test_parse_every_prefix_is_incomplete_and_the_rest_is_left() {
        let text = b"PUT /v1/stop HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello";
        for end in 0..text.len() {
            assert_eq!(parse(&text[..end]), Ok(None), "{end}");
        }
        let two = [&text[..], b"GET"].concat();
        let (request, len) = parse(&two).expect("good").expect("complete");
        assert_eq!(len, text.len());
        assert_eq!(
            (request.method.as_str(), request.path.as_str()),
            ("PUT", "/v1/stop")
        );
        assert_eq!(request.body, b"hello");
        assert!(request.keep_alive);
    }

    #[test]
    fn test_parse_unacceptable_requests_are_answered_by_kind() {
        assert_eq!(status(b"\x16\x03\x01\0\0"), 400);
        assert_eq!(status(b"GET / HTTP/1.1\r\nContent-Length: +5\r\n\r\n"), 400);
        assert_eq!(
            status(b"GET / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n"),
            400
        );
        assert_eq!(
            status(b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"),
            411
        );
        assert_eq!(
            status(b"PUT / HTTP/1.1\r\nContent-Length: 1025\r\n\r\n"),
            413
        );
        assert_eq!(
            status(b"PUT / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n"),
            400
        );
        let long = format!("GET /{} HTTP/1.1\r\n", "x".repeat(MAX_HEAD));
        assert_eq!(status(long.as_bytes()), 431);
        let many = format!(
            "GET / HTTP/1.1\r\n{}\r\n",
            "a: b\r\n".repeat(MAX_HEADERS + 1)
        );
        assert_eq!(status(many.as_bytes()), 431);
    }

    #[test]
    fn test_parse_connection_header_decides() {
        for (text, expected) in [
            ("GET / HTTP/1.1\r\nConnection: close\r\n\r\n", false),
            ("GET / HTTP/1.0\r\n\r\n", false),
            ("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", true),
        ] {
            let (request, _) = parse(text.as_bytes()).expect("good").expect("complete");
            assert_eq!(request.keep_alive, expected, "{text}");
        }
    }

    #[test]
    fn test_to_bytes_has_a_length_exactly_with_a_body() {
        let text = String::from_utf8(Response::done().to_bytes(true)).expect("text");
        assert_eq!(
            text,
            "HTTP/1.1 204 No Content\r\nConnection: keep-alive\r\n\r\n"
        );
        let text = String::from_utf8(Response::error(404, "no").to_bytes(false)).expect("text");
        assert!(text.contains("Content-Length: 14\r\n"), "{text}");
        assert!(text.ends_with("\r\n\r\n{\"error\":\"no\"}"), "{text}");
    }
}
