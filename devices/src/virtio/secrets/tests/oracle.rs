//! The device against a naive model, over random sequences of requests and changes.
//!
//! The model keeps attached pages as a list and the tested memory as bytes; after every step the answer, the
//! events, the configuration and the memory must be the model's.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::virtio::testing::RESPONSE;

/// Pages that ranges begin in; few, so that they collide.
const ARENA: u64 = 20;
/// Bytes that are compared: the arena and the longest range behind it.
const TESTED: usize = 24 * 4096;
const NAMES: [&str; 4] = ["A", "B", "C", "NOT_DECLARED"];
const DECLARED: usize = 3;

/// A range in pages and bytes: whole pages most of the time.
type Range = (u64, u64, u64);

#[derive(Debug, Clone)]
enum Step {
    List {
        start: u32,
        room: u32,
    },
    Attach {
        secret: usize,
        ranges: Vec<Range>,
        room: u32,
    },
    Detach {
        handle: u32,
    },
    Get {
        secret: usize,
        room: u32,
    },
    Ack {
        epoch: u64,
    },
    EventBuffers {
        count: u64,
    },
    Rotate {
        secret: usize,
        len: usize,
    },
    Revoke {
        secret: usize,
    },
    Freeze,
    Rehydrate {
        lens: [usize; DECLARED],
    },
    /// A snapshot whose pages were redacted, restored with other values.
    Restore {
        lens: [usize; DECLARED],
    },
    Reset,
    /// The guest writes to a page, attached or not.
    Scribble {
        page: u64,
        byte: u8,
    },
}

fn lens() -> impl Strategy<Value = [usize; DECLARED]> {
    [1..3 * 4096_usize, 1..3 * 4096_usize, 1..300_usize]
}

fn room() -> impl Strategy<Value = u32> {
    prop_oneof![4 => Just(0x1_0000), 1 => 0..64_u32, 1 => 0..700_u32]
}

fn range() -> impl Strategy<Value = Range> {
    let skew = prop_oneof![20 => Just(0), 1 => 1..4096_u64];
    let len = prop_oneof![20 => 1..4_u64, 1 => Just(0)];
    (0..ARENA, len, skew)
}

fn step() -> impl Strategy<Value = Step> {
    let secret = 0..NAMES.len();
    prop_oneof![
        1 => (0..5_u32, room()).prop_map(|(start, room)| Step::List { start, room }),
        8 => (secret.clone(), vec(range(), 1..4), room())
            .prop_map(|(secret, ranges, room)| Step::Attach { secret, ranges, room }),
        4 => (0..10_u32).prop_map(|handle| Step::Detach { handle }),
        2 => (secret, room()).prop_map(|(secret, room)| Step::Get { secret, room }),
        1 => (0..20_u64).prop_map(|epoch| Step::Ack { epoch }),
        2 => (1..4_u64).prop_map(|count| Step::EventBuffers { count }),
        2 => (0..DECLARED, 1..9000_usize).prop_map(|(secret, len)| Step::Rotate { secret, len }),
        1 => (0..DECLARED).prop_map(|secret| Step::Revoke { secret }),
        1 => Just(Step::Freeze),
        2 => lens().prop_map(|lens| Step::Rehydrate { lens }),
        1 => lens().prop_map(|lens| Step::Restore { lens }),
        1 => Just(Step::Reset),
        2 => (0..ARENA, any::<u8>()).prop_map(|(page, byte)| Step::Scribble { page, byte }),
    ]
}

#[derive(Debug, Clone)]
struct ModelSecret {
    /// None once revoked.
    value: Option<Vec<u8>>,
    len: usize,
    version: u64,
}

#[derive(Debug, Clone)]
struct ModelHandle {
    number: u32,
    secret: usize,
    /// Of the value in its pages; none of one that was wiped.
    version: Option<u64>,
    /// In the order of the value.
    pages: Vec<u64>,
}

struct Model {
    secrets: Vec<ModelSecret>,
    handles: Vec<ModelHandle>,
    /// All values that the device was ever given: no two are the same.
    delivered: Vec<(usize, u64, Vec<u8>)>,
    memory: Vec<u8>,
    epoch: u64,
    frozen: bool,
    events: Vec<(u32, String, u64)>,
    buffers: u64,
    /// Makes every value differ.
    seed: u8,
}

impl Model {
    fn new(lens: [usize; DECLARED]) -> Self {
        let mut model = Self {
            secrets: Vec::new(),
            handles: Vec::new(),
            delivered: Vec::new(),
            memory: vec![0; TESTED],
            epoch: 1,
            frozen: false,
            events: Vec::new(),
            buffers: 0,
            seed: 0,
        };
        model.declare(lens);
        model
    }

    fn value(&mut self, len: usize) -> Vec<u8> {
        self.seed = self.seed.wrapping_add(2);
        pattern(len, self.seed)
    }

    fn declare(&mut self, lens: [usize; DECLARED]) {
        self.secrets = lens
            .map(|len| ModelSecret {
                value: Some(self.value(len)),
                len,
                version: self.epoch,
            })
            .to_vec();
        for secret in 0..DECLARED {
            self.deliver(secret);
        }
    }

    fn deliver(&mut self, secret: usize) {
        let ModelSecret { value, version, .. } = self.secrets[secret].clone();
        let value = value.expect("just declared");
        if !self.delivered.iter().any(|(.., known)| *known == value) {
            self.delivered.push((secret, version, value));
        }
    }

    /// Name, version and content of every value that was delivered; the name is that of a secret which has
    /// the value now, where there is one.
    fn delivered(&self) -> Vec<(&str, u64, &[u8])> {
        let owner = |value: &Vec<u8>| {
            let mut known = self.secrets.iter();
            known.position(|secret| secret.value.as_ref() == Some(value))
        };
        let named = |(first, version, value): &'_ (usize, u64, Vec<u8>)| match owner(value) {
            Some(now) => (NAMES[now], self.secrets[now].version),
            None => (NAMES[*first], *version),
        };
        self.delivered
            .iter()
            .map(|known| (named(known).0, named(known).1, known.2.as_slice()))
            .collect()
    }

    /// Name, version, address and length of every page that is attached, by address.
    fn attached(&self) -> Vec<(&str, Option<u64>, u64, u64)> {
        let mut pages: Vec<_> = self
            .handles
            .iter()
            .flat_map(|handle| {
                let page = |page: &u64| {
                    let name = NAMES[handle.secret];
                    (name, handle.version, PAGES + page * PAGE, PAGE)
                };
                handle.pages.iter().map(page)
            })
            .collect();
        pages.sort_by_key(|(_, _, start, _)| *start);
        pages
    }

    /// The same secrets for the device.
    fn declarations(&self) -> Vec<Secret> {
        let pairs = NAMES.iter().zip(&self.secrets);
        pairs
            .map(|(name, known)| secret(name, known.value.as_ref().expect("just declared")))
            .collect()
    }

    fn page(&mut self, page: u64) -> &mut [u8] {
        let at = usize::try_from(page * PAGE).expect("64-bit host");
        &mut self.memory[at..at + 4096]
    }

    fn fill(&mut self, pages: &[u64], value: &[u8]) {
        let mut chunks = value.chunks(4096);
        for page in pages {
            let chunk = chunks.next().unwrap_or_default();
            let bytes = self.page(*page);
            bytes.fill(0);
            bytes[..chunk.len()].copy_from_slice(chunk);
        }
    }

    fn wipe_of(&mut self, which: impl Fn(usize) -> bool) {
        for mut handle in std::mem::take(&mut self.handles) {
            if which(handle.secret) {
                self.fill(&handle.pages, &[]);
                handle.version = None;
            }
            self.handles.push(handle);
        }
    }

    fn tell(&mut self, kind: u32, name: &str) {
        self.epoch += 1;
        self.events
            .retain(|event| (event.0, event.1.as_str()) != (kind, name));
        self.events.push((kind, name.to_owned(), self.epoch));
    }

    /// Events that go out now.
    fn told(&mut self) -> Vec<(u32, String, u64)> {
        let count = self
            .events
            .len()
            .min(usize::try_from(self.buffers).expect("few"));
        self.buffers -= count as u64;
        self.events.drain(..count).collect()
    }

    fn rehydrate(&mut self, lens: [usize; DECLARED]) {
        self.tell(3, "");
        self.declare(lens);
        for mut handle in std::mem::take(&mut self.handles) {
            let known = self.secrets[handle.secret].clone();
            let value = known.value.expect("just declared");
            let fits = value.len() <= handle.pages.len() * 4096;
            self.fill(&handle.pages, if fits { &value } else { &[] });
            handle.version = fits.then_some(known.version);
            self.handles.push(handle);
        }
        self.frozen = false;
    }

    /// Status and body; of an ATTACH that succeeds, without the handle's number.
    fn answer(&mut self, step: &Step) -> (u32, Vec<u8>) {
        let status = |status| (status, vec![]);
        match step {
            Step::Detach { handle } => {
                match self
                    .handles
                    .iter()
                    .position(|known| known.number == *handle)
                {
                    None => status(NOENT),
                    Some(index) => {
                        let handle = self.handles.remove(index);
                        self.fill(&handle.pages, &[]);
                        status(OK)
                    }
                }
            }
            Step::Ack { epoch } if *epoch > self.epoch => status(INVALID),
            Step::Ack { .. } => status(OK),
            Step::Attach { ranges, .. } if malformed(ranges) => status(INVALID),
            _ if self.frozen => status(FROZEN),
            Step::List { start, room } => self.list(*start, *room),
            Step::Get { secret, room } => self.get(*secret, *room),
            Step::Attach {
                secret,
                ranges,
                room,
            } => self.attach(*secret, ranges, *room),
            _ => unreachable!("not a request"),
        }
    }

    fn list(&self, start: u32, room: u32) -> (u32, Vec<u8>) {
        if room < 24 {
            return (INVALID, vec![]);
        }
        let entries: Vec<Vec<u8>> = NAMES
            .iter()
            .zip(&self.secrets)
            .skip(start as usize)
            .take(((room - 24) / 152) as usize)
            .map(|(name, known)| {
                let len = u32::try_from(known.len).expect("short");
                [
                    &field(name)[..],
                    &known.version.to_le_bytes(),
                    &len.to_le_bytes(),
                    &10_u32.to_le_bytes(),
                    &20_u32.to_le_bytes(),
                    &0o400_u32.to_le_bytes(),
                ]
                .concat()
            })
            .collect();
        let count = u32::try_from(entries.len()).expect("few");
        let head = [3_u32.to_le_bytes(), count.to_le_bytes()].concat();
        (OK, [head, entries.concat()].concat())
    }

    fn get(&self, secret: usize, room: u32) -> (u32, Vec<u8>) {
        let Some(known) = self.secrets.get(secret) else {
            return (if room < 32 { INVALID } else { NOENT }, vec![]);
        };
        match &known.value {
            _ if room < 32 => (INVALID, vec![]),
            None => (REVOKED, vec![]),
            Some(value) => {
                let len = u32::try_from(value.len()).expect("short");
                let mut body = [len.to_le_bytes(), [0; 4]].concat();
                body.extend(known.version.to_le_bytes());
                if room - 32 < len {
                    return (TOOBIG, body);
                }
                body.extend(value);
                (OK, body)
            }
        }
    }

    fn attach(&mut self, secret: usize, ranges: &[Range], room: u32) -> (u32, Vec<u8>) {
        let pages: Vec<u64> = ranges
            .iter()
            .flat_map(|(page, count, _)| *page..page + count)
            .collect();
        let taken: Vec<u64> = self
            .handles
            .iter()
            .flat_map(|handle| handle.pages.clone())
            .collect();
        let twice = pages
            .iter()
            .enumerate()
            .any(|(at, page)| pages[..at].contains(page));
        let shared = pages.iter().any(|page| taken.contains(page));
        if room < 32 || twice || shared {
            return (INVALID, vec![]);
        }
        let Some(known) = self.secrets.get(secret).cloned() else {
            return (NOENT, vec![]);
        };
        let Some(value) = known.value else {
            return (REVOKED, vec![]);
        };
        let len = u32::try_from(value.len()).expect("short").to_le_bytes();
        let body = [&len[..], &known.version.to_le_bytes()].concat();
        if value.len() > pages.len() * 4096 {
            return (TOOBIG, body);
        }
        self.fill(&pages, &value);
        self.handles.push(ModelHandle {
            number: 0,
            secret,
            version: Some(known.version),
            pages,
        });
        (OK, body)
    }
}

/// What no state of the device can make valid.
fn malformed(ranges: &[Range]) -> bool {
    ranges
        .iter()
        .any(|(_, count, skew)| *count == 0 || *skew != 0)
}

fn request(step: &Step) -> Option<(Vec<u8>, u32)> {
    Some(match step {
        Step::List { start, room } => (list(*start), *room),
        Step::Attach {
            secret,
            ranges,
            room,
        } => {
            let bytes = |(page, count, skew): &Range| (PAGES + page * PAGE, count * PAGE + skew);
            let ranges: Vec<_> = ranges.iter().map(bytes).collect();
            (attach(NAMES[*secret], &ranges), *room)
        }
        Step::Detach { handle } => (detach(*handle), 16),
        Step::Get { secret, room } => (get(NAMES[*secret]), *room),
        Step::Ack { epoch } => (ack(*epoch), 16),
        _ => return None,
    })
}

fn take(step: &Step, rig: &mut Rig<SecretsDevice>, model: &mut Model) {
    if let Some((request, room)) = request(step) {
        let bytes = rig.call(&request, room);
        if room < 16 {
            assert_eq!(bytes, b"");
            return;
        }
        let mut response = Response::parse(&bytes);
        let (status, body) = model.answer(step);
        assert_eq!((response.status, response.epoch), (status, model.epoch));
        if let (Step::Attach { .. }, OK | TOOBIG) = (step, status) {
            let number = u32_at(&response.body, 0);
            let used = model.handles.iter().any(|other| other.number == number);
            assert_eq!(number == 0, status == TOOBIG);
            assert!(status == TOOBIG || !used, "handle {number}");
            if status == OK {
                model.handles.last_mut().expect("attached").number = number;
            }
            response.body.drain(..4);
        }
        assert_eq!(response.body, body);
        return;
    }
    match step {
        Step::EventBuffers { count } => {
            // No more than the queue holds.
            if model.buffers + count <= 64 {
                model.buffers += count;
                rig.event_buffers(*count);
            }
        }
        Step::Rotate { secret: index, len } => {
            let value = model.value(*len);
            let new = sealed(&value);
            let rotated = rig
                .transport()
                .with_device(|d, _| d.rotate(&name(NAMES[*index]), new));
            assert_eq!(rotated.is_ok(), model.secrets[*index].value.is_some());
            if rotated.is_ok() {
                model.tell(1, NAMES[*index]);
                let (len, version) = (*len, model.epoch);
                let value = Some(value);
                model.secrets[*index] = ModelSecret {
                    value,
                    len,
                    version,
                };
                model.deliver(*index);
            }
        }
        Step::Revoke { secret } => {
            let revoked = rig
                .transport()
                .with_device(|d, mem| d.revoke(&name(NAMES[*secret]), mem));
            revoked.expect("declared");
            if model.secrets[*secret].value.take().is_some() {
                model.tell(2, NAMES[*secret]);
                model.wipe_of(|other| other == *secret);
            }
        }
        Step::Freeze => {
            rig.transport().with_device(|device, _| device.freeze());
            model.frozen = true;
        }
        Step::Rehydrate { lens } => {
            model.rehydrate(*lens);
            let fresh = model.declarations();
            let done = rig
                .transport()
                .with_device(|device, mem| device.rehydrate(fresh, mem));
            done.expect("deliverable");
        }
        Step::Restore { lens } => {
            let arena: Vec<u64> = model
                .handles
                .iter()
                .flat_map(|handle| handle.pages.clone())
                .collect();
            for page in arena {
                rig.write(PAGES + page * PAGE, &[0xff; 4096]);
            }
            *rig = rig.restored(blank());
            model.delivered.clear();
            model.rehydrate(*lens);
            let fresh = model.declarations();
            let done = rig
                .transport()
                .with_device(|device, mem| device.rehydrate(fresh, mem));
            done.expect("deliverable");
            rig.transport().resume();
        }
        Step::Reset => {
            rig.start();
            model.wipe_of(|_| true);
            model.handles.clear();
            model.events.clear();
            model.buffers = 0;
        }
        Step::Scribble { page, byte } => {
            rig.write(PAGES + page * PAGE, &[*byte; 4096]);
            model.page(*page).fill(*byte);
        }
        _ => unreachable!("a request"),
    }
    rig.run();
}

/// A snapshot would be told of every value and of every page.
fn assert_redactable(rig: &Rig<SecretsDevice>, model: &Model) {
    rig.transport().with_device(|device, _| {
        let delivered: Vec<_> = device
            .delivered()
            .map(|(name, version, value)| (name.as_str(), version, content(value)))
            .collect();
        let same = delivered
            .iter()
            .map(|(name, version, value)| (*name, *version, value.as_slice()))
            .eq(model.delivered());
        assert!(same, "{delivered:?}");
        let mut pages = Vec::new();
        for range in device.attached() {
            for start in (range.start..range.start + range.len).step_by(4096) {
                pages.push((range.name.as_str(), range.version, start, PAGE));
            }
        }
        assert_eq!(pages, model.attached());
    });
}

proptest! {
    #![proptest_config(config())]
    #[test]
    fn test_device_agrees_with_the_model(lens in lens(), steps in vec(step(), 1..60)) {
        let mut model = Model::new(lens);
        let device = SecretsDevice::new(model.declarations()).expect("within the limits");
        let mut rig = Rig::started(device);
        for step in &steps {
            take(step, &mut rig, &mut model);

            prop_assert_eq!(rig.events(), model.told());
            let config: [u8; 24] = rig.config(0);
            prop_assert_eq!(u64_at(&config, 0), model.epoch);
            prop_assert_eq!(u32_at(&config, 16), u32::from(model.frozen));
            prop_assert!(rig.read(PAGES, TESTED) == model.memory, "{:?}", step);
            assert_redactable(&rig, &model);
        }
        // Nothing of all this is anywhere else: not below the rings, not between the buffers, not behind
        // the arena.
        let end = PAGES + TESTED as u64;
        prop_assert!(rig.is_zero(0, 0x1_0000) && rig.is_zero(0x1_8000, 0x5_0000));
        prop_assert!(rig.is_zero(RESPONSE + 0x1_0000, PAGES - RESPONSE - 0x1_0000));
        prop_assert!(rig.is_zero(end, crate::virtio::testing::RAM - end));
    }
}
