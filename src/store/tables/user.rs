//! Users: who has a small number, who has an account here, and what they call themselves.
//!
//! Every user id that is stored anywhere is interned once; a number is never given back, so rows that mention a user
//! who left long ago still resolve. An id is found by a 128-bit hash under the database's own random key, so nobody
//! outside can make two ids meet.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use crate::store::schema::{ACCOUNT, PROFILE, STATE_KEY, USER_ID, USER_META, USER_NUM};
use crate::store::{Error, Get, Result, StateKeyNum, UserNum, Write, tables};

/// The number of a user id, when it has one.
pub fn num(get: &impl Get, user_id: &str) -> Result<Option<UserNum>> {
    let hash = get.hash128(&[user_id.as_bytes()]);
    let Some(value) = get.get(&USER_NUM, &hash)? else { return Ok(None) };
    let num = UserNum::from_key(&value).ok_or_else(|| Error::corrupt(&USER_NUM, &hash))?;
    debug_assert_eq!(id(get, num)?.as_deref(), Some(user_id), "a user number leads back to the id it was given for");
    Ok(Some(num))
}

/// The number of a user id, given out now when it had none. Bounded: at most two rows.
pub fn intern(w: &mut Write<'_>, user_id: &str) -> Result<UserNum> {
    if let Some(num) = num(w, user_id)? {
        return Ok(num);
    }
    let num = UserNum(w.next_numbers("user", 1)?);
    let hash = w.hash128(&[user_id.as_bytes()]);
    w.put(&USER_NUM, &hash, &num.to_key())?;
    w.put(&USER_ID, &num.to_key(), user_id.as_bytes())?;
    Ok(num)
}

/// What a user met in a large join is to the database: their number, and that of their membership's state key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Met {
    pub user: UserNum,
    pub member_key: StateKeyNum,
}

/// Gives many users their numbers at once. The ids come in rising order of their hashes, without repetition, so that
/// the rows of all three tables are written in the order of their keys. Bounded by the list.
pub fn meet(w: &mut Write<'_>, users: &[([u8; 16], String)]) -> Result<Vec<Met>> {
    let (mut known, mut new) = (Vec::with_capacity(users.len()), 0);
    for (hash, id) in users {
        debug_assert_eq!(*hash, w.hash128(&[id.as_bytes()]), "a user is met under the hash of their id");
        let user = w.get(&USER_NUM, hash)?.as_deref().and_then(UserNum::from_key);
        let key = w.get(&STATE_KEY, hash)?.as_deref().and_then(StateKeyNum::from_key);
        new += u32::from(user.is_none());
        known.push((user, key));
    }
    let new_keys = known.iter().filter(|(_, key)| key.is_none()).count() as u32;
    let mut next_user = if new > 0 { w.next_numbers("user", new)? } else { 0 };
    let mut next_key = if new_keys > 0 { w.next_numbers("state_key", new_keys)? } else { 0 };
    let mut met = Vec::with_capacity(users.len());
    let (mut nums, mut ids, mut keys) = (Vec::new(), Vec::new(), Vec::new());
    for ((hash, id), (user, key)) in users.iter().zip(known) {
        let user = user.unwrap_or_else(|| {
            let user = UserNum(next_user);
            next_user += 1;
            nums.push((hash, user.to_key()));
            ids.push((user.to_key(), id));
            user
        });
        let member_key = key.unwrap_or_else(|| {
            let key = StateKeyNum(next_key);
            next_key += 1;
            keys.push((hash, key.to_key()));
            key
        });
        met.push(Met { user, member_key });
    }
    w.put_sorted(&USER_NUM, &nums)?;
    w.put_sorted(&USER_ID, &ids)?;
    w.put_sorted(&STATE_KEY, &keys)?;
    Ok(met)
}

/// Who was met under a hash of which the first eight bytes are known.
pub fn met(get: &impl Get, print: u64) -> Result<Option<Met>> {
    let Some((hash, user)) = get.first_in_prefix(&USER_NUM, &print.to_be_bytes())? else { return Ok(None) };
    let user = UserNum::from_key(&user).ok_or_else(|| Error::corrupt(&USER_NUM, &hash))?;
    let Some(key) = get.get(&STATE_KEY, &hash)? else { return Ok(None) };
    let member_key = StateKeyNum::from_key(&key).ok_or_else(|| Error::corrupt(&STATE_KEY, &hash))?;
    Ok(Some(Met { user, member_key }))
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

/// In what standing an account is.
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
    /// The password's argon2id hash as a PHC string; without one nobody can log in by password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_hash: Option<String>,
}

/// The account of a local user.
pub fn account(get: &impl Get, user: UserNum) -> Result<Option<Account>> {
    tables::get_json(get, &ACCOUNT, &user.to_key())
}

pub fn set_account(w: &mut Write<'_>, user: UserNum, account: &Account) -> Result<()> {
    tables::put_json(w, &ACCOUNT, &user.to_key(), account)
}

/// Whether the user has an account here, in whatever standing.
pub fn is_local(get: &impl Get, user: UserNum) -> Result<bool> {
    get.has(&ACCOUNT, &user.to_key())
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

/// All fields of a local user's profile. Bounded by what `user::profile` lets in.
pub fn profile(get: &impl Get, user: UserNum) -> Result<serde_json::Map<String, serde_json::Value>> {
    let mut fields = serde_json::Map::new();
    get.prefix(&PROFILE, &user.to_key(), &mut |key, value| {
        let name = std::str::from_utf8(&key[4..]).map_err(|_| Error::corrupt(&PROFILE, key))?;
        fields.insert(name.to_owned(), tables::parse(&PROFILE, key, value)?);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(fields)
}

/// Sets a profile field, or removes it.
pub fn set_profile_field(
    w: &mut Write<'_>,
    user: UserNum,
    field: &str,
    value: Option<&serde_json::Value>,
) -> Result<()> {
    let key = profile_key(user, field);
    match value {
        Some(value) => tables::put_json(w, &PROFILE, &key, value),
        None => w.remove(&PROFILE, &key).map(drop),
    }
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
