//! Random operations by several users: the store does what the model does.

#[path = "model/mod.rs"]
mod model;

use model::{Model, Operation, apply, open};
use proptest::prelude::*;

proptest! {
    // Every operation waits for the disk.
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn test_store_does_what_the_model_does(
        operations in prop::collection::vec((any::<[u8; 4]>(), any::<u64>()), 1..60),
    ) {
        let folder = tempfile::tempdir().expect("a folder");
        let place = folder.path().join("secrets");
        let (mut model, mut stores) = (Model::default(), open(&place));
        for (random, number) in operations {
            let operation = Operation::new(random, number);
            prop_assert_eq!(apply(&mut stores, &operation), model.apply(&operation), "{:?}", operation);
        }
        prop_assert_eq!(model.difference(&mut stores), None);
        prop_assert_eq!(model.difference(&mut open(&place)), None);
    }
}
