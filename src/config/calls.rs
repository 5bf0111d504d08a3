//! `[turn]`: a TURN server for calls of two. The relay inside this server is in `relay.rs`.

use super::file::read;
use super::setting::{Setting, optional, setting};
use crate::client::TurnLogin;

/// Less would end before a call does.
const TTL_S_MIN: u64 = 60;

pub const SETTINGS: &[Setting] = &[
    setting(
        "turn.uris",
        "[]",
        "A TURN server such as coturn, through which two phones talk that cannot reach each other: for example \
         [\"turn:turn.example.org:3478?transport=udp\", \"turns:turn.example.org:5349\"].",
        |config, given| {
            let uri =
                |text: &str| match text.starts_with("turn:") || text.starts_with("turns:") || text.starts_with("stun:")
                {
                    true => Ok(text.to_owned()),
                    false => Err(format!("{text:?} is no address such as \"turn:turn.example.org:3478\"")),
                };
            Ok(config.apps.calls.turn.uris = given.texts()?.into_iter().map(uri).collect::<Result<_, _>>()?)
        },
    )
    .live(),
    optional(
        "turn.shared_secret",
        r#""a long random word""#,
        "The secret that the TURN server has too (coturn: static-auth-secret): each user gets a name and a password that end.",
        |config, given| Ok(config.apps.calls.turn.login = TurnLogin::Secret(secret(given.text()?)?)),
    )
    .live(),
    optional(
        "turn.shared_secret_file",
        r#""/etc/snug/turn-secret""#,
        "The same in a file of its own.",
        |config, given| {
            let file = given.path()?;
            let text = read(&file)?;
            config.secret_files.push(file);
            Ok(config.apps.calls.turn.login = TurnLogin::Secret(secret(text.trim())?))
        },
    )
    .live(),
    optional(
        "turn.login",
        r#"{ username = "snug", password = "a long random word" }"#,
        "One name and password for everybody, in place of the secret. The relay inside this server then counts what one person \
         may use by where they are, since it cannot tell people apart.",
        |config, given| {
            let pairs = given.pairs()?;
            let of = |name: &str| pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
            match (of("username"), of("password"), pairs.len()) {
                (Some(username), Some(password), 2) if !password.is_empty() => {
                    Ok(config.apps.calls.turn.login = TurnLogin::Fixed { username, password })
                }
                _ => Err("must have username and password, and nothing else".to_owned()),
            }
        },
    )
    .live(),
    setting(
        "turn.ttl_s",
        "86400",
        "For how many seconds a name and password are valid. Apps ask for others before.",
        |config, given| match given.number()? {
            TTL_S_MIN.. => Ok(config.apps.calls.turn.ttl_s = given.number()?),
            _ => Err(format!("must be {TTL_S_MIN} or more")),
        },
    )
    .live(),
    setting(
        "turn.guests",
        "true",
        "Whether guests get a name and password too, where guests are allowed.",
        |config, given| Ok(config.apps.calls.turn.guests = given.flag()?),
    )
    .live(),
];

fn secret(text: &str) -> Result<String, String> {
    match text {
        "" => Err("must not be empty: anybody could make names and passwords then".to_owned()),
        text => Ok(text.to_owned()),
    }
}
