//! Users: their small numbers, their accounts here, and their profiles.
//!
//! Every user id that is stored anywhere is interned once. A number is never given back, so rows that mention a user
//! who left long ago still resolve. An id is found by part of its hash under the database's own random key, and
//! compared with the stored id.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use crate::store::num::KEYS_OF_A_KIND_MAX;
use crate::store::schema::{ACCOUNT, ERASED, GUEST, NEWCOMER, NOTICE_ROOM, PROFILE, USER_ID, USER_META, USER_NUM};
use crate::store::{Change, Error, Get, Result, RoomNum, StateKeyNum, UserNum, Write, tables};

pub mod account_data;
pub mod backup;
pub mod device;
pub mod e2ee_key;
pub mod filter;
pub mod password_link;
pub mod presence;
pub mod profile_change;
pub mod push_rule;
pub mod registration_token;
pub mod report;
pub mod pusher;
pub mod remote_list;
pub mod sliding;
pub mod to_device;

/// The number of a user id, when it has one.
pub fn num(get: &impl Get, user_id: &str) -> Result<Option<UserNum>> {
    num_by_hash(get, &get.hash128(&[user_id.as_bytes()]), user_id)
}

/// The number of a user id, given out now when it had none. Bounded: at most two rows.
pub fn intern(w: &mut Write<'_>, user_id: &str) -> Result<UserNum> {
    let hash = w.hash128(&[user_id.as_bytes()]);
    if let Some(num) = num_by_hash(w, &hash, user_id)? {
        return Ok(num);
    }
    let num = next_nums(w, 1)?;
    w.put(&USER_NUM, &num_key(&hash, num), &[])?;
    w.put(&USER_ID, &num.to_key(), user_id.as_bytes())?;
    Ok(num)
}

fn num_by_hash(get: &impl Get, hash: &[u8; 16], user_id: &str) -> Result<Option<UserNum>> {
    // Nearly always one. Others can share half of the hash, which an outsider cannot aim at.
    for num in nums_with(get, &hash[..HASH_BYTES])? {
        let mut is_it = false;
        if !get.with(&USER_ID, &num.to_key(), &mut |id| is_it = id == user_id.as_bytes())? {
            return Err(Error::corrupt(&USER_ID, &num.to_key()));
        }
        if is_it {
            return Ok(Some(num));
        }
    }
    Ok(None)
}

/// This much of an id's hash leads to its number: the hit is compared with the id itself.
const HASH_BYTES: usize = 8;

fn num_key(hash: &[u8; 16], num: UserNum) -> [u8; HASH_BYTES + 4] {
    let mut key = [0; HASH_BYTES + 4];
    key[..HASH_BYTES].copy_from_slice(&hash[..HASH_BYTES]);
    key[HASH_BYTES..].copy_from_slice(&num.to_key());
    key
}

fn nums_with(get: &impl Get, hash: &[u8]) -> Result<Vec<UserNum>> {
    let mut nums = Vec::new();
    get.prefix(&USER_NUM, hash, &mut |key, _| {
        nums.push(UserNum::from_key(&key[HASH_BYTES..]).ok_or_else(|| Error::corrupt(&USER_NUM, key))?);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(nums)
}

fn next_nums(w: &mut Write<'_>, count: u32) -> Result<UserNum> {
    w.next_numbers_below("user", count, KEYS_OF_A_KIND_MAX).map(UserNum)
}

/// The numbers of a user met in a large join: their own, and that of their membership's state key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Met {
    pub user: UserNum,
    pub member_key: StateKeyNum,
}

/// Gives many users their numbers at once. The ids come in rising order of their hashes, without repetition, so that
/// the rows of both tables are written in the order of their keys. Bounded by the list.
pub fn meet(w: &mut Write<'_>, users: &[([u8; 16], String)]) -> Result<Vec<Met>> {
    let (mut known, mut new) = (Vec::with_capacity(users.len()), 0);
    for (hash, id) in users {
        debug_assert_eq!(*hash, w.hash128(&[id.as_bytes()]), "a user is met under the hash of their id");
        let user = num_by_hash(w, hash, id)?;
        new += u32::from(user.is_none());
        known.push(user);
    }
    let mut next = if new > 0 { next_nums(w, new)? } else { UserNum(0) };
    let mut met = Vec::with_capacity(users.len());
    let (mut nums, mut ids) = (Vec::new(), Vec::new());
    for ((hash, id), user) in users.iter().zip(known) {
        let user = user.unwrap_or_else(|| {
            let user = next;
            next.0 += 1;
            nums.push((num_key(hash, user), []));
            ids.push((user.to_key(), id));
            user
        });
        met.push(Met { user, member_key: StateKeyNum::of_member(user) });
    }
    w.put_sorted(&USER_NUM, &nums)?;
    w.put_sorted(&USER_ID, &ids)?;
    Ok(met)
}

/// The user under a hash of which the first eight bytes are known.
pub fn met(get: &impl Get, print: u64) -> Result<Option<Met>> {
    let user = nums_with(get, &print.to_be_bytes())?.first().copied();
    Ok(user.map(|user| Met { user, member_key: StateKeyNum::of_member(user) }))
}

/// The id behind a number; `None` only for a number that was never given out.
pub fn id(get: &impl Get, num: UserNum) -> Result<Option<String>> {
    let Some(bytes) = get.get(&USER_ID, &num.to_key())? else { return Ok(None) };
    String::from_utf8(bytes).map(Some).map_err(|_| Error::corrupt(&USER_ID, &num.to_key()))
}

/// The id behind a number that one of our own rows mentions.
pub fn id_of(get: &impl Get, num: UserNum) -> Result<String> {
    id(get, num)?.ok_or_else(|| Error::corrupt(&USER_ID, &num.to_key()))
}

/// The status of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    Active,
    /// Closed for good; the name is never given out again.
    Deactivated,
}

/// A local account's row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    pub created_ms: u64,
    pub standing: Standing,
    #[serde(default)]
    pub admin: bool,
    /// The password's argon2id hash as a PHC string; without one, login by password is not possible.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_hash: Option<String>,
    /// No session may do anything but end, until it is unlocked.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub locked: bool,
    /// May read, and not speak.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspended: bool,
    /// Which terms the user has agreed to, as a digest; 0 is none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub agreed: u64,
    /// A bot's: made without a password, for a program with a token.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bot: bool,
    /// What it sends is answered as if it had been sent, and reaches nobody.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shadow_banned: bool,
    /// How often it may ask, where that is not what everybody may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pace: Option<Pace>,
    /// What its files may take in bytes, where that is not what everybody's may; [`QUOTA_UNLIMITED`]: as much as there is room for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<u64>,
}

/// Nothing but the disk bounds the files of an account.
pub const QUOTA_UNLIMITED: u64 = u64::MAX;

/// How often one account may send, instead of the rate that everybody has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pace {
    /// In the long run. 0: no rate holds for the account at all.
    pub per_second: u32,
    /// At once.
    pub burst: u32,
}

impl Pace {
    /// No rate holds.
    pub const UNLIMITED: Pace = Pace { per_second: 0, burst: 0 };
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Account {
    /// A new account.
    pub fn new(created_ms: u64, admin: bool, password_hash: Option<String>) -> Account {
        let standing = Standing::Active;
        Account {
            created_ms,
            standing,
            admin,
            password_hash,
            locked: false,
            suspended: false,
            agreed: 0,
            bot: false,
            shadow_banned: false,
            pace: None,
            quota: None,
        }
    }
}

/// The account of a local user.
pub fn account(get: &impl Get, user: UserNum) -> Result<Option<Account>> {
    tables::get_json(get, &ACCOUNT, &user.to_key())
}

/// Writes an account. Polls of the user that wait look again whether they may.
pub fn set_account(w: &mut Write<'_>, user: UserNum, account: &Account) -> Result<()> {
    w.announce(Change { users: vec![user], sessions: true, ..Change::default() });
    tables::put_json(w, &ACCOUNT, &user.to_key(), account)
}

/// Whether the user has an account here, whatever its status.
pub fn is_local(get: &impl Get, user: UserNum) -> Result<bool> {
    get.has(&ACCOUNT, &user.to_key())
}

/// Makes a local account a guest's, or an ordinary one.
pub fn set_guest(w: &mut Write<'_>, user: UserNum, guest: bool) -> Result<()> {
    w.announce(Change { sessions: true, ..Change::default() });
    match guest {
        true => w.put(&GUEST, &user.to_key(), &[]),
        false => w.remove(&GUEST, &user.to_key()).map(drop),
    }
}

/// Whether a local user is a guest.
pub fn is_guest(get: &impl Get, user: UserNum) -> Result<bool> {
    get.has(&GUEST, &user.to_key())
}

/// At most `most` guests behind `after`.
pub fn guests_after(get: &impl Get, after: Option<UserNum>, most: usize) -> Result<Vec<UserNum>> {
    let (from, mut guests) = (after.map_or(0, |num| num.0.saturating_add(1)).to_be_bytes(), Vec::new());
    get.range(&GUEST, &from, None, false, &mut |key, _| {
        guests.push(UserNum::from_key(key).ok_or_else(|| Error::corrupt(&GUEST, key))?);
        Ok(if guests.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    Ok(guests)
}

/// How many guests there are, counted no further than `most`.
pub fn guests_up_to(get: &impl Get, most: usize) -> Result<usize> {
    let mut count = 0;
    get.range(&GUEST, &[], None, false, &mut |_, _| {
        count += 1;
        Ok(if count < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    Ok(count)
}

/// Notes that an account is to be joined to the rooms of new people, or that it was.
pub fn set_newcomer(w: &mut Write<'_>, user: UserNum, is_new: bool) -> Result<()> {
    match is_new {
        true => w.put(&NEWCOMER, &user.to_key(), &[]),
        false => w.remove(&NEWCOMER, &user.to_key()).map(drop),
    }
}

/// The first of them behind `after`.
pub fn newcomer_after(get: &impl Get, after: Option<UserNum>) -> Result<Option<UserNum>> {
    let from = after.map_or(0, |num| num.0.saturating_add(1)).to_be_bytes();
    let Some((key, _)) = get.first(&NEWCOMER, &from, None, false)? else { return Ok(None) };
    UserNum::from_key(&key).map(Some).ok_or_else(|| Error::corrupt(&NEWCOMER, &key))
}

/// Notes that a user asked for erasure when the account was closed: who was not in the room then is given that user's
/// events redacted.
pub fn set_erased(w: &mut Write<'_>, user: UserNum) -> Result<()> {
    w.put(&ERASED, &user.to_key(), &[])
}

/// Whether a user asked for erasure.
pub fn is_erased(get: &impl Get, user: UserNum) -> Result<bool> {
    get.has(&ERASED, &user.to_key())
}

/// The room in which this server tells a local user something, and the account that made it.
pub fn notice_room(get: &impl Get, user: UserNum) -> Result<Option<(RoomNum, UserNum)>> {
    let Some(value) = get.get(&NOTICE_ROOM, &user.to_key())? else { return Ok(None) };
    let room = value.get(..4).and_then(RoomNum::from_key);
    let by = value.get(4..).and_then(UserNum::from_key);
    room.zip(by).map(Some).ok_or_else(|| Error::corrupt(&NOTICE_ROOM, &user.to_key()))
}

pub fn set_notice_room(w: &mut Write<'_>, user: UserNum, room: Option<(RoomNum, UserNum)>) -> Result<()> {
    match room {
        Some((room, by)) => w.put(&NOTICE_ROOM, &user.to_key(), &[room.to_key(), by.to_key()].concat()),
        None => w.remove(&NOTICE_ROOM, &user.to_key()).map(drop),
    }
}

/// Visits the accounts after `after`, in the order they were interned, until `visit` breaks.
pub fn accounts_after(
    get: &impl Get,
    after: Option<UserNum>,
    visit: &mut dyn FnMut(UserNum, Account) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let from = after.map_or(0, |num| num.0.saturating_add(1)).to_be_bytes();
    get.range(&ACCOUNT, &from, None, false, &mut |key, value| {
        let num = UserNum::from_key(key).ok_or_else(|| Error::corrupt(&ACCOUNT, key))?;
        visit(num, tables::parse(&ACCOUNT, key, value)?)
    })
}

/// One field of a local user's profile (`displayname`, `avatar_url`, or any other name) as JSON.
pub fn profile_field(get: &impl Get, user: UserNum, field: &str) -> Result<Option<serde_json::Value>> {
    tables::get_json(get, &PROFILE, &profile_key(user, field))
}

/// All fields of a local user's profile. Bounded by the limits of `user::profile`.
pub fn profile(get: &impl Get, user: UserNum) -> Result<serde_json::Map<String, serde_json::Value>> {
    let mut fields = serde_json::Map::new();
    get.prefix(&PROFILE, &user.to_key(), &mut |key, value| {
        let name = std::str::from_utf8(&key[4..]).map_err(|_| Error::corrupt(&PROFILE, key))?;
        fields.insert(name.to_owned(), tables::parse(&PROFILE, key, value)?);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(fields)
}

/// One field of a local user's profile as JSON text.
pub fn profile_field_json(get: &impl Get, user: UserNum, field: &str) -> Result<Option<Vec<u8>>> {
    get.get(&PROFILE, &profile_key(user, field))
}

/// The names of the fields of a local user's profile. Bounded by the limits of `user::profile`.
pub fn profile_fields(get: &impl Get, user: UserNum) -> Result<Vec<String>> {
    let mut fields = Vec::new();
    get.prefix(&PROFILE, &user.to_key(), &mut |key, _| {
        fields.push(std::str::from_utf8(&key[4..]).map_err(|_| Error::corrupt(&PROFILE, key))?.to_owned());
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(fields)
}

/// Sets a profile field, or removes it, and notes the change.
pub fn set_profile_field(
    w: &mut Write<'_>,
    user: UserNum,
    field: &str,
    value: Option<&serde_json::Value>,
) -> Result<()> {
    let key = profile_key(user, field);
    profile_change::changed(w, user, field, value.is_none())?;
    match value {
        Some(value) => tables::put_json(w, &PROFILE, &key, value),
        None => w.remove(&PROFILE, &key).map(drop),
    }
}

/// Forgets a user's profile.
pub fn remove_profile(w: &mut Write<'_>, user: UserNum) -> Result<()> {
    profile_change::remove_user(w, user)?;
    tables::remove_all(w, &PROFILE, &user.to_key())
}

fn profile_key(user: UserNum, field: &str) -> Vec<u8> {
    [&user.to_key()[..], field.as_bytes()].concat()
}

/// A fact about all accounts together, such as the one-time setup code.
pub fn meta<T: serde::de::DeserializeOwned>(get: &impl Get, name: &str) -> Result<Option<T>> {
    tables::get_json(get, &USER_META, name.as_bytes())
}

pub fn set_meta<T: Serialize>(w: &mut Write<'_>, name: &str, value: Option<&T>) -> Result<()> {
    match value {
        Some(value) => tables::put_json(w, &USER_META, name.as_bytes(), value),
        None => w.remove(&USER_META, name.as_bytes()).map(drop),
    }
}

/// How many accounts there are, counting no further than `most`.
pub fn count_up_to(get: &impl Get, most: usize) -> Result<usize> {
    let mut count = 0;
    get.range(&ACCOUNT, &[], None, false, &mut |_, _| {
        count += 1;
        Ok::<_, Error>(if count >= most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    /// A session with such a row could not be ended.
    #[test]
    fn a_token_whose_row_is_corrupt_can_be_removed() {
        let store = Store::in_memory();
        let job = |w: &mut Write<'_>| {
            w.put(&crate::store::schema::TOKEN, &[1; 32], b"?")?;
            assert!(device::token(w, &[1; 32]).is_err());
            device::remove_token(w, &[1; 32])?;
            assert_eq!(device::token(w, &[1; 32])?, None);
            Ok::<_, crate::store::Error>(())
        };
        store.write_blocking(job).unwrap();
    }

    /// Half of a hash leads to a user: another user under the same half is told apart by the id.
    #[test]
    fn a_user_is_found_among_others_of_their_hash() {
        let store = Store::in_memory();
        let job = |w: &mut Write<'_>| {
            let (a, b) = (intern(w, "@a:b")?, intern(w, "@b:b")?);
            let hash = w.hash128(&[b"@b:b"]);
            w.put(&USER_NUM, &num_key(&hash, a), &[])?;
            assert_eq!((num(w, "@b:b")?, intern(w, "@b:b")?, num(w, "@c:b")?), (Some(b), b, None));
            let mut met_now = ["@b:b".to_owned(), "@c:b".to_owned()];
            met_now.sort_by_key(|id| w.hash128(&[id.as_bytes()]));
            let list: Vec<_> = met_now.iter().map(|id| (w.hash128(&[id.as_bytes()]), id.clone())).collect();
            for ((_, id), met) in list.iter().zip(meet(w, &list)?) {
                assert_eq!(num(w, id)?, Some(met.user));
                assert_eq!(met.member_key, StateKeyNum::of_member(met.user));
            }
            Ok::<_, Error>(())
        };
        store.write_blocking(job).unwrap();
    }
}
