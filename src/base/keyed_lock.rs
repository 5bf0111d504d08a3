//! A lock for each name.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

/// Names in use. Bounded by the number of holders and waiters.
#[derive(Clone, Default)]
pub struct KeyedLock(Arc<Inner>);

#[derive(Default)]
struct Inner {
    used: Mutex<HashSet<String>>,
    freed: Notify,
}

/// The mark that a name is in use; released on drop.
pub struct KeyedGuard {
    of: KeyedLock,
    name: String,
}

impl KeyedLock {
    /// Takes the name, unless it is in use.
    pub fn try_take(&self, name: &str) -> Option<KeyedGuard> {
        let is_free = self.names().insert(name.to_owned());
        is_free.then(|| KeyedGuard { of: self.clone(), name: name.to_owned() })
    }

    /// Waits until the name is free, and takes it.
    pub async fn take(&self, name: &str) -> KeyedGuard {
        self.wait_for(|| self.try_take(name)).await
    }

    /// Waits until the name is free.
    pub async fn wait(&self, name: &str) {
        self.wait_for(|| (!self.names().contains(name)).then_some(())).await
    }

    async fn wait_for<T>(&self, look: impl Fn() -> Option<T>) -> T {
        loop {
            let freed = self.0.freed.notified();
            tokio::pin!(freed);
            // Registered before the check: a name that is released in between would otherwise be slept through.
            freed.as_mut().enable();
            if let Some(found) = look() {
                return found;
            }
            freed.await;
        }
    }

    fn names(&self) -> MutexGuard<'_, HashSet<String>> {
        self.0.used.lock()
    }
}

impl KeyedGuard {
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for KeyedGuard {
    fn drop(&mut self) {
        self.of.names().remove(&self.name);
        self.of.0.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_has_one_user_and_the_next_waits() {
        let each = KeyedLock::default();
        let one = each.try_take("one").unwrap();
        assert!(each.try_take("one").is_none() && each.try_take("two").is_some());
        let next = tokio::spawn({
            let each = each.clone();
            async move { each.take("one").await.name().to_owned() }
        });
        tokio::task::yield_now().await;
        assert!(!next.is_finished());
        drop(one);
        assert_eq!(next.await.unwrap(), "one");
        each.wait("one").await;
        assert!(each.try_take("one").is_some(), "who waited has given it up again");
    }
}
