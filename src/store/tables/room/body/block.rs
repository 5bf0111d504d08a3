//! Compression under the shipped dictionary, without what every frame would repeat.
//!
//! A context of zstd holds 70 to 300 KiB that no account pays, so the threads share a few: any thread may take one, and
//! only when all are in use another is made, for this one text.

use std::sync::OnceLock;

use parking_lot::Mutex;
use zstd::bulk::{Compressor, Decompressor};
use zstd::dict::{DecoderDictionary, EncoderDictionary};

/// The dictionary of form 2; trained by a test on generated events, never changed once released.
const DICTIONARY_1: &[u8] = include_bytes!("../../../dictionary-1.zstd");

const LEVEL: i32 = 1;

/// The block that zstd makes of the text; `None` when its output has another shape.
pub(super) fn compress(text: &[u8]) -> Option<Vec<u8>> {
    static DICTIONARY: OnceLock<EncoderDictionary<'static>> = OnceLock::new();
    static CONTEXTS: Contexts<Compressor<'static>> = Contexts::new();
    let make = || {
        let dictionary = DICTIONARY.get_or_init(|| EncoderDictionary::copy(DICTIONARY_1, LEVEL));
        let mut compressor = Compressor::with_prepared_dictionary(dictionary).ok()?;
        compressor.include_contentsize(true).ok()?;
        compressor.include_dictid(false).ok()?;
        compressor.include_checksum(false).ok()?;
        Some(compressor)
    };
    CONTEXTS.with(make, |compressor, head| {
        let mut frame = compressor.compress(text).ok()?;
        frame_head(text.len(), 0, head);
        let length = frame.len().checked_sub(head.len())?;
        head.clear();
        frame_head(text.len(), length, head);
        frame.starts_with(head).then(|| frame.split_off(head.len()))
    })
}

/// The text of `length` bytes that became this block; `None` for a block that is not one of ours.
pub(super) fn decompress(block: &[u8], length: usize) -> Option<Vec<u8>> {
    static DICTIONARY: OnceLock<DecoderDictionary<'static>> = OnceLock::new();
    static CONTEXTS: Contexts<Decompressor<'static>> = Contexts::new();
    let make = || {
        let dictionary = DICTIONARY.get_or_init(|| DecoderDictionary::copy(DICTIONARY_1));
        Decompressor::with_prepared_dictionary(dictionary).ok()
    };
    CONTEXTS.with(make, |decompressor, frame| {
        frame_head(length, block.len(), frame);
        frame.extend_from_slice(block);
        let plain = decompressor.decompress(frame, length).ok()?;
        (plain.len() == length).then_some(plain)
    })
}

/// Every frame of ours begins in the same way except for its lengths, which the row has: the magic number, the
/// descriptor, the length of the content, and the header of its only block. None of that is stored.
fn frame_head(content: usize, block: usize, head: &mut Vec<u8>) {
    head.extend_from_slice(&[0x28, 0xb5, 0x2f, 0xfd]);
    match content {
        0..256 => head.extend_from_slice(&[0x20, content as u8]),
        256..65_792 => {
            head.push(0x60);
            head.extend_from_slice(&((content - 256) as u16).to_le_bytes());
        }
        _ => {
            head.push(0xa0);
            head.extend_from_slice(&(content as u32).to_le_bytes());
        }
    }
    // The last block, compressed.
    let block = (block as u32) << 3 | 2 << 1 | 1;
    head.extend_from_slice(&block.to_le_bytes()[..3]);
}

/// Contexts of one kind, each with a buffer.
struct Contexts<T>(Mutex<Vec<(T, Vec<u8>)>>);

/// Contexts of one kind that are kept for the next text.
const KEPT_MAX: usize = 2;
/// The longest buffer that is kept.
const KEPT_BUFFER_BYTES_MAX: usize = 16 << 10;

impl<T> Contexts<T> {
    const fn new() -> Contexts<T> {
        Contexts(Mutex::new(Vec::new()))
    }

    /// Has a context, with an empty buffer, do some work. `None` when there is no memory for one, or from the work.
    fn with<R>(
        &self,
        make: impl FnOnce() -> Option<T>,
        work: impl FnOnce(&mut T, &mut Vec<u8>) -> Option<R>,
    ) -> Option<R> {
        let kept = self.0.lock().pop();
        let (mut context, mut buffer) = match kept {
            Some(kept) => kept,
            None => (make()?, Vec::new()),
        };
        let result = work(&mut context, &mut buffer);
        buffer.clear();
        if buffer.capacity() > KEPT_BUFFER_BYTES_MAX {
            buffer = Vec::new();
        }
        let mut kept = self.0.lock();
        if kept.len() < KEPT_MAX {
            kept.push((context, buffer));
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_contexts_serve_all_threads() {
        let contexts = Contexts::new();
        let made = std::sync::atomic::AtomicUsize::new(0);
        let make = || Some(made.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        // One within the other: each is a context of its own.
        let inner = |_: &mut usize, _: &mut Vec<u8>| contexts.with(make, |third, _| Some(*third));
        let middle = |_: &mut usize, _: &mut Vec<u8>| contexts.with(make, inner);
        assert_eq!(contexts.with(make, middle), Some(2));
        assert_eq!(contexts.0.lock().len(), KEPT_MAX);
        contexts.with(make, |_, buffer| {
            assert!(buffer.is_empty());
            buffer.resize(KEPT_BUFFER_BYTES_MAX + 1, 1);
            Some(())
        });
        assert_eq!(made.into_inner(), 3);
        assert!(contexts.0.lock().iter().all(|(_, buffer)| buffer.capacity() <= KEPT_BUFFER_BYTES_MAX));
    }

    #[test]
    fn blocks_come_back_whole_from_every_thread() {
        let texts: Vec<String> = (0..40).map(|n| format!("{n} {}", "a body of some length ".repeat(n * 7))).collect();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for text in &texts {
                        let Some(block) = compress(text.as_bytes()) else { continue };
                        assert_eq!(decompress(&block, text.len()).unwrap(), text.as_bytes());
                        assert_eq!(decompress(&block, text.len() + 1), None);
                    }
                });
            }
        });
    }
}
