//! How often one user or address may do what.
//!
//! A rate is for one thing, so that no app is refused one for having done much of another. Reading has no rate, unless
//! it needs no access token, makes this server ask another one, or looks at very much.
//!
//! Those that have a setting in `[rates]` hold as they stand here until it is set; an account may have a rate of its own for
//! what it sends, or none of them hold for it ([`crate::user::Pace`]).

use crate::http::{AttemptRates, ErrorResponse, Rate, Request};
use crate::user::Requester;

/// Passwords. Wrong ones are counted by address, by user, by an address where the user was lately, and by session.
pub const PASSWORDS: AttemptRates = AttemptRates {
    wrong: Rate { name: "wrong passwords", per_second: 0.2, burst: 10.0 },
    all: Rate { name: "passwords", per_second: 1.0, burst: 60.0 },
};
/// New accounts, by address. An attempt that fails counts too: it may have been a guess at a registration token.
pub const REGISTER: Rate = Rate { name: "new accounts", per_second: 0.1, burst: 5.0 };
/// Registrations with the shared secret, and nonces for them, by address.
pub const REGISTER_NONCE: Rate = Rate { name: "registrations with the shared secret", per_second: 1.0, burst: 60.0 };
/// Questions about the requirements of registration, by address.
pub const REQUIREMENTS: Rate = Rate { name: "requirements", per_second: 0.5, burst: 30.0 };
/// Questions whether a user name is free, by address. An app asks while the name is typed.
pub const NAME: Rate = Rate { name: "free names", per_second: 1.0, burst: 60.0 };
/// Questions whether a registration token is valid, by address.
pub const TOKEN: Rate = Rate { name: "registration tokens", per_second: 0.1, burst: 5.0 };
/// Logins with a token of another session, by address. Each may be a guess.
pub const LOGIN_TOKEN: Rate = Rate { name: "login tokens shown", per_second: 0.1, burst: 5.0 };
/// Tokens for logins of further devices, by user. The specification encourages one a minute.
pub const GET_TOKEN: Rate = Rate { name: "login tokens", per_second: 1.0 / 60.0, burst: 2.0 };
/// Refreshed access tokens, by address: behind one there may be many apps, and each asks every few minutes.
pub const REFRESH: Rate = Rate { name: "refreshed tokens", per_second: 1.0, burst: 60.0 };
/// Pages about the terms of this server, by address.
pub const TERMS: Rate = Rate { name: "pages of terms", per_second: 0.5, burst: 30.0 };
/// Public rooms and aliases of this server, read without an access token, by address.
pub const BROWSE: Rate = Rate { name: "public rooms", per_second: 10.0, burst: 100.0 };
/// Events sent, by user.
pub const SEND: Rate = Rate { name: "events", per_second: 50.0, burst: 500.0 };

/// Takes one event from what a user may send.
pub fn limit_send(request: &Request, requester: &Requester) -> Result<(), ErrorResponse> {
    let user = requester.user_id.as_str();
    match requester.pace {
        Some(pace) => {
            // A burst of none would be no event at all.
            let (per_second, burst) = (pace.per_second.into(), pace.burst.max(1).into());
            request.limit_user_at(&Rate { per_second, burst, ..SEND }, user)
        }
        None => request.limit_user(&SEND, user),
    }
}

/// Messages to devices, by user. An app shares the keys of a large room in hundreds of them.
pub const TO_DEVICE: Rate = Rate { name: "messages to devices", per_second: 50.0, burst: 500.0 };
/// Data stored for a user beside events, by user: receipts, typing, account data, keys. Each is a commit of its own.
pub const NOTE: Rate = Rate { name: "notes", per_second: 50.0, burst: 500.0 };
/// Requests that put keys into a backup or delete some, by user. An app that makes a backup sends a hundred keys in each.
pub const BACKUP: Rate = Rate { name: "key backups", per_second: 50.0, burst: 500.0 };
/// New rooms and upgrades of rooms, by user.
pub const CREATE: Rate = Rate { name: "new rooms", per_second: 0.2, burst: 20.0 };
/// Joins, by user.
pub const JOIN: Rate = Rate { name: "joins", per_second: 0.2, burst: 20.0 };
/// Knocks, by user.
pub const KNOCK: Rate = Rate { name: "knocks", per_second: 0.2, burst: 20.0 };
/// Invites, by user.
pub const INVITE: Rate = Rate { name: "invites", per_second: 1.0, burst: 100.0 };
/// Uploads, by user.
pub const UPLOAD: Rate = Rate { name: "uploads", per_second: 2.0, burst: 50.0 };
/// Files and thumbnails of other servers, by user.
pub const FETCH: Rate = Rate { name: "files from elsewhere", per_second: 10.0, burst: 100.0 };
/// Previews of links that are not known yet, by user. An app asks for every link that comes into view.
pub const PREVIEW: Rate = Rate { name: "previews", per_second: 1.0, burst: 60.0 };
/// History that another server is asked for, by user.
pub const HISTORY: Rate = Rate { name: "history from elsewhere", per_second: 10.0, burst: 100.0 };
/// Restarts and endings of delayed events without an access token, by address: a media server does so for many calls.
pub const DELAYED: Rate = Rate { name: "delayed events", per_second: 20.0, burst: 200.0 };
/// Questions for a media server's token with an OpenID token, by address: each may make this server ask another one.
pub const CALL: Rate = Rate { name: "calls", per_second: 1.0, burst: 30.0 };
/// Searches for people, by user: an app asks while a name is typed, and each looks at thousands of members.
pub const FIND: Rate = Rate { name: "searches for people", per_second: 5.0, burst: 50.0 };
/// Reports to the administrator, by user.
pub const REPORT: Rate = Rate { name: "reports", per_second: 0.1, burst: 20.0 };
/// Pages of hierarchies and summaries of rooms, by user: each may look at a thousand rooms.
pub const SPACE: Rate = Rate { name: "spaces", per_second: 5.0, burst: 100.0 };
/// Searches in rooms, by user: each looks at many events. An app asks for page after page.
pub const SEARCH: Rate = Rate { name: "searches in rooms", per_second: 5.0, burst: 50.0 };
/// Other questions that make this server ask another one, by user, or by address without an access token: directories,
/// profiles, keys.
pub const ASK: Rate = Rate { name: "questions to other servers", per_second: 10.0, burst: 100.0 };
