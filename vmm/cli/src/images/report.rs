//! What a search says: hits where they are, never what they are, and a summary.

use std::collections::BTreeMap;
use std::io::{self, Write};

use cachot_secrets::Name;
use cachot_snapshot::needles::Needles;
use serde::Serialize;

use super::content::ContentError;
use super::search::{Found, SHOWN};
use super::values::Same;
use crate::progress::Progress;
use crate::text::{count, line, size, with_causes, word};

/// All that a search says; its JSON form.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Whether all was searched and nothing was found.
    pub clean: bool,
    /// Values that were searched for.
    needles: usize,
    /// Windows of values that every program has.
    degenerate_windows: u64,
    /// Secrets with a value that is too short to be searched for.
    short_values: Vec<Name>,
    /// Secrets that have the value of another one.
    same_values: Vec<Same>,
    files: u64,
    /// Bytes that were searched: all but holes.
    bytes: u64,
    links_not_followed: u64,
    pub hits: u64,
    by: Vec<Count>,
    found: Vec<FileReport>,
    errors: Vec<Unread>,
}

/// Hits of one value in one encoding.
#[derive(Debug, Serialize)]
struct Count {
    secret: Name,
    encoding: &'static str,
    hits: u64,
}

/// What was found in one file.
#[derive(Debug, Serialize)]
struct FileReport {
    path: String,
    hits: u64,
    /// The first of them.
    shown: Vec<HitReport>,
}

/// One hit.
#[derive(Debug, Serialize)]
struct HitReport {
    offset: u64,
    length: usize,
    secret: Name,
    encoding: &'static str,
}

/// What could not be searched to its end.
#[derive(Debug, Serialize)]
struct Unread {
    path: String,
    error: String,
}

/// Says what a search finds, as it goes on or, as JSON, at the end.
pub(super) struct Reporter<'a, W> {
    report: Report,
    by: BTreeMap<(usize, &'static str), u64>,
    needles: &'a Needles,
    progress: &'a Progress,
    json: bool,
    output: &'a mut W,
}

impl<'a, W: Write> Reporter<'a, W> {
    pub fn new(
        needles: &'a Needles,
        same_values: Vec<Same>,
        progress: &'a Progress,
        json: bool,
        output: &'a mut W,
    ) -> Self {
        let short: Vec<_> = needles
            .unsearchable()
            .map(|origin| origin.name.clone())
            .collect();
        let report = Report {
            clean: false,
            needles: needles.origins().len() - short.len(),
            degenerate_windows: needles.degenerate_windows(),
            short_values: short,
            same_values,
            files: 0,
            bytes: 0,
            links_not_followed: 0,
            hits: 0,
            by: vec![],
            found: vec![],
            errors: vec![],
        };
        Self {
            report,
            by: BTreeMap::new(),
            needles,
            progress,
            json,
            output,
        }
    }

    pub fn links(&mut self, links: u64) {
        self.report.links_not_followed += links;
    }

    /// Says what was found in a file, and why not all of it was searched, if so.
    pub fn file(
        &mut self,
        path: &str,
        found: &Found,
        result: Result<(), ContentError>,
    ) -> io::Result<()> {
        self.report.files += 1;
        self.report.bytes += found.bytes;
        self.report.hits += found.hits;
        for (key, hits) in &found.by {
            *self.by.entry(*key).or_default() += hits;
        }
        if found.hits > 0 {
            let origins = self.needles.origins();
            let shown = found.shown.iter().map(|hit| HitReport {
                offset: hit.start,
                length: hit.len,
                secret: origins[hit.value].name.clone(),
                encoding: hit.encoding.name(),
            });
            let file = FileReport {
                path: path.to_owned(),
                hits: found.hits,
                shown: shown.collect(),
            };
            if self.json {
                self.report.found.push(file);
            } else {
                let output = &mut *self.output;
                self.progress.aside(|| write_file(&file, output))?;
            }
        }
        if let Err(error) = result {
            self.unread(path, &error);
        }
        Ok(())
    }

    /// Says why something was not searched to its end.
    pub fn unread(&mut self, path: &str, error: &ContentError) {
        let error = with_causes(error);
        if !self.json {
            let line = format!("cachot: cannot search {}: {}", word(path), line(&error));
            self.progress.aside(|| eprintln!("{line}"));
        }
        self.report.errors.push(Unread {
            path: path.to_owned(),
            error,
        });
    }

    /// Ends the search; for people, writes the summary.
    pub fn finish(mut self) -> io::Result<Report> {
        let origins = self.needles.origins();
        self.report.by = self
            .by
            .into_iter()
            .map(|((value, encoding), hits)| Count {
                secret: origins[value].name.clone(),
                encoding,
                hits,
            })
            .collect();
        self.report.clean = self.report.hits == 0 && self.report.errors.is_empty();
        if !self.json {
            let (report, output) = (&self.report, self.output);
            self.progress.aside(|| write_summary(report, output))?;
        }
        Ok(self.report)
    }
}

fn write_file(file: &FileReport, output: &mut impl Write) -> io::Result<()> {
    let path = word(&file.path);
    for hit in &file.shown {
        writeln!(
            output,
            "{path} offset={:#x} length={} secret={} encoding={}",
            hit.offset, hit.length, hit.secret, hit.encoding
        )?;
    }
    match file.hits - file.shown.len() as u64 {
        0 => Ok(()),
        more => writeln!(
            output,
            "{path} has {} more than these {SHOWN}",
            count(more, "hit")
        ),
    }
}

fn write_summary(report: &Report, output: &mut impl Write) -> io::Result<()> {
    writeln!(
        output,
        "searched {} in {} for {} in all encodings: {}",
        size(report.bytes),
        count(report.files, "file"),
        count(report.needles as u64, "value"),
        match report.hits {
            0 => "nothing found".to_owned(),
            hits => count(hits, "hit"),
        }
    )?;
    for Count {
        secret,
        encoding,
        hits,
    } in &report.by
    {
        writeln!(output, "  {secret} as {encoding}: {}", count(*hits, "hit"))?;
    }
    for Same { secret, as_secret } in &report.same_values {
        writeln!(
            output,
            "{secret} has the same value as {as_secret}, and is found under that name"
        )?;
    }
    for name in &report.short_values {
        writeln!(
            output,
            "not searched for: {name}, whose value is too short or in every program"
        )?;
    }
    if report.degenerate_windows > 0 {
        writeln!(
            output,
            "not searched for: {} of values that every program has",
            count(report.degenerate_windows, "window")
        )?;
    }
    if report.links_not_followed > 0 {
        writeln!(
            output,
            "not followed: {}",
            count(report.links_not_followed, "symbolic link")
        )?;
    }
    if !report.errors.is_empty() {
        writeln!(
            output,
            "not searched to the end: {}",
            count(report.errors.len() as u64, "path")
        )?;
    }
    Ok(())
}
