//! Accounts and devices: who exists here, their sessions, keys, messages to devices, account data, push rules.

use std::sync::Arc;

use ruma::OwnedServerName;

use crate::base::{Clock, Random};
use crate::budget::Budget;
use crate::feed::Feed;
use crate::remote::Remote;
use crate::store::Store;

/// What the accounts are built from.
pub struct Parts {
    pub store: Store,
    pub feed: Feed,
    pub clock: Clock,
    pub random: Random,
    pub budget: Budget,
    pub remote: Remote,
    pub server: OwnedServerName,
}

/// The accounts. Cheap to clone.
#[derive(Clone)]
pub struct Users(Arc<Inner>);

struct Inner {
    parts: Parts,
}

impl Users {
    pub fn new(parts: Parts) -> Users {
        Users(Arc::new(Inner { parts }))
    }
}
