//! Files and folders that are for their owner alone, and whole after a power cut.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Writes a file with a secret. The text is written to a file beside it and then moved, so a power cut leaves no half
/// of a key. The folder is synced, so that a file reported as written stays.
pub fn write_secret(file: &Path, text: &str) -> std::io::Result<()> {
    write_synced(file, text, &mut sync_folder_of)
}

/// Makes a folder, unless it is there, that no other user of the machine may look into.
pub fn make_folder(folder: &Path) -> std::io::Result<()> {
    if folder.try_exists()? {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    sync_folder_of(folder)
}

/// Syncs the folder of a file, so that a new or changed name survives a power cut.
fn sync_folder_of(file: &Path) -> std::io::Result<()> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

fn write_synced(
    file: &Path,
    text: &str,
    sync_folder_of: &mut dyn FnMut(&Path) -> std::io::Result<()>,
) -> std::io::Result<()> {
    // Of the whole name: `acme.pem` and `acme.json` lie in one folder.
    let mut beside = file.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    // A file left by a power cut in an earlier try may have another mode.
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    made.write_all(text.as_bytes())?;
    made.sync_all()?;
    std::fs::rename(&beside, file)?;
    sync_folder_of(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    /// The name of a new key was not synced: after a power cut the next start made another key, and other servers no
    /// longer accepted this one's signatures.
    #[test]
    fn a_secret_is_its_owners_and_is_synced_with_its_folder() {
        let folder = std::env::temp_dir().join(format!("snug-private-{}", std::process::id()));
        make_folder(&folder).unwrap();
        let file = folder.join("signing.key");
        let mut synced = Vec::new();
        let mut sync = |at: &Path| {
            synced.push((at.to_owned(), std::fs::read_to_string(at)?, std::fs::metadata(at)?.mode() & 0o777));
            sync_folder_of(at)
        };
        write_synced(&file, "one", &mut sync).unwrap();
        write_synced(&file, "two", &mut sync).unwrap();
        assert_eq!(synced, [(file.clone(), "one".to_owned(), 0o600), (file.clone(), "two".to_owned(), 0o600)]);
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "nothing lies beside it");
        // What is being written of another file with that stem is left alone.
        std::fs::write(folder.join("signing.new"), "another's").unwrap();
        write_secret(&file, "two").unwrap();
        assert!(folder.join("signing.new").exists());
        let refused = |_: &Path| Err(ErrorKind::Other.into());
        assert!(write_synced(&file, "three", &mut { refused }).is_err());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
