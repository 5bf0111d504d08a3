//! Short blocking jobs of many callers that come at once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tracing::Span;

use super::blocking::{Made, on_blocking_thread};
use super::clock::Clock;
use super::panics::caught;

/// Jobs waiting for one thread before another is woken.
const AHEAD: usize = 3;
/// A job that waits longer than this for the thread has another one woken: the job before it may wait for the disk.
const PATIENCE: Duration = Duration::from_millis(5);
/// The most threads at work, where the pool has many.
const THREADS_MAX: usize = 4;

/// A queue of jobs that few threads of the blocking pool run one after the other: one message wakes the syncs of all who see
/// it, and waking a thread for each costs more than the job. Bounded by the callers. Clones share one.
#[derive(Clone)]
pub struct Lane {
    clock: Clock,
    threads_max: usize,
    queue: Arc<Mutex<Queue>>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
}

struct Job {
    work: Box<dyn FnOnce() + Send>,
    reply: oneshot::Sender<()>,
}

impl Job {
    /// A caller that went away has nothing done.
    fn run(self) {
        if !self.reply.is_closed() {
            (self.work)();
            let _ = self.reply.send(());
        }
    }
}

impl Lane {
    /// `pool`: the threads of the blocking pool. At least half of them are left to other work: while jobs keep coming, a
    /// lane's threads do not go back.
    pub fn new(clock: Clock, pool: usize) -> Lane {
        Lane { clock, threads_max: (pool / 2).clamp(1, THREADS_MAX), queue: Arc::default() }
    }

    /// Runs `work` as [`super::blocking`] does. The work of a caller that went away before its turn is left out.
    pub async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (made, span) = (Made::default(), Span::current());
        let place = made.clone();
        self.done(Box::new(move || place.put(span.in_scope(|| caught(work))))).await;
        made.take()
    }

    async fn done(&self, job: Box<dyn FnOnce() + Send>) {
        #[cfg(test)]
        let _aside = super::testing::Waits::begin();
        let (reply, done) = oneshot::channel();
        let job = Job { work: job, reply };
        if self.add(job) {
            self.work();
        }
        let mut done = std::pin::pin!(done);
        let done = match self.clock.timeout(PATIENCE, done.as_mut()).await {
            Some(done) => done,
            None => {
                if self.is_behind() {
                    self.work();
                }
                done.await
            }
        };
        if done.is_err() {
            // The runtime is shutting down and dropped the work: no caller is left to answer.
            std::future::pending().await
        }
    }

    /// Adds a job. Answers whether a thread is to be woken for it.
    fn add(&self, job: Job) -> bool {
        let mut queue = self.queue.lock();
        queue.jobs.push_back(job);
        let wakes = queue.threads < self.threads_max && queue.jobs.len() > queue.threads * AHEAD;
        queue.threads += usize::from(wakes);
        wakes
    }

    /// Whether another thread is to be woken, since jobs still wait.
    fn is_behind(&self) -> bool {
        let mut queue = self.queue.lock();
        let wakes = queue.threads < self.threads_max && !queue.jobs.is_empty();
        queue.threads += usize::from(wakes);
        wakes
    }

    fn work(&self) {
        let lane = self.clone();
        drop(on_blocking_thread(Box::new(move || {
            while let Some(job) = lane.next() {
                job.run();
            }
        })));
    }

    /// The next job; without one the thread is done.
    fn next(&self) -> Option<Job> {
        let mut queue = self.queue.lock();
        let job = queue.jobs.pop_front();
        queue.threads -= usize::from(job.is_none());
        job
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn every_job_is_done_and_a_panic_is_its_callers_alone() {
        let lane = Lane::new(Clock::real(), 8);
        let jobs: Vec<_> = (0..100)
            .map(|number| {
                let lane = lane.clone();
                tokio::spawn(async move {
                    lane.blocking(move || if number == 50 { panic!("on purpose") } else { number }).await
                })
            })
            .collect();
        for (number, job) in jobs.into_iter().enumerate() {
            assert_eq!(job.await.ok(), (number != 50).then_some(number));
        }
        assert!(lane.queue.lock().jobs.is_empty());
    }

    fn idle() -> Job {
        Job { work: Box::new(|| {}), reply: oneshot::channel().0 }
    }

    #[test]
    fn half_of_a_small_pool_is_left_to_others() {
        for (pool, threads) in [(1, 1), (4, 2), (6, 3), (32, 4)] {
            let lane = Lane::new(Clock::real(), pool);
            let woken = (0..100).filter(|_| lane.add(idle())).count();
            assert_eq!((woken, lane.is_behind()), (threads, false));
        }
    }

    #[tokio::test]
    async fn a_job_that_takes_long_does_not_hold_up_those_behind_it() {
        let lane = Lane::new(Clock::real(), 8);
        let (go_on, stopped) = mpsc::channel::<()>();
        let slow = tokio::spawn({
            let lane = lane.clone();
            async move { lane.blocking(move || stopped.recv().is_ok()).await }
        });
        tokio::task::yield_now().await;
        assert_eq!(lane.blocking(|| 1).await, 1);
        go_on.send(()).unwrap();
        assert!(slow.await.unwrap());
    }
}
