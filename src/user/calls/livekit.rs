//! Tokens for a LiveKit media server (MSC4195, and the older service that apps ask today).
//!
//! A token is a JSON web token under the key that the media server has too (HS256). It names a room there and who somebody is
//! there, both as hashes, so that the media server learns neither.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use ring::hmac;
use ruma::{ServerName, UserId};
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::remote::Options;
use crate::remote::web::{Plain, WebLimits, WebRequest};
use crate::user::{Error, Users};

/// How long the media server, which is near, is waited for.
const ASK_TIME_MAX: Duration = Duration::from_secs(5);
/// The longest answer of another server: an address and a token.
const ANSWER_BYTES_MAX: u64 = 16 * 1024;
/// How long a token lets somebody in; who is in stays.
const TOKEN_S: u64 = 60 * 60;
/// The slot of a call in a room, which older apps do not name.
const ROOM_SLOT: &str = "m.call#ROOM";

/// The settings of a media server.
#[derive(Clone, Default)]
pub struct LiveKit {
    /// Where apps reach it: `wss://…`.
    pub url: String,
    pub key: String,
    pub secret: String,
}

/// A secret is nobody's to read.
impl std::fmt::Debug for LiveKit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LiveKit").field("url", &self.url).field("key", &self.key).finish_non_exhaustive()
    }
}

/// Somebody's part in a call: the member `member` of an `m.rtc.member` event.
#[derive(Debug, Clone, Deserialize)]
pub struct Member {
    pub id: String,
    pub claimed_device_id: String,
    /// Older requests have it.
    pub claimed_user_id: Option<String>,
}

/// What another server is asked for.
#[derive(Debug, Clone)]
pub struct Asked {
    pub room_id: String,
    pub slot_id: String,
    pub member: Member,
}

impl Users {
    /// Whether somebody is connected to the media server here; none when it does not say.
    pub async fn is_at_livekit(&self, alias: &str, identity: &str) -> Option<bool> {
        let calls = self.calls();
        let livekit = calls.livekit.as_ref()?;
        let url = match livekit.url.strip_prefix("ws") {
            Some(rest) => format!("http{}/twirp/livekit.RoomService/GetParticipant", rest.trim_end_matches('/')),
            None => return None,
        };
        let token = livekit.admin_token(alias, self.now_ms() / 1000);
        let mut headers = http::HeaderMap::new();
        headers.insert("content-type", http::HeaderValue::from_static("application/json"));
        headers.insert("authorization", http::HeaderValue::try_from(format!("Bearer {token}")).ok()?);
        let body = json!({ "room": alias, "identity": identity }).to_string().into();
        let request = WebRequest { method: http::Method::POST, url, headers, body };
        // The address is the owner's own setting.
        let limits = WebLimits {
            time: ASK_TIME_MAX,
            patience: ASK_TIME_MAX,
            redirects_max: 0,
            plain: Plain::WhereGiven,
            allow_private: true,
            ..WebLimits::default()
        };
        match self.0.parts.remote.web().ask(request, limits).await {
            Ok(answer) if (200..300).contains(&answer.status) => Some(true),
            Ok(answer) if answer.status == 404 => Some(false),
            Ok(answer) => {
                tracing::warn!(status = answer.status, "the media server does not say who is connected");
                None
            }
            Err(failed) => {
                tracing::debug!(%failed, "the media server cannot be asked who is connected");
                None
            }
        }
    }

    /// A token of another server's media server, for a user of this one: its address and the token.
    pub async fn livekit_token_of(
        &self,
        server: &ServerName,
        user: &UserId,
        asked: Asked,
    ) -> Result<(String, String), Error> {
        #[derive(Deserialize)]
        struct Given {
            url: String,
            jwt: String,
        }
        let Asked { room_id, slot_id, member } = asked;
        let member = json!({ "id": member.id, "claimed_device_id": member.claimed_device_id, "claimed_user_id": user });
        let content = json!({ "room_id": room_id, "slot_id": slot_id, "member": member });
        let target = "/_matrix/federation/v1/rtc/livekit/get_token";
        let options = Options { max_bytes: ANSWER_BYTES_MAX, ..Options::insisting() };
        let content = Some(content.to_string().into_bytes());
        let answer = self.0.parts.remote.request(server, http::Method::POST, target, content, options).await?;
        let (Given { url, jwt }, _grant) = answer.json()?;
        Ok((url, jwt))
    }
}

/// The name of a call's room on the media server.
pub fn alias(room_id: &str, slot_id: &str) -> String {
    hashed(&[room_id, slot_id])
}

/// The name of a call's room for apps that do not name a slot.
pub fn room_alias(room_id: &str) -> String {
    alias(room_id, ROOM_SLOT)
}

/// Somebody's name on the media server.
pub fn identity(user_id: &str, member: &Member) -> String {
    hashed(&[user_id, &member.claimed_device_id, &member.id])
}

/// A hash of a list of texts as canonical JSON.
fn hashed(texts: &[&str]) -> String {
    // A list of texts has one form.
    STANDARD_NO_PAD.encode(Sha256::digest(json!(texts).to_string()))
}

impl LiveKit {
    /// A token for somebody and a room. `is_ours`: only users of this server may make the room there.
    pub fn token(&self, alias: &str, identity: &str, is_ours: bool, now_s: u64) -> String {
        let video = json!({
            "room": alias,
            "roomJoin": true,
            "roomCreate": is_ours,
            "canPublish": true,
            "canSubscribe": true,
            "canUpdateOwnMetadata": true,
        });
        self.signed(identity, video, now_s)
    }

    /// A token with which this server asks the media server about a room.
    fn admin_token(&self, alias: &str, now_s: u64) -> String {
        self.signed("snug", json!({ "room": alias, "roomAdmin": true }), now_s)
    }

    fn signed(&self, identity: &str, video: serde_json::Value, now_s: u64) -> String {
        let claims = json!({
            "iss": self.key,
            "sub": identity,
            "nbf": now_s.saturating_sub(10),
            "exp": now_s + TOKEN_S,
            "video": video,
        });
        let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let text = format!("{}.{}", part(&json!({ "alg": "HS256", "typ": "JWT" })), part(&claims));
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.secret.as_bytes());
        let tag = hmac::sign(&key, text.as_bytes());
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(tag))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The proposal's own vectors.
    #[test]
    fn names_are_hashes_as_the_proposal_has_them() {
        assert_eq!(alias("!roomid:example.com", "slot1234"), "O8437W3+jmzMVjoIP3tNwbm+XxHQk2iKpOA7aqw3qSc");
        let random = hashed(&["!roomid:example.com", "slot123", "random123"]);
        assert_eq!(random, "IMeDd+K3MIqJTI20EXBIrepKkhhORvf3q8fx3rlrhTk");
    }

    #[test]
    fn a_token_says_who_may_do_what_until_when() {
        let livekit = LiveKit { url: "wss://x".to_owned(), key: "APIkey".to_owned(), secret: "s3cret".to_owned() };
        let token = livekit.token("room", "me", false, 1_700_000_000);
        let parts: Vec<_> = token.split('.').collect();
        let read = |part: &str| -> serde_json::Value {
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
        };
        assert_eq!(read(parts[0]), json!({ "alg": "HS256", "typ": "JWT" }));
        let claims = read(parts[1]);
        assert_eq!(
            (&claims["iss"], &claims["sub"], &claims["exp"]),
            (&json!("APIkey"), &json!("me"), &json!(1_700_003_600))
        );
        assert_eq!((&claims["video"]["roomCreate"], &claims["video"]["roomJoin"]), (&json!(false), &json!(true)));
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"s3cret");
        let text = format!("{}.{}", parts[0], parts[1]);
        hmac::verify(&key, text.as_bytes(), &URL_SAFE_NO_PAD.decode(parts[2]).unwrap()).unwrap();
        assert!(!format!("{livekit:?}").contains("s3cret"));
    }
}
