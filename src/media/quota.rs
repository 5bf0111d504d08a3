//! How many bytes of files one account may keep: as the settings say for all, or as an administrator has said for this one.
//!
//! Finished uploads are counted in the database, in the commit that makes a file known. Uploads under way are counted
//! here, so that simultaneous ones stay within the share together. Bounded by the uploads under way.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use super::Error;
use crate::budget::human;
use crate::store::UserNum;
use crate::store::tables::user::QUOTA_UNLIMITED;

#[derive(Clone)]
pub(super) struct Quotas(Arc<Inner>);

struct Inner {
    /// For accounts without a quota of their own.
    bytes_max: u64,
    coming: Mutex<HashMap<UserNum, Coming>>,
}

/// The uploads of one user, from the first of some simultaneous ones to the end of the last.
#[derive(Default)]
struct Coming {
    uploads: u32,
    /// Bytes of the uploads under way and of those that have arrived since the first began.
    bytes: u64,
    /// Bytes of the uploads that have arrived.
    arrived: u64,
}

/// What the store says of an account when an upload begins.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stand {
    /// Bytes of its files.
    pub used: u64,
    /// What they may take, where an administrator has said so for this account.
    pub own_max: Option<u64>,
}

/// The contribution of one upload.
pub(super) struct Part {
    quotas: Quotas,
    user: UserNum,
    /// The user's bytes in the database when the upload began, and what they may be; and the part of the simultaneous uploads that was
    /// surely in them.
    stand: Stand,
    arrived_before: u64,
    bytes: u64,
    has_arrived: bool,
}

impl Quotas {
    pub(super) fn new(bytes_max: u64) -> Quotas {
        Quotas(Arc::new(Inner { bytes_max, coming: Mutex::default() }))
    }

    /// Begins an upload. `stand` reads the user's bytes and quota from the database. It is called after the upload is entered, so
    /// an upload that arrives in between counts twice rather than not at all.
    pub(super) fn begin<E>(&self, user: UserNum, stand: impl FnOnce() -> Result<Stand, E>) -> Result<Part, E> {
        let arrived_before = {
            let mut all = self.lock();
            let coming = all.entry(user).or_default();
            coming.uploads += 1;
            coming.arrived
        };
        let nothing = Stand::default();
        let mut part =
            Part { quotas: self.clone(), user, stand: nothing, arrived_before, bytes: 0, has_arrived: false };
        part.stand = stand()?;
        Ok(part)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<UserNum, Coming>> {
        self.0.coming.lock()
    }
}

impl Part {
    /// Whether the share has room for this many bytes more.
    pub(super) fn check(&self, bytes: u64) -> Result<(), Error> {
        let coming = self.quotas.lock().get(&self.user).map_or(0, |coming| coming.bytes);
        self.check_sum(coming.saturating_add(bytes))
    }

    /// Adds bytes that came.
    pub(super) fn add(&mut self, bytes: u64) -> Result<(), Error> {
        let mut all = self.quotas.lock();
        let coming = all.entry(self.user).or_default();
        self.check_sum(coming.bytes.saturating_add(bytes))?;
        coming.bytes += bytes;
        self.bytes += bytes;
        Ok(())
    }

    /// The file is in the database now.
    pub(super) fn arrived(mut self) {
        self.has_arrived = true;
    }

    fn check_sum(&self, coming: u64) -> Result<(), Error> {
        let Stand { used, own_max } = self.stand;
        let bytes_max = own_max.unwrap_or(self.quotas.0.bytes_max);
        if bytes_max == QUOTA_UNLIMITED || used.saturating_add(coming - self.arrived_before) <= bytes_max {
            return Ok(());
        }
        let (whose, how) = match own_max {
            Some(_) => ("your account", "snug user quota"),
            None => ("an account", "account_upload_bytes_max"),
        };
        Err(Error::Full(format!(
            "Your files would take more than the {} {whose} may keep on this server. Its administrator can allow more ({how})",
            human(bytes_max)
        )))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let mut all = self.quotas.lock();
        let Some(coming) = all.get_mut(&self.user) else { return };
        coming.uploads -= 1;
        match self.has_arrived {
            true => coming.arrived += self.bytes,
            false => coming.bytes -= self.bytes,
        }
        if coming.uploads == 0 {
            all.remove(&self.user);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uploads_beside_each_other_stay_within_the_share_together() {
        let quotas = Quotas::new(100);
        let begin = |used: u64| quotas.begin(UserNum(1), || Ok::<_, Error>(Stand { used, own_max: None })).unwrap();
        let (mut one, mut two) = (begin(20), begin(20));
        one.add(50).unwrap();
        two.add(30).unwrap();
        assert!(two.add(1).is_err() && one.check(1).is_err());
        assert!(
            quotas.begin(UserNum(2), || Ok::<_, Error>(Stand::default())).unwrap().add(100).is_ok(),
            "another one's"
        );
        // One upload arrives: uploads begun before have not seen it in the database, later ones have.
        one.arrived();
        assert!(two.add(1).is_err());
        let mut later = begin(70);
        assert!(later.add(1).is_err());
        drop(two);
        later.add(30).unwrap();
        assert!(later.add(1).is_err());
        drop(later);
        assert!(quotas.lock().is_empty());
        let mut three = begin(70);
        three.add(30).unwrap();
        drop(three);
        assert!(begin(70).add(30).is_ok(), "what did not arrive takes nothing");
        assert!(quotas.begin(UserNum(1), || Err::<Stand, _>(())).is_err() && quotas.lock().is_empty());
    }

    /// One person who keeps the films of the family could only have more when everybody had.
    #[test]
    fn a_quota_of_ones_own_goes_before_the_setting() {
        let quotas = Quotas::new(100);
        let may = |used: u64, own_max: Option<u64>, bytes: u64| {
            let begun = quotas.begin(UserNum(1), || Ok::<_, Error>(Stand { used, own_max })).unwrap();
            begun.check(bytes).map_err(|refused| refused.to_string())
        };
        assert!(may(90, Some(200), 110).is_ok() && may(0, Some(0), 0).is_ok());
        assert!(may(500, Some(QUOTA_UNLIMITED), u64::MAX).is_ok());
        assert!(may(90, Some(200), 111).unwrap_err().contains("200 B your account may keep"));
        assert!(may(0, Some(0), 1).is_err() && may(90, Some(50), 1).is_err());
        assert!(may(90, None, 11).unwrap_err().contains("100 B an account may keep"));
    }
}
