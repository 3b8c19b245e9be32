//! Every target over its corpus: what was found once is never found again.

use std::fs;
use std::path::Path;

use cachot_fuzz::TARGETS;

/// What names of inputs begin with that need not be accepted: what libFuzzer has found, and examples of what is
/// refused.
const NOT_REAL: [&str; 5] = ["crash-", "oom-", "refused", "slow-unit-", "timeout-"];

#[test]
fn test_every_input_of_every_corpus_is_handled() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for target in TARGETS {
        let mut accepted = 0;
        for entry in fs::read_dir(corpora.join(target.name)).expect("a corpus") {
            let path = entry.expect("a file").path();
            let input = fs::read(&path).expect("read");
            // Shown where the test fails.
            println!("{}", path.display());
            let was_accepted = (target.run)(&input);
            // The positive control: what real images, drivers and programs make is not just refused.
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .expect("text");
            if !NOT_REAL.iter().any(|prefix| name.starts_with(prefix)) {
                assert!(was_accepted, "{} is refused", path.display());
                accepted += 1;
            }
        }
        assert!(
            accepted > 0,
            "the corpus of {} has nothing real",
            target.name
        );
    }
}

#[test]
fn test_every_corpus_has_a_target() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for entry in fs::read_dir(corpora).expect("corpora") {
        let name = entry.expect("a folder").file_name();
        let name = name.to_str().expect("text");
        assert!(cachot_fuzz::target(name).is_some(), "{name} is no target");
    }
}
