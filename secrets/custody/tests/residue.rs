//! What fetching a value from a program or a server leaves in this process's memory: nothing but the value.
//!
//! The allocator is that of the command: what third-party code gives back is wiped. The program runs itself to be the
//! server, and to print the value: neither may be in this process.

#[path = "../../tests/memory/mod.rs"]
mod memory;

use std::env;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use cachot_custody::schemes::{Environment, with_providers};
use cachot_secrets::{Declarations, Schemes};
use zeroizing_alloc::ZeroAlloc;

#[global_allocator]
static ALLOCATOR: ZeroAlloc<std::alloc::System> = ZeroAlloc(std::alloc::System);

/// Value and token, each byte XORed with [`MASK`].
const VALUE: [u8; 24] = *b"\x31\x2e\x6d\x62\x6d\x36\x33\x28\x6d\x3b\x2f\x3c\x69\x38\x6a\x62\x3e\x6f\x39\x63\x3d\x2d\x34\x32";
const TOKEN: [u8; 20] =
    *b"\x32\x2c\x29\x74\x6b\x6f\x3b\x69\x3c\x6d\x63\x3e\x62\x6c\x3f\x39\x6e\x6a\x38\x3d";
const MASK: u8 = 0x5a;

fn plain(masked: &[u8]) -> String {
    masked.iter().map(|byte| char::from(byte ^ MASK)).collect()
}

/// How often it is in this process's readable memory.
fn count(masked: &[u8]) -> usize {
    memory::count(masked.len(), |part| {
        part.windows(masked.len())
            .filter(|window| window.iter().zip(masked).all(|(byte, m)| byte ^ MASK == *m))
            .count()
    })
}

fn main() {
    match env::args().nth(1).as_deref() {
        Some("serve") => serve(),
        Some("print") => println!("{}", plain(&VALUE)),
        _ => {
            test_residue_of_programs_and_servers();
            println!("test residue_of_programs_and_servers ... ok");
        }
    }
}

/// Answers every request with the value, and keeps the connection as real servers do.
fn serve() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    println!("{}", listener.local_addr().expect("an address"));
    for stream in listener.incoming() {
        let stream = stream.expect("a client");
        std::thread::spawn(move || {
            let mut writer = stream.try_clone().expect("a second one");
            let body = format!(
                r#"{{"data":{{"data":{{"f":"{0}","g":"\n{0}"}}}}}}"#,
                plain(&VALUE)
            );
            for line in BufReader::new(stream).lines() {
                if line.is_ok_and(|line| line.is_empty()) {
                    let len = body.len();
                    let sent = write!(
                        writer,
                        "HTTP/1.1 200 OK\r\nContent-Length: {len}\r\n\r\n{body}"
                    );
                    sent.expect("sent");
                }
            }
        });
    }
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn test_residue_of_programs_and_servers() {
    let program = env::current_exe().expect("its path");
    let mut server = Command::new(&program)
        .arg("serve")
        .stdout(Stdio::piped())
        .spawn()
        .map(Server)
        .expect("it starts");
    let mut address = String::new();
    let stdout = server.0.stdout.take().expect("a pipe");
    BufReader::new(stdout)
        .read_line(&mut address)
        .expect("its address");
    let address = format!("http://{}", address.trim_end());
    let environment = Environment::new(move |name| match name {
        "VAULT_ADDR" => Some(address.clone().into()),
        "VAULT_TOKEN" => Some(plain(&TOKEN).into()),
        _ => None,
    });
    let schemes = with_providers(Schemes::default(), &environment);
    let program = program.display();
    let declarations = Declarations::parse([
        format!("A=exec:{program} print"),
        "B=vault:kv/data/a#f".to_owned(),
        format!("C=exec:{program} print"),
        "D=vault:kv/data/a#g".to_owned(),
    ]);
    assert_eq!((count(&VALUE), count(&TOKEN)), (0, 0));

    let resolved = declarations.resolve(&schemes).expect("all values");

    // Each value once, and the token in the client.
    assert_eq!((count(&VALUE), count(&TOKEN)), (4, 1));
    drop(resolved);
    assert_eq!((count(&VALUE), count(&TOKEN)), (0, 1));
    drop(schemes);
    assert_eq!((count(&VALUE), count(&TOKEN)), (0, 0));
    // The control: an ordinary copy is found.
    let copy = plain(&VALUE);
    assert_eq!(count(&VALUE), 1);
    drop(copy);
}
