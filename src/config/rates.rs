//! `[rates]`: how often one user or address may do what. The names are near those of Synapse's `rc_*`.
//!
//! Those of passwords are not on the page: a slip there locks administrators out, or opens the door to guessing.

use super::Config;
use super::given::Given;
use super::setting::{Setting, setting};
use crate::client::rates;
use crate::http::Rate;
use crate::http::page::Input;

pub const SETTINGS: &[Setting] = &[
    setting(
        "rates.message",
        "{ per_second = 50, burst_count = 500 }",
        "How often one user may do what, in the long run and at once. These are events that one user sends; `snug user limit` sets it \
         for one account, or lifts all rates for it.",
        |config, given| put(config, given, &rates::SEND),
    )
    .on_page(Input::Rate)
    .live(),
    setting("rates.joins", "{ per_second = 0.2, burst_count = 20 }", "Joins, by user.", |config, given| {
        put(config, given, &rates::JOIN)
    })
    .on_page(Input::Rate)
    .live(),
    setting("rates.knocks", "{ per_second = 0.2, burst_count = 20 }", "Knocks, by user.", |config, given| {
        put(config, given, &rates::KNOCK)
    })
    .on_page(Input::Rate)
    .live(),
    setting("rates.invites", "{ per_second = 1, burst_count = 100 }", "Invites, by user.", |config, given| {
        put(config, given, &rates::INVITE)
    })
    .on_page(Input::Rate)
    .live(),
    setting("rates.room_creation", "{ per_second = 0.2, burst_count = 20 }", "New rooms, by user.", |config, given| {
        put(config, given, &rates::CREATE)
    })
    .on_page(Input::Rate)
    .live(),
    setting("rates.uploads", "{ per_second = 2, burst_count = 50 }", "Uploads, by user.", |config, given| {
        put(config, given, &rates::UPLOAD)
    })
    .on_page(Input::Rate)
    .live(),
    setting(
        "rates.reports",
        "{ per_second = 0.1, burst_count = 20 }",
        "Reports to the administrators, by user.",
        |config, given| put(config, given, &rates::REPORT),
    )
    .on_page(Input::Rate)
    .live(),
    setting(
        "rates.registration",
        "{ per_second = 0.1, burst_count = 5 }",
        "New accounts, by address.",
        |config, given| put(config, given, &rates::REGISTER),
    )
    .on_page(Input::Rate)
    .live(),
    setting(
        "rates.login",
        "{ per_second = 1, burst_count = 60 }",
        "Passwords, right or wrong, by address and by user: each costs much memory and time.",
        |config, given| put(config, given, &rates::PASSWORDS.all),
    )
    .live(),
    setting(
        "rates.failed_login",
        "{ per_second = 0.2, burst_count = 10 }",
        "Wrong passwords, by address and by user.",
        |config, given| put(config, given, &rates::PASSWORDS.wrong),
    )
    .live(),
];

fn put(config: &mut Config, given: &Given<'_>, rate: &Rate) -> Result<(), String> {
    let (per_second, burst) = given.rate()?;
    config.rates.retain(|known| known.name != rate.name);
    config.rates.push(Rate { name: rate.name, per_second, burst });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn a_rate_that_is_not_set_is_that_of_the_part() {
        let of = [
            rates::SEND,
            rates::JOIN,
            rates::KNOCK,
            rates::INVITE,
            rates::CREATE,
            rates::UPLOAD,
            rates::REPORT,
            rates::REGISTER,
            rates::PASSWORDS.all,
            rates::PASSWORDS.wrong,
        ];
        assert_eq!(Config::default().rates, of);
        let read = |text: &str| Config::parse(text, Path::new("x/snug.toml"));
        let set = read("[rates]\nlogin = { per_second = 0.5, burst_count = 3 }").unwrap();
        let login = set.rates.iter().find(|rate| rate.name == rates::PASSWORDS.all.name).unwrap();
        assert_eq!((login.per_second, login.burst, set.rates.len()), (0.5, 3.0, of.len()));
        for wrong in
            ["5", "{ per_second = 1 }", "{ per_second = 0, burst_count = 1 }", "{ per_second = 1, burst_count = 0 }"]
        {
            let error = read(&format!("[rates]\njoins = {wrong}")).unwrap_err().to_string();
            assert!(error.contains("rates.joins: must be a rate such as {"), "{error}");
        }
    }
}
