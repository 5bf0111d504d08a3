//! Blocking work, kept off the threads that wait on sockets; work that is finished even when its caller goes away; and
//! waiting, on threads that may block.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use tracing::{Instrument, Span};

use super::clock::Deadline;
use super::panics::{caught, caught_in};

/// Runs `work` on the runtime's blocking pool, whose size the profile sets. A panic in it goes on in the caller.
/// Lines of the log that come from it name what the caller is about.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let span = Span::current();
    match tokio::task::spawn_blocking(move || span.in_scope(|| caught(work))).await {
        Ok(done) => done.unwrap_or_else(|panicked| panicked.go_on()),
        // The runtime is shutting down and dropped the work: no caller is left to answer.
        Err(_) => std::future::pending().await,
    }
}

/// Runs `work`, which does not panic, on the runtime's blocking pool. No caller waits for it.
pub(super) fn on_blocking_thread(work: impl FnOnce() + Send + 'static) {
    drop(tokio::task::spawn_blocking(work));
}

/// Finishes `work` even when the caller goes away, in a task of its own. A panic in it goes on in the caller.
/// Lines of the log that come from it name what the caller is about.
pub async fn unbroken<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    match tokio::spawn(caught_in(Box::pin(work)).in_current_span()).await {
        Ok(done) => done.unwrap_or_else(|panicked| panicked.go_on()),
        // The runtime is shutting down and dropped the work: no caller is left to answer.
        Err(_) => std::future::pending().await,
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
