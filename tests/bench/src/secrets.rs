//! The store of secrets: how fast references to it are resolved, and how long its key takes to be wrapped anew.

use std::path::Path;
use std::time::{Duration, Instant};

use cachot_custody::keys::KeyChoice;
use cachot_custody::schemes::StoreScheme;
use cachot_custody::store::Scope;
use cachot_custody::{Requester, Store, UserId};
use cachot_secrets::{Name, Scheme, SecretValue};

use crate::stats::Samples;

/// Bytes of a value.
const VALUE_LEN: usize = 40;

/// References that are resolved with one store that is open.
const WARM: usize = 1000;

fn requester() -> Requester {
    Requester {
        user: UserId::of_this_process(),
        instance: None,
    }
}

fn name(number: usize) -> String {
    format!("SECRET_{number}")
}

/// Prints resolves a second and the time of a rotation, of stores of one and of `secrets` secrets in `folder`.
pub fn bench(folder: &Path, secrets: usize, runs: usize) -> anyhow::Result<()> {
    for count in [1, secrets] {
        let place = tempfile::tempdir_in(folder)?;
        let place = place.path().join("secrets");
        let per_write = fill(&place, count)?;
        println!("a store of {count} secrets of {VALUE_LEN} bytes, each write synced to the disk:");
        println!("  stored: {} a second", rate(per_write));
        let (mut cold, mut warm, mut rotation) =
            (Samples::default(), Samples::default(), Samples::default());
        // The first turn warms caches and is not counted.
        for turn in 0..=runs {
            let times = turn_times(&place, count, turn)?;
            if turn > 0 {
                cold.push(times.0);
                warm.push(times.1);
                rotation.push(times.2);
            }
        }
        println!("  cold resolve (open, check all, decrypt one), in ms: {cold}");
        println!("  cold: {:.0} a second", 1e3 / cold.median());
        println!("  warm resolve (the store is open), in ms: {warm}");
        println!("  warm: {:.0} a second", 1e3 / warm.median());
        println!("  rotation of the key, in ms: {rotation}");
    }
    Ok(())
}

/// Secrets that are stored one by one, to see how long that takes.
const STORED_ALONE: usize = 50;

/// Makes a store; the time that each secret took which was stored alone.
fn fill(place: &Path, count: usize) -> anyhow::Result<Duration> {
    let mut store = Store::open_or_create(place, requester())?;
    let value = SecretValue::copy_of(&[b'v'; VALUE_LEN])?;
    let names = (0..count).map(|number| name(number).parse());
    let names: Vec<Name> = names.collect::<Result<_, _>>()?;
    store.set_all(names.iter().map(|name| (&Scope::Workspace, name, &value)))?;
    let start = Instant::now();
    for turn in 0..STORED_ALONE {
        store.set(&Scope::Workspace, &names[turn % count], &value)?;
    }
    Ok(start
        .elapsed()
        .div_f64(f64::from(u32::try_from(STORED_ALONE)?)))
}

/// How long the first resolve, each later one, and a rotation take.
fn turn_times(
    place: &Path,
    count: usize,
    turn: usize,
) -> anyhow::Result<(Duration, Duration, Duration)> {
    let scheme = StoreScheme::new(Some(place.to_owned()), requester());
    let start = Instant::now();
    scheme.resolve(&name(turn % count))?;
    let cold = start.elapsed();

    let start = Instant::now();
    for number in 0..WARM {
        scheme.resolve(&name(number % count))?;
    }
    let warm = start.elapsed().div_f64(f64::from(u32::try_from(WARM)?));

    let mut store = Store::open(place, requester())?;
    let start = Instant::now();
    store.rotate_key(&KeyChoice::File {})?;
    Ok((cold, warm, start.elapsed()))
}

fn rate(each: Duration) -> String {
    format!("{:.0}", 1.0 / each.as_secs_f64())
}
