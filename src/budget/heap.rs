//! The process's heap: blocks of one size lie together in slabs, all threads share them, and pages go back to the
//! kernel as soon as they are unused.
//!
//! General allocators keep pages for each thread and each size, and give them back late: after a large join that was
//! more than the join itself. This one keeps at most [`EMPTY_BYTES_MAX`] of empty pages for each size, so that resident
//! memory stays near the allocated bytes. The price is a lock for each size, some 20 ns an operation.
//!
//! ```text
//! 1 to 16 KiB    a slab of 64 KiB: header with a bit for each block, then blocks of one size; the lowest free one is taken
//! more           a mapping of its own, gone when it is freed but for the last few small ones
//! ```
//!
//! A deallocation gives its size (`Layout`), so no size is stored beside a block. Headers lie in their slab. Slabs come
//! from chunks of address space that are never given back: untouched pages of them cost nothing.

use std::alloc::Layout;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};

use rustix::mm::{Advice, MapFlags, MremapFlags, ProtFlags, madvise, mmap_anonymous, mremap, munmap};

/// The largest block that lies in a slab; a larger one has a mapping of its own.
const BLOCK_BYTES_MAX: usize = 16 << 10;
const SLAB_BYTES: usize = 64 << 10;
/// Address space taken from the kernel at once.
const CHUNK_BYTES: usize = 4 << 20;
const SLABS_PER_CHUNK: usize = CHUNK_BYTES / SLAB_BYTES;
/// 4 GiB of blocks; a process that needs more has outgrown every board.
const CHUNKS_MAX: usize = 1024;
/// Every block is aligned to this.
const ALIGN: usize = 16;
/// Empty pages of one size that stay, beside those of one block: otherwise a block taken and freed by turns at the edge
/// of a page would cost two system calls each time.
const EMPTY_BYTES_MAX: usize = 16 << 10;
/// The last freed mappings stay for requests of the same size: this many, of this many bytes at most.
const KEPT_MAX: usize = 4;
const KEPT_BYTES_MAX: usize = 64 << 10;

/// Steps of 16 bytes up to 128, then eight for each doubling: at most an eighth of a block is unused.
const STEPPED: usize = 64;
/// A size of its own for the database's pages, each of 4 KiB with the 16 bytes that count its owners.
const PAGE_CLASS: usize = STEPPED;
const PAGE_BLOCK_BYTES: usize = (4 << 10) + 16;
const CLASSES: usize = STEPPED + 1;

const fn class_of(bytes: usize) -> usize {
    if bytes <= 128 {
        return bytes.saturating_sub(1) / 16;
    }
    if bytes > 4 << 10 && bytes <= PAGE_BLOCK_BYTES {
        return PAGE_CLASS;
    }
    let doubling = (bytes - 1).ilog2() as usize;
    8 + (doubling - 7) * 8 + ((bytes - 1) >> (doubling - 3) & 7)
}

const fn block_bytes(class: usize) -> usize {
    match class {
        PAGE_CLASS => PAGE_BLOCK_BYTES,
        0..8 => (class + 1) * 16,
        _ => (9 + class % 8) << (3 + class / 8),
    }
}

/// How the blocks of one size lie in a slab.
#[derive(Clone, Copy)]
struct Shape {
    bytes: usize,
    /// Of the first block. A power of two, when the size is one, so that such blocks are aligned to their size.
    offset: usize,
    blocks: usize,
}

impl Shape {
    const fn of(class: usize) -> Shape {
        let bytes = block_bytes(class);
        let header = size_of::<Slab>();
        let words = (SLAB_BYTES / bytes).div_ceil(64);
        let header = (header + words * 8).next_multiple_of(ALIGN);
        let offset = if bytes.is_power_of_two() { header.next_multiple_of(bytes) } else { header };
        Shape { bytes, offset, blocks: (SLAB_BYTES - offset) / bytes }
    }

    const fn words(&self) -> usize {
        self.blocks.div_ceil(64)
    }

    /// The blocks that lie in the bytes from `start` to `end` of a slab, wholly or in part.
    fn blocks_within(&self, start: usize, end: usize) -> std::ops::Range<usize> {
        let first = start.saturating_sub(self.offset) / self.bytes;
        let last = end.saturating_sub(self.offset).div_ceil(self.bytes);
        first..last.min(self.blocks)
    }
}

const SHAPES: [Shape; CLASSES] = {
    let mut shapes = [Shape { bytes: 0, offset: 0, blocks: 0 }; CLASSES];
    let mut class = 0;
    while class < CLASSES {
        shapes[class] = Shape::of(class);
        class += 1;
    }
    shapes
};

/// The head of a slab; behind it a word of bits for every 64 blocks, where a bit that is set is a free block.
struct Slab {
    next: *mut Slab,
    previous: *mut Slab,
    free: u32,
    /// No word before this one has a free block.
    first_free_word: u32,
    /// Empty pages that may still be resident, counted from the slab's start.
    empty_pages: u32,
}

impl Slab {
    unsafe fn bits<'a>(slab: *mut Slab, words: usize) -> &'a mut [u64] {
        // SAFETY: the words lie behind the head; the caller has the lock of the slab's size.
        unsafe { std::slice::from_raw_parts_mut(slab.add(1).cast::<u64>(), words) }
    }
}

/// The slabs of one size that have a free block: those that were full most recently come first, as they are the fullest.
struct Class {
    first: *mut Slab,
    /// Bytes of pages noted as empty in all slabs of this size.
    empty_bytes: usize,
}

/// Address space and which slabs of it are free, a bit each.
struct Chunks {
    bases: [usize; CHUNKS_MAX],
    free: [u64; CHUNKS_MAX],
    count: usize,
}

/// A heap. There is one for the process, and others in tests.
pub struct Heap {
    classes: [Mutex<Class>; CLASSES],
    chunks: Mutex<Chunks>,
    /// Bytes in mappings of their own that are in use.
    mapped: AtomicUsize,
    /// Mappings not in use: address and bytes.
    kept: Mutex<[(usize, usize); KEPT_MAX]>,
    page_bytes: AtomicUsize,
}

// SAFETY: the pointers are only followed under the locks they lie in.
unsafe impl Sync for Heap {}
unsafe impl Send for Class {}

impl Heap {
    pub const fn new() -> Heap {
        Heap {
            classes: [const { Mutex::new(Class { first: null_mut(), empty_bytes: 0 }) }; CLASSES],
            chunks: Mutex::new(Chunks { bases: [0; CHUNKS_MAX], free: [0; CHUNKS_MAX], count: 0 }),
            mapped: AtomicUsize::new(0),
            kept: Mutex::new([(0, 0); KEPT_MAX]),
            page_bytes: AtomicUsize::new(0),
        }
    }

    /// Null when there is no memory.
    pub fn alloc(&self, layout: Layout) -> *mut u8 {
        match class_of_layout(layout) {
            Some(class) => self.take(class),
            None => self.map(layout).0,
        }
    }

    pub fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let block = match class_of_layout(layout) {
            Some(class) => self.take(class),
            None => match self.map(layout) {
                (block, true) => return block,
                (block, false) => block,
            },
        };
        if !block.is_null() {
            // SAFETY: the block has at least this many bytes.
            unsafe { block.write_bytes(0, layout.size()) };
        }
        block
    }

    /// # Safety
    /// `block` was allocated here with this layout and is not used any more.
    pub unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match class_of_layout(layout) {
            // SAFETY: handed on.
            Some(class) => unsafe { self.give(class, block) },
            None => unsafe { self.unmap(block, layout.size()) },
        }
    }

    /// # Safety
    /// As for [`Heap::dealloc`], where it succeeds; `bytes` is not zero.
    pub unsafe fn realloc(&self, block: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // SAFETY: a layout's alignment with another size; sizes near the address space's end are refused by `map`.
        let wanted = unsafe { Layout::from_size_align_unchecked(bytes, layout.align()) };
        match (class_of_layout(layout), class_of_layout(wanted)) {
            (Some(one), Some(other)) if one == other => block,
            (None, None) if layout.align() <= self.page_bytes() => unsafe { self.remap(block, layout.size(), bytes) },
            _ => {
                let moved = self.alloc(wanted);
                if !moved.is_null() {
                    // SAFETY: both have at least this many bytes and are different blocks.
                    unsafe {
                        moved.copy_from_nonoverlapping(block, layout.size().min(bytes));
                        self.dealloc(block, layout);
                    }
                }
                moved
            }
        }
    }

    fn take(&self, class: usize) -> *mut u8 {
        let shape = &SHAPES[class];
        let mut list = lock(&self.classes[class]);
        if list.first.is_null() {
            match self.new_slab(shape) {
                Some(slab) => list.first = slab,
                None => return null_mut(),
            }
        }
        let slab = list.first;
        // SAFETY: a listed slab has a head, bits, and a free block; the lock is held.
        unsafe {
            let bits = Slab::bits(slab, shape.words());
            let mut word = (*slab).first_free_word as usize;
            while bits[word] == 0 {
                word += 1;
            }
            (*slab).first_free_word = word as u32;
            let block = word * 64 + bits[word].trailing_zeros() as usize;
            bits[word] &= bits[word] - 1;
            (*slab).free -= 1;
            if (*slab).free == 0 {
                unlink(&mut list, slab);
            }
            let start = shape.offset + block * shape.bytes;
            if (*slab).empty_pages != 0 {
                self.note_used(&mut list, slab, start, start + shape.bytes);
            }
            slab.cast::<u8>().add(start)
        }
    }

    unsafe fn give(&self, class: usize, block: *mut u8) {
        let shape = &SHAPES[class];
        let slab = block.map_addr(|address| address & !(SLAB_BYTES - 1)).cast::<Slab>();
        let start = block.addr() - slab.addr();
        let index = (start - shape.offset) / shape.bytes;
        let mut list = lock(&self.classes[class]);
        // SAFETY: the block lies in a slab of its size; the lock is held.
        unsafe {
            let bits = Slab::bits(slab, shape.words());
            debug_assert!(bits[index / 64] & 1 << (index % 64) == 0, "a block is freed once");
            bits[index / 64] |= 1 << (index % 64);
            (*slab).first_free_word = (*slab).first_free_word.min((index / 64) as u32);
            (*slab).free += 1;
            if (*slab).free == 1 {
                push(&mut list, slab);
            }
            if (*slab).free as usize == shape.blocks && !(*slab).is_alone() {
                unlink(&mut list, slab);
                list.empty_bytes -= (*slab).empty_pages.count_ones() as usize * self.page_bytes();
                drop(list);
                self.drop_slab(slab);
                return;
            }
            self.note_empty(&mut list, slab, shape, bits, start);
        }
    }

    /// Notes the pages that a freed block leaves empty, and gives them back when there are many.
    unsafe fn note_empty(&self, list: &mut Class, slab: *mut Slab, shape: &Shape, bits: &[u64], start: usize) {
        let page = self.page_bytes();
        // The head's page is always in use.
        for number in (start / page).max(1)..(start + shape.bytes).div_ceil(page).min(SLAB_BYTES / page) {
            let blocks = shape.blocks_within(number * page, (number + 1) * page);
            // SAFETY: the caller has the lock.
            unsafe {
                if (*slab).empty_pages & 1 << number == 0 && all_free(bits, blocks) {
                    (*slab).empty_pages |= 1 << number;
                    list.empty_bytes += page;
                }
            }
        }
        if list.empty_bytes > EMPTY_BYTES_MAX + shape.bytes {
            // SAFETY: as above; no block is in these pages.
            unsafe {
                let pages = std::mem::take(&mut (*slab).empty_pages);
                list.empty_bytes -= pages.count_ones() as usize * page;
                for (first, end) in runs(pages) {
                    give_back(slab.cast::<u8>().add(first * page), (end - first) * page);
                }
            }
        }
    }

    /// The bytes from `start` to `end` are used from now on.
    unsafe fn note_used(&self, list: &mut Class, slab: *mut Slab, start: usize, end: usize) {
        let page = self.page_bytes();
        let (first, last) = (start / page, (end - 1) / page);
        let mask = (u32::MAX >> (31 - last)) & (u32::MAX << first);
        // SAFETY: the caller has the lock.
        unsafe {
            list.empty_bytes -= ((*slab).empty_pages & mask).count_ones() as usize * page;
            (*slab).empty_pages &= !mask;
        }
    }

    fn new_slab(&self, shape: &Shape) -> Option<*mut Slab> {
        let slab = lock(&self.chunks).take()?;
        // SAFETY: fresh memory of a slab's size and alignment, which is all zero.
        unsafe {
            let head = Slab {
                next: null_mut(),
                previous: null_mut(),
                free: shape.blocks as u32,
                first_free_word: 0,
                empty_pages: 0,
            };
            slab.write(head);
            let bits = Slab::bits(slab, shape.words());
            bits.fill(u64::MAX);
            if !shape.blocks.is_multiple_of(64) {
                bits[shape.words() - 1] = (1 << (shape.blocks % 64)) - 1;
            }
        }
        Some(slab)
    }

    unsafe fn drop_slab(&self, slab: *mut Slab) {
        // SAFETY: no block is in use in it, and it is on no list. Given back before others may take it.
        unsafe { give_back(slab.cast(), SLAB_BYTES) };
        lock(&self.chunks).give(slab.addr());
    }

    fn page_bytes(&self) -> usize {
        match self.page_bytes.load(Ordering::Relaxed) {
            0 => {
                let bytes = rustix::param::page_size();
                self.page_bytes.store(bytes, Ordering::Relaxed);
                bytes
            }
            bytes => bytes,
        }
    }

    /// A mapping, and whether it is all zero.
    fn map(&self, layout: Layout) -> (*mut u8, bool) {
        let page = self.page_bytes();
        let Some(bytes) = layout.size().checked_next_multiple_of(page) else { return (null_mut(), true) };
        if let Some(block) = self.kept_mapping(bytes, layout.align()) {
            self.mapped.fetch_add(bytes, Ordering::Relaxed);
            return (block, false);
        }
        let Some(block) = map_aligned(bytes, layout.align(), page) else { return (null_mut(), true) };
        self.mapped.fetch_add(bytes, Ordering::Relaxed);
        (block.as_ptr(), true)
    }

    fn kept_mapping(&self, bytes: usize, align: usize) -> Option<*mut u8> {
        if bytes > KEPT_BYTES_MAX {
            return None;
        }
        let mut kept = lock(&self.kept);
        let one = kept.iter_mut().find(|(at, length)| *length == bytes && at.is_multiple_of(align))?;
        Some(std::ptr::with_exposed_provenance_mut(std::mem::take(one).0))
    }

    unsafe fn unmap(&self, block: *mut u8, bytes: usize) {
        let bytes = bytes.next_multiple_of(self.page_bytes());
        self.mapped.fetch_sub(bytes, Ordering::Relaxed);
        if bytes <= KEPT_BYTES_MAX {
            let mut kept = lock(&self.kept);
            if let Some(place) = kept.iter_mut().find(|(_, length)| *length == 0) {
                *place = (block.expose_provenance(), bytes);
                return;
            }
            // The mapping kept longest is dropped, so that sizes of an hour ago do not stay for ever.
            kept.rotate_left(1);
            let (old, old_bytes) = std::mem::replace(&mut kept[KEPT_MAX - 1], (block.expose_provenance(), bytes));
            drop(kept);
            // SAFETY: a mapping of ours that is not in use.
            unsafe { drop_mapping(std::ptr::with_exposed_provenance_mut(old), old_bytes) };
            return;
        }
        // SAFETY: the caller's.
        unsafe { drop_mapping(block, bytes) };
    }

    unsafe fn remap(&self, block: *mut u8, old: usize, new: usize) -> *mut u8 {
        let page = self.page_bytes();
        let (old, Some(new)) = (old.next_multiple_of(page), new.checked_next_multiple_of(page)) else {
            return null_mut();
        };
        if old == new {
            return block;
        }
        // SAFETY: a mapping of ours, which nothing else refers to.
        match unsafe { mremap(block.cast(), old, new, MremapFlags::MAYMOVE) } {
            Ok(moved) => {
                self.mapped.fetch_add(new, Ordering::Relaxed);
                self.mapped.fetch_sub(old, Ordering::Relaxed);
                moved.cast()
            }
            Err(_) => null_mut(),
        }
    }

    /// Bytes in mappings of their own, whole pages.
    #[cfg(test)]
    fn mapped_bytes(&self) -> usize {
        self.mapped.load(Ordering::Relaxed)
    }
}

/// The size class of a layout, or `None` for a mapping of its own.
fn class_of_layout(layout: Layout) -> Option<usize> {
    let bytes = if layout.align() <= ALIGN {
        layout.size()
    } else {
        // Blocks whose size is a power of two are aligned to it.
        layout.size().max(layout.align()).checked_next_power_of_two()?
    };
    (bytes <= BLOCK_BYTES_MAX).then(|| class_of(bytes))
}

impl Slab {
    /// The slab is the only one of its list.
    fn is_alone(&self) -> bool {
        self.next.is_null() && self.previous.is_null()
    }
}

unsafe fn push(list: &mut Class, slab: *mut Slab) {
    // SAFETY: the caller has the lock, and the slab is on no list.
    unsafe {
        (*slab).next = list.first;
        (*slab).previous = null_mut();
        if !list.first.is_null() {
            (*list.first).previous = slab;
        }
    }
    list.first = slab;
}

unsafe fn unlink(list: &mut Class, slab: *mut Slab) {
    // SAFETY: the caller has the lock, and the slab is on this list.
    unsafe {
        let (next, previous) = ((*slab).next, (*slab).previous);
        if !next.is_null() {
            (*next).previous = previous;
        }
        if previous.is_null() {
            list.first = next;
        } else {
            (*previous).next = next;
        }
        ((*slab).next, (*slab).previous) = (null_mut(), null_mut());
    }
}

fn all_free(bits: &[u64], blocks: std::ops::Range<usize>) -> bool {
    let mut at = blocks.start;
    while at < blocks.end {
        let (word, from) = (at / 64, at % 64);
        let count = (blocks.end - at).min(64 - from);
        let mask = (u64::MAX >> (64 - count)) << from;
        if bits[word] & mask != mask {
            return false;
        }
        at += count;
    }
    true
}

/// The runs of set bits, each as its first bit and the one after its last.
fn runs(mut bits: u32) -> impl Iterator<Item = (usize, usize)> {
    std::iter::from_fn(move || {
        (bits != 0).then(|| {
            let first = bits.trailing_zeros();
            let length = (bits >> first).trailing_ones();
            bits &= !(((1u64 << length) - 1) as u32).wrapping_shl(first);
            (first as usize, (first + length) as usize)
        })
    })
}

/// Returns pages to the kernel; afterwards they read as zero.
unsafe fn give_back(start: *mut u8, bytes: usize) {
    // SAFETY: the caller's: no block is in these pages. On failure the pages stay, which only costs memory.
    let _ = unsafe { madvise(start.cast(), bytes, Advice::LinuxDontNeed) };
}

/// Gives a mapping up. It fails only when the kernel would exceed its number of mappings; the pages go back all the
/// same then.
unsafe fn drop_mapping(start: *mut u8, bytes: usize) {
    // SAFETY: the caller's: the mapping is not used any more.
    unsafe {
        if munmap(start.cast(), bytes).is_err() {
            give_back(start, bytes);
        }
    }
}

/// A mapping of whole pages, aligned.
fn map_aligned(bytes: usize, align: usize, page: usize) -> Option<NonNull<u8>> {
    let spare = if align > page { align } else { 0 };
    let all = bytes.checked_add(spare).filter(|all| isize::try_from(*all).is_ok())?;
    // SAFETY: a new mapping at an address of the kernel's choice; the trimmed parts are ours and unused.
    unsafe {
        let start = mmap_anonymous(null_mut(), all, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE).ok()?;
        let start: *mut u8 = start.cast();
        if spare == 0 {
            return NonNull::new(start);
        }
        let before = start.addr().next_multiple_of(align) - start.addr();
        if before > 0 {
            let _ = munmap(start.cast(), before);
        }
        if spare > before {
            let _ = munmap(start.add(before + bytes).cast(), spare - before);
        }
        NonNull::new(start.add(before))
    }
}

impl Chunks {
    /// A free slab, of the chunk lowest in the list that has one.
    fn take(&mut self) -> Option<*mut Slab> {
        let chunk = match self.free[..self.count].iter().position(|free| *free != 0) {
            Some(chunk) => chunk,
            None => self.grow()?,
        };
        let slab = self.free[chunk].trailing_zeros() as usize;
        self.free[chunk] &= self.free[chunk] - 1;
        Some(std::ptr::with_exposed_provenance_mut(self.bases[chunk] + slab * SLAB_BYTES))
    }

    fn give(&mut self, address: usize) {
        let of = |base: &usize| (*base..*base + CHUNK_BYTES).contains(&address);
        if let Some(chunk) = self.bases[..self.count].iter().position(of) {
            self.free[chunk] |= 1 << ((address - self.bases[chunk]) / SLAB_BYTES);
        }
    }

    fn grow(&mut self) -> Option<usize> {
        const { assert!(SLABS_PER_CHUNK == 64) };
        if self.count == CHUNKS_MAX {
            return None;
        }
        let base = map_aligned(CHUNK_BYTES, SLAB_BYTES, 4 << 10)?;
        self.bases[self.count] = base.as_ptr().expose_provenance();
        self.free[self.count] = u64::MAX;
        self.count += 1;
        Some(self.count - 1)
    }
}

/// The standard library's locks: parking_lot allocates when a thread waits, and this is the allocator. No code panics
/// while one of them is held, so none is ever poisoned.
fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Random;

    #[test]
    fn every_size_has_a_class_that_wastes_little() {
        for bytes in 1..=BLOCK_BYTES_MAX {
            let block = block_bytes(class_of(bytes));
            assert!(block >= bytes && block - bytes <= (bytes / 8).max(15), "{bytes} in {block}");
        }
        assert_eq!(block_bytes(class_of((4 << 10) + 16)), (4 << 10) + 16);
        for (class, shape) in SHAPES.iter().enumerate() {
            assert_eq!(class_of(shape.bytes), class);
            let header = size_of::<Slab>() + 8 * shape.words();
            assert!(shape.offset >= header && shape.offset % ALIGN == 0 && shape.blocks >= 3, "{class}");
            assert!(shape.offset + shape.blocks * shape.bytes <= SLAB_BYTES, "{class}");
        }
    }

    struct Held {
        block: *mut u8,
        layout: Layout,
        mark: u8,
    }

    // SAFETY: the block has no other user.
    unsafe impl Send for Held {}

    impl Held {
        fn new(heap: &Heap, layout: Layout, mark: u8) -> Held {
            let block = if mark & 1 == 0 { heap.alloc(layout) } else { heap.alloc_zeroed(layout) };
            assert!(!block.is_null() && block.addr() % layout.align() == 0, "{layout:?}");
            let bytes = unsafe { std::slice::from_raw_parts_mut(block, layout.size()) };
            assert!(mark & 1 == 0 || bytes.iter().all(|byte| *byte == 0), "{layout:?} is not zeroed");
            bytes.fill(mark);
            Held { block, layout, mark }
        }

        fn check(&self) {
            let bytes = unsafe { std::slice::from_raw_parts(self.block, self.layout.size()) };
            assert!(bytes.iter().all(|byte| *byte == self.mark), "somebody wrote into {:?}", self.layout);
        }

        fn resize(&mut self, heap: &Heap, bytes: usize) {
            self.check();
            self.block = unsafe { heap.realloc(self.block, self.layout, bytes) };
            let kept = self.layout.size().min(bytes);
            self.layout = Layout::from_size_align(bytes, self.layout.align()).unwrap();
            let all = unsafe { std::slice::from_raw_parts_mut(self.block, bytes) };
            assert!(all[..kept].iter().all(|byte| *byte == self.mark), "a block keeps what is in it");
            all.fill(self.mark);
        }

        fn free(self, heap: &Heap) {
            self.check();
            unsafe { heap.dealloc(self.block, self.layout) };
        }
    }

    fn layout(random: &Random) -> Layout {
        let most = [64, 600, 5_000, 20_000, 300_000][random.below(5) as usize];
        let align = if random.below(8) == 0 { 1 << random.below(14) } else { 8 };
        Layout::from_size_align(1 + random.below(most) as usize, align).unwrap()
    }

    /// Takes, changes and frees blocks of all sizes against a plain model.
    fn churn(heap: &Heap, seed: u64, steps: usize, mut held: Vec<Held>) -> Vec<Held> {
        let random = Random::seeded(seed);
        for step in 0..steps {
            match random.below(5) {
                0..=1 if held.len() < 400 => held.push(Held::new(heap, layout(&random), step as u8)),
                2 if !held.is_empty() => {
                    let at = random.below(held.len() as u64) as usize;
                    held[at].resize(heap, layout(&random).size());
                }
                _ if !held.is_empty() => held.swap_remove(random.below(held.len() as u64) as usize).free(heap),
                _ => {}
            }
        }
        held
    }

    #[test]
    fn blocks_are_apart_and_keep_what_is_in_them() {
        let heap = Heap::new();
        for one in churn(&heap, 1, 40_000, Vec::new()) {
            one.free(&heap);
        }
        assert_eq!(heap.mapped_bytes(), 0);
    }

    #[test]
    fn blocks_may_be_freed_in_other_threads() {
        let heap = Heap::new();
        let mut rounds: Vec<Vec<Held>> = (0..4).map(|_| Vec::new()).collect();
        for round in 0..4 {
            rounds = std::thread::scope(|scope| {
                let threads: Vec<_> = rounds
                    .drain(..)
                    .enumerate()
                    .map(|(at, held)| {
                        let heap = &heap;
                        scope.spawn(move || churn(heap, round * 4 + at as u64, 4_000, held))
                    })
                    .collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            rounds.rotate_left(1);
        }
        rounds.into_iter().flatten().for_each(|one| one.free(&heap));
        assert_eq!(heap.mapped_bytes(), 0);
    }

    /// Resident bytes of a heap's slabs, as the kernel reports them.
    fn resident(heap: &Heap) -> usize {
        let chunks = lock(&heap.chunks);
        let page = heap.page_bytes();
        let of = |base: &usize| {
            let mut pages = vec![0u8; CHUNK_BYTES / page];
            unsafe extern "C" {
                fn mincore(at: *mut std::ffi::c_void, bytes: usize, pages: *mut u8) -> std::ffi::c_int;
            }
            assert_eq!(unsafe { mincore(std::ptr::without_provenance_mut(*base), CHUNK_BYTES, pages.as_mut_ptr()) }, 0);
            pages.iter().filter(|page| **page & 1 == 1).count() * page
        };
        chunks.bases[..chunks.count].iter().map(of).sum()
    }

    /// After many MiB shrink to a tenth, little more than a tenth is resident.
    #[test]
    fn what_is_freed_goes_back_to_the_kernel() {
        let heap = Heap::new();
        let random = Random::seeded(7);
        let most = |live: usize| live + live / 4 + CLASSES * (EMPTY_BYTES_MAX + (8 << 10));
        let sizes = [24, 100, 250, 700, 1_500, 4_112, 9_000];
        let mut held = Vec::new();
        let mut live = 0;
        while live < 16 << 20 {
            let layout = Layout::from_size_align(sizes[random.below(7) as usize], 8).unwrap();
            live += layout.size();
            held.push(Held::new(&heap, layout, 1));
        }
        assert!(resident(&heap) <= most(live), "{} resident of {live}", resident(&heap));
        // The first tenth stays: long-lived blocks were there before the short-lived ones.
        for one in held.drain(held.len() / 10..) {
            live -= one.layout.size();
            one.free(&heap);
        }
        assert!(resident(&heap) <= most(live), "{} resident of {live}", resident(&heap));
        held.into_iter().for_each(|one| one.free(&heap));
        assert!(resident(&heap) <= most(0), "{} resident of nothing", resident(&heap));
    }
}
