//! The bytes of a picture as a decoder reads them: a buffer, a deadline, and a sign to stop.

use std::io::Read;

use super::{Failed, Leash};

/// One read of the file.
const BUFFER_BYTES: usize = 16 << 10;

/// Bytes from a file, one at a time or many. Bounded by its buffer.
pub(super) struct Input<'a> {
    from: &'a mut dyn Read,
    leash: &'a Leash,
    buffer: Vec<u8>,
    at: usize,
}

impl<'a> Input<'a> {
    pub(super) fn new(from: &'a mut dyn Read, leash: &'a Leash) -> Input<'a> {
        Input { from, leash, buffer: Vec::new(), at: 0 }
    }

    /// What an `Input` takes, for the account.
    pub(super) const BYTES: u64 = BUFFER_BYTES as u64;

    /// Whether somebody still waits for the result and the time is not up.
    pub(super) fn check(&self) -> Result<(), Failed> {
        self.leash.check()
    }

    /// The next byte; an error at the end of the file.
    #[inline]
    pub(super) fn byte(&mut self) -> Result<u8, Failed> {
        match self.buffer.get(self.at) {
            Some(byte) => {
                self.at += 1;
                Ok(*byte)
            }
            None => {
                self.refill()?;
                self.at = 1;
                Ok(self.buffer[0])
            }
        }
    }

    pub(super) fn u16_be(&mut self) -> Result<u16, Failed> {
        Ok(u16::from_be_bytes([self.byte()?, self.byte()?]))
    }

    pub(super) fn u16_le(&mut self) -> Result<u16, Failed> {
        Ok(u16::from_le_bytes([self.byte()?, self.byte()?]))
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Failed> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    pub(super) fn fill(&mut self, mut into: &mut [u8]) -> Result<(), Failed> {
        while !into.is_empty() {
            let some = self.some()?;
            let length = some.len().min(into.len());
            into[..length].copy_from_slice(&some[..length]);
            self.at += length;
            into = &mut into[length..];
        }
        Ok(())
    }

    /// The first `bytes_max` of `bytes`; the rest is passed over.
    pub(super) fn beginning(&mut self, bytes: u64, bytes_max: usize) -> Result<Vec<u8>, Failed> {
        let mut beginning = vec![0; bytes.min(bytes_max as u64) as usize];
        self.fill(&mut beginning)?;
        self.skip(bytes - beginning.len() as u64)?;
        Ok(beginning)
    }

    pub(super) fn skip(&mut self, mut bytes: u64) -> Result<(), Failed> {
        while bytes > 0 {
            let length = (self.some()?.len() as u64).min(bytes);
            self.at += length as usize;
            bytes -= length;
        }
        Ok(())
    }

    /// Bytes that were read and not yet used, at least one; [`Input::used`] says how many were.
    pub(super) fn some(&mut self) -> Result<&[u8], Failed> {
        if self.at == self.buffer.len() {
            self.refill()?;
        }
        Ok(&self.buffer[self.at..])
    }

    pub(super) fn used(&mut self, bytes: usize) {
        self.at = (self.at + bytes).min(self.buffer.len());
    }

    #[cold]
    fn refill(&mut self) -> Result<(), Failed> {
        self.check()?;
        self.buffer.resize(BUFFER_BYTES, 0);
        self.at = 0;
        let read = self.from.read(&mut self.buffer);
        self.buffer.truncate(*read.as_ref().unwrap_or(&0));
        match read? {
            0 => Err(Failed::Broken("it ends early")),
            _ => Ok(()),
        }
    }
}
