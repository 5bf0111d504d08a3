//! Audits the book: an allocator that counts live heap bytes, and what the kernel says about the process.
//!
//! Every thread counts for itself and adds to the sum whenever it is `BATCH_BYTES` off, so an allocation costs no
//! shared cache line; the sum and its high-water mark are exact to `BATCH_BYTES` for each thread.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::sync::atomic::{AtomicIsize, Ordering};

use super::heap::Heap;

const BATCH_BYTES: isize = 4096;

static LIVE: AtomicIsize = AtomicIsize::new(0);
static HIGH: AtomicIsize = AtomicIsize::new(0);

thread_local! {
    // Const-initialised and without a destructor, so reading it never allocates.
    static PENDING: Cell<isize> = const { Cell::new(0) };
}

static HEAP: Heap = Heap::new();

/// The process's allocator: the heap of `heap.rs`, counted.
pub struct Meter;

// SAFETY: every call is handed on unchanged to the heap, which upholds the contract; counting touches no memory
// that was allocated.
unsafe impl GlobalAlloc for Meter {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        HEAP.alloc(layout)
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        unsafe { HEAP.dealloc(at, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        HEAP.alloc_zeroed(layout)
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        unsafe { HEAP.realloc(at, layout, size) }
    }
}

/// Has the kernel make no huge pages of ours: one byte in use would keep two MiB. Call it first.
pub fn no_huge_pages() {
    // A kernel without huge pages refuses, and needs no telling.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}

fn count(bytes: isize) {
    // A thread that is going down has no counter any more; its last few bytes go straight to the sum.
    let counted = PENDING.try_with(|pending| {
        let sum = pending.get() + bytes;
        if sum.unsigned_abs() < BATCH_BYTES as usize {
            pending.set(sum);
        } else {
            pending.set(0);
            settle(sum);
        }
    });
    if counted.is_err() {
        settle(bytes);
    }
}

fn settle(bytes: isize) {
    let live = LIVE.fetch_add(bytes, Ordering::Relaxed) + bytes;
    if live > HIGH.load(Ordering::Relaxed) {
        HIGH.fetch_max(live, Ordering::Relaxed);
    }
}

/// Heap bytes allocated and not freed yet.
pub fn live_bytes() -> u64 {
    LIVE.load(Ordering::Relaxed).max(0) as u64
}

/// The most heap bytes that were live at once since the start or since `reset_high_water`.
pub fn high_water_bytes() -> u64 {
    HIGH.load(Ordering::Relaxed).max(0) as u64
}

/// Starts a new measurement of the high-water mark, for tests.
pub fn reset_high_water() {
    HIGH.store(LIVE.load(Ordering::Relaxed), Ordering::Relaxed);
}

/// What the kernel says the process occupies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resident {
    /// Resident bytes now (`VmRSS`).
    pub now_bytes: u64,
    /// The most there ever were (`VmHWM`).
    pub high_water_bytes: u64,
}

/// Reads the process's resident memory; zeros on a system without `/proc`.
pub fn resident() -> Resident {
    std::fs::read_to_string("/proc/self/status").map(|text| parse_status(&text)).unwrap_or_default()
}

fn parse_status(text: &str) -> Resident {
    let kib = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':').trim().trim_end_matches(" kB").trim().parse::<u64>().ok()
    };
    let bytes = |name| kib(name).unwrap_or(0) * 1024;
    // The kernel brings its mark up to date now and then only.
    Resident { now_bytes: bytes("VmRSS"), high_water_bytes: bytes("VmHWM").max(bytes("VmRSS")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_is_live() {
        let before = live_bytes();
        let block = vec![1u8; 10 << 20];
        assert!(live_bytes() >= before + (9 << 20));
        assert!(high_water_bytes() >= 10 << 20);
        drop(block);
        let resident = resident();
        assert!(resident.high_water_bytes >= resident.now_bytes && resident.now_bytes > 0);
    }

    #[test]
    fn reads_the_kernels_words() {
        let text = "Name:\tsnug\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        assert_eq!(parse_status(text), Resident { now_bytes: 1 << 20, high_water_bytes: 2 << 20 });
        assert_eq!(parse_status("VmHWM:\t1 kB\nVmRSS:\t2 kB\n").high_water_bytes, 2 << 10);
    }
}
