//! `[backup]`: backups that the server makes by itself.

use super::setting::{Setting, optional, setting};
use crate::backup::{Media, Recipient};
use crate::http::page::Input;

pub const SETTINGS: &[Setting] = &[
    optional(
        "backup.target",
        r#""/mnt/disk/snug""#,
        "Where a backup of this server is made each day: a folder, best on another disk or machine. It has each file once, so \
         that many backups take little more than one. `snug backup` makes one at any time; `snug restore` brings it back.",
        |config, given| match given.path()? {
            path if crate::backup::is_archive(&path) => {
                Err("must be a folder: a file would be written over each day".to_owned())
            }
            path => Ok(config.backup.target = Some(path)),
        },
    ),
    setting("backup.time", r#""03:30""#, "The time of day at which it begins, in UTC.", |config, given| {
        let text = given.text()?;
        let minute = text.split_once(':').and_then(|(hour, minute)| {
            let (hour, minute): (u64, u64) = (hour.parse().ok()?, minute.parse().ok()?);
            (hour < 24 && minute < 60).then_some(60 * hour + minute)
        });
        let wrong = || format!("{text:?} is not a time of day such as \"03:30\"");
        Ok(config.backup.minute = minute.ok_or_else(wrong)?)
    })
    .on_page(Input::Line),
    setting(
        "backup.keep_days",
        "14",
        "For how many days a backup is kept; the newest always stays. With 0 all of them are kept.",
        |config, given| Ok(config.backup.keep_days = given.days()?),
    )
    .on_page_with_care(Input::Number),
    setting(
        "backup.media",
        r#""own""#,
        "The files it has: \"own\" for those that people here uploaded, \"all\" for those of other servers too, which are fetched again \
         otherwise, \"none\" for none.",
        |config, given| Ok(config.backup.media = given.one_of(&Media::NAMES)?),
    )
    .on_page(Input::Choice(&["own", "all", "none"])),
    optional(
        "backup.recipient",
        r#""age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj""#,
        "Whom backups are sealed to, as the program age names it: whoever has the identity to it, and nobody else, can restore \
         them. Keep the identity somewhere else than on this server.",
        |config, given| match given.text()? {
            text if Recipient::parse(text).is_some() => Ok(config.backup.recipient = Some(text.to_owned())),
            text => Err(format!("{text:?} is not a recipient of age, which begins with \"age1\"")),
        },
    ),
    optional(
        "backup.passphrase_file",
        r#""/etc/snug/backup-passphrase""#,
        "A file with a passphrase that backups are sealed to instead, of 14 letters or more.",
        |config, given| {
            let path = given.path()?;
            config.secret_files.push(path.clone());
            Ok(config.backup.passphrase_file = Some(path))
        },
    ),
];
