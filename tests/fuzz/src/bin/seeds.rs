//! Makes the corpora: `cargo run -p cachot-fuzz --bin seeds -- IMAGE...`, with folders of images
//! (`tests/fuzz/images.sh`). What was found by fuzzing stays beside.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cachot_control::{
    Renewal, Root, Start, Stream, StreamHeader, ToGuest, ToHost, WindowSize, write_frame,
};
use cachot_fuzz::{devices, driver};
use cachot_vmm::state::{DeviceState, MachineState};
use serde::Serialize;

fn main() -> Result<()> {
    for image in std::env::args_os().skip(1).map(PathBuf::from) {
        of_image(&image).with_context(|| format!("{} is not an image", image.display()))?;
    }
    of_drivers()?;
    of_frames()?;
    of_texts()
}

fn seed(target: &str, name: &str, bytes: &[u8]) -> Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    fs::create_dir_all(&corpus)?;
    Ok(fs::write(corpus.join(name), bytes)?)
}

/// Manifest, plan, state, and each device.
fn of_image(image: &Path) -> Result<()> {
    let name = image.file_name().context("it has no name")?;
    let name = name.to_string_lossy();
    let read = |part| fs::read(image.join(part));
    seed("manifest", &format!("{name}.json"), &read("manifest.json")?)?;
    seed("plan", &name, &read("plan")?)?;
    let state = read("state")?;
    seed("state", &name, &state)?;
    for device in MachineState::from_bytes(&state)?.devices {
        let id = device.id;
        seed("devices", &format!("{name}-{id}"), &of_device(&device)?)?;
    }
    Ok(())
}

/// The device, and a guest that offers a chain of three descriptors in each queue.
fn of_device(device: &DeviceState) -> Result<Vec<u8>> {
    let mut input = postcard::to_allocvec(device)?;
    let buffer = 0x30_0000_u64;
    let mut table = Vec::new();
    for (index, len, flags, next) in [(0, 44_u32, 1_u16, 1_u16), (1, 600, 3, 2), (2, 1, 2, 0)] {
        table.extend_from_slice(&(buffer + 0x1000 * index).to_le_bytes());
        table.extend_from_slice(&len.to_le_bytes());
        table.extend_from_slice(&flags.to_le_bytes());
        table.extend_from_slice(&next.to_le_bytes());
    }
    let mut step = |step: devices::Step<'_>| {
        input = postcard::to_extend(&step, std::mem::take(&mut input))?;
        anyhow::Ok(())
    };
    let poke = |base, at, bytes| devices::Step::Poke { base, at, bytes };
    for queue in 0..3 {
        let base = 1 + 3 * queue;
        step(poke(base, 0, &table))?;
        // Flags, index, the first three entries.
        step(poke(base + 1, 0, &[0, 0, 1, 0, 0, 0, 0, 0, 0, 0]))?;
        step(devices::Step::Notify(queue.into()))?;
    }
    step(devices::Step::Read {
        offset: 0x100,
        len: 24,
    })?;
    step(devices::Step::Save)?;
    step(devices::Step::Write {
        offset: 0x70,
        bytes: &[0; 4],
    })?;
    Ok(input)
}

/// What drivers and hosts do to the secrets device.
fn of_drivers() -> Result<()> {
    use driver::Step::{
        Attach, Buffer, Chain, Detach, Freeze, Get, Rehydrate, Request, Reset, Restore, Revoke,
        Rotate,
    };
    let list = [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let chain = vec![(0x8_0000, 16, 1, 1), (0xc_0000, 700, 2, 0)];
    let sequences = [
        (
            "life",
            vec![
                Request(&list, 700),
                Attach(0, vec![(0, 1)]),
                Attach(3, vec![(4, 2), (8, 1)]),
                Get(1),
                Detach(1),
                Reset,
            ],
        ),
        (
            "host",
            vec![
                Buffer(144),
                Attach(0, vec![(1, 1)]),
                Rotate(0, 1),
                Attach(0, vec![(2, 1)]),
                Buffer(144),
                Revoke(0),
                Freeze,
                Get(2),
                Rehydrate(0b0101),
            ],
        ),
        (
            "copy",
            vec![
                Attach(0, vec![(3, 1)]),
                Attach(1, vec![(5, 1)]),
                Restore,
                Buffer(144),
                Detach(1),
                Restore,
                Attach(2, vec![(3, 1)]),
            ],
        ),
        (
            "chain",
            vec![
                Chain(chain, 0, &list),
                Chain(vec![(0x8_0000, 16, 1, 0)], 0, &list),
                Attach(0, vec![(0, 1)]),
            ],
        ),
        (
            "refused",
            vec![
                Attach(0, vec![(0, 0)]),
                Attach(0, vec![(0, 1), (0, 1)]),
                Attach(9, vec![]),
                Detach(7),
                Request(b"?", 3),
            ],
        ),
    ];
    for (name, steps) in sequences {
        let mut input = Vec::new();
        for step in steps {
            input = postcard::to_extend(&step, input)?;
        }
        seed("driver", name, &input)?;
    }
    Ok(())
}

/// One connection a reader.
fn of_frames() -> Result<()> {
    let start = Start {
        session: 1,
        root: Some(Root::Overlay),
        argv: vec!["sh".into(), "-c".into(), "id".into()],
        env: vec![("A".into(), "b=c".into())],
        secrets: vec!["TOKEN".into()],
        secret_env: vec!["TOKEN".into()],
        user: Some("nobody".into()),
        workdir: Some("/tmp".into()),
        terminal: Some(WindowSize { rows: 24, cols: 80 }),
        stdin: true,
    };
    let renewal = Renewal {
        entropy: vec![7; Renewal::ENTROPY_LEN],
        realtime_ns: 1,
        hostname: "copy".into(),
        machine_id: "0".repeat(32),
    };
    let to_guest = [
        ToGuest::Start(start),
        ToGuest::WindowSize {
            session: 1,
            size: WindowSize { rows: 1, cols: 2 },
        },
        ToGuest::Signal {
            session: 1,
            signal: 15,
        },
        ToGuest::Freeze,
        ToGuest::Renew(renewal),
    ];
    let to_host = [
        ToHost::Hello {
            version: 1,
            uptime_us: 5,
        },
        ToHost::Started { session: 1 },
        ToHost::Frozen { failure: None },
        ToHost::Renewed {
            failures: vec!["a line".into()],
            workload: true,
        },
        ToHost::Exited {
            session: 1,
            code: 3,
        },
    ];
    let header = [StreamHeader {
        session: 1,
        stream: Stream::Stderr,
    }];
    seed("frames", "to-host", &connection(0, &to_host)?)?;
    seed("frames", "to-guest", &connection(1, &to_guest)?)?;
    seed("frames", "stream", &connection(2, &header)?)
}

fn connection<T: Serialize>(reader: u8, messages: &[T]) -> Result<Vec<u8>> {
    let mut input = vec![reader, 9];
    for message in messages {
        write_frame(&mut input, message)?;
    }
    Ok(input)
}

/// What people and programs write.
fn of_texts() -> Result<()> {
    seed("http", "two", b"GET /v1/vm HTTP/1.1\r\nHost: vm\r\n\r\nPUT /v1/vm/state HTTP/1.1\r\nContent-Length: 18\r\nConnection: close\r\n\r\n{\"state\":\"paused\"}")?;
    seed(
        "http",
        "refused",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    )?;
    seed(
        "dotenv",
        "all",
        b"\xef\xbb\xbf# a comment\r\n\r\nexport KEY = \"a # b\" \r\nOTHER='x=y'\nKEY=last",
    )?;
    seed("dotenv", "refused", b"KEY=1\nno value\n=\n")?;
    seed(
        "reference",
        "all",
        b"A=env:B\nKEY=file:/srv/a,b,mode=0440,uid=7,gid=8,env\nC=dotenv:.env#KEY\nfile:relative\n",
    )?;
    seed(
        "reference",
        "refused",
        b"=\n1=env:A\nA=B\nA=:x\nA=file:\nA=file:x,mode=7\nA=file:x,uid=1,uid=2\nA=env:B,env=1\n",
    )
}
