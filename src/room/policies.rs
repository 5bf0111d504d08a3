//! What people of this server may do in rooms, by the operator's settings and beyond what rooms themselves say.
//!
//! A rule costs nothing while it lets everybody. Otherwise the user's account is read once for each such act, none of which is a
//! message.

use ruma::UserId;

use super::Rooms;
use super::error::{Error, Result};
use crate::base::blocking;
use crate::matrix::acl::glob_matches;
use crate::store::Get;
use crate::store::tables::user;

/// Whom a rule lets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Who {
    #[default]
    Everybody,
    /// Of this server.
    Administrators,
    /// And administrators. `*` in a pattern stands for any text, `?` for one character; one that begins with `!` says who may not,
    /// whatever the others say. A handful, and their length the operator's.
    Users(Vec<String>),
}

/// What a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    CreateRooms,
    /// In this server's public list.
    PublishRooms,
    EncryptRooms,
    Invite,
    /// The rule is the invited user's.
    InvitedFromOutside,
    PublishAliases,
    /// Join or knock at a room that nobody here is in.
    JoinRemoteRooms,
}

impl Act {
    fn in_words(self) -> &'static str {
        match self {
            Act::CreateRooms => "create rooms",
            Act::PublishRooms => "list rooms in its public directory",
            Act::EncryptRooms => "make rooms encrypted",
            Act::Invite => "invite others",
            Act::InvitedFromOutside => "be invited by people of other servers",
            Act::PublishAliases => "give rooms addresses",
            Act::JoinRemoteRooms => "join or ask to join rooms of other servers",
        }
    }
}

/// Who may do what. Users of application services may do all of it, but for those whom a pattern with `!` names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policies {
    pub create_rooms: Who,
    pub publish_rooms: Who,
    pub encrypt_rooms: Who,
    pub invite: Who,
    pub invited_from_outside: Who,
    pub publish_aliases: Who,
    pub join_remote_rooms: Who,
}

impl Policies {
    fn who(&self, act: Act) -> &Who {
        match act {
            Act::CreateRooms => &self.create_rooms,
            Act::PublishRooms => &self.publish_rooms,
            Act::EncryptRooms => &self.encrypt_rooms,
            Act::Invite => &self.invite,
            Act::InvitedFromOutside => &self.invited_from_outside,
            Act::PublishAliases => &self.publish_aliases,
            Act::JoinRemoteRooms => &self.join_remote_rooms,
        }
    }
}

impl Rooms {
    /// Sets who may do what, from now on.
    pub fn set_policies(&self, policies: Policies) {
        self.0.policies.set(policies);
    }

    /// Names the account in whose name the server itself acts, for which no rule holds.
    pub fn set_own_user(&self, own: &UserId) {
        // Set once: the account stays the same one.
        let _ = self.0.own_user.set(own.to_owned());
    }

    /// `Forbidden`, with a sentence, when a user of this server may not do so.
    pub(super) async fn check_policy(&self, act: Act, user: &UserId) -> Result<()> {
        if *self.0.policies.get().who(act) == Who::Everybody {
            return Ok(());
        }
        let (rooms, user) = (self.clone(), user.to_owned());
        blocking(move || rooms.check_policy_in(&rooms.read()?, act, &user)).await
    }

    /// As [`Rooms::check_policy`], for who reads already.
    pub(super) fn check_policy_in(&self, get: &impl Get, act: Act, user: &UserId) -> Result<()> {
        let policies = self.0.policies.get();
        let patterns = match policies.who(act) {
            Who::Everybody => return Ok(()),
            Who::Administrators => &[][..],
            Who::Users(patterns) => patterns,
        };
        if self.0.own_user.get().is_some_and(|own| own == user) {
            return Ok(());
        }
        if let Some(num) = user::num(get, user.as_str())?
            && user::account(get, num)?.is_some_and(|account| account.admin)
        {
            return Ok(());
        }
        let fits = |pattern: &str| glob_matches(pattern.as_bytes(), user.as_bytes());
        let is_denied = patterns.iter().filter_map(|pattern| pattern.strip_prefix('!')).any(fits);
        let may = !is_denied && (patterns.iter().any(|pattern| fits(pattern)) || self.is_of_service(user));
        match may {
            true => Ok(()),
            false => Err(refused(policies.who(act), act)),
        }
    }

    /// Whether a user is an application service's alone: a service that only listens to people has none of them.
    pub(super) fn is_of_service(&self, user: &UserId) -> bool {
        let services = self.0.parts.remote.app_services().list();
        services.iter().any(|service| service.sender == user || service.is_alone(user))
    }
}

fn refused(who: &Who, act: Act) -> Error {
    let words = act.in_words();
    Error::Forbidden(match (act, who) {
        (Act::InvitedFromOutside, _) => "This user takes no invites from people of other servers".to_owned(),
        (_, Who::Administrators) => format!("Only the administrators of this server may {words}"),
        _ => format!("This server does not let you {words}; its administrators can say who may"),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::room::testing::house;
    use crate::room::{Create, StateDraft};

    fn users(patterns: &[&str]) -> Who {
        Who::Users(patterns.iter().map(|pattern| (*pattern).to_owned()).collect())
    }

    #[tokio::test]
    async fn rules_hold_for_whom_they_name() {
        let house = house();
        let (anna, bert) = (house.user("anna").await, house.user("bert").await);
        let may = async |who: Who, user: &UserId| {
            house.rooms.set_policies(Policies { invite: who, ..Policies::default() });
            house.rooms.check_policy(Act::Invite, user).await.map_err(|failed| failed.to_string())
        };
        let no = "This server does not let you invite others; its administrators can say who may";
        assert_eq!(may(Who::Everybody, &bert).await, Ok(()));
        let only = may(Who::Administrators, &bert).await.unwrap_err();
        assert_eq!(only, "Only the administrators of this server may invite others");
        assert_eq!(may(users(&["@an*"]), &anna).await, Ok(()));
        assert_eq!(may(users(&["@an*"]), &bert).await.unwrap_err(), no);
        assert_eq!(may(users(&["*", "!@b???:*"]), &bert).await.unwrap_err(), no);
        assert_eq!(may(users(&[]), &bert).await.unwrap_err(), no);
        let num = house.user_num(&bert);
        let promoted = house.store.write(move |w| {
            let account = user::account(w, num)?.unwrap();
            user::set_account(w, num, &user::Account { admin: true, ..account })
        });
        promoted.await.unwrap();
        for who in [Who::Administrators, users(&[]), users(&["!@bert:*"])] {
            assert_eq!(may(who, &bert).await, Ok(()));
        }
        house.rooms.set_own_user(&anna);
        assert_eq!(may(Who::Administrators, &anna).await, Ok(()));
    }

    /// Each act is refused on every way to it.
    #[tokio::test]
    async fn every_way_to_an_act_is_closed() {
        let house = house();
        let (anna, bert) = (house.user("anna").await, house.user("bert").await);
        let room = house.public_room(&anna).await;
        let rooms = &house.rooms;
        let none = Who::Users(Vec::new());
        let refused = |done: Result<(), Error>, words: &str| match done {
            Err(Error::Forbidden(why)) => assert!(why.contains(words), "{why}"),
            other => panic!("{words}: {other:?}"),
        };
        let create = async |create: Create| rooms.create(&anna, create).await.map(drop);
        let state = async |kind: &str, content| house.send(&anna, &room, kind, Some(""), content).await.map(drop);

        rooms.set_policies(Policies { create_rooms: none.clone(), ..Policies::default() });
        refused(create(Create::default()).await, "create rooms");
        refused(rooms.upgrade(&anna, &room, "11", Vec::new()).await.map(drop), "create rooms");

        rooms.set_policies(Policies { publish_rooms: none.clone(), ..Policies::default() });
        refused(create(Create { public: true, ..Create::default() }).await, "public directory");
        refused(rooms.set_public(&anna, &room, true, false).await, "public directory");
        rooms.set_public(&anna, &room, false, false).await.unwrap();
        create(Create::default()).await.unwrap();

        let encryption = json!({ "algorithm": "m.megolm.v1.aes-sha2" });
        let kind = "m.room.encryption".to_owned();
        let draft = StateDraft { kind, state_key: String::new(), content: encryption.clone() };
        rooms.set_policies(Policies { encrypt_rooms: none.clone(), ..Policies::default() });
        refused(create(Create { initial_state: vec![draft], ..Create::default() }).await, "encrypted");
        refused(state("m.room.encryption", encryption).await, "encrypted");
        state("m.room.topic", json!({ "topic": "t" })).await.unwrap();

        rooms.set_policies(Policies { invite: none.clone(), ..Policies::default() });
        refused(create(Create { invite: vec![bert.clone()], ..Create::default() }).await, "invite others");
        refused(rooms.invite(&anna, &room, &bert, None).await, "invite others");
        let member = json!({ "membership": "invite" });
        let invited = house.send(&anna, &room, "m.room.member", Some(bert.as_str()), member).await;
        refused(invited.map(drop), "invite others");
        let away: ruma::OwnedUserId = "@zoe:elsewhere.test".try_into().unwrap();
        refused(rooms.invite(&anna, &room, &away, None).await, "invite others");

        rooms.set_policies(Policies { publish_aliases: none.clone(), ..Policies::default() });
        let alias = ruma::OwnedRoomAliasId::try_from(format!("#tea:{}", rooms.server())).unwrap();
        refused(rooms.set_alias(&anna, &alias, &room).await, "addresses");
        refused(create(Create { room_alias_name: Some("tea".into()), ..Create::default() }).await, "addresses");

        rooms.set_policies(Policies { join_remote_rooms: none, ..Policies::default() });
        let far: ruma::OwnedRoomId = "!far:elsewhere.test".try_into().unwrap();
        refused(rooms.join(&bert, &far, Default::default()).await, "rooms of other servers");
        refused(rooms.knock(&bert, &far, Vec::new(), None).await, "rooms of other servers");
        rooms.join(&bert, &room, Default::default()).await.unwrap();
    }
}
