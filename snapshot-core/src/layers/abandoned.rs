//! Which of the files that a machine left behind may be removed, once nobody knows the machine any more.
//!
//! With the machine its graph of files is gone, so the graph is read from the images that are there: whose they are does not
//! matter, only what they lie on. A file that stays keeps all that it lies on. So nothing that anybody else has, be it a
//! machine or a stray copy in the same folder, loses what is below it.

use std::collections::{BTreeMap, BTreeSet};

use super::MOST_LAYERS;

/// What becomes of the files that a machine left.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Abandoned {
    /// Those that may be removed, each before what it lies on.
    pub removable: Vec<String>,
    /// Those that must stay: they are in use, or something that stays lies on them.
    pub needed: BTreeSet<String>,
}

/// Decides about `ours`, the files that this service made for the machine and that are as it made them. `used` are files
/// that somebody has in use; `backing` is what the images that there are, ours or not, lie on.
pub fn abandoned(ours: &BTreeSet<String>, used: &BTreeSet<String>, backing: &BTreeMap<String, String>) -> Abandoned {
    let mut needed: BTreeSet<String> = ours.intersection(used).cloned().collect();
    // Each round finds one at least, or is the last.
    for _ in ours {
        let stays = |path: &String| !ours.contains(path) || needed.contains(path);
        let below = backing.iter().filter(|(top, base)| stays(top) && ours.contains(*base) && !needed.contains(*base));
        let more: Vec<String> = below.map(|(_, base)| base.clone()).collect();
        if more.is_empty() {
            break;
        }
        needed.extend(more);
    }
    let depth = |path: &String| std::iter::successors(Some(path), |path| backing.get(*path)).take(MOST_LAYERS).count();
    let mut removable: Vec<String> = ours.difference(&needed).cloned().collect();
    removable.sort_by_key(|path| std::cmp::Reverse(depth(path)));
    Abandoned { removable, needed }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn lies(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(top, base)| ((*top).to_owned(), (*base).to_owned())).collect()
    }

    #[test]
    fn a_chain_goes_from_its_top_and_stays_below_what_stays() {
        let chain = lies(&[("a", "base"), ("b", "a"), ("c", "b"), ("fork", "a")]);
        let ours = set(&["a", "b", "c", "fork"]);
        let all = abandoned(&ours, &set(&["base"]), &chain);
        assert_eq!(all.removable.first().map(String::as_str), Some("c"));
        assert_eq!(all.removable.last().map(String::as_str), Some("a"));
        let used = abandoned(&ours, &set(&["b"]), &chain);
        assert_eq!((used.removable, used.needed), (vec!["c".to_owned(), "fork".to_owned()], set(&["a", "b"])));
        // What we did not make stays, and so does what it lies on.
        let strange = abandoned(&set(&["a", "b", "c"]), &set(&[]), &chain);
        assert_eq!((strange.removable, strange.needed), (vec!["c".to_owned(), "b".to_owned()], set(&["a"])));
    }

    proptest! {
        #[test]
        fn nobody_else_loses_anything_and_nothing_is_left_without_a_need(
            backing in proptest::collection::btree_map("[a-j]", "[a-j]", 0..10),
            ours in proptest::collection::btree_set("[a-j]", 0..10),
            used in proptest::collection::btree_set("[a-j]", 0..4),
        ) {
            let found = abandoned(&ours, &used, &backing);
            let gone: BTreeSet<String> = found.removable.iter().cloned().collect();
            prop_assert_eq!(gone.len(), found.removable.len());
            prop_assert_eq!(gone.union(&found.needed).cloned().collect::<BTreeSet<_>>(), ours.clone());
            prop_assert!(gone.is_disjoint(&found.needed) && gone.is_disjoint(&used));
            // No file that stays has lost anything below it.
            let all: BTreeSet<String> = backing.iter().flat_map(|(top, base)| [top.clone(), base.clone()]).collect();
            for path in all.difference(&gone) {
                let mut chain = std::iter::successors(Some(path), |path| backing.get(*path)).take(20);
                prop_assert!(chain.all(|path| !gone.contains(path)), "{path} has lost what it lies on");
            }
            // What is needed, is needed by somebody who stays.
            for path in &found.needed {
                let on_top = backing.iter().any(|(top, base)| base == path && !gone.contains(top));
                prop_assert!(used.contains(path) || on_top, "{path} stays for nobody");
            }
            // Ended anywhere, what is left is whole: each goes before what it lies on, unless it leads into a ring.
            for (index, path) in found.removable.iter().enumerate() {
                let mut below = std::iter::successors(backing.get(path), |path| backing.get(*path)).take(20);
                if below.clone().count() == 20 { continue; }
                prop_assert!(below.all(|base| found.removable.iter().position(|it| it == base).is_none_or(|at| at > index)));
            }
        }
    }
}
