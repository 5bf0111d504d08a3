//! Ephemeral data units of a transaction.

use ruma::ServerName;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::federation::{Error, Federation};
use crate::{room, user};

#[derive(Deserialize)]
struct Edu<'a> {
    edu_type: &'a str,
    #[serde(borrow)]
    content: &'a RawValue,
}

/// Handles one EDU; returns the bytes it added to queues here. An invalid EDU is only logged: there is no answer to it.
/// Fails only when the EDU may be accepted later; a typing notice may be lost, since it is true for seconds only.
pub async fn take_edu(federation: &Federation, origin: &ServerName, raw: &RawValue) -> Result<usize, Error> {
    let Ok(edu) = serde_json::from_str::<Edu<'_>>(raw.get()) else { return Ok(0) };
    let (rooms, users) = (&federation.rooms, &federation.users);
    let of_room = |failed: room::Error| (failed.to_string(), failed.is_passing().then(|| failed.into()));
    let of_user = |failed: user::Error| (failed.to_string(), failed.is_passing().then(|| failed.into()));
    let none = |()| 0;
    let taken: Result<usize, (String, Option<Error>)> = match edu.edu_type {
        "m.typing" => {
            rooms.typing_received(origin, edu.content).await.map(none).map_err(|failed| (failed.to_string(), None))
        }
        "m.receipt" => rooms.receipt_received(origin, edu.content).await.map(none).map_err(of_room),
        "m.direct_to_device" => users.to_device_received(origin, edu.content).await.map_err(of_user),
        "m.device_list_update" => {
            users.devices_changed_elsewhere(origin, user::News::Device, edu.content).await.map(none).map_err(of_user)
        }
        "m.signing_key_update" => {
            let news = user::News::SigningKeys;
            users.devices_changed_elsewhere(origin, news, edu.content).await.map(none).map_err(of_user)
        }
        "m.presence" => users.presence_received(origin, edu.content).await.map(none).map_err(of_user),
        _ => Ok(0),
    };
    let (why, put_off) = match taken {
        Ok(brought) => return Ok(brought),
        Err(refused) => refused,
    };
    tracing::debug!(%origin, kind = edu.edu_type, %why, "an EDU is refused");
    put_off.map_or(Ok(0), Err)
}
