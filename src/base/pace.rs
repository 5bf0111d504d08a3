//! The size of one step of work, learnt by measuring.

use std::time::Duration;

/// Sizes the next batch so that it takes about `target`, from how long the last one took. Always between `min` and
/// `max`, and never more than doubled or less than halved at once, so that one odd measurement does no harm.
#[derive(Debug, Clone)]
pub struct BatchSize {
    target: Duration,
    min: usize,
    max: usize,
    size: usize,
}

impl BatchSize {
    pub fn new(target: Duration, min: usize, max: usize) -> Self {
        let min = min.max(1);
        BatchSize { target, min, max: max.max(min), size: min }
    }

    /// How many units the next batch should have.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Reports that a batch of `units` took `length`.
    pub fn report(&mut self, units: usize, length: Duration) {
        if units == 0 {
            return;
        }
        let per_unit = (length.as_nanos() / units as u128).max(1);
        let fitting = (self.target.as_nanos() / per_unit) as usize;
        self.size = fitting.clamp(self.size / 2, self.size * 2).clamp(self.min, self.max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_and_shrinks_within_bounds() {
        let mut pace = BatchSize::new(Duration::from_millis(10), 8, 1000);
        for _ in 0..20 {
            pace.report(pace.size(), Duration::from_micros(20) * pace.size() as u32);
        }
        assert_eq!(pace.size(), 500);
        for _ in 0..20 {
            pace.report(pace.size(), Duration::from_secs(1));
        }
        assert_eq!(pace.size(), 8);
    }
}
