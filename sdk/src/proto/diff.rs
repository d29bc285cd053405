//! What makes two snapshots different.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

/// What became of the elements of one snapshot in the next.
///
/// An element is the same as before if it has the same identity: an instance is its node and
/// service ID, a pair is its key.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Difference<T> {
    /// Those that were not there before.
    pub added: Vec<Arc<T>>,
    /// Those whose content changed: before and after.
    pub changed: Vec<(Arc<T>, Arc<T>)>,
    /// Those that are no longer there.
    pub removed: Vec<Arc<T>>,
}

impl<T> Difference<T> {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.changed.is_empty() && self.removed.is_empty()
    }
}

impl<T> Default for Difference<T> {
    fn default() -> Self {
        Self {
            added: Vec::new(),
            changed: Vec::new(),
            removed: Vec::new(),
        }
    }
}

/// Compares two snapshots; costs what stands between their first and last difference.
pub(crate) fn between<'a, T, K, F>(old: &'a [Arc<T>], new: &'a [Arc<T>], key: F) -> Difference<T>
where
    T: PartialEq,
    K: Eq + Hash,
    F: Fn(&'a T) -> K,
{
    // Elements that did not change are shared, so pointers tell them apart from the others.
    let same = |(old, new): &(&Arc<T>, &Arc<T>)| Arc::ptr_eq(old, new);
    let head = old.iter().zip(new).take_while(same).count();
    let (old, new) = (
        old.get(head..).unwrap_or_default(),
        new.get(head..).unwrap_or_default(),
    );
    let tail = old
        .iter()
        .rev()
        .zip(new.iter().rev())
        .take_while(same)
        .count();
    let (old, new) = (
        old.get(..old.len() - tail).unwrap_or_default(),
        new.get(..new.len() - tail).unwrap_or_default(),
    );

    let mut before: HashMap<K, &Arc<T>> = old.iter().map(|one| (key(one), one)).collect();
    let mut difference = Difference::default();
    for one in new {
        match before.remove(&key(one)) {
            None => difference.added.push(Arc::clone(one)),
            Some(was) if Arc::ptr_eq(was, one) || was == one => {}
            Some(was) => difference.changed.push((Arc::clone(was), Arc::clone(one))),
        }
    }
    if !before.is_empty() {
        // In the order in which they stood.
        difference.removed = old
            .iter()
            .filter(|one| {
                before
                    .get(&key(one))
                    .is_some_and(|left| Arc::ptr_eq(left, one))
            })
            .map(Arc::clone)
            .collect();
    }
    difference
}

#[cfg(test)]
mod tests {
    use super::*;

    type Pair = (u32, &'static str);

    fn list(pairs: &[Pair]) -> Vec<Arc<Pair>> {
        pairs.iter().copied().map(Arc::new).collect()
    }

    fn diff(old: &[Arc<Pair>], new: &[Arc<Pair>]) -> (Vec<u32>, Vec<u32>, Vec<u32>) {
        let diff = between(old, new, |pair| pair.0);
        (
            diff.added.iter().map(|one| one.0).collect(),
            diff.changed.iter().map(|(_, one)| one.0).collect(),
            diff.removed.iter().map(|one| one.0).collect(),
        )
    }

    #[test]
    fn added_changed_and_removed_are_told_apart() {
        let old = list(&[(1, "a"), (2, "a"), (3, "a"), (4, "a")]);
        let mut new = old.clone();
        new[1] = Arc::new((2, "b"));
        new.remove(2);
        new.push(Arc::new((5, "a")));
        assert_eq!(diff(&old, &new), (vec![5], vec![2], vec![3]));
    }

    #[test]
    fn equal_content_in_another_allocation_is_no_difference() {
        let pairs = [(1, "a"), (2, "a")];
        assert_eq!(diff(&list(&pairs), &list(&pairs)), (vec![], vec![], vec![]));
    }

    #[test]
    fn another_order_is_no_difference() {
        let old = list(&[(1, "a"), (2, "a"), (3, "a")]);
        let new: Vec<_> = old.iter().rev().cloned().collect();
        assert_eq!(diff(&old, &new), (vec![], vec![], vec![]));
    }

    #[test]
    fn everything_may_come_and_go() {
        let some = list(&[(1, "a"), (2, "a")]);
        assert_eq!(diff(&[], &some), (vec![1, 2], vec![], vec![]));
        assert_eq!(diff(&some, &[]), (vec![], vec![], vec![1, 2]));
    }
}
