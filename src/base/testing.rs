//! For tests with a simulated clock: whether anybody waits for another thread, which real time alone moves on.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

thread_local! {
    /// Tasks of this thread's runtime that wait for other threads.
    static WAITING: Arc<AtomicUsize> = Arc::default();
}

/// For how long the clock of a test stands still for work that may itself wait for the clock.
const PATIENCE: Duration = Duration::from_secs(2);

/// Held by who waits for another thread, until it goes on.
pub struct Waits(Arc<AtomicUsize>);

impl Waits {
    pub fn begin() -> Waits {
        let waiting = WAITING.with(Arc::clone);
        waiting.fetch_add(1, Ordering::SeqCst);
        Waits(waiting)
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Lets everything in this runtime, which has this thread alone, go on until it waits for time or for the network.
pub async fn settled() {
    let begun = Instant::now();
    let mut calm = 0;
    while calm < 20 && begun.elapsed() < PATIENCE {
        tokio::task::yield_now().await;
        if WAITING.with(|waiting| waiting.load(Ordering::SeqCst)) == 0 {
            calm += 1;
        } else {
            calm = 0;
            // For the thread that is waited for.
            std::thread::sleep(Duration::from_micros(20));
        }
    }
}
