//! Documents of bundles: what is read is written so that it is read again as the same, and has a value for every field.

use cachot_custody::bundle::{Document, Field};

/// One text.
///
/// # Panics
/// Where a promise is broken.
pub fn run(input: &[u8]) -> bool {
    let Ok(document) = Document::parse(input) else {
        return false;
    };
    let text = document.to_yaml();
    let again = Document::parse(text.as_bytes()).expect("what is written can be read");
    let fields = document.fields();
    assert_eq!(again.fields(), fields);
    for field in &fields {
        let named: Field = field.to_string().parse().expect("its name is one");
        assert_eq!(named, *field);
        let value = document.value(field);
        // Only a variable may have none.
        assert!(value.is_some() || matches!(field, Field::Env(_)));
        assert!(value == again.value(field), "{field} is another one");
    }
    assert_eq!(document.findings(), again.findings());
    !fields.is_empty()
}
