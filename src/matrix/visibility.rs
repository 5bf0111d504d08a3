//! Visibility of events to users and servers (client-server API, "Room History Visibility").

use super::auth::Membership;
use super::json;

/// `m.room.history_visibility`, the most open first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum History {
    WorldReadable = 0,
    Shared = 1,
    Invited = 2,
    Joined = 3,
}

impl History {
    /// From the event's content; a room without the event, or with an unknown value, is shared.
    pub fn of_content(content: Option<&str>) -> History {
        let text = content.and_then(|c| json::read::get_text(c.as_bytes(), "history_visibility"));
        match text.as_deref() {
            Some("world_readable") => History::WorldReadable,
            Some("invited") => History::Invited,
            Some("joined") => History::Joined,
            _ => History::Shared,
        }
    }
}

/// Whether a user may see an event, by the history visibility before it and the user's membership. `joined_since`: they
/// were joined at some time after it, or are now.
pub fn allows(history: History, membership: Membership, joined_since: bool) -> bool {
    match history {
        History::WorldReadable => true,
        _ if membership == Membership::Join => true,
        History::Shared => joined_since,
        History::Invited => membership == Membership::Invite,
        History::Joined => false,
    }
}

/// Whether a server may be given an event in full. `closest` is the membership closest to the room that any of its
/// users had in the state before the event. The caller has checked that the server is in the room now.
pub fn server_may_see(history: History, closest: Membership) -> bool {
    match history {
        History::WorldReadable | History::Shared => true,
        History::Invited => matches!(closest, Membership::Join | Membership::Invite),
        History::Joined => closest == Membership::Join,
    }
}

/// The membership that allows more to be seen.
pub fn closer(a: Membership, b: Membership) -> Membership {
    let rank = |m| match m {
        Membership::Join => 3,
        Membership::Invite => 2,
        Membership::Knock => 1,
        Membership::Leave | Membership::Ban => 0,
    };
    if rank(a) >= rank(b) { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules() {
        use History::*;
        use Membership::*;
        for (history, membership, since, seen) in [
            (WorldReadable, Ban, false, true),
            (Shared, Join, false, true),
            (Shared, Leave, false, false),
            (Shared, Leave, true, true),
            (Shared, Invite, true, true),
            (Invited, Invite, false, true),
            (Invited, Leave, true, false),
            (Invited, Join, false, true),
            (Joined, Invite, true, false),
            (Joined, Join, false, true),
        ] {
            assert_eq!(allows(history, membership, since), seen, "{history:?} {membership:?} {since}");
        }
        assert!(server_may_see(Shared, Leave) && !server_may_see(Invited, Leave) && !server_may_see(Joined, Invite));
        assert_eq!(History::of_content(None), Shared);
        assert_eq!(History::of_content(Some(r#"{"history_visibility":"joined"}"#)), Joined);
        assert_eq!(History::of_content(Some(r#"{"history_visibility":5}"#)), Shared);
    }
}
