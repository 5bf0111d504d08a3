//! Reading the index: the postings of one word in one segment, and all postings of a segment.

use super::chunk::{self, Down, KEY_BYTES, Posting, Postings};
use super::status::Segment;
use crate::store::schema::SEARCH;
use crate::store::{Error, Get, Result, RoomNum};

/// An event in a room, in the order in which a word's postings stand.
pub type Place = (RoomNum, Down);

/// The postings of one word in one segment, from front to back; can leap forwards. Holds one chunk.
pub struct Cursor<'g, G> {
    chunks: Chunks<'g, G>,
    hash: u32,
    postings: Option<Postings>,
    now: Option<Place>,
    ended: bool,
}

impl<'g, G: Get> Cursor<'g, G> {
    pub fn new(get: &'g G, segment: &Segment, hash: u32) -> Self {
        Cursor { chunks: Chunks::new(get, segment), hash, postings: None, now: None, ended: false }
    }

    /// The first posting at or behind a place; none when there is no more. Never goes back. What lies between is
    /// skipped chunk by chunk, with one look-up.
    pub fn seek(&mut self, place: Place) -> Result<Option<Place>> {
        if let Some(now) = self.now.filter(|now| *now >= place) {
            return Ok(Some(now));
        }
        while !self.ended {
            if let Some(postings) = &mut self.postings {
                while let Some(posting) = self.chunks.check(postings.next())? {
                    if posting.hash > self.hash {
                        self.ended = true;
                        break;
                    }
                    if posting.hash == self.hash && (posting.room, posting.down) >= place {
                        self.now = Some((posting.room, posting.down));
                        return Ok(self.now);
                    }
                }
            }
            if !self.ended {
                let target = Posting { hash: self.hash, room: place.0, down: place.1 };
                self.postings = self.chunks.with(target)?;
                self.ended = self.postings.is_none();
            }
        }
        self.now = None;
        Ok(None)
    }
}

/// All postings of a segment, from a place on. Holds one chunk.
pub struct Scan<'g, G> {
    chunks: Chunks<'g, G>,
    postings: Option<Postings>,
    now: Option<Posting>,
}

impl<'g, G: Get> Scan<'g, G> {
    /// Behind `after`, or from the beginning.
    pub fn new(get: &'g G, segment: &Segment, after: Option<Posting>) -> Result<Self> {
        let mut chunks = Chunks::new(get, segment);
        let postings = match after {
            Some(after) => chunks.with(after)?,
            None => chunks.next()?,
        };
        let mut scan = Scan { chunks, postings, now: None };
        scan.step()?;
        while scan.now.is_some_and(|now| after.is_some_and(|after| now <= after)) {
            scan.step()?;
        }
        Ok(scan)
    }

    pub fn now(&self) -> Option<Posting> {
        self.now
    }

    pub fn step(&mut self) -> Result<()> {
        while let Some(postings) = &mut self.postings {
            self.now = self.chunks.check(postings.next())?;
            if self.now.is_some() {
                return Ok(());
            }
            self.postings = self.chunks.next()?;
        }
        self.now = None;
        Ok(())
    }
}

/// The chunk in which a posting is, or would be: its key, and its postings.
pub fn chunk_with(get: &impl Get, segment: &Segment, posting: Posting) -> Result<Option<(Posting, Vec<Posting>)>> {
    let mut chunks = Chunks::new(get, segment);
    let Some(mut postings) = chunks.with(posting)? else { return Ok(None) };
    let mut all = Vec::new();
    while let Some(posting) = chunks.check(postings.next())? {
        all.push(posting);
    }
    Ok(chunks.now.map(|first| (first, all)))
}

/// The chunks of a segment, in order.
struct Chunks<'g, G> {
    get: &'g G,
    segment: u32,
    base: Down,
    /// The first posting of the chunk that was read last.
    now: Option<Posting>,
}

impl<'g, G: Get> Chunks<'g, G> {
    fn new(get: &'g G, segment: &Segment) -> Self {
        Chunks { get, segment: segment.id, base: segment.base, now: None }
    }

    /// The chunk that a posting is in, if it is in the segment at all: the last that begins at or before it, and else the
    /// next one.
    fn with(&mut self, target: Posting) -> Result<Option<Postings>> {
        let from = self.behind();
        let upto = chunk::key(self.segment, Posting { down: target.down.next(), ..target });
        if from.as_slice() < &upto[..]
            && let Some((key, chunk)) = self.get.first(&SEARCH, &from, Some(&upto), true)?
        {
            return self.take(&key, chunk).map(Some);
        }
        self.next()
    }

    fn next(&mut self) -> Result<Option<Postings>> {
        let end = (self.segment + 1).to_be_bytes();
        match self.get.first(&SEARCH, &self.behind(), Some(&end), false)? {
            Some((key, chunk)) => self.take(&key, chunk).map(Some),
            None => Ok(None),
        }
    }

    /// The first key behind the chunk that was read last.
    fn behind(&self) -> Vec<u8> {
        match self.now {
            Some(now) => [&chunk::key(self.segment, now)[..], &[0]].concat(),
            None => self.segment.to_be_bytes().to_vec(),
        }
    }

    fn take(&mut self, key: &[u8], chunk: Vec<u8>) -> Result<Postings> {
        let first = chunk::first_of(key)?;
        self.now = Some(first);
        Ok(Postings::new(first, self.base, chunk))
    }

    fn check<T>(&self, read: Result<T, chunk::Damaged>) -> Result<T> {
        let key = |now: Posting| chunk::key(self.segment, now);
        read.map_err(|_| Error::corrupt(&SEARCH, &self.now.map_or([0; KEY_BYTES], key)))
    }
}
