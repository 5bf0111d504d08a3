//! `snug appservice`.

use std::io::{ErrorKind, Read};
use std::path::Path;

use serde_json::json;

use super::admin_socket::Local;
use super::arguments::ServiceCommand;
use super::{load, print, text, with_local};
use crate::base::Random;
use crate::base::private::{make_folder, write_secret};
use crate::config::{Config, Overrides};
use crate::remote::service::{BYTES_MAX, Registration};
use crate::serve;
use crate::serve::services as files;

const TOKEN_CHARS: usize = 64;

pub fn run(overrides: &Overrides, command: ServiceCommand) -> Result<(), String> {
    match command {
        ServiceCommand::List => list(&load(overrides)?),
        ServiceCommand::Add { file } => add(&load(overrides)?, &file),
        ServiceCommand::Remove { id } => remove(&load(overrides)?, &id),
        ServiceCommand::Token => {
            let random = Random::os();
            Ok(print(&format!("as_token: {}\nhs_token: {}\n", random.token(TOKEN_CHARS), random.token(TOKEN_CHARS))))
        }
    }
}

fn list(config: &Config) -> Result<(), String> {
    let Some(local) = Local::running(config)? else {
        let found = files::read_all(config);
        let mut out = String::new();
        for found in &found {
            let file = found.file.display();
            match &found.read {
                Ok(read) => {
                    let url = read.url.as_deref().unwrap_or("is told nothing");
                    out.push_str(&format!("{}  {url}  {}  {file}\n", read.id, read.sender));
                }
                Err(wrong) => out.push_str(&format!("BAD  {file}: {wrong}\n")),
            }
        }
        return Ok(print(if out.is_empty() { "There is no application service.\n" } else { &out }));
    };
    with_local(local, |local| {
        let answer = local.get("/appservices")?;
        let mut out = String::new();
        for row in answer["appservices"].as_array().into_iter().flatten() {
            let (of, status) = (&row["registration"], &row["status"]);
            if let Some(wrong) = of["error"].as_str() {
                out.push_str(&format!("BAD  {}: {wrong}\n", text(of, "file")));
            }
            if of["id"].is_string() {
                let url = of["url"].as_str().unwrap_or("is told nothing");
                let (id, sender, file) = (text(of, "id"), text(of, "sender"), text(of, "file"));
                out.push_str(&format!("{id}  {url}  {sender}  {file}\n"));
                if let Some(wrong) = status["failing"].as_str() {
                    out.push_str(&format!("     fails: {wrong}\n"));
                }
            }
        }
        Ok(if out.is_empty() { "There is no application service.\n".to_owned() } else { out })
    })
}

/// Copies a file into the data folder, where only the server reads it.
fn add(config: &Config, file: &Path) -> Result<(), String> {
    // The file is in the folder of whoever set up the bridge, which the server's user often may not enter.
    if let Some(owner) = serve::other_owner(&config.data_dir).map_err(|error| error.to_string())? {
        let folder = config.data_dir.display();
        return Err(format!("{folder}: it belongs to {owner}, as whom the server runs. {}", handed_over(file, &owner)));
    }
    let wrong = |error: std::io::Error| match error.kind() {
        ErrorKind::PermissionDenied => {
            let me = serve::user_name(rustix::process::geteuid().as_raw());
            format!("{}: {me} may not read it. {}", file.display(), handed_over(file, &me))
        }
        _ => format!("{}: {error}", file.display()),
    };
    let (text, name) = match file == Path::new("-") {
        true => (read_some(std::io::stdin().lock()).map_err(wrong)?, "standard input".to_owned()),
        false => (std::fs::File::open(file).and_then(read_some).map_err(wrong)?, file.display().to_string()),
    };
    let registration = Registration::read(&text, &config.server_name).map_err(|wrong| format!("{name}: {wrong}"))?;
    let mut bytes = registration.patterns_bytes;
    for other in files::read_all(config) {
        let Ok(read) = &other.read else { continue };
        bytes += if read.id == registration.id { 0 } else { read.patterns_bytes };
        let here = files::folder(&config.data_dir).join(files::file_name(&registration.id));
        if read.id == registration.id && other.file != here {
            return Err(format!("{} is registered already, by {}", read.id, other.file.display()));
        }
        if read.id != registration.id && other.file == here {
            let (file, other, id) = (here.display(), &read.id, &registration.id);
            return Err(format!("{name}: id: {id} would be kept in {file}, as {other} is: give it another id"));
        }
        if read.id != registration.id && read.as_token == registration.as_token {
            return Err(format!("{name}: as_token: {} has the same one", other.file.display()));
        }
    }
    files::check_patterns(bytes).map_err(|wrong| format!("{name}: {wrong}"))?;
    let folder = files::folder(&config.data_dir);
    let to = folder.join(files::file_name(&registration.id));
    let failed = |error: std::io::Error| format!("{}: {error}", to.display());
    // Written aside and renamed: the server may read it at any time.
    make_folder(&folder).and_then(|()| write_secret(&to, &text)).map_err(failed)?;
    print(&format!("{} is registered: {}\n", registration.id, to.display()));
    reload(config)
}

/// How a file comes to the user of the server, who may not read it where it is.
fn handed_over(file: &Path, owner: &str) -> String {
    let cat = if file == Path::new("-") { String::new() } else { format!("sudo cat {} | ", file.display()) };
    format!("Hand it over: {cat}sudo -u {owner} snug appservice add -")
}

/// As much as a registration may have, and a byte more.
fn read_some(from: impl Read) -> std::io::Result<String> {
    let mut text = String::new();
    from.take(BYTES_MAX as u64 + 1).read_to_string(&mut text)?;
    Ok(text)
}

fn remove(config: &Config, id: &str) -> Result<(), String> {
    serve::check_owner(&config.data_dir).map_err(|error| error.to_string())?;
    let found = files::read_all(config).into_iter().find(|found| found.read.as_ref().is_ok_and(|read| read.id == id));
    let Some(found) = found else {
        return Err(format!("there is no application service {id}; `snug appservice list`"));
    };
    if found.file.parent() != Some(&files::folder(&config.data_dir)) {
        let file = found.file.display();
        return Err(format!(
            "{id} is registered by {file}, which the config names: take it out there, or remove the file"
        ));
    }
    std::fs::remove_file(&found.file).map_err(|error| format!("{}: {error}", found.file.display()))?;
    print(&format!("{id} is registered no more. Its users and rooms stay.\n"));
    reload(config)
}

/// Has the running server read the files again.
fn reload(config: &Config) -> Result<(), String> {
    let Some(local) = Local::running(config)? else { return Ok(()) };
    with_local(local, |local| {
        let answer = local.post("/appservices/reload", json!({}))?;
        let wrong = answer["wrong"].as_array().into_iter().flatten().filter_map(|wrong| wrong.as_str());
        Ok(wrong.map(|wrong| format!("BAD  {wrong}\n")).collect())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each of two messages named the other's command, and neither worked for a file in somebody's home.
    #[test]
    fn a_file_is_handed_over_by_who_may_read_it() {
        let way = handed_over(Path::new("/home/pi/hb.yaml"), "snug");
        assert_eq!(way, "Hand it over: sudo cat /home/pi/hb.yaml | sudo -u snug snug appservice add -");
        assert_eq!(handed_over(Path::new("-"), "snug"), "Hand it over: sudo -u snug snug appservice add -");
    }
}
