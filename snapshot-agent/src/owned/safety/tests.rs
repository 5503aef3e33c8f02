use std::collections::BTreeMap;

use super::super::tests::{Fixture, id, vm};
use super::*;

fn safety(tag: &str) -> Safety {
    let images = BTreeMap::from([("vda".to_owned(), "/images/vda.qcow2".to_owned())]);
    Safety { tag: tag.to_owned(), images, definition: "<domain/>".to_owned(), current: None }
}

#[test]
fn tags_are_kept_without_secrets_and_removed_only_while_the_disks_are_not_mixed() {
    let fixture = Fixture::new();
    let tags = |owned: &Owned| owned.unneeded_safety(vm()).into_iter().map(|one| one.tag).collect::<Vec<_>>();
    fixture.owned.unmix(vm());
    assert!(fixture.owned.get(vm()).is_none());
    for tag in ["safety-1", "safety-2", "safety-1"] {
        fixture.owned.keep_safety(vm(), safety(tag));
    }
    for owned in [&fixture.owned, &fixture.reopened()] {
        assert_eq!(tags(owned), ["safety-2", "safety-1"]);
        assert!(owned.unneeded_safety(vm()).iter().all(|one| one.definition.is_empty()));
        assert!(owned.restrictions(vm()).is_empty());
    }
    fixture.owned.mix(vm(), Mixed { snapshot: id(1), disks: BTreeMap::new() });
    for owned in [&fixture.owned, &fixture.reopened()] {
        assert!(tags(owned).is_empty() && owned.restrictions(vm()).len() == 1);
    }
    fixture.owned.unmix(vm());
    assert_eq!(tags(&fixture.reopened()), ["safety-2", "safety-1"]);
    assert!(fixture.reopened().restrictions(vm()).is_empty());
}
