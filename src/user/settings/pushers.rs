//! Pushers: what an app asks to have told to a push gateway (client-server API, "Push Notifications", `/pushers`).
//!
//! A pusher belongs to the device that set it and ends with it. Telling the gateways is `deliver/push`.

use std::ops::ControlFlow;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use url::Url;

use crate::base::{self, Chunks, blocking, comma};
use crate::matrix::json::partial;
use crate::store::tables::user::device;
use crate::store::tables::user::pusher::{self, Key, Pusher};
use crate::store::{Get, UserNum, Write};
use crate::user::{Error, Requester, Users};

/// The most pushers of one user; a further one replaces the one that was set longest ago. Each is at most
/// 64 × 4 + 512 + 5 × 255 + 2 × 8 KiB bytes: 0.2 MB a user. What happens is looked at for each of them.
const PUSHERS_MAX: usize = 10;
/// Pushers of other users with the same app and pushkey that one request removes.
const OTHERS_MAX: usize = 100;
const APP_ID_CHARS_MAX: usize = 64;
const PUSHKEY_BYTES_MAX: usize = 512;
/// Of each name that is shown to people, of the language and of the tag.
const NAME_BYTES_MAX: usize = 255;
/// Of `data`, the gateway's address included. All of it goes along with each notification.
const DATA_BYTES_MAX: usize = 8 << 10;
/// The path of a gateway (push gateway API).
const GATEWAY_PATH: &str = "/_matrix/push/v1/notify";

/// A pusher as an app sends it. `kind: null` removes one.
#[derive(Debug, Deserialize)]
pub struct SetPusher {
    app_id: String,
    pushkey: String,
    #[serde(default, deserialize_with = "some")]
    kind: Option<Option<String>>,
    app_display_name: Option<String>,
    device_display_name: Option<String>,
    profile_tag: Option<String>,
    lang: Option<String>,
    data: Option<Box<RawValue>>,
    #[serde(default)]
    append: bool,
    #[serde(rename = "org.matrix.msc3881.enabled")]
    enabled: Option<bool>,
    #[serde(default, rename = "org.matrix.msc4076.disable_badge_count")]
    without_badge: bool,
}

/// A member that is there, even if it is null.
fn some<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(value).map(Some)
}

impl Users {
    /// The pushers of a user as the API's `{"pushers": [...]}`, written one after the other. At most ten of them, in no
    /// particular order. `with_total` writes how many there are behind them.
    pub async fn pushers(&self, user: UserNum, with_total: bool) -> Result<impl Chunks, Error> {
        let store = self.0.parts.store.clone();
        let (read, keys) = blocking(move || {
            let (read, mut keys) = (store.read()?, Vec::new());
            pusher::each(&read, user, &mut |key, _| {
                keys.push(key);
                Ok(ControlFlow::Continue(()))
            })?;
            Ok::<_, Error>((read, keys))
        })
        .await?;
        Ok(base::written(async move |pen| {
            let (mut first, mut total) = (true, 0_u32);
            pen.with(|out| out.extend_from_slice(b"{\"pushers\":["));
            for key in keys {
                let Some(row) = pusher::get(&read, &key)? else { continue };
                let json = serde_json::to_vec(&Shown::of(&row))?;
                total += 1;
                pen.with(|out| {
                    comma(out, &mut first);
                    out.extend_from_slice(&json);
                });
                pen.pause().await;
            }
            pen.text(&if with_total { format!("],\"total\":{total}}}") } else { "]}".to_owned() });
            Ok(())
        }))
    }

    /// Sets or removes a pusher. Unless the app appends it, other users have none for the same app and pushkey any
    /// more: they used the same phone before.
    pub async fn set_pusher(&self, requester: &Requester, set: SetPusher) -> Result<(), Error> {
        check_lengths(&set)?;
        let user = requester.user_num;
        let kind = set.kind.as_ref().ok_or_else(|| missing("kind"))?;
        let Some(kind) = kind else {
            return self
                .write(move |w| {
                    let key = Key::of(w, user, &set.app_id, &set.pushkey);
                    let is_there = pusher::get(w, &key)?.is_some();
                    Ok(if is_there {
                        pusher::remove(w, &key)?
                    })
                })
                .await;
        };
        if kind != "http" {
            let why = "Only pushers of the kind \"http\" are there: this server sends no e-mail";
            return Err(Error::invalid(why));
        }
        let append = set.append;
        let pusher = checked(set, requester.device_id.clone(), self.now_ms())?;
        self.write(move |w| {
            // The session may have ended while the request came, and its pushers with it.
            device::get(w, user, &pusher.device_id)?.ok_or(Error::UnknownToken)?;
            put(w, user, &pusher, append)
        })
        .await
    }
}

fn put(w: &mut Write<'_>, user: UserNum, new: &Pusher, append: bool) -> Result<(), Error> {
    let key = Key::of(w, user, &new.app_id, &new.pushkey);
    let others = if append { Vec::new() } else { pusher::users_with(w, &key, OTHERS_MAX)? };
    let oldest = oldest_beyond_cap(w, &key)?;
    for user in others.into_iter().filter(|other| *other != user) {
        pusher::remove(w, &Key { user, ..key })?;
    }
    if let Some(oldest) = oldest {
        pusher::remove(w, &oldest)?;
    }
    Ok(pusher::put(w, &key, new)?)
}

/// The pusher that was set longest ago, when there is no place for one more.
fn oldest_beyond_cap(get: &impl Get, new: &Key) -> Result<Option<Key>, Error> {
    let (mut count, mut oldest) = (0, None::<(u64, Key)>);
    pusher::each(get, new.user, &mut |key, row| {
        if key != *new {
            count += 1;
            oldest = [oldest, Some((row.set_ms, key))].into_iter().flatten().min();
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(oldest.filter(|_| count >= PUSHERS_MAX).map(|(_, key)| key))
}

fn check_lengths(set: &SetPusher) -> Result<(), Error> {
    let names = [&set.app_display_name, &set.device_display_name, &set.profile_tag, &set.lang];
    let too_long = names.into_iter().flatten().any(|name| name.len() > NAME_BYTES_MAX);
    let wrong = if set.app_id.is_empty() || set.app_id.chars().count() > APP_ID_CHARS_MAX {
        format!("app_id must have 1 to {APP_ID_CHARS_MAX} characters")
    } else if set.pushkey.is_empty() || set.pushkey.len() > PUSHKEY_BYTES_MAX {
        format!("pushkey must have 1 to {PUSHKEY_BYTES_MAX} bytes")
    } else if too_long {
        format!("A name, tag or language of a pusher may have {NAME_BYTES_MAX} bytes at most")
    } else if set.data.as_ref().is_some_and(|data| data.get().len() > DATA_BYTES_MAX) {
        format!("The data of a pusher may have {DATA_BYTES_MAX} bytes at most")
    } else {
        return Ok(());
    };
    Err(Error::invalid(wrong))
}

fn missing(name: &str) -> Error {
    Error::bad("M_MISSING_PARAM", format!("{name} is missing"))
}

/// The pusher as it is stored.
fn checked(set: SetPusher, device_id: String, now_ms: u64) -> Result<Pusher, Error> {
    let data = set.data.ok_or_else(|| missing("data"))?;
    let text = data.get().as_bytes();
    if !text.starts_with(b"{") {
        return Err(Error::invalid("data must be an object"));
    }
    let url: String = partial::member(text, "url").ok_or_else(|| missing("data.url"))?;
    check_url(&url)?;
    // Synapse reads it there, and so apps write it there.
    let in_data = partial::member(text, "org.matrix.msc4076.disable_badge_count").unwrap_or(false);
    Ok(Pusher {
        app_id: set.app_id,
        pushkey: set.pushkey,
        app_display_name: set.app_display_name.ok_or_else(|| missing("app_display_name"))?,
        device_display_name: set.device_display_name.ok_or_else(|| missing("device_display_name"))?,
        profile_tag: set.profile_tag,
        lang: set.lang.ok_or_else(|| missing("lang"))?,
        url,
        device_id,
        enabled: set.enabled.unwrap_or(true),
        without_badge: set.without_badge || in_data,
        set_ms: now_ms,
        data,
    })
}

fn check_url(url: &str) -> Result<(), Error> {
    let url = Url::parse(url).map_err(|wrong| Error::invalid(format!("data.url is no URL: {wrong}")))?;
    if !matches!(url.scheme(), "https" | "http") || !url.has_host() {
        return Err(Error::invalid("data.url must begin with https:// or http://"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Error::invalid("data.url may hold no user name and no password"));
    }
    if url.path() != GATEWAY_PATH {
        return Err(Error::invalid(format!("data.url must have the path {GATEWAY_PATH}")));
    }
    Ok(())
}

/// A pusher as an app is shown it. `data` stays text: as values it could be a hundred times as large.
#[derive(Serialize)]
struct Shown<'a> {
    app_id: &'a str,
    pushkey: &'a str,
    kind: &'static str,
    app_display_name: &'a str,
    device_display_name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    profile_tag: Option<&'a str>,
    lang: &'a str,
    data: &'a RawValue,
    #[serde(rename = "org.matrix.msc3881.enabled")]
    enabled: bool,
    #[serde(rename = "org.matrix.msc3881.device_id")]
    device_id: &'a str,
    #[serde(rename = "org.matrix.msc4076.disable_badge_count")]
    without_badge: bool,
}

impl<'a> Shown<'a> {
    fn of(row: &'a Pusher) -> Shown<'a> {
        Shown {
            app_id: &row.app_id,
            pushkey: &row.pushkey,
            kind: "http",
            app_display_name: &row.app_display_name,
            device_display_name: &row.device_display_name,
            profile_tag: row.profile_tag.as_deref(),
            lang: &row.lang,
            data: &row.data,
            enabled: row.enabled,
            device_id: &row.device_id,
            without_badge: row.without_badge,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::user::tests::town;

    /// A request whose body came slowly outlives the session that its token was of.
    #[tokio::test]
    async fn a_session_that_ended_sets_no_pusher() {
        let town = town();
        let anna = town.person("anna").await;
        let set = || {
            let set = json!({
                "kind": "http", "app_id": "app", "pushkey": "key", "app_display_name": "App", "lang": "en",
                "device_display_name": "Phone", "data": { "url": "https://a.example/_matrix/push/v1/notify" },
            });
            serde_json::from_value(set).unwrap()
        };
        town.users.set_pusher(&anna, set()).await.unwrap();
        town.users.logout(&anna).await.unwrap();
        assert!(matches!(town.users.set_pusher(&anna, set()).await, Err(Error::UnknownToken)));
        let read = town.users.0.parts.store.read().unwrap();
        pusher::each(&read, anna.user_num, &mut |_, _| panic!("a pusher without a session")).unwrap();
    }

    #[test]
    fn gateways_have_one_path_and_two_schemes() {
        for good in ["https://a.example/_matrix/push/v1/notify", "http://10.0.0.1:8080/_matrix/push/v1/notify"] {
            assert!(check_url(good).is_ok(), "{good}");
        }
        for bad in [
            "a.example/_matrix/push/v1/notify",
            "https://a.example/",
            "https://a.example/_matrix/push/v1/notify/",
            "https://a.example/x/_matrix/push/v1/notify",
            "ftp://a.example/_matrix/push/v1/notify",
            "https://a:b@a.example/_matrix/push/v1/notify",
            "file:///_matrix/push/v1/notify",
        ] {
            assert!(check_url(bad).is_err(), "{bad}");
        }
    }
}
