//! `[rtc]`: the media server that carries calls of many.

use super::file::read;
use super::setting::{Setting, optional, setting, url};
use crate::client::LiveKit;

pub const SETTINGS: &[Setting] = &[
    optional(
        "rtc.livekit_url",
        r#""wss://livekit.example.org""#,
        "Where apps reach a LiveKit server, which carries the calls of Element Call. It is a program of its own and not for a small \
         board: it sends each picture on to everybody, wants a processor core and some 200 MB for a call of a few, its own ports \
         (7881 TCP, 50000-60000 UDP) and a name with a certificate; run it on a larger machine. Calls of two need none ([turn]). This server gives \
         out the tokens for it, at /_snug/livekit below public_url: no lk-jwt-service is needed. People of other servers get tokens too, for calls that \
         people here began; set room.auto_create = false at LiveKit, so that they can begin none.",
        |config, given| {
            let text = given.text()?;
            let is_socket = text.starts_with("wss://") || text.starts_with("ws://");
            if !is_socket {
                return Err(format!("{text:?} is not an address such as \"wss://livekit.example.org\""));
            }
            Ok(livekit(config).url = text.to_owned())
        },
    )
    .live(),
    optional("rtc.livekit_key", r#""APIsnug""#, "The name of a key that the LiveKit server knows.", |config, given| {
        Ok(livekit(config).key = given.text()?.to_owned())
    })
    .live(),
    optional("rtc.livekit_secret", r#""a long random word""#, "The secret of that key.", |config, given| {
        Ok(livekit(config).secret = given.text()?.to_owned())
    })
    .live(),
    optional(
        "rtc.livekit_secret_file",
        r#""/etc/snug/livekit-secret""#,
        "The same in a file of its own.",
        |config, given| {
            let file = given.path()?;
            let text = read(&file)?;
            config.secret_files.push(file);
            Ok(livekit(config).secret = text.trim().to_owned())
        },
    )
    .live(),
    setting(
        "rtc.livekit_service_urls",
        "[]",
        "Token services of other LiveKit servers that apps may use, best first: published in /.well-known/matrix/client, and to apps \
         that ask.",
        |config, given| {
            Ok(config.apps.calls.service_urls = given.texts()?.into_iter().map(url).collect::<Result<_, _>>()?)
        },
    )
    .live(),
];

fn livekit(config: &mut super::Config) -> &mut LiveKit {
    config.apps.calls.livekit.get_or_insert_default()
}
