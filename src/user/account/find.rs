//! Accounts as an administrator's tool lists them: filtered, in any order, a page at a time.

use std::ops::ControlFlow;

use ruma::{OwnedUserId, UserId};
use serde_json::Value;

use super::{Account, Standing};
use crate::base::{Place, Ranked, rows_ranked};
use crate::store::tables::media;
use crate::store::tables::user::{self, device};
use crate::store::{Get, Read, UserNum};
use crate::user::lookup::local;
use crate::user::{Error, Users};

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
    /// Whether bots are left out, and whether everybody else is.
    pub no_bots: bool,
    pub no_others: bool,
    /// Only who has uploaded something.
    pub uploaders: bool,
}

/// What accounts are put in order by; those that are alike are in the order of their ids, as far as the first 32 bytes of these tell.
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
    Type,
    ShadowBanned,
    /// The bytes of the files that they have uploaded.
    Uploaded,
}

/// An account with what a list shows of it: an id of 255 bytes, and a name and a picture's address of 1,024 each.
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

impl Users {
    /// The accounts at the ranks `from..from + most`, and how many there are in all: a few walks over all accounts of this server,
    /// one for the first 512. `most` is at most 512.
    pub async fn find(
        &self,
        wanted: Wanted,
        order: Order,
        backwards: bool,
        from: usize,
        most: usize,
    ) -> Result<(Vec<UserNum>, usize), Error> {
        self.read(move |get| {
            let Ranked { page, total } =
                rows_ranked(from, most, backwards, &mut |visit| each(get, &wanted, order, visit))?;
            // What was visited are numbers of accounts.
            Ok((page.into_iter().filter_map(|num| num.try_into().ok().map(UserNum)).collect(), total))
        })
        .await
    }

    /// The accounts of a page as a list shows them, one at a time, for a long answer: it blocks. None for one that is not there any more.
    pub fn listed_now(&self, num: UserNum) -> Result<Option<Listed>, Error> {
        let read = self.0.parts.store.read()?;
        let Ok(user_id) = OwnedUserId::try_from(user::id_of(&read, num)?) else { return Ok(None) };
        match listed(&read, num, user_id) {
            Err(Error::NotFound(_)) => Ok(None),
            found => found.map(Some),
        }
    }

    /// The bytes of files that an account has uploaded, for a long answer: it blocks.
    pub fn uploaded_now(&self, num: UserNum) -> Result<u64, Error> {
        Ok(media::used_by(&self.0.parts.store.read()?, num)?)
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
fn each(get: &Read, wanted: &Wanted, order: Order, visit: &mut dyn FnMut(Place)) -> Result<(), Error> {
    let fits = |wanted: Option<bool>, is: bool| wanted.is_none_or(|wanted| wanted == is);
    user::accounts_after(get, None, &mut |num, row| {
        let is_guest = user::is_guest(get, num)?;
        let is_deactivated = row.standing == Standing::Deactivated;
        if fits(wanted.guests, is_guest)
            && fits(wanted.admins, row.admin)
            && fits(wanted.deactivated, is_deactivated)
            && fits(wanted.locked, row.locked)
            && !(if row.bot { wanted.no_bots } else { wanted.no_others })
            && (!wanted.uploaders || media::used_by(get, num)? > 0)
        {
            let user_id = user::id_of(get, num)?;
            let number = match order {
                Order::Name | Order::DisplayName | Order::AvatarUrl => 0,
                Order::Guest => is_guest.into(),
                Order::Admin => row.admin.into(),
                Order::Deactivated => is_deactivated.into(),
                Order::Locked => row.locked.into(),
                Order::Type => row.bot.into(),
                Order::ShadowBanned => row.shadow_banned.into(),
                Order::Created => row.created_ms,
                Order::LastSeen => seen_ms(get, num)?.unwrap_or(0),
                Order::Uploaded => media::used_by(get, num)?,
            };
            if is_named(get, num, &user_id, wanted)? {
                let text = match order {
                    Order::DisplayName => text(get, num, "displayname")?.unwrap_or_default(),
                    Order::AvatarUrl => text(get, num, "avatar_url")?.unwrap_or_default(),
                    _ => user_id.trim_start_matches('@').to_owned(),
                };
                visit(Place::new(number, &text, num.0.into()));
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
    async fn every_account_is_on_one_page() {
        let town = town();
        for number in 0..60 {
            let new = New { localpart: format!("user{number:02}"), bot: number == 7, ..New::default() };
            let user_id = town.users.create(new).await.unwrap();
            let name = Some(Value::from("x".repeat(1024)));
            town.users.set_profile_field(&user_id, "displayname", name).await.unwrap();
        }
        let find = |wanted: Wanted, order, backwards, from, most| {
            let users = town.users.clone();
            async move {
                let (page, total) = users.find(wanted, order, backwards, from, most).await.unwrap();
                let name = |num| users.listed_now(num).unwrap().unwrap().account.user_id.localpart().to_owned();
                (page.into_iter().map(name).collect::<Vec<_>>(), total)
            }
        };
        let mut all = Vec::new();
        for from in [0, 25, 50] {
            let (mut page, total) = find(Wanted::default(), Order::Name, false, from, 25).await;
            assert_eq!(total, 60);
            all.append(&mut page);
        }
        let wanted: Vec<_> = (0..60).map(|number| format!("user{number:02}")).collect();
        assert_eq!(all, wanted);
        assert_eq!(find(Wanted::default(), Order::Type, true, 0, 1).await.0, ["user07"]);
        assert_eq!(find(Wanted { no_bots: true, ..Wanted::default() }, Order::Name, false, 7, 1).await.0, ["user08"]);
        assert_eq!(find(Wanted { no_others: true, ..Wanted::default() }, Order::Name, false, 0, 9).await.0, ["user07"]);
        assert_eq!(find(Wanted { uploaders: true, ..Wanted::default() }, Order::Name, false, 0, 9).await.1, 0);
    }
}
