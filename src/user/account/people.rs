//! The accounts as an administrator sees them, a page at a time.

use std::ops::ControlFlow;

use ruma::{OwnedUserId, UserId};

use super::Account;
use crate::store::tables::media;
use crate::store::tables::user::{self, device, password_link};
use crate::store::{Get, UserNum};
use crate::user::lookup::{id_of, local};
use crate::user::{Error, Users};

/// How many accounts one page of a search looks at; the link to the next goes on from there.
const LOOKED_AT_MAX: usize = 2_000;

/// An account with what an administrator is shown of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person {
    pub account: Account,
    pub display_name: Option<String>,
    pub devices: usize,
    /// When any of its devices was last seen, within ten minutes.
    pub seen_ms: Option<u64>,
    pub uploaded_bytes: u64,
    /// Until when its link for a password is good.
    pub link_until_ms: Option<u64>,
}

/// A page of accounts, and after which the next one begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeoplePage {
    pub people: Vec<Person>,
    pub next: Option<OwnedUserId>,
}

impl Users {
    /// At most `most` accounts after `after`, in the order of their creation, whose name or display name contains `text`.
    /// Looks at [`LOOKED_AT_MAX`] at most.
    pub async fn people(&self, after: Option<&UserId>, text: &str, most: usize) -> Result<PeoplePage, Error> {
        let (after, text, now_ms) = (after.map(ToOwned::to_owned), text.to_lowercase(), self.now_ms());
        self.read(move |get| {
            let after = match after {
                Some(after) => user::num(get, after.as_str())?,
                None => None,
            };
            let (mut people, mut looked_at, mut last, mut is_more) = (Vec::new(), 0, None, false);
            user::accounts_after(get, after, &mut |num, row| {
                if people.len() == most || looked_at == LOOKED_AT_MAX {
                    is_more = true;
                    return Ok(ControlFlow::Break(()));
                }
                looked_at += 1;
                last = Some(num);
                let id = user::id_of(get, num)?;
                let name = display_name(get, num)?;
                let fits = |text: &str, of: &str| of.to_lowercase().contains(text);
                if text.is_empty() || fits(&text, &id) || name.as_deref().is_some_and(|name| fits(&text, name)) {
                    people.push((num, row));
                }
                Ok(ControlFlow::Continue(()))
            })?;
            let people = people.into_iter().map(|(num, row)| person(get, num, row, now_ms));
            let people = people.collect::<Result<_, Error>>()?;
            let next = last.filter(|_| is_more).map(|num| id_of(get, num)).transpose()?;
            Ok(PeoplePage { people, next })
        })
        .await
    }

    /// One account; none when there is none of that name.
    pub async fn person(&self, user_id: &UserId) -> Result<Option<Person>, Error> {
        let (user_id, now_ms) = (user_id.to_owned(), self.now_ms());
        self.read(move |get| {
            let Some(num) = user::num(get, user_id.as_str())? else { return Ok(None) };
            user::account(get, num)?.map(|row| person(get, num, row, now_ms)).transpose()
        })
        .await
    }

    /// Ends one session of a user: its device is removed. An unknown one is no error.
    pub async fn end_session(&self, user_id: &UserId, device_id: &str) -> Result<(), Error> {
        let name = user_id.to_owned();
        let num = self.read(move |get| local(get, &name)).await?;
        self.remove_devices(num, user_id, vec![device_id.to_owned()]).await
    }
}

fn display_name(get: &impl Get, num: UserNum) -> Result<Option<String>, crate::store::Error> {
    let name = user::profile_field(get, num, "displayname")?;
    Ok(name.and_then(|name| name.as_str().map(ToOwned::to_owned)))
}

/// Reads the rows of one account: at most a hundred devices, and the links.
fn person(get: &impl Get, num: UserNum, row: user::Account, now_ms: u64) -> Result<Person, Error> {
    let (mut devices, mut seen_ms) = (0, None);
    device::each(get, num, &mut |_, row| {
        devices += 1;
        seen_ms = seen_ms.max(Some(row.seen_ms));
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(Person {
        account: Account::new(id_of(get, num)?, row),
        display_name: display_name(get, num)?,
        devices,
        seen_ms,
        uploaded_bytes: media::used_by(get, num)?,
        link_until_ms: password_link::of_user(get, num, now_ms)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::user::account::New;
    use crate::user::tests::town;

    #[tokio::test]
    async fn people_are_found_by_their_names_and_listed_a_page_at_a_time() {
        let town = town();
        for name in ["anna", "bert", "carl", "hannah"] {
            town.users.create(New { localpart: name.to_owned(), ..New::default() }).await.unwrap();
        }
        let found = async |after: Option<&UserId>, text: &str, most| {
            let page = town.users.people(after, text, most).await.unwrap();
            let names: Vec<_> = page.people.iter().map(|one| one.account.user_id.localpart().to_owned()).collect();
            (names.join(" "), page.next)
        };
        let (names, next) = found(None, "", 3).await;
        assert_eq!(names, "anna bert carl");
        assert_eq!(found(next.as_deref(), "", 3).await, ("hannah".to_owned(), None));
        assert_eq!(found(None, "ANNA", 3).await, ("anna hannah".to_owned(), None));
        let (names, next) = found(None, "anna", 1).await;
        assert_eq!(names, "anna");
        assert_eq!(found(next.as_deref(), "anna", 1).await, ("hannah".to_owned(), None));
        assert_eq!(found(None, "nobody", 3).await, (String::new(), None));
    }
}
