//! The accounts as an administrator sees them, a page at a time.

use std::ops::ControlFlow;
use std::sync::Arc;

use ruma::{OwnedUserId, UserId};

use super::Account;
use crate::remote::service::Service;
use crate::store::tables::media;
use crate::store::tables::user::{self, device, password_link};
use crate::store::{Get, UserNum};
use crate::user::lookup::{id_of, local};
use crate::user::{Error, Users};

/// How many accounts one page of a search looks at; the link to the next goes on from there.
const LOOKED_AT_MAX: usize = 2_000;
/// How many users of bridges one page passes over, of which only the names are looked at. A bridge may have made some thousand in a row.
const PASSED_MAX: usize = 20_000;

/// An account with what an administrator is shown of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person {
    pub account: Account,
    /// The account is an application service's: its own, or one for somebody in another network.
    pub is_service: bool,
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
    /// Without `services`, those of application services are passed over. Looks at [`LOOKED_AT_MAX`] at most, and passes over
    /// [`PASSED_MAX`] at most.
    pub async fn people(
        &self,
        after: Option<&UserId>,
        text: &str,
        services: bool,
        most: usize,
    ) -> Result<PeoplePage, Error> {
        let (after, text, now_ms) = (after.map(ToOwned::to_owned), text.to_lowercase(), self.now_ms());
        let registered = self.services().list();
        self.read(move |get| {
            let after = match after {
                Some(after) => user::num(get, after.as_str())?,
                None => None,
            };
            let (mut people, mut looked_at, mut passed, mut last, mut is_more) = (Vec::new(), 0, 0, None, false);
            user::accounts_after(get, after, &mut |num, row| {
                if people.len() == most || looked_at == LOOKED_AT_MAX || passed == PASSED_MAX {
                    is_more = true;
                    return Ok(ControlFlow::Break(()));
                }
                last = Some(num);
                let id = user::id_of(get, num)?;
                if !services && is_of_service(&registered, &id, &row) {
                    passed += 1;
                    return Ok(ControlFlow::Continue(()));
                }
                looked_at += 1;
                let name = display_name(get, num)?;
                let fits = |text: &str, of: &str| of.to_lowercase().contains(text);
                if text.is_empty() || fits(&text, &id) || name.as_deref().is_some_and(|name| fits(&text, name)) {
                    people.push((num, row));
                }
                Ok(ControlFlow::Continue(()))
            })?;
            let people = people.into_iter().map(|(num, row)| person(get, num, row, &registered, now_ms));
            let people = people.collect::<Result<_, Error>>()?;
            let next = last.filter(|_| is_more).map(|num| id_of(get, num)).transpose()?;
            Ok(PeoplePage { people, next })
        })
        .await
    }

    /// One account; none when there is none of that name.
    pub async fn person(&self, user_id: &UserId) -> Result<Option<Person>, Error> {
        let (user_id, now_ms, registered) = (user_id.to_owned(), self.now_ms(), self.services().list());
        self.read(move |get| {
            let Some(num) = user::num(get, user_id.as_str())? else { return Ok(None) };
            user::account(get, num)?.map(|row| person(get, num, row, &registered, now_ms)).transpose()
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

/// Whether an account is an application service's own, which has no password.
fn is_of_service(registered: &[Arc<Service>], id: &str, row: &user::Account) -> bool {
    row.password_hash.is_none()
        && !registered.is_empty()
        && <&UserId>::try_from(id).is_ok_and(|id| registered.iter().any(|service| service.is_alone(id)))
}

/// Reads the rows of one account: at most a hundred devices, and the links.
fn person(
    get: &impl Get,
    num: UserNum,
    row: user::Account,
    registered: &[Arc<Service>],
    now_ms: u64,
) -> Result<Person, Error> {
    let (mut devices, mut seen_ms) = (0, None);
    device::each(get, num, &mut |_, row| {
        devices += 1;
        seen_ms = seen_ms.max(Some(row.seen_ms));
        Ok(ControlFlow::Continue(()))
    })?;
    let id = id_of(get, num)?;
    Ok(Person {
        is_service: is_of_service(registered, id.as_str(), &row),
        account: Account::new(id, row),
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
    use crate::remote::service::Registration;
    use crate::user::account::New;
    use crate::user::tests::town;

    #[tokio::test]
    async fn people_are_found_by_their_names_and_listed_a_page_at_a_time() {
        let town = town();
        for name in ["anna", "bert", "carl", "hannah"] {
            town.users.create(New { localpart: name.to_owned(), ..New::default() }).await.unwrap();
        }
        let found = async |after: Option<&UserId>, text: &str, most| {
            let page = town.users.people(after, text, false, most).await.unwrap();
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

    /// A bridge with 5,000 users had an administrator page through them for the people of the house.
    #[tokio::test]
    async fn users_of_a_bridge_are_passed_over() {
        let town = town();
        let file = "id: irc\nurl: null\nas_token: a\nhs_token: h\nsender_localpart: ircbot\nnamespaces:\n  users:\n  - exclusive: true\n    \
                    regex: '@irc_.*'\n";
        let create = async |name: &str| town.users.create(New { localpart: name.to_owned(), ..New::default() }).await;
        create("anna").await.unwrap();
        create("irc_was_here_before").await.unwrap();
        let registration = Registration::read(file, town.users.server()).unwrap();
        town.users.services().set(vec![Service::new(registration)]);
        for name in ["@ircbot:here.test", "@irc_x:here.test", "@irc_y:here.test"] {
            town.users.create_service_user(<&UserId>::try_from(name).unwrap()).await.unwrap();
        }
        create("bert").await.unwrap();
        // The bridge could read everything of whoever had such a name.
        for name in ["irc_bert", "ircbot"] {
            assert!(matches!(create(name).await, Err(Error::Bad { errcode: "M_EXCLUSIVE", .. })), "{name}");
        }
        let found = async |services, text: &str| {
            let page = town.users.people(None, text, services, 20).await.unwrap();
            let shown =
                |one: &Person| format!("{}{}", one.account.user_id.localpart(), if one.is_service { "*" } else { "" });
            page.people.iter().map(shown).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(found(false, "").await, "anna bert");
        assert_eq!(found(true, "").await, "anna irc_was_here_before* ircbot* irc_x* irc_y* bert");
        assert_eq!(found(true, "irc_x").await, "irc_x*");
    }
}
