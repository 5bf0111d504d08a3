//! Accounts as an administrator's tool lists them: filtered, in any order, a page at a time.

use std::ops::ControlFlow;

use ruma::{OwnedUserId, UserId};
use serde_json::Value;

use super::{Account, Standing};
use crate::base::{Ranked, bounded, ranked};
use crate::store::tables::user::{self, device};
use crate::store::{Get, Read, UserNum};
use crate::user::lookup::local;
use crate::user::{Error, Users};

/// Characters of a text by which accounts are put in order.
const ORDER_CHARS: usize = 48;
/// What the texts of one page of accounts take, in bytes: behind the account that reaches it the page ends. One has an id of
/// 255 bytes, and a name and a picture's address of 1,024 each.
const FOUND_BYTES_MAX: usize = 32 * 1024;

/// Which accounts are listed. `None` in a filter lets all pass.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Part of the user's id; capital letters count as small ones.
    pub id: Option<String>,
    /// Part of the user's localpart or display name; instead of `id`.
    pub name: Option<String>,
    pub guests: Option<bool>,
    pub admins: Option<bool>,
    pub deactivated: Option<bool>,
    pub locked: Option<bool>,
}

/// What accounts are put in order by; those that are alike are in the order of their ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    #[default]
    Name,
    Guest,
    Admin,
    Deactivated,
    DisplayName,
    AvatarUrl,
    Created,
    LastSeen,
    Locked,
}

/// An account with what a list shows of it.
#[derive(Debug, Clone)]
pub struct Listed {
    pub account: Account,
    pub is_guest: bool,
    pub is_erased: bool,
    pub display_name: Option<String>,
    pub avatar_url: Option<String>,
    /// When a device of the account was last heard of.
    pub seen_ms: Option<u64>,
}

impl Listed {
    fn text_bytes(&self) -> usize {
        let texts = [&self.display_name, &self.avatar_url].into_iter().flatten();
        self.account.user_id.as_str().len() + texts.map(String::len).sum::<usize>()
    }
}

type Key = (u64, String, OwnedUserId, UserNum);

impl Users {
    /// The accounts of the ranks `from..from + most`, and how many there are in all: fewer when their texts are long. Each
    /// further 256 ranks cost another walk over all accounts. `most` is at most 256.
    pub async fn find(
        &self,
        wanted: Wanted,
        order: Order,
        backwards: bool,
        from: usize,
        most: usize,
    ) -> Result<(Vec<Listed>, usize), Error> {
        self.read(move |get| {
            let (page, total) = match backwards {
                false => {
                    let Ranked { page, total } = ranked(from, most, &mut |visit| each(get, &wanted, order, visit))?;
                    (page, total)
                }
                true => {
                    let each = &mut |visit: &mut dyn FnMut(std::cmp::Reverse<Key>)| {
                        each(get, &wanted, order, &mut |key| visit(std::cmp::Reverse(key)))
                    };
                    let Ranked { page, total } = ranked(from, most, each)?;
                    (page.into_iter().map(|key| key.0).collect(), total)
                }
            };
            let (mut found, mut bytes) = (Vec::new(), 0);
            for (_, _, user_id, num) in page {
                let one = listed(get, num, user_id)?;
                bytes += one.text_bytes();
                found.push(one);
                if bytes >= FOUND_BYTES_MAX {
                    break;
                }
            }
            Ok((found, total))
        })
        .await
    }

    /// One account as a list shows it. `NotFound` when there is none.
    pub async fn listed(&self, user_id: &UserId) -> Result<Listed, Error> {
        let user_id = user_id.to_owned();
        self.read(move |get| {
            let num = local(get, &user_id)?;
            listed(get, num, user_id)
        })
        .await
    }
}

impl Users {
    /// Of some `mxc://` addresses those that are the picture of no account here. A look at each account.
    pub async fn not_pictures(&self, mut uris: Vec<String>) -> Result<Vec<String>, Error> {
        self.read(move |get| {
            user::accounts_after(get, None, &mut |num, _| {
                if let Some(picture) = text(get, num, "avatar_url")? {
                    uris.retain(|uri| *uri != picture);
                }
                Ok(if uris.is_empty() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })?;
            Ok(uris)
        })
        .await
    }
}

/// Visits the wanted accounts in the order of their creation.
fn each(get: &Read, wanted: &Wanted, order: Order, visit: &mut dyn FnMut(Key)) -> Result<(), Error> {
    let fits = |wanted: Option<bool>, is: bool| wanted.is_none_or(|wanted| wanted == is);
    user::accounts_after(get, None, &mut |num, row| {
        let is_guest = user::is_guest(get, num)?;
        let is_deactivated = row.standing == Standing::Deactivated;
        if fits(wanted.guests, is_guest)
            && fits(wanted.admins, row.admin)
            && fits(wanted.deactivated, is_deactivated)
            && fits(wanted.locked, row.locked)
        {
            let user_id = user::id_of(get, num)?;
            let (number, text) = match order {
                Order::Name => (0, String::new()),
                Order::Guest => (is_guest.into(), String::new()),
                Order::Admin => (row.admin.into(), String::new()),
                Order::Deactivated => (is_deactivated.into(), String::new()),
                Order::Locked => (row.locked.into(), String::new()),
                Order::Created => (row.created_ms, String::new()),
                Order::LastSeen => (seen_ms(get, num)?.unwrap_or(0), String::new()),
                Order::DisplayName => (0, text(get, num, "displayname")?.unwrap_or_default()),
                Order::AvatarUrl => (0, text(get, num, "avatar_url")?.unwrap_or_default()),
            };
            if is_named(get, num, &user_id, wanted)?
                && let Ok(user_id) = OwnedUserId::try_from(user_id)
            {
                visit((number, bounded(text, ORDER_CHARS), user_id, num));
            }
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(())
}

fn is_named(get: &Read, num: UserNum, user_id: &str, wanted: &Wanted) -> crate::store::Result<bool> {
    let has = |text: &str, part: &str| text.to_lowercase().contains(part);
    match (&wanted.name, &wanted.id) {
        (Some(name), _) => {
            let name = name.to_lowercase();
            let localpart = user_id.strip_prefix('@').and_then(|id| id.split(':').next()).unwrap_or(user_id);
            Ok(has(localpart, &name) || text(get, num, "displayname")?.is_some_and(|text| has(&text, &name)))
        }
        (None, Some(id)) => Ok(has(user_id, &id.to_lowercase())),
        (None, None) => Ok(true),
    }
}

fn listed(get: &Read, num: UserNum, user_id: OwnedUserId) -> Result<Listed, Error> {
    let row = user::account(get, num)?.ok_or(Error::NotFound("account"))?;
    Ok(Listed {
        account: Account::new(user_id, row),
        is_guest: user::is_guest(get, num)?,
        is_erased: user::is_erased(get, num)?,
        display_name: text(get, num, "displayname")?,
        avatar_url: text(get, num, "avatar_url")?,
        seen_ms: seen_ms(get, num)?,
    })
}

/// Bounded by the cap on devices of one user.
fn seen_ms(get: &impl Get, num: UserNum) -> crate::store::Result<Option<u64>> {
    let mut seen = None;
    device::each(get, num, &mut |_, row| {
        seen = seen.max(Some(row.seen_ms));
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(seen)
}

fn text(get: &impl Get, num: UserNum, field: &str) -> crate::store::Result<Option<String>> {
    Ok(match user::profile_field(get, num, field)? {
        Some(Value::String(text)) => Some(text),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::user::account::New;
    use crate::user::tests::town;

    #[tokio::test]
    async fn a_page_of_accounts_with_long_names_is_short() {
        let town = town();
        for number in 0..60 {
            let new = New { localpart: format!("user{number}"), ..New::default() };
            let user_id = town.users.create(new).await.unwrap();
            let name = Some(Value::from("x".repeat(1024)));
            town.users.set_profile_field(&user_id, "displayname", name).await.unwrap();
        }
        let (mut from, mut pages) = (0, Vec::new());
        while from < 60 {
            let (found, total) = town.users.find(Wanted::default(), Order::Name, false, from, 100).await.unwrap();
            assert_eq!(total, 60);
            assert!(!found.is_empty());
            from += found.len();
            pages.push(found.len());
        }
        assert!(pages.len() == 2 && pages[0] < 50, "{pages:?}");
    }
}
