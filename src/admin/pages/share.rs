//! A part of a whole, for a picture.

use crate::budget::human;

/// Bytes, and of how many.
#[derive(Debug, Clone, Copy)]
pub struct Share {
    bytes: u64,
    of: u64,
}

impl Share {
    pub fn new(bytes: u64, of: u64) -> Share {
        Share { bytes, of }
    }

    /// Such as `1.50 MiB`.
    pub fn size(&self) -> String {
        human(self.bytes)
    }

    /// Of a picture that is 1,000 wide. What is there at all is seen.
    pub fn width(&self) -> u32 {
        let width = u128::from(self.bytes) * 1000 / u128::from(self.of.max(1));
        (width.min(1000) as u32).max(if self.bytes > 0 { 4 } else { 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_never_wider_than_the_whole() {
        let width = |bytes, of| Share::new(bytes, of).width();
        assert_eq!(
            (width(0, 0), width(1, 0), width(5, 10), width(20, 10), width(1, u64::MAX)),
            (0, 1000, 500, 1000, 4)
        );
        assert_eq!(width(u64::MAX, u64::MAX), 1000);
    }
}
