//! Links with which people choose their password: SHA-256 of the link's code → whose it is, and until when.
//!
//! A user has one at most, and all together [`LINKS_MAX`] of some 80 bytes.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use crate::base::sort_few;
use crate::store::schema::PASSWORD_LINK;
use crate::store::tables;
use crate::store::{Error, Get, Result, UserNum, Write};

/// More than an owner sends within a week. The one that ends first makes place for another.
const LINKS_MAX: usize = 200;

/// A link that was made and not used yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    pub user: UserNum,
    pub expires_ms: u64,
}

/// The link of this hash, as long as it is good.
pub fn get(get: &impl Get, hash: &[u8; 32], now_ms: u64) -> Result<Option<Link>> {
    let found: Option<Link> = tables::get_json(get, &PASSWORD_LINK, hash)?;
    Ok(found.filter(|link| link.expires_ms > now_ms))
}

/// Until when the link of a user is good, when there is one.
pub fn of_user(get: &impl Get, user: UserNum, now_ms: u64) -> Result<Option<u64>> {
    let mut until = None;
    each(get, &mut |_, link| {
        if link.user == user && link.expires_ms > now_ms {
            until = Some(link.expires_ms);
        }
    })?;
    Ok(until)
}

/// Keeps a link in place of the user's older one. Bounded by the links that are kept.
pub fn put(w: &mut Write<'_>, hash: &[u8; 32], link: &Link, now_ms: u64) -> Result<()> {
    let mut kept: Vec<(u64, Vec<u8>)> = Vec::new();
    let mut gone: Vec<Vec<u8>> = Vec::new();
    each(w, &mut |key, known| match known.user == link.user || known.expires_ms <= now_ms {
        true => gone.push(key.to_vec()),
        false => kept.push((known.expires_ms, key.to_vec())),
    })?;
    sort_few(&mut kept, Ord::cmp);
    let surplus = (kept.len() + 1).saturating_sub(LINKS_MAX);
    gone.extend(kept.into_iter().take(surplus).map(|(_, key)| key));
    for key in gone {
        w.remove(&PASSWORD_LINK, &key)?;
    }
    tables::put_json(w, &PASSWORD_LINK, hash, link)
}

/// Ends the link of a user, when there is one. Bounded by the links that are kept.
pub fn remove_of(w: &mut Write<'_>, user: UserNum) -> Result<()> {
    let mut gone: Vec<Vec<u8>> = Vec::new();
    each(w, &mut |key, link| {
        if link.user == user {
            gone.push(key.to_vec());
        }
    })?;
    for key in gone {
        w.remove(&PASSWORD_LINK, &key)?;
    }
    Ok(())
}

fn each(get: &impl Get, see: &mut dyn FnMut(&[u8], Link)) -> Result<()> {
    get.prefix(&PASSWORD_LINK, b"", &mut |key, row| {
        let link = serde_json::from_slice(row).map_err(|_| Error::corrupt(&PASSWORD_LINK, key))?;
        see(key, link);
        Ok(ControlFlow::Continue(()))
    })
}
