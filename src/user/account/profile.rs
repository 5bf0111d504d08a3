//! Profiles: display names, avatars and other fields.
//!
//! The new profile is written here; telling the rooms is `flow::rename`'s.

use ruma::UserId;
use serde_json::{Map, Value};

use crate::budget::{Grant, parsed_bytes_max};
use crate::remote::service::Asked;
use crate::remote::{Failed, Options, encode};
use crate::store::tables::user::{self, Standing};
use crate::store::{Change, UserNum};
use crate::user::{Error, Users, lookup, sharing};

const NAME_BYTES_MAX: usize = 1024;
const FIELD_NAME_BYTES_MAX: usize = 255;
/// The limit of a whole profile, as in the specification.
const PROFILE_BYTES_MAX: usize = 64 << 10;
/// The most memory a parsed profile may take: any client or server may ask for it.
const PARSED_BYTES_MAX: u64 = 128 << 10;

impl Users {
    /// A user's profile. For a remote user it is asked of that user's server, and comes with the grant that pays for
    /// it. When that server gives no usable answer, it is the name and picture in a room that `viewer` shares with them.
    pub async fn profile(
        &self,
        user_id: &UserId,
        viewer: Option<UserNum>,
    ) -> Result<(Map<String, Value>, Option<Grant>), Error> {
        if user_id.server_name() == self.server() {
            return Ok((self.local_profile(user_id).await?, None));
        }
        let failed = match self.ask_profile(user_id).await {
            Ok((profile, paid)) => return Ok((profile, Some(paid))),
            Err(failed) => failed,
        };
        if !failed.is_refusal()
            && failed.own_refusal().is_none()
            && let Some(viewer) = viewer
            && let Some(shown) = self.profile_in_rooms(viewer, user_id).await?
        {
            return Ok((shown, None));
        }
        Err(failed.into())
    }

    async fn ask_profile(&self, user_id: &UserId) -> Result<(Map<String, Value>, Grant), Failed> {
        let server = user_id.server_name();
        let target = format!("/_matrix/federation/v1/query/profile?user_id={}", encode(user_id.as_str()));
        let options = Options { max_bytes: PROFILE_BYTES_MAX as u64 * 2, ..Options::insisting() };
        let answer = self.0.parts.remote.request(server, http::Method::GET, &target, None, options).await?;
        answer.json()
    }

    /// A local user's profile; `NotFound` when there is no such account. An application service in whose namespace it is, is
    /// asked to make one that is not there.
    pub async fn local_profile(&self, user_id: &UserId) -> Result<Map<String, Value>, Error> {
        match self.known_profile(user_id).await {
            Err(Error::NotFound(_)) if self.services().make_user(user_id).await == Asked::Made => {
                self.known_profile(user_id).await
            }
            known => known,
        }
    }

    async fn known_profile(&self, user_id: &UserId) -> Result<Map<String, Value>, Error> {
        let user_id = user_id.to_owned();
        self.read(move |get| {
            let num = lookup::local(get, &user_id).map_err(|_| Error::NotFound("user"))?;
            if user::account(get, num)?.is_none_or(|row| row.standing == Standing::Deactivated) {
                return Err(Error::NotFound("user"));
            }
            Ok(user::profile(get, num)?)
        })
        .await
    }

    /// Sets or removes one field, and wakes the local users who share a room. Answers what the field was, when the profile
    /// changed.
    pub async fn set_profile_field(
        &self,
        user_id: &UserId,
        field: &str,
        value: Option<Value>,
    ) -> Result<Option<Option<Value>>, Error> {
        let value = checked(field, value)?;
        let (user_id, field) = (user_id.to_owned(), field.to_owned());
        self.write(move |w| {
            let num = lookup::local(w, &user_id)?;
            let mut profile = user::profile(w, num)?;
            let before = match &value {
                Some(value) => profile.insert(field.clone(), value.clone()),
                None => profile.remove(&field),
            };
            if before == value {
                return Ok(None);
            }
            let text = Value::Object(profile).to_string();
            if text.len() > PROFILE_BYTES_MAX || parsed_bytes_max(text.as_bytes()) > PARSED_BYTES_MAX {
                return Err(Error::bad("M_PROFILE_TOO_LARGE", "A profile may have 64 KiB at most"));
            }
            user::set_profile_field(w, num, &field, value.as_ref())?;
            w.announce(Change { users: sharing::locals(w, num)?, ..Change::default() });
            Ok(Some(before))
        })
        .await
    }
}

/// The value to store: none for a name or avatar that is null or empty.
fn checked(field: &str, value: Option<Value>) -> Result<Option<Value>, Error> {
    if field.is_empty() || field.len() > FIELD_NAME_BYTES_MAX || field.contains('\0') {
        return Err(Error::bad("M_KEY_TOO_LARGE", "The name of a profile field has 1 to 255 bytes"));
    }
    if !matches!(field, "displayname" | "avatar_url") {
        return Ok(value);
    }
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) if text.len() <= NAME_BYTES_MAX => Ok(Some(text.into())),
        Some(Value::String(_)) => Err(Error::invalid(format!("A {field} has at most {NAME_BYTES_MAX} bytes"))),
        Some(_) => Err(Error::bad("M_BAD_JSON", format!("{field} must be a string"))),
    }
}
