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
                let keeping = each.keeping(number);
                let kept = source
                    .launch(&each.declared(number), &each.dropped(number), &keeping)
                    .and_then(|launch| keep(launch, &keeping, Watcher::Nobody(starting)));
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
            secrets_audit: self.args.secrets_audit,
            console: false,
            dangerously_allow_swap: self.args.dangerously_allow_swap,
            owner: self.args.owner.clone(),
        }
    }
}

fn read_references(path: &PathBuf, count: usize) -> Result<Vec<References>, RunError> {
    let refused = |why: String| RunError::PerChild {
        path: path.clone(),
        why,
    };
    let text = std::fs::read_to_string(path).map_err(|error| refused(error.to_string()))?;
    let lines: Vec<(usize, &str)> = (1..)
        .zip(text.lines())
        .filter(|(_, line)| !line.trim().is_empty())
        .collect();
    if lines.len() != count {
        return Err(refused(format!(
            "it has {} lines for {count} children: write one JSON object of references each",
            lines.len()
        )));
    }
    let parse = |&(number, line): &(usize, &str)| {
        let parsed: Result<BTreeMap<String, Option<String>>, _> = serde_json::from_str(line);
        // The parser's message would quote the line, which may hold a value that was typed by mistake.
        let parsed = parsed.map_err(|_| {
            refused(format!(
                "line {number} is no JSON object of references, as in {{\"API_KEY\":\"env:KEY_1\"}}"
            ))
        })?;
        parsed
            .into_iter()
            .map(|(name, reference)| match name.parse::<Name>() {
                Ok(name) => Ok((name, reference)),
                Err(error) => Err(refused(format!("line {number}: {error}"))),
            })
            .collect()
    };
    lines.iter().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use clap::Parser;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(text.as_bytes()).expect("written");
        file
    }

    fn args(words: &[&str]) -> ForkArgs {
        let line = [&["cachot", "fork", "web"], words].concat();
        match Cli::try_parse_from(line).expect("a command line").command {
            Command::Fork(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    fn refused(text: &str, count: usize) -> String {
        let file = file(text);
        let result = read_references(&file.path().to_owned(), count);
        result.expect_err("refused").to_string()
    }

    fn names(names: &[Name]) -> Vec<&str> {
        names.iter().map(Name::as_str).collect()
    }

    #[test]
    fn test_each_child_has_its_own_references_and_the_common_ones_that_it_does_not_name() {
        let file = file("{\"A\":\"env:A_1\",\"B\":null}\n\n{}\n");
        let path = file.path().to_str().expect("a plain path");
        let args = args(&[
            "--count=2",
            "--secret=A=env:COMMON,env",
            "--secret=C=env:C",
            "--drop-secret=D",
            "--secrets-per-child",
            path,
        ]);
        let each = Each::read(&args).expect("read");

        assert_eq!(each.declared(0), ["C=env:C", "A=env:A_1"]);
        assert_eq!(names(&each.dropped(0)), ["D", "B"]);
        assert_eq!(each.declared(1), ["A=env:COMMON,env", "C=env:C"]);
        assert_eq!(names(&each.dropped(1)), ["D"]);
    }

    #[test]
    fn test_children_are_detached_and_have_the_names_that_were_given() {
        let given = args(&["--count=2", "--names=one,two", "--rm", "--no-mask"]);
        let each = Each::read(&given).expect("read");
        let keeping = [0, 1].map(|number| each.keeping(number));
        let names = keeping.each_ref().map(|one| one.name.as_ref());
        assert_eq!(
            names.map(|name| name.map(ToString::to_string)),
            [Some("one".into()), Some("two".into())]
        );
        assert!(
            keeping
                .iter()
                .all(|one| one.detach && one.rm && one.no_mask)
        );

        let unnamed = args(&["--count=2"]);
        let each = Each::read(&unnamed).expect("read");
        assert!(each.keeping(1).name.is_none() && !each.keeping(1).rm);
    }

    #[test]
    fn test_names_that_are_too_few_are_refused() {
        let args = args(&["--count=2", "--names=one"]);
        let error = Each::read(&args).err().expect("refused").to_string();
        assert!(error.contains("1 names for 2 children"), "{error}");
    }

    #[test]
    fn test_references_are_refused_with_the_line_and_without_what_is_in_it() {
        let typed = "hunter2-typed-by-mistake";
        let cases = [
            (format!("{{}}\n\n{typed}\n"), "line 3 is no JSON object"),
            (
                format!("{{}}\n{{\"A\":[\"{typed}\"]}}\n"),
                "line 2 is no JSON object",
            ),
            (format!("{{\"{typed}\":\"env:A\"}}\n{{}}\n"), "line 1: "),
        ];
        for (text, expected) in cases {
            let error = refused(&text, 2);
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        assert!(refused("{}\n", 2).contains("1 lines for 2 children"));
        let missing = read_references(&PathBuf::from("/no/such/file"), 1);
        assert!(
            missing
                .expect_err("refused")
                .to_string()
                .contains("/no/such/file")
        );
    }
}
