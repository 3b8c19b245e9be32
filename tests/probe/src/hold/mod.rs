//! The workload of the snapshot tests: a program that has copies of a secret everywhere, and later sees what
//! became of them.
//!
//! It keeps no other copy, and prints no byte of one. What it compares with later are digests, and the secret itself.

pub mod environment;
mod form;
mod heap;
mod kernel;
mod news;
mod pages;
mod place;
mod registers;
mod wipe;

use std::path::PathBuf;

use crate::watch::digest;
use form::Form;
use place::{Held, Place};

/// `hold`
#[derive(clap::Args)]
pub struct Options {
    /// The secret, of 40 to 4096 bytes
    path: PathBuf,
    /// Also keep it in a file `held` there. It is not written to the disk: that is up to the kernel, some 30 seconds
    /// later (unless /proc/sys/vm/dirty_writeback_centisecs is 0)
    #[arg(long = "dir")]
    dirs: Vec<PathBuf>,
    /// Write these files to their disks at once
    #[arg(long, requires = "dirs")]
    sync: bool,
    /// Where the file `held` on tmpfs is
    #[arg(long, default_value = "/tmp")]
    tmpfs: PathBuf,
    /// Look at all places at every new epoch of /dev/secrets
    #[arg(long)]
    watch: bool,
    /// Look at all places, and remove FILE, whenever there is this file
    #[arg(long, value_name = "FILE")]
    trigger: Option<PathBuf>,
}

/// Fills all places, says so, and waits for news until the process is killed or the device is gone.
pub fn hold(options: &Options) -> anyhow::Result<()> {
    // Before the value is read, so that an event between is none that is missed.
    let news = news::News::new(options.watch, options.trigger.clone())?;
    let mut places = fill(options)?;
    wipe::traces();
    println!("holding {} places", places.len());
    while let Some(reason) = news.wait()? {
        println!("{reason}");
        check(options, &mut places);
        wipe::traces();
        println!("done");
    }
    Ok(())
}

/// Prints a line for each place: what it has, compared with the value that there is now.
fn check(options: &Options, places: &mut [Held]) {
    let value = match form::read_value(&options.path) {
        Ok(value) => {
            println!("value {}", digest(&value));
            Some(value)
        }
        Err(error) => {
            println!("value missing: {error:#}");
            None
        }
    };
    for place in places {
        match place.check(value.as_ref().map(|value| value.as_slice())) {
            Ok(state) => println!("{} {state}", place.name),
            Err(error) => println!("{} failed: {error:#}", place.name),
        }
    }
}

/// Puts the value everywhere.
#[inline(never)]
fn fill(options: &Options) -> anyhow::Result<Vec<Held>> {
    let value = form::read_value(&options.path)?;
    let mut places = Vec::new();
    let mut plain = |name: &str, place: Option<Box<dyn Place>>| {
        places.push(Held::new(name, Form::Plain, &value, place));
    };

    plain("heap", Some(Box::new(heap::heap(&value))));
    heap::freed_heap(&value)?;
    plain("freed-heap", None);
    plain("stack", Some(Box::new(heap::stack(&value)?)));
    if value.contains(&0) {
        println!("not held: environment, for the value has a zero byte");
    } else {
        let environment = environment::Environment::new(&value)?;
        plain("environment", Some(Box::new(environment)));
    }
    plain("pipe", Some(Box::new(kernel::Pipe::new(&value)?)));
    plain("socket", Some(Box::new(kernel::Socket::new(&value)?)));
    let file = kernel::CachedFile::in_memory(&options.tmpfs, &value)?;
    plain("tmpfs", Some(Box::new(file)));
    for folder in &options.dirs {
        let file = kernel::CachedFile::new(folder, &value, options.sync)?;
        let name = format!("page-cache:{}", folder.display());
        plain(&name, Some(Box::new(file)));
    }
    let copy = pages::private_copy(&options.path, value.len())?;
    plain("private-copy", Some(Box::new(copy)));
    plain("split-7", Some(Box::new(pages::split(&value, 7)?)));
    plain("split-20", Some(Box::new(pages::split(&value, 20)?)));
    plain("end-of-page", Some(Box::new(pages::end_of_page(&value)?)));

    for (name, form) in Form::ENCODED {
        match form.of(&value) {
            Some(text) => {
                let place = Box::new(heap::heap(&text));
                places.push(Held::new(name, form, &text, Some(place)));
            }
            None => println!("not held: {name}, for the value is no text"),
        }
    }

    let spinner = registers::Spinner::start(&value)?;
    let vectors: Box<dyn Place> = Box::new(registers::Vectors(spinner.clone()));
    let general: Box<dyn Place> = Box::new(registers::General(spinner));
    for (name, most, place) in [
        ("vector-registers", registers::VECTORS, vectors),
        ("general-registers", registers::GENERAL, general),
    ] {
        let first = &value[..value.len().min(most)];
        places.push(Held::new(name, Form::First(most), first, Some(place)));
    }
    Ok(places)
}
