//! Whether anything is at work: what watches over work need not look while there is none.
//!
//! Work is what runs on the blocking pool: nearly every request comes there, and every job in the background.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

/// The work of this process, for its one watcher.
pub static WORK: Work = Work::new();

pub struct Work {
    has_begun: AtomicBool,
    begun: Notify,
}

impl Work {
    const fn new() -> Work {
        Work { has_begun: AtomicBool::new(false), begun: Notify::const_new() }
    }

    /// Says that work begins. Costs one read while the watcher has not asked since the last.
    pub(super) fn begins(&self) {
        if !self.has_begun.load(Ordering::Relaxed) && !self.has_begun.swap(true, Ordering::Relaxed) {
            self.begun.notify_one();
        }
    }

    /// Whether work has begun since this was last asked.
    pub fn has_begun(&self) -> bool {
        self.has_begun.swap(false, Ordering::Relaxed)
    }

    /// Waits for work to begin. May end at once, for work that [`Work::has_begun`] told of.
    pub async fn until_it_begins(&self) {
        self.begun.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    #[test]
    fn work_is_told_once_and_wakes_who_waits() {
        let work = Work::new();
        assert!(!work.has_begun());
        let mut waiting = pin!(work.until_it_begins());
        let mut look = || waiting.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert_eq!(look(), Poll::Pending);
        work.begins();
        work.begins();
        assert_eq!(look(), Poll::Ready(()));
        assert!(work.has_begun() && !work.has_begun());
        // Between the question and the waiting.
        work.begins();
        let mut waiting = pin!(work.until_it_begins());
        assert_eq!(waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(()));
    }
}
