//! Finding and reading the config file.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use strsim::levenshtein;

use super::{DATA_DIR, Error, FILE_NAME, Overrides, SYSTEM_FILE, settings};

/// The largest config file. A larger one is the wrong file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The longest unknown name that is compared with those of the settings.
const NAME_BYTES_MAX: usize = 100;

/// The config file that the command line names. Without one, that of the data folder or else of the system, when it
/// exists.
pub fn find(overrides: &Overrides) -> Result<Option<PathBuf>, Error> {
    if let Some(file) = &overrides.config {
        return match is_there(file)? {
            true => Ok(Some(file.clone())),
            false => Err(Error::new(format!("{}: there is no such file", file.display()))),
        };
    }
    let folder = overrides.data_dir.clone().unwrap_or_else(|| DATA_DIR.into());
    let known = [folder.join(FILE_NAME), SYSTEM_FILE.into()];
    // A data folder on the command line is a server of its own. The system's config file belongs to another server.
    let known = if overrides.data_dir.is_some() { &known[..1] } else { &known[..] };
    for file in known {
        if is_there(file)? {
            return Ok(Some(file.clone()));
        }
    }
    Ok(None)
}

/// Whether there is such a file. A file that cannot be read is an error and does not count as missing: with defaults in
/// its place a command would work on another server's data.
fn is_there(file: &Path) -> Result<bool, Error> {
    match std::fs::metadata(file) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::new(unreadable(file, &error))),
    }
}

pub fn read(file: &Path) -> Result<String, String> {
    let wrong = |error: std::io::Error| unreadable(file, &error);
    let len = std::fs::metadata(file).map_err(wrong)?.len();
    if len > FILE_BYTES_MAX {
        return Err(format!("{}: {len} bytes are too many for this kind of file", file.display()));
    }
    std::fs::read_to_string(file).map_err(wrong)
}

fn unreadable(file: &Path, error: &std::io::Error) -> String {
    let hint = match error.kind() {
        ErrorKind::PermissionDenied => {
            "; run the command as the user the server runs as, such as `sudo -u snug snug …`, or name a data folder of your \
             own with --data-dir"
        }
        _ => "",
    };
    format!("{}: {error}{hint}", file.display())
}

/// Writes a config file anew, whole or not at all, with the owner and the mode it has. An error says why it is as it was.
pub fn replace(file: &Path, text: &str) -> Result<(), String> {
    // A link stays one.
    let file = fs::canonicalize(file).map_err(|error| error.to_string())?;
    let before = fs::metadata(&file).map_err(|error| error.to_string())?;
    check_open(&file)?;
    let folder = file.parent().unwrap_or(Path::new("/"));
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let beside = folder.join(name);
    let _ = fs::remove_file(&beside);
    let written = (|| {
        // Nobody reads it who could not read the one before.
        let mut new = File::options().write(true).create_new(true).mode(0o600).open(&beside)?;
        new.write_all(text.as_bytes())?;
        let is_mine = new.metadata().map(|new| (new.uid(), new.gid()) == (before.uid(), before.gid()))?;
        if !is_mine {
            std::os::unix::fs::fchown(&new, Some(before.uid()), Some(before.gid()))?;
        }
        new.set_permissions(before.permissions())?;
        new.sync_all()?;
        fs::rename(&beside, &file)?;
        File::open(folder)?.sync_all()
    })();
    written.map_err(|error| {
        let _ = fs::remove_file(&beside);
        closed(&error)
    })
}

/// Whether the server may write a config file, and put another one in its place. An error says why not.
pub fn check_open(file: &Path) -> Result<(), String> {
    File::options().write(true).open(file).map_err(|error| closed(&error))?;
    let file = fs::canonicalize(file).map_err(|error| closed(&error))?;
    let folder = file.parent().unwrap_or(Path::new("/"));
    rustix::fs::access(folder, rustix::fs::Access::WRITE_OK).map_err(|error| closed(&error.into()))
}

fn closed(error: &std::io::Error) -> String {
    format!("the server may not write it ({error})")
}

pub fn is_section(prefix: &str) -> bool {
    settings().any(|setting| setting.name.starts_with(prefix))
}

pub fn unknown(name: &str) -> String {
    // Compared without its section too, so that a setting in the wrong section is found.
    let last = name.rsplit('.').next().unwrap_or(name);
    let moved = settings().find(|setting| setting.name.rsplit('.').next() == Some(last));
    // A name in the file may be as long as the file.
    let compared = settings().filter(|_| name.len() <= NAME_BYTES_MAX);
    let nearest = compared.map(|setting| (levenshtein(setting.name, name), setting)).min_by_key(|(far, _)| *far);
    let nearest = nearest.filter(|(far, _)| *far <= name.len() / 2).map(|(_, setting)| setting);
    match moved.or(nearest) {
        Some(setting) => format!("there is no such setting; the nearest is {}", setting.name),
        None => "there is no such setting; `snug sample-config` prints all settings".to_owned(),
    }
}

/// The setting or section at a place in the text of a config file that is not TOML.
pub fn setting_at(text: &str, at: usize) -> Option<String> {
    let is_name = |name: &str| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
    };
    let (mut section, mut found, mut begin) = ("", None, 0);
    for line in text.split_inclusive('\n') {
        if begin > at {
            break;
        }
        begin += line.len();
        if let Some((name, _)) = line.trim_start().strip_prefix('[').and_then(|line| line.split_once(']')) {
            (section, found) = (name, is_name(name).then(|| name.to_owned()));
            continue;
        }
        let name = line.split(['=', '#']).next().unwrap_or_default().trim();
        if is_name(name) {
            found = Some(if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::config::Config;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("snug-config-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn a_setting_is_written_where_it_stands_and_the_mode_stays() {
        let folder = folder("change");
        let (file, link) = (folder.join("real.toml"), folder.join("snug.toml"));
        fs::write(&file, "# mine\nlog = \"info\" # quiet\n\n[rooms]\n# end\n").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let overrides = Overrides { config: Some(link.clone()), ..Overrides::default() };
        let config = Config::load(&overrides).unwrap();
        config.change("log", Some("warn")).unwrap();
        config.change("rooms.admission", Some("ask")).unwrap();
        config.change("guests", Some("true")).unwrap();
        config.change("guests", None).unwrap();
        assert_eq!(
            fs::read_to_string(&file).unwrap(),
            "# mine\nlog = \"warn\" # quiet\n\n[rooms]\nadmission = \"ask\"\n# end\n"
        );
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o640);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        // What no page may change, and what the check of the file refuses, changes nothing.
        let before = fs::read_to_string(&file).unwrap();
        for (name, typed) in [
            ("listen", "127.0.0.1:1"),
            ("registration_shared_secret", "a"),
            ("backup.target", "/"),
            ("nothing", "1"),
            ("log", "loud"),
            ("rooms.history_days", "99999999999999"),
            ("registration", "token"),
        ] {
            config.change(name, Some(typed)).unwrap_err();
        }
        assert_eq!(fs::read_to_string(&file).unwrap(), before);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2, "nothing is left beside it");
        fs::remove_dir_all(folder).unwrap();
    }

    /// A file that the program did not write may say the same in many ways.
    #[test]
    fn what_cannot_be_changed_says_what_to_do_by_hand() {
        let folder = folder("inline");
        let file = folder.join("snug.toml");
        fs::write(&file, "rooms = { admission = \"ask\" }\n").unwrap();
        let config = Config::load(&Overrides { config: Some(file.clone()), ..Overrides::default() }).unwrap();
        let why = config.change("rooms.purge_left", Some("true")).unwrap_err();
        assert!(why.contains("write `purge_left = true` there by hand, below [rooms]"), "{why}");
        fs::remove_dir_all(folder).unwrap();
    }
}
