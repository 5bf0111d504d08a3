//! Audits the book: an allocator that counts live heap bytes, and the kernel's figures about the process.
//!
//! Every thread counts for itself and adds to the sum whenever it is `BATCH_BYTES` off, so an allocation costs no
//! shared cache line; the sum and its high-water mark are exact to `BATCH_BYTES` for each thread.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::sync::atomic::{AtomicIsize, AtomicU64, Ordering};
use std::time::Duration;

use super::heap::Heap;
use crate::base::{Clock, WORK, Worker};

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
        // Counted after the free: pages that the kernel is still taking back are not gone yet.
        unsafe { HEAP.dealloc(at, layout) };
        count(-(layout.size() as isize));
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        HEAP.alloc_zeroed(layout)
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let moved = unsafe { HEAP.realloc(at, layout, size) };
        count(size as isize - layout.size() as isize);
        moved
    }
}

/// Asks the kernel for no huge pages: one byte in use would keep two MiB. Call it first.
pub fn no_huge_pages() {
    // A kernel without huge pages refuses the call, which does no harm.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}

/// Has the C library keep one heap for all threads, and give large blocks back at once: by itself it makes a heap for nearly
/// each thread, and keeps what was freed in every one of them. Compression alone allocates there. Call it first, before
/// there are threads.
pub fn one_heap_of_c() {
    #[cfg(target_env = "gnu")]
    {
        use std::ffi::c_int;
        unsafe extern "C" {
            fn mallopt(parameter: c_int, value: c_int) -> c_int;
        }
        // From glibc's malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX.
        for (parameter, value) in [(-1, 64 << 10), (-3, 64 << 10), (-8, 1)] {
            // SAFETY: the C library's own settings, with their signature; it may refuse one, which does no harm.
            unsafe { mallopt(parameter, value) };
        }
    }
}

fn count(bytes: isize) {
    // A thread that is ending has no counter any more; its last few bytes go straight to the sum.
    let counted = PENDING.try_with(|pending| {
        let sum = pending.get() + bytes;
        if sum.unsigned_abs() < BATCH_BYTES as usize {
            pending.set(sum);
        } else {
            pending.set(0);
            add_to_live(sum);
        }
    });
    if counted.is_err() {
        add_to_live(bytes);
    }
}

fn add_to_live(bytes: isize) {
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

/// The kernel's figures for the memory of the process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resident {
    /// Resident bytes now (`VmRSS`).
    pub now_bytes: u64,
    /// The most that was ever resident (`VmHWM`).
    pub high_water_bytes: u64,
}

/// Reads the process's resident memory; zeros on a system without `/proc`.
pub fn resident() -> Resident {
    std::fs::read_to_string("/proc/self/status").map(|text| parse_status(&text)).unwrap_or_default()
}

/// Bytes that this process has had written to a disk; none on a system that does not count them.
pub fn disk_written_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/io").ok()?;
    text.lines().find_map(|line| line.strip_prefix("write_bytes:")?.trim().parse().ok())
}

/// A measure: its present value and its maximum.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Measured {
    pub now_bytes: u64,
    /// The maximum of all samples so far.
    pub high_water_bytes: u64,
}

static TEXT: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];
static ANONYMOUS: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];
static BESIDE: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];

/// Resident pages of the program's file and of its libraries, in the samples that [`keep_text_within`] takes.
pub fn text() -> Measured {
    measured(&TEXT)
}

/// Resident bytes that belong to no file.
pub fn anonymous() -> Measured {
    measured(&ANONYMOUS)
}

/// Resident bytes that are neither a file's nor allocated: stacks, and the slack of the heap.
pub fn beside() -> Measured {
    measured(&BESIDE)
}

fn measured([now, high]: &[AtomicU64; 2]) -> Measured {
    Measured { now_bytes: now.load(Ordering::Relaxed), high_water_bytes: high.load(Ordering::Relaxed) }
}

fn note([now, high]: &[AtomicU64; 2], bytes: u64) {
    now.store(bytes, Ordering::Relaxed);
    high.fetch_max(bytes, Ordering::Relaxed);
}

/// The time between two samples of the process, while its text grows, and at most while nothing is at work.
const SAMPLE_EVERY: Duration = Duration::from_millis(80);
const SAMPLE_GROWING_EVERY: Duration = Duration::from_millis(35);
const SAMPLE_QUIET_EVERY: Duration = Duration::from_secs(5);
/// So many samples without work and without growth: nothing is at work. A second's.
const QUIET_SAMPLES: u32 = 12;
/// Text grows when more than this of it came in since the sample before.
const GROWTH_BYTES: u64 = 512 << 10;

/// Growth of text allowed for between two samples; text goes back when no more than this is left of its share. Most that
/// was seen with everything at once, beside a compiler on both cores: 6.8 MiB.
const TEXT_BETWEEN_BYTES: u64 = 30 << 18;
/// A sample counts when less than this was allocated or freed during it, and when it took less than this long: on a busy
/// machine much may come and go while it waits for its turn.
const STEADY_BYTES: u64 = 128 << 10;
const STEADY: Duration = Duration::from_millis(2);

/// Measures the memory that no account pays for, and gives text back before more of it is resident than `text_bytes`:
/// text that does not run again stays out, and the rest comes back from the kernel's cache. Never ends.
/// A unit of the worker is one time that text was given back.
pub async fn keep_text_within(worker: &Worker, clock: Clock, text_bytes: u64) {
    let program = program_text();
    let mut last = 0;
    let mut quiet = 0;
    loop {
        let mut pause = SAMPLE_EVERY;
        // Bytes allocated or freed during the sample would count as slack, or would hide it.
        let (began, before) = (clock.instant(), live_bytes());
        if let Some((file, anonymous)) = sample() {
            note(&TEXT, file);
            note(&ANONYMOUS, anonymous);
            let is_steady = before.abs_diff(live_bytes()) < STEADY_BYTES;
            if is_steady && clock.instant().saturating_sub(began) < STEADY {
                note(&BESIDE, anonymous.saturating_sub(before));
            }
            if file + TEXT_BETWEEN_BYTES > text_bytes {
                give_back(&program);
                worker.done(1);
                pause = SAMPLE_GROWING_EVERY;
            } else if file > last + GROWTH_BYTES {
                pause = SAMPLE_GROWING_EVERY;
            }
            quiet = if WORK.has_begun() || pause < SAMPLE_EVERY { 0 } else { quiet + 1 };
            last = file;
        }
        if quiet < QUIET_SAMPLES {
            worker.idle_for(pause);
            clock.sleep(pause).await;
        } else {
            // A little may come in meanwhile that is no work of the blocking pool, such as the beginning of connections:
            // far less than the growth that is allowed for.
            worker.idle_for(SAMPLE_QUIET_EVERY);
            clock.timeout(SAMPLE_QUIET_EVERY, WORK.until_it_begins()).await;
        }
    }
}

/// Resident bytes of files, and of no file.
fn sample() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let mut pages = text.split_whitespace().skip(1).map(|word| word.parse::<u64>().ok());
    let (resident, files) = (pages.next()??, pages.next()??);
    let page = rustix::param::page_size() as u64;
    Some((files * page, resident.saturating_sub(files) * page))
}

/// The address ranges of the code of the program and of its libraries. Never written to, so dropping a page loses
/// nothing.
fn program_text() -> Vec<std::ops::Range<usize>> {
    std::fs::read_to_string("/proc/self/maps").map(|maps| parse_maps(&maps)).unwrap_or_default()
}

fn parse_maps(maps: &str) -> Vec<std::ops::Range<usize>> {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let (range, rights) = (words.next()?, words.next()?);
        words.nth(3).filter(|file| file.starts_with('/') && rights == "r-xp")?;
        let (start, end) = range.split_once('-')?;
        Some(usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?)
    };
    maps.lines().filter_map(line).collect()
}

fn give_back(text: &[std::ops::Range<usize>]) {
    for range in text {
        let start = std::ptr::with_exposed_provenance_mut(range.start);
        // SAFETY: a private mapping of a file that is never written to; a page that is needed again is read from the
        // file. On failure the pages stay.
        let _ = unsafe { rustix::mm::madvise(start, range.len(), rustix::mm::Advice::LinuxDontNeed) };
    }
}

fn parse_status(text: &str) -> Resident {
    let kib = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':').trim().trim_end_matches(" kB").trim().parse::<u64>().ok()
    };
    let bytes = |name| kib(name).unwrap_or(0) * 1024;
    // The kernel updates its high-water mark only now and then.
    Resident { now_bytes: bytes("VmRSS"), high_water_bytes: bytes("VmHWM").max(bytes("VmRSS")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_is_live() {
        // So much that what other tests take and free meanwhile is little beside it; its pages are never touched.
        const BLOCK: u64 = 512 << 20;
        let before = live_bytes();
        let block = vec![0u8; BLOCK as usize];
        let (held, high) = (live_bytes(), high_water_bytes());
        assert!(held >= before + BLOCK / 2 && high >= BLOCK, "{before} {held} {high}");
        drop(block);
        let after = live_bytes();
        assert!(after + BLOCK / 2 <= held, "{held} {after}");
        let resident = resident();
        assert!(resident.high_water_bytes >= resident.now_bytes && resident.now_bytes > 0);
    }

    #[test]
    fn only_code_is_given_back() {
        let maps = "55e0-55f0 r--p 00000000 fe:00 12 /usr/bin/snug\n55f0-5600 r-xp 00010000 fe:00 12 /usr/bin/snug\n\
                    5600-5610 rw-p 00020000 fe:00 12 /usr/bin/snug\n7000-7010 r-xp 00000000 00:00 0 [vdso]\n\
                    7f00-7f10 r-xp 00001000 fe:00 34 /usr/lib/libc.so.6\n";
        assert_eq!(parse_maps(maps), [0x55f0..0x5600, 0x7f00..0x7f10]);
        let text = program_text();
        let here = only_code_is_given_back as fn() as usize;
        assert!(text.iter().any(|range| range.contains(&here)));
        let (before, _) = sample().unwrap();
        give_back(&text);
        assert!(before > 0 && sample().is_some(), "the code goes on");
    }

    #[test]
    fn reads_the_kernels_words() {
        let text = "Name:\tsnug\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        assert_eq!(parse_status(text), Resident { now_bytes: 1 << 20, high_water_bytes: 2 << 20 });
        assert_eq!(parse_status("VmHWM:\t1 kB\nVmRSS:\t2 kB\n").high_water_bytes, 2 << 10);
    }
}
