//! The settings outside all sections.

use tracing_subscriber::filter::Targets;

use super::file::read;
use super::setting::{Setting, addresses, optional, own_name, setting, tokens, url};
use crate::budget::is_path;
use crate::client::{PresenceMode, Registration};
use crate::http::page::Input;
use crate::web::Mount;

/// A year: longer than that, an app need not refresh.
const LIFETIME_MINUTES_MAX: u64 = 365 * 24 * 60;
const GUESTS_DAYS_MAX: u64 = 10 * 365;

pub const SETTINGS: &[Setting] = &[
    setting(
        "server_name",
        r#""localhost""#,
        "The part after the colon in every user's and room's name: @alice:example.org. It cannot be changed any more once there is \
         an account. With the name localhost no other server can reach this one.",
        |config, given| Ok(config.server_name = own_name(given.text()?)?),
    )
    .shown_first(),
    optional(
        "data_dir",
        r#""/var/lib/snug""#,
        "The folder of the database, the media and the signing key. When not set: /var/lib/snug for /etc/snug/snug.toml, the \
         folder this file is in if that is a data folder, or else ./snug-data.",
        |config, given| Ok(config.data_dir = given.path()?),
    ),
    setting(
        "listen",
        r#"["127.0.0.1:8008"]"#,
        "Addresses and ports for apps. \"[::]:8008\" listens on all networks, IPv4 too.",
        |config, given| {
            config.is_listen_set = true;
            Ok(config.listen = addresses(given)?)
        },
    )
    .shown_first(),
    optional(
        "public_url",
        r#""https://matrix.example.org""#,
        "Where apps reach this server from outside, when that is not the server name itself: published in \
         /.well-known/matrix/client. Behind a proxy some apps find a LiveKit server (see [rtc]) only when this is set.",
        |config, given| Ok(config.apps.public_url = Some(url(given.text()?)?)),
    )
    .on_page(Input::Line)
    .live()
    .shown_first(),
    setting(
        "registration",
        r#""closed""#,
        "How accounts are created: \"open\" (by anybody who can reach the server), \"token\" (with one of \
         registration_tokens) or \"closed\" (only by you, with `snug user add NAME`).",
        |config, given| {
            let known = [
                ("open", Registration::Open),
                ("token", Registration::Token),
                ("closed", Registration::Closed),
            ];
            Ok(config.apps.registration = given.one_of(&known)?)
        },
    )
    .on_page(Input::Choice(&["closed", "token", "open"]))
    .live()
    .shown_first(),
    optional(
        "registration_tokens",
        r#"["a long random word"]"#,
        "The tokens of registration = \"token\".",
        |config, given| {
            Ok(config.apps.registration_tokens.extend(tokens(given.texts()?.into_iter())?))
        },
    )
    .live(),
    optional(
        "registration_tokens_file",
        r#""/etc/snug/registration-tokens""#,
        "The same in a file of their own, one on each line, so that this file has no secrets in it.",
        |config, given| {
            let file = given.path()?;
            let text = read(&file)?;
            config.secret_files.push(file);
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
            Ok(config.apps.registration_tokens.extend(tokens(lines)?))
        },
    )
    .live(),
    optional(
        "registration_shared_secret",
        r#""a long random word""#,
        "A secret with which `register_new_matrix_user` and other tools made for Synapse make accounts, administrators' too.",
        |config, given| {
            let secret = given.text()?.to_owned();
            if secret.is_empty() {
                return Err("must not be empty: anybody could make accounts then, administrators' too".to_owned());
            }
            Ok(config.apps.registration_shared_secret = Some(secret))
        },
    )
    .live(),
    setting(
        "synapse_admin_api",
        "true",
        "Whether administrators have Synapse's administration API at /_synapse/admin, for tools such as synadm, Ketesa and Draupnir.",
        |config, given| Ok(config.apps.synapse_admin_api = given.flag()?),
    ),
    setting(
        "guests",
        "false",
        "Whether anybody who can reach the server may be a guest on it without an account: to read rooms that are open to the world, \
         and to take part in those whose guest access says so.",
        |config, given| Ok(config.apps.guests = given.flag()?),
    )
    .on_page(Input::Flag)
    .live(),
    setting(
        "guests_unused_days",
        "30",
        "A guest of whom nothing was heard for so many days leaves all rooms, and the account is closed. There are places for 10,000. \
         With 0 they stay.",
        |config, given| match given.number()? {
            0 => Ok(config.guests_unused_days = None),
            days @ 1..=GUESTS_DAYS_MAX => Ok(config.guests_unused_days = Some(days)),
            _ => Err(format!("must be a number of days up to {GUESTS_DAYS_MAX}")),
        },
    )
    .on_page(Input::Number),
    setting(
        "access_token_lifetime_minutes",
        "60",
        "How long the access token of an app lasts that asks for one it refreshes. Apps that do not ask have one until they \
         log out.",
        |config, given| match given.number()? {
            minutes @ 1..=LIFETIME_MINUTES_MAX => Ok(config.apps.access_token_lifetime_ms = minutes * 60_000),
            _ => Err(format!("must be a number of minutes from 1 to {LIFETIME_MINUTES_MAX}")),
        },
    )
    .on_page(Input::Number)
    .live(),
    optional(
        "budget",
        r#""pi-zero-2w""#,
        "The memory the server may use: router-32, pi-zero-2w, pi-3, pi-4-2g, pi-5, scaleway-arm, or the path of a file of your own. When not \
         set it is chosen by the machine's memory. `snug budget` shows what it means.",
        |config, given| {
            let text = given.text()?;
            let path = || given.path().map(|path| path.to_string_lossy().into_owned());
            Ok(config.budget = Some(if is_path(text) { path()? } else { text.to_owned() }))
        },
    ),
    setting(
        "search_all_users",
        "false",
        "Whether people find every user of this server when they search for somebody. Otherwise they find those with whom they \
         share a room and those in public rooms, and can write to others whose whole name they know.",
        |config, given| Ok(config.apps.search_all_users = given.flag()?),
    )
    .on_page(Input::Flag)
    .live(),
    setting("upload_bytes_max", r#""50 MiB""#, "The largest file that can be uploaded.", |config, given| {
        Ok(config.upload_bytes_max = given.bytes()?)
    })
    .on_page(Input::Line),
    optional(
        "account_upload_bytes_max",
        r#""5 GiB""#,
        "What the files of one account may take in all, also of an administrator's; an account that has used it up \
         cannot upload. When not set: a tenth of the disk. `snug user list` shows the use of each account, and \
         `snug user quota` gives one more, or less.",
        |config, given| Ok(config.account_upload_bytes_max = Some(given.bytes()?)),
    )
    .on_page(Input::Line),
    setting(
        "trusted_proxies",
        "[]",
        "Addresses of reverse proxies whose X-Forwarded-For header is believed, such as [\"127.0.0.1\"]: the last address in the last \
         such header, which is the one the proxy added. Forwarded is not read: a proxy that writes one of the two passes on the \
         other as the caller wrote it. One such proxy may open any number of connections.",
        |config, given| {
            let address = |text: &str| text.parse().map_err(|_| format!("{text:?} is not an IP address"));
            Ok(config.trusted_proxies = given.texts()?.into_iter().map(address).collect::<Result<_, _>>()?)
        },
    )
    .live(),
    setting(
        "presence",
        r#""local""#,
        "Whether people are shown as online, idle or away: \"local\" (people here see each other; other servers are told nothing, \
         and what they tell is dropped), \"all\" (other servers' people too: in large rooms that is the most frequent thing \
         they tell) or \"off\".",
        |config, given| {
            let known = [("local", PresenceMode::Local), ("all", PresenceMode::All), ("off", PresenceMode::Off)];
            Ok(config.apps.presence = given.one_of(&known)?)
        },
    )
    .on_page(Input::Choice(&["local", "all", "off"]))
    .live(),
    setting(
        "rate_limits",
        "true",
        "Whether the requests of one caller are limited in number. Switch it off in a closed network of your own \
         machines.",
        |config, given| Ok(config.rate_limits = given.flag()?),
    ),
    setting(
        "trust_clock",
        "false",
        "Whether the machine's clock is right whatever this server remembers. A board without a battery starts in 1970, so a clock that \
         is a day behind the latest time known is not believed, and other servers are not asked before it is set. Set this to \
         true when the clock was once in the future by mistake, and start Snug once; or when it jumped ahead by more than a week and is \
         right, which is doubted for three days otherwise: meanwhile nothing is removed for its age.",
        |config, given| Ok(config.trust_clock = given.flag()?),
    ),
    optional(
        "web",
        r#"{ "/" = "/srv/element" }"#,
        "Folders that are served at paths, such as a web client: { \"/\" = \"/srv/element\", \"/docs\" = \"/srv/docs\" }. What the server \
         itself answers always goes before. Names that begin with a dot and symbolic links are not served; a file \
         bundle.js.br or bundle.js.gz beside bundle.js is sent to whoever takes it.",
        |config, given| {
            for (path, folder) in given.pairs()? {
                let path = match path.strip_prefix('/').map(|rest| rest.trim_end_matches('/')) {
                    Some(rest) if rest.split('/').all(|part| !matches!(part, "." | "..")) => format!("/{rest}"),
                    _ => return Err(format!("{path:?} is not a path such as \"/\" or \"/docs\"")),
                };
                config.web.push(Mount { path, folder: given.folder.join(folder) });
            }
            Ok(())
        },
    )
    .live(),
    setting(
        "log_format",
        r#""text""#,
        "Lines of the log for people (\"text\"), or for programs: an object in each line (\"json\").",
        |config, given| Ok(config.json_log = given.one_of(&[("text", false), ("json", true)])?),
    ),
    setting(
        "log",
        r#""info""#,
        "What is logged: error, warn, info or debug, also for a part alone: \"info,snug::remote=debug\".",
        |config, given| {
            let text = given.text()?;
            // Otherwise an unknown level would be read as the name of a part, and all other parts would log nothing.
            let known = ["error", "warn", "info", "debug", "trace", "off"];
            let is_level = |word: &str| word.contains('=') || known.contains(&word.trim().to_ascii_lowercase().as_str());
            match text.parse::<Targets>() {
                Ok(_) if text.split(',').all(is_level) => Ok(config.log = text.to_owned()),
                _ => Err(format!("{text:?} is not one of {} or a list such as \"info,snug::remote=debug\"", known.join(", "))),
            }
        },
    )
    .on_page(Input::Line)
    .live(),
    setting(
        "appservices",
        "[]",
        "Registration files of application services (bridges, and bots that are one), or folders of such files (*.yaml, *.yml): \
         [\"/etc/snug/heisenbridge.yaml\"]. A changed file is noticed within a minute, or at once with SIGHUP. `snug appservice add \
         FILE` needs no setting: it takes a copy into the data folder.",
        |config, given| {
            let folder = given.folder;
            Ok(config.appservices = given.texts()?.into_iter().map(|path| folder.join(path)).collect())
        },
    ),
];
