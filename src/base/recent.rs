//! The latest changes of a few things, from which it can be told whether others changed.

/// The `N` things that changed last, each with the number of its last change. Numbers only rise.
#[derive(Debug, Clone)]
pub struct Recent<K, const N: usize> {
    /// Everything that changed after this is kept.
    from: u64,
    kept: Vec<(K, u64)>,
}

impl<K: Copy + PartialEq, const N: usize> Recent<K, N> {
    /// Nothing, with no knowledge of what changed up to `from`.
    pub fn new(from: u64) -> Self {
        Recent { from, kept: Vec::new() }
    }

    /// Notes a change, in the place of the thing's change before. The one that changed longest ago gives way.
    pub fn note(&mut self, thing: K, at: u64) {
        match self.kept.iter().position(|(kept, _)| *kept == thing) {
            Some(old) => drop(self.kept.remove(old)),
            None if self.kept.len() == N => self.from = self.from.max(self.kept.remove(0).1),
            None => {}
        }
        self.kept.push((thing, at));
    }

    /// Forgets everything up to `from`.
    pub fn forget(&mut self, from: u64) {
        self.from = self.from.max(from);
        self.kept.retain(|(_, at)| *at > from);
    }

    /// What changed after `since`; none when that is not known any more.
    pub fn since(&self, since: u64) -> Option<impl Iterator<Item = K> + '_> {
        (since >= self.from).then(|| self.kept.iter().filter(move |(_, at)| *at > since).map(|(thing, _)| *thing))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_is_told_as_long_as_nothing_of_it_was_forgotten() {
        let mut recent = Recent::<u32, 3>::new(10);
        let since = |recent: &Recent<u32, 3>, since| recent.since(since).map(Iterator::collect::<Vec<_>>);
        assert_eq!(since(&recent, 9), None);
        assert_eq!(since(&recent, 10), Some(vec![]));
        for (thing, at) in [(1, 11), (2, 12), (1, 13), (3, 14)] {
            recent.note(thing, at);
        }
        assert_eq!(since(&recent, 10), Some(vec![2, 1, 3]));
        assert_eq!(since(&recent, 12), Some(vec![1, 3]));
        recent.note(4, 15);
        assert_eq!(since(&recent, 11), None, "the change of 2 is forgotten");
        assert_eq!(since(&recent, 12), Some(vec![1, 3, 4]));
        recent.forget(14);
        assert_eq!(since(&recent, 13), None);
        assert_eq!(since(&recent, 14), Some(vec![4]));
    }
}
