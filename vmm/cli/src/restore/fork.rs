//! `cachot fork`: copies of a VM, each with secrets of its own, each in a keeper of its own.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use cachot_secrets::Name;
use serde::Serialize;

use super::live;
use super::source::Source;
use crate::args::{ForkArgs, KeepingArgs};
use crate::detach::{self, Side, Waiter};
use crate::launch::{Watcher, keep};
use crate::state_dir::Places;
use crate::vm::error::{OWN_FAILURE, RunError, one_line, system};
use crate::vm::existing::Existing;
use crate::vm_name::VmName;

/// Most children that are on their way at a time: enough to keep some processors busy.
const AT_A_TIME: usize = 8;

/// What became of one child.
#[derive(Debug, Serialize)]
struct Child {
    number: u32,
    name: Option<String>,
    ok: bool,
    /// Exit code of the command that would have started it alone.
    exit_code: u8,
}

/// Makes the children; true if all of them run.
///
/// # Errors
/// See [`RunError`]: nothing was started.
pub fn fork(args: &ForkArgs, output: &mut impl Write) -> Result<bool, RunError> {
    let root = Places::of_process().root()?;
    let each = Each::read(args)?;
    let source = if args.source.contains('/') {
        Source::open(Path::new(&args.source), &args.image, &root)?
    } else {
        match args.source.parse::<VmName>() {
            Ok(name) if !Path::new(&args.source).join("manifest.json").exists() => {
                let vm = Existing::running(&root, &name)?;
                live::source(&vm, args.quiesce_workload, &root)?
            }
            _ => Source::open(Path::new(&args.source), &args.image, &root)?,
        }
    };
    let mut children = Vec::new();
    let mut waiting: VecDeque<(u32, Waiter)> = VecDeque::new();
    for number in 0..args.count {
        if waiting.len() == AT_A_TIME
            && let Some((number, waiter)) = waiting.pop_front()
        {
            children.push(started(number, waiter)?);
        }
        match detach::split().map_err(system("start a process for a child"))? {
            Side::Command(waiter) => waiting.push_back((number, waiter)),
            Side::Keeper(starting) => {
                // This is the child's own process: it ends here.
                let kept = source
                    .launch(&each.declared(number), &each.dropped(number))
                    .and_then(|launch| {
                        keep(launch, &each.keeping(number), Watcher::Nobody(starting))
                    });
                if let Err(error) = &kept {
                    eprintln!("cachot: child {}: {}", number + 1, one_line(error));
                }
                let code = kept.unwrap_or_else(|error| error.exit_code());
                std::process::exit(code.into());
            }
        }
    }
    for (number, waiter) in waiting {
        children.push(started(number, waiter)?);
    }
    print(args, &children, output).map_err(system("print what was done"))?;
    Ok(children.iter().all(|child| child.ok))
}

/// Waits for a child's start.
fn started(number: u32, waiter: Waiter) -> Result<Child, RunError> {
    let result = waiter.wait().map_err(system("wait for a child"))?;
    Ok(Child {
        number: number + 1,
        ok: result.is_ok(),
        exit_code: *result.as_ref().err().unwrap_or(&0),
        name: result.ok(),
    })
}

fn print(args: &ForkArgs, children: &[Child], output: &mut impl Write) -> io::Result<()> {
    if args.json {
        serde_json::to_writer_pretty(&mut *output, children)?;
        return writeln!(output);
    }
    for child in children {
        match &child.name {
            Some(name) => writeln!(output, "{name}")?,
            None => writeln!(
                output,
                "child {} failed ({})",
                child.number, child.exit_code
            )?,
        }
    }
    Ok(())
}

/// References of one child's secrets; none drops the secret.
type References = BTreeMap<Name, Option<String>>;

/// What each child has of its own.
struct Each<'a> {
    args: &'a ForkArgs,
    references: Vec<References>,
}

impl<'a> Each<'a> {
    fn read(args: &'a ForkArgs) -> Result<Self, RunError> {
        let count = usize::try_from(args.count).unwrap_or(usize::MAX);
        if !args.names.is_empty() && args.names.len() != count {
            return Err(RunError::Refused {
                code: OWN_FAILURE,
                message: format!(
                    "there are {} names for {count} children: give one each, or none (--names)",
                    args.names.len()
                ),
            });
        }
        let references = match &args.secrets_per_child {
            None => Vec::new(),
            Some(path) => read_references(path, count)?,
        };
        Ok(Self { args, references })
    }

    fn own(&self, number: u32) -> Option<&References> {
        self.references.get(usize::try_from(number).ok()?)
    }

    /// Declarations of this child: its own, and those of the command line that they do not name.
    fn declared(&self, number: u32) -> Vec<String> {
        let own = self.own(number);
        let common = self.args.image.secrets.iter().filter(|text| {
            let name = text.split('=').next().unwrap_or_default();
            own.is_none_or(|own| own.keys().all(|other| other.as_str() != name))
        });
        let own = own
            .into_iter()
            .flatten()
            .filter_map(|(name, reference)| Some(format!("{name}={}", reference.as_ref()?)));
        common.cloned().chain(own).collect()
    }

    fn dropped(&self, number: u32) -> Vec<Name> {
        let own = self.own(number).into_iter().flatten();
        let own = own.filter(|(_, reference)| reference.is_none());
        let common = self.args.image.dropped.iter();
        common.chain(own.map(|(name, _)| name)).cloned().collect()
    }

    fn keeping(&self, number: u32) -> KeepingArgs {
        let index = usize::try_from(number).unwrap_or(usize::MAX);
        KeepingArgs {
            name: self.args.names.get(index).cloned(),
            detach: true,
            rm: self.args.rm,
            no_mask: self.args.no_mask,
            console: false,
            dangerously_allow_swap: self.args.dangerously_allow_swap,
        }
    }
}

fn read_references(path: &PathBuf, count: usize) -> Result<Vec<References>, RunError> {
    let refused = |why: String| RunError::PerChild {
        path: path.clone(),
        why,
    };
    let text = std::fs::read_to_string(path).map_err(|error| refused(error.to_string()))?;
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    if lines.len() != count {
        return Err(refused(format!(
            "it has {} lines for {count} children: write one JSON object of references each",
            lines.len()
        )));
    }
    let parse = |(number, line): (usize, &&str)| {
        let parsed: Result<BTreeMap<String, Option<String>>, _> = serde_json::from_str(line);
        // The parser's message would quote the line, which may hold a value that was typed by mistake.
        let parsed = parsed.map_err(|_| {
            refused(format!(
                "line {} is no JSON object of references, as in {{\"API_KEY\":\"env:KEY_1\"}}",
                number + 1
            ))
        })?;
        parsed
            .into_iter()
            .map(|(name, reference)| match name.parse::<Name>() {
                Ok(name) => Ok((name, reference)),
                Err(error) => Err(refused(format!("line {}: {error}", number + 1))),
            })
            .collect()
    };
    lines.iter().enumerate().map(parse).collect()
}
