//! `cachot snapshot scan`: any files, whoever made them.

use std::io::Write;

use cachot_snapshot::needles::Value;

use super::content::FileContent;
use super::report::Reporter;
use super::search::Searcher;
use super::walk::{Candidate, Walk};
use super::{ImagesError, values};
use crate::args::ScanArgs;
use crate::custody::schemes;
use crate::progress::Progress;
use crate::text::write_json;

/// Searches files; whether all could be read and nothing was found.
pub(super) fn scan(args: &ScanArgs, output: &mut impl Write) -> Result<bool, ImagesError> {
    let requester = args.owner.requester(None);
    let resolved = values::resolve(
        &args.secrets,
        args.secrets_env_file.as_deref(),
        &schemes(&requester),
        &requester.user,
    )?;
    let to_search = resolved.into_iter().map(|secret| Value {
        name: secret.name,
        version: 1,
        bytes: secret.value,
    });
    let mut distinct = values::needles(to_search.collect())?;
    if distinct.searchable() == 0 {
        return Err(ImagesError::AllShort);
    }

    let walk = Walk::of(&args.paths);
    let progress = Progress::new("searching", walk.bytes, distinct.searchable());
    let same = std::mem::take(&mut distinct.same);
    let mut searcher = Searcher::new(&distinct.needles, &progress)?;
    let mut reporter = Reporter::new(&distinct.needles, same, &progress, args.json, output);
    reporter.links(walk.links);
    for (path, error) in &walk.errors {
        reporter.unread(&path.to_string_lossy(), error);
    }
    for file in &walk.files {
        search_file(file, &mut searcher, &mut reporter)?;
    }
    let report = reporter.finish()?;
    drop(progress);
    if args.json {
        write_json(&report, output)?;
    }
    Ok(report.clean)
}

fn search_file<W: Write>(
    file: &Candidate,
    searcher: &mut Searcher<'_>,
    reporter: &mut Reporter<'_, W>,
) -> Result<(), ImagesError> {
    let path = file.path.to_string_lossy();
    match file.open().and_then(|file| Ok(FileContent::new(file)?)) {
        Err(error) => reporter.unread(&path, &error),
        Ok(content) => {
            let (found, result) = searcher.search(&content);
            reporter.file(&path, &found, result)?;
        }
    }
    Ok(())
}
