//! `[media]`: what files may take, and how long they stay.

use super::setting::{Setting, optional, setting};
use crate::http::page::Input;
use crate::media::Scanner;

pub const SETTINGS: &[Setting] = &[
    optional(
        "media.local_bytes_max",
        r#""20 GiB""#,
        "What the files of all accounts may take together. When not set: as much as the disk has. What one account may \
         have is account_upload_bytes_max.",
        |config, given| Ok(config.media.local_bytes_max = Some(given.bytes()?)),
    )
    .on_page(Input::Line),
    optional(
        "media.remote_bytes_max",
        r#""2 GiB""#,
        "What files of other servers may take that are kept here, so that they are there at once and fetched once for \
         everybody; the one that nobody asked for longest goes first. One that would take more than a quarter of it is passed \
         on without being kept. When not set: a tenth of the disk, 4 GiB at most. With 0 nothing is kept.",
        |config, given| Ok(config.media.remote_bytes_max = Some(given.bytes()?)),
    )
    .on_page(Input::Line),
    setting(
        "media.remote_unused_days",
        "90",
        "A file of another server that nobody asked for in as many days is removed; it is fetched again when somebody does. \
         With 0 it stays while there is room.",
        |config, given| Ok(config.media.remote_unused_days = given.days()?),
    )
    .on_page(Input::Number),
    setting(
        "media.local_unused_days",
        "0",
        "A file uploaded here that nobody asked for in as many days is removed for good: with 365, a picture that nobody looked at \
         for a year. It is noted from then on that this is set, so that nothing goes before as many days are over. With 0 no \
         upload is ever removed by itself.",
        |config, given| Ok(config.media.local_unused_days = given.days()?),
    )
    .on_page_with_care(Input::Number),
    setting(
        "media.free_bytes_min",
        r#""0""#,
        "What files leave free on the disk, for what else is on it. Below that no upload is taken, and files of other servers \
         go. An eighth of the disk, 256 MiB at most, always stays free for messages and keys.",
        |config, given| Ok(config.media.free_bytes_min = given.bytes()?),
    )
    .on_page(Input::Line),
    optional(
        "media.scanner",
        r#""clamd:/run/clamav/clamd.ctl""#,
        "A scanner that has to call each file clean before anybody gets it, people here or other servers, as it is or made smaller: \
         \"clamd:/run/clamav/clamd.ctl\" or \"clamd://nas.lan:3310\" for ClamAV's daemon, \"icap://nas.lan:1344/avscan\" for a scanner \
         that speaks ICAP, such as c-icap. ClamAV alone takes more than 1 GB of memory, so on a small board name one that runs on \
         another machine of the house; nothing is encrypted on the way there. Uploads are scanned when they come, files of other servers \
         and those from before when somebody asks for them; what is harmful is withheld, and the administrators are told. \
         While it does not answer files are withheld, and `snug check` says so. Files of \
         encrypted rooms are encrypted, and no scanner sees anything in them. One that is larger than the scanner takes \
         (StreamMaxLength of clamd) is not judged, nor is one of another server that is larger than a quarter of media.remote_bytes_max, \
         since it is not kept here.",
        |config, given| Ok(config.media.scan.scanner = Some(Scanner::parse(given.text()?)?)),
    )
    .live(),
    setting(
        "media.scanned_again_days",
        "30",
        "How long it counts at most that the scanner called a file clean: it is asked again when the file is next asked for after as \
         many days, and a new file sooner, after one day, two, four and so on, since the scanner's makers learn of new things meanwhile. \
         Nothing is sent when the scanner says that its database is still the same. Within these days a file is given out also while \
         the scanner is away. With 0 it counts for ever.",
        |config, given| Ok(config.media.scan.verdict_days = given.days()?),
    )
    .on_page(Input::Number)
    .live(),
    setting(
        "media.give_out_unscanned",
        "false",
        "Whether files are given out that the scanner did not judge, since it is away, or since they are too large for it. With \
         false they wait until it does, and apps are told that they are not uploaded yet.",
        |config, given| Ok(config.media.scan.gives_out_unscanned = given.flag()?),
    )
    .live(),
    setting(
        "media.authenticated",
        "true",
        "Whether a new upload is given out to those alone who show an access token, as the specification demands. With false \
         also old apps and web pages can show it, from /_matrix/media, and anybody can have this server fetch files of other \
         servers. Counts for files uploaded or fetched from then on.",
        |config, given| Ok(config.media.authenticated = given.flag()?),
    ),
];
