//! The host's Unix sockets: setting them up, and bytes between them and guest memory.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::net::{self, AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType};
use vm_memory::bitmap::BitmapSlice;
use vm_memory::io::{ReadVolatile, WriteVolatile};
use vm_memory::{VolatileMemoryError, VolatileSlice};
use zeroize::Zeroizing;

/// Longest `CONNECT` line, with its line feed; the longest valid one has 19 bytes.
const MAX_LINE: usize = 32;

/// Accepts a client without waiting for one.
pub(super) fn accept(listener: &UnixListener) -> io::Result<UnixStream> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    Ok(net::accept_with(listener, flags)?.into())
}

/// Connects to the Unix socket of host port `port`, `<prefix>_<port>`, without waiting: a listener
/// whose queue is full counts as none.
pub(super) fn connect(prefix: &OsStr, port: u32) -> io::Result<UnixStream> {
    let mut path = OsString::from(prefix);
    path.push(format!("_{port}"));
    let socket = net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
        None,
    )?;
    net::connect(&socket, &SocketAddrUnix::new(path.as_os_str())?)?;
    Ok(socket.into())
}

/// What a client has sent so far.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// Part of a line.
    Incomplete,
    /// `CONNECT <port>`; what follows the line is still in the socket.
    Connect(u32),
    /// Anything else, or nothing more to come.
    Invalid,
}

/// Looks for a client's `CONNECT` line and takes it, and no byte behind it, out of the socket.
pub(super) fn read_line(mut stream: &UnixStream) -> Line {
    // The line may be followed by the first bytes of a stream.
    let mut line = Zeroizing::new([0; MAX_LINE]);
    let count = match net::recv(stream, line.as_mut_slice(), RecvFlags::PEEK) {
        Ok((0, _)) => return Line::Invalid,
        Ok((count, _)) => count,
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Line::Incomplete,
        Err(_) => return Line::Invalid,
    };
    let Some(end) = line[..count].iter().position(|&byte| byte == b'\n') else {
        return if count < MAX_LINE {
            Line::Incomplete
        } else {
            Line::Invalid
        };
    };
    let port = parse(&line[..end]);
    match (port, stream.read_exact(&mut line[..=end])) {
        (Some(port), Ok(())) => Line::Connect(port),
        _ => Line::Invalid,
    }
}

fn parse(line: &[u8]) -> Option<u32> {
    let digits = line.strip_prefix(b"CONNECT ")?;
    // `parse` alone would accept a plus sign.
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Reads into guest memory; 0 at the end of the stream.
pub(super) fn read<B: BitmapSlice>(
    mut stream: &UnixStream,
    slice: &mut VolatileSlice<'_, B>,
) -> io::Result<usize> {
    loop {
        match io_result(stream.read_volatile(slice)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Writes guest memory from `offset` of `slice` on; 0 where the socket is full.
pub(super) fn write<B: BitmapSlice>(
    mut stream: &UnixStream,
    slice: &VolatileSlice<'_, B>,
    offset: usize,
) -> io::Result<usize> {
    let rest = slice.offset(offset).map_err(io::Error::other)?;
    loop {
        match io_result(stream.write_volatile(&rest)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
            other => return other,
        }
    }
}

/// Throws away what the host has sent, and refuses more: a Unix socket that is closed with unread bytes
/// gives its peer `ECONNRESET` in place of an end of file.
pub(super) fn discard_unread(mut stream: &UnixStream) {
    if stream.shutdown(Shutdown::Read).is_err() {
        return;
    }
    let mut scratch = Zeroizing::new([0; 4096]);
    // Ends: nothing is added any more.
    while matches!(stream.read(scratch.as_mut_slice()), Ok(count) if count > 0) {}
}

fn io_result(result: Result<usize, VolatileMemoryError>) -> io::Result<usize> {
    result.map_err(|error| match error {
        VolatileMemoryError::IOError(error) => error,
        other => io::Error::other(other),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn after(sent: &[u8]) -> (Line, Vec<u8>) {
        let (mut client, stream) = UnixStream::pair().expect("a pair");
        stream.set_nonblocking(true).expect("settable");
        client.write_all(sent).expect("written");
        let line = read_line(&stream);
        drop(client);
        let mut rest = Vec::new();
        (&stream).read_to_end(&mut rest).expect("readable");
        (line, rest)
    }

    #[test]
    fn test_read_line_takes_only_the_line() {
        let (line, rest) = after(b"CONNECT 4294967295\nfirst data\n");
        assert_eq!(line, Line::Connect(u32::MAX));
        assert_eq!(rest, b"first data\n");
    }

    #[test]
    fn test_read_line_incomplete_leaves_it_all() {
        for part in [&b""[..], b"CON", b"CONNECT 52"] {
            assert_eq!(after(part), (Line::Incomplete, part.to_vec()));
        }
    }

    #[test]
    fn test_read_line_malformed_is_invalid() {
        for line in [
            "\n",
            "CONNECT \n",
            "CONNECT +1\n",
            "CONNECT 4294967296\n",
            "connect 1\n",
            "CONNECT 1\r\n",
            "CONNECT 1 \n",
            "CONNECT 00000000000000000000000000000001\n",
        ] {
            assert_eq!(after(line.as_bytes()).0, Line::Invalid, "{line:?}");
        }
    }

    #[test]
    fn test_read_line_closed_is_invalid() {
        let (client, stream) = UnixStream::pair().expect("a pair");
        drop(client);
        assert_eq!(read_line(&stream), Line::Invalid);
    }

    #[test]
    fn test_connect_reaches_the_port_socket_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let prefix = folder.path().join("vsock.sock");
        let path = folder.path().join("vsock.sock_7");
        let listener = UnixListener::bind(path).expect("bound");

        let connected = connect(prefix.as_os_str(), 7);
        let refused = connect(prefix.as_os_str(), 8);

        assert!(connected.is_ok());
        listener.accept().expect("a connection waits");
        assert_eq!(
            refused.expect_err("nobody listens").kind(),
            io::ErrorKind::NotFound
        );
    }
}
