//! Panics that are caught: the operation that panicked is given up, and the rest goes on.
//!
//! A panic is logged once: by the catcher that knows the request, otherwise when it is dropped unlogged. A panic
//! without a catcher (a task or thread of its own) is logged by the hook.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::task::Poll;

/// Of a panic's message: it may contain data sent by an attacker.
const MESSAGE_CHARS_MAX: usize = 300;

thread_local! {
    /// The number of catchers on this thread's stack.
    static CATCHING: Cell<u32> = const { Cell::new(0) };
    /// The place of the last panic on this thread, until it is caught.
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// A panic that was caught. The catcher must know which work it may have left half done.
pub struct Panicked {
    what: String,
    said: bool,
}

impl Panicked {
    fn of(payload: Box<dyn Any + Send>) -> Panicked {
        let place = PLACE.take();
        // It was caught before, and goes on to a catcher that knows more.
        let payload = match payload.downcast::<Panicked>() {
            Ok(known) => return *known,
            Err(payload) => payload,
        };
        let mut what = message(&*payload);
        if let Some(place) = place {
            what = format!("{what}, at {place}");
        }
        Panicked { what, said: false }
    }

    /// Its message and place, for a line in the log or an error that ends there.
    pub fn say(mut self) -> String {
        self.said = true;
        std::mem::take(&mut self.what)
    }

    /// Lets it go on to the next catcher.
    pub fn go_on(self) -> ! {
        resume_unwind(Box::new(self))
    }
}

impl fmt::Debug for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Panicked({})", self.what)
    }
}

impl Drop for Panicked {
    fn drop(&mut self) {
        if !self.said {
            tracing::error!("a panic: {}", self.what);
        }
    }
}

/// Ends the present work with a panic that no hook sees; for code whose callers are another library's.
pub fn unwind(what: String) -> ! {
    Panicked { what, said: false }.go_on()
}

/// Runs `work`; a panic in it ends here.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, Panicked> {
    CATCHING.set(CATCHING.get() + 1);
    let done = catch_unwind(AssertUnwindSafe(work));
    CATCHING.set(CATCHING.get() - 1);
    done.map_err(Panicked::of)
}

/// The same for a future; it is not polled again after a panic.
pub async fn caught_in<F: Future + ?Sized>(mut work: Pin<Box<F>>) -> Result<F::Output, Panicked> {
    std::future::poll_fn(|cx| match caught(|| work.as_mut().poll(cx)) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(done)) => Poll::Ready(Ok(done)),
        Err(panicked) => Poll::Ready(Err(panicked)),
    })
    .await
}

/// Has panics logged in one line each, with thread and place; printed as usual where there is no log. For the process,
/// once.
pub fn log_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let place = place(info);
        if CATCHING.try_with(|catching| catching.get() > 0).unwrap_or(false) {
            let _ = PLACE.try_with(|last| last.replace(Some(place)));
            return;
        }
        if !tracing::enabled!(tracing::Level::ERROR) {
            return usual(info);
        }
        let thread = std::thread::current();
        let what = message(info.payload());
        tracing::error!("a panic in thread {}: {what}, at {place}", thread.name().unwrap_or("without a name"));
    }));
}

fn place(info: &PanicHookInfo<'_>) -> String {
    let Some(place) = info.location() else { return "a place unknown".to_owned() };
    // For a dependency its own folder is enough: the path on the build machine is of no use to a reader.
    let file = place.file().split_once("/registry/src/").and_then(|(_, rest)| rest.split_once('/'));
    format!("{}:{}", file.map_or(place.file(), |(_, file)| file), place.line())
}

/// A panic's message as one bounded line.
fn message(payload: &(dyn Any + Send)) -> String {
    let text = match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (_, Some(text)) => text.as_str(),
        _ => "no message",
    };
    text.chars().take(MESSAGE_CHARS_MAX).map(|char| if char.is_control() { ' ' } else { char }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{blocking, joined, unbroken};

    #[test]
    fn a_panic_ends_where_it_is_caught() {
        assert_eq!(caught(|| 7).unwrap(), 7);
        let panicked = caught(|| -> u32 { panic!("on\n{}", "purpose") }).unwrap_err();
        assert!(panicked.say().starts_with("on purpose"));
        let through = caught(|| caught(|| unwind("a page".to_owned())).unwrap_err().go_on()).unwrap_err();
        assert_eq!(through.say(), "a page");
        assert_eq!(
            caught(|| panic!("{}", "x".repeat(5000))).unwrap_err().say().chars().filter(|c| *c == 'x').count(),
            300
        );
    }

    #[tokio::test]
    async fn work_elsewhere_that_panics_does_so_in_whoever_waits_and_nowhere_else() {
        let job = caught_in(Box::pin(blocking(|| -> u32 { panic!("job") }))).await;
        assert!(job.unwrap_err().say().starts_with("job"));
        let task: Result<(), _> = caught_in(Box::pin(unbroken(async { panic!("task") }))).await;
        assert!(task.unwrap_err().say().starts_with("task"));
        let mut set = tokio::task::JoinSet::new();
        set.spawn(async { panic!("one of several") });
        let all: Result<(), _> = caught_in(Box::pin(async move {
            while let Some(done) = set.join_next().await {
                joined(done);
            }
        }))
        .await;
        assert!(all.unwrap_err().say().starts_with("one of several"));
        // The pool's threads are all there.
        assert_eq!(blocking(|| 7).await, 7);
    }
}
