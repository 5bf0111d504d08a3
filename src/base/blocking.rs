//! Blocking work, kept off the threads that wait on sockets; work that is finished even when its caller goes away; and
//! waiting, on threads that may block.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tracing::{Instrument, Span};

use super::clock::Deadline;
use super::panics::{Panicked, caught, caught_in};
use super::quiet::WORK;

/// Runs `work` on the runtime's blocking pool, whose size the profile sets. A panic in it goes on in the caller.
/// Lines of the log that come from it name what the caller is about.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    #[cfg(test)]
    let _aside = super::testing::Waits::begin();
    let (made, span) = (Made::default(), Span::current());
    let place = made.clone();
    finished(on_blocking_thread(Box::new(move || place.put(span.in_scope(|| caught(work)))))).await;
    made.take()
}

/// Runs `work`, which does not panic, on the runtime's blocking pool. Boxed, since the runtime has some twenty functions for
/// each type of work, which would be compiled, and held in memory, for each caller.
pub(super) fn on_blocking_thread(work: Box<dyn FnOnce() + Send>) -> JoinHandle<()> {
    WORK.begins();
    tokio::task::spawn_blocking(work)
}

/// Finishes `work` even when the caller goes away, in a task of its own. A panic in it goes on in the caller.
/// Lines of the log that come from it name what the caller is about.
pub async fn unbroken<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    let made = Made::default();
    let place = made.clone();
    let work: Pin<Box<dyn Future<Output = T> + Send>> = Box::pin(work);
    finished(detached(async move { place.put(caught_in(work).await) })).await;
    made.take()
}

/// Begins `work` in a task of its own. Lines of the log that come from it name what the caller is about. Boxed for the
/// reason above.
pub fn detached(work: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
    let work: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(work);
    tokio::spawn(work.in_current_span())
}

async fn finished(task: JoinHandle<()>) {
    if task.await.is_err() {
        // The runtime is shutting down and dropped the work: no caller is left to answer.
        std::future::pending().await
    }
}

/// The place where work of its own leaves its result for the caller.
pub(super) struct Made<T>(Arc<Mutex<Option<Result<T, Panicked>>>>);

impl<T> Made<T> {
    pub(super) fn put(&self, done: Result<T, Panicked>) {
        *self.0.lock() = Some(done);
    }

    /// Of work that is finished. A panic in it goes on in the caller.
    pub(super) fn take(&self) -> T {
        let done = self.0.lock().take().expect("finished work left its result");
        done.unwrap_or_else(|panicked| panicked.go_on())
    }
}

impl<T> Default for Made<T> {
    fn default() -> Self {
        Made(Arc::default())
    }
}

impl<T> Clone for Made<T> {
    fn clone(&self) -> Self {
        Made(self.0.clone())
    }
}

/// The result of a task in a `JoinSet`. A panic of the task goes on in the caller: an answer without the task's part
/// would pass for a whole one. `None`: the task was aborted.
pub fn joined<T>(done: Result<T, tokio::task::JoinError>) -> Option<T> {
    match done.map_err(tokio::task::JoinError::try_into_panic) {
        Ok(done) => Some(done),
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        Err(Err(_aborted)) => None,
    }
}

/// Waits on a plain thread for a future that needs no runtime (a grant, a place in a queue), at most until
/// `deadline`; `None` when that passed first. Never call it on a thread that runs async tasks.
pub fn block_on_until<T>(work: impl Future<Output = T>, deadline: Option<Deadline>) -> Option<T> {
    let mut work = pin!(work);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(done) = work.as_mut().poll(&mut context) {
            return Some(done);
        }
        match deadline.map(|deadline| deadline.left()) {
            None => std::thread::park(),
            Some(left) if left.is_zero() => return None,
            Some(left) => std::thread::park_timeout(left),
        }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
