//! `snug media`.

use serde_json::json;

use super::admin_socket::Local;
use super::arguments::MediaCommand;
use super::{load, text, with_local};
use crate::budget::human;
use crate::config::Overrides;
use crate::remote::encode;

pub fn media(overrides: &Overrides, command: Option<MediaCommand>) -> Result<(), String> {
    let parted = match &command {
        Some(MediaCommand::Remove { uri }) => Some(parted(uri)?),
        _ => None,
    };
    with_local(Local::connect(&load(overrides)?)?, |local| match command {
        None => usage(local),
        Some(MediaCommand::RemoveRemote { unused_days }) => remove_remote(local, unused_days),
        Some(MediaCommand::Remove { uri }) => {
            let (server, media_id) = parted.unwrap_or_default();
            local.post(&format!("/media/{}/{}/remove", encode(&server), encode(&media_id)), json!({}))?;
            Ok(format!("{uri} is removed.\n"))
        }
    })
}

/// Server and media id of `mxc://server/media_id`.
fn parted(uri: &str) -> Result<(String, String), String> {
    let found = uri.strip_prefix("mxc://").and_then(|rest| rest.split_once('/'));
    match found.filter(|(server, media_id)| !server.is_empty() && !media_id.is_empty() && !media_id.contains('/')) {
        Some((server, media_id)) => Ok((server.to_owned(), media_id.to_owned())),
        None => Err(format!("{uri:?} is not the address of a file, such as mxc://example.org/AbCdEf")),
    }
}

fn usage(local: &mut Local) -> Result<String, String> {
    let all = local.get("/media")?;
    let bytes = |field: &str| human(all[field].as_u64().unwrap_or(0));
    let of = |field: &str| all[field].as_u64().map_or(String::new(), |most| format!(" of {}", human(most)));
    let mut out = format!(
        "files of accounts here      {}{}\nkept of other servers       {}{}\non the disk                 {}\n\
         room for files              {}, with {} free on the disk\n",
        bytes("local_bytes"),
        of("local_bytes_max"),
        bytes("remote_bytes"),
        of("remote_bytes_max"),
        bytes("disk_bytes"),
        bytes("spare_bytes"),
        bytes("free_bytes"),
    );
    let mut users = String::new();
    local.pages("/users", &mut |page| {
        for user in page["users"].as_array().into_iter().flatten() {
            let bytes = user["uploaded_bytes"].as_u64().unwrap_or(0);
            if bytes > 0 {
                users.push_str(&format!("{:<40} {:>10}\n", text(user, "user_id"), human(bytes)));
            }
        }
    })?;
    if !users.is_empty() {
        out.push_str(&format!("\n{:<40} {:>10}\n{users}", "user", "files"));
    }
    Ok(out)
}

pub fn remove_remote(local: &mut Local, unused_days: u32) -> Result<String, String> {
    let done = local.post("/media/remove-remote", json!({ "unused_days": unused_days }))?;
    let number = |field: &str| done[field].as_u64().unwrap_or(0);
    Ok(match number("count") {
        0 => "There is no such file.\n".to_owned(),
        1 => format!("1 file was removed; it took {}.\n", human(number("bytes"))),
        count => format!("{count} files were removed; they took {}.\n", human(number("bytes"))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_files() {
        assert_eq!(parted("mxc://example.org:8448/AbC").unwrap(), ("example.org:8448".to_owned(), "AbC".to_owned()));
        for wrong in ["AbC", "mxc://example.org", "mxc://example.org/", "mxc:///AbC", "mxc://example.org/a/b"] {
            assert!(parted(wrong).is_err(), "{wrong}");
        }
    }
}
