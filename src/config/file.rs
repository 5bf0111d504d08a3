//! Finding and reading the config file.

use std::io::ErrorKind;
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
