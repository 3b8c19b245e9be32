//! Declarations and references of secrets: what is read is the same when it is written and read again.

use std::path::Path;

use cachot_secrets::{Declaration, Declarations, Reference, Schemes};

/// A declaration on each line.
///
/// # Panics
/// Where a promise is broken.
pub fn run(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else {
        return false;
    };
    let mut accepted = false;
    for line in text.lines() {
        if let Ok(declaration) = line.parse::<Declaration>() {
            accepted = true;
            let again = declaration.to_string().parse();
            assert_eq!(again.as_ref(), Ok(&declaration));
        }
        if let Ok(reference) = line.parse::<Reference>() {
            let again: Result<Reference, _> = reference.to_string().parse();
            assert_eq!(again.as_ref(), Ok(&reference));
            let anchored = reference.anchored(Path::new("/srv"));
            assert_eq!(anchored.scheme(), reference.scheme());
            assert_eq!(anchored.anchored(Path::new("/other")), anchored);
        }
    }
    let declarations = Declarations::parse(text.lines());
    for variable in declarations.environment_variables(&Schemes::default()) {
        assert!(!variable.is_empty());
    }
    accepted
}
