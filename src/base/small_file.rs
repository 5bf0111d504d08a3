//! Files that are read whole, such as keys and certificates: never further than they may be long. And files in a folder that
//! others write to.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Opens a file to be read where others may have put something else in its place: nothing is waited for, and nothing has no end.
pub fn open_file(path: &Path) -> io::Result<File> {
    let no_wait = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(no_wait).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidData, "it is no file")),
    }
}

/// All of a file of at most `bytes_max`. What is no file is not even opened: a pipe waits for who writes into it, and a device
/// may have no end.
pub fn read_small(file: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    if !std::fs::metadata(file)?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let mut bytes = Vec::new();
    File::open(file)?.take(bytes_max + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > bytes_max {
        true => Err(io::Error::other(format!("it is too large: it may have {bytes_max} bytes"))),
        false => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_or_a_device_is_no_file() {
        let folder = std::env::temp_dir().join(format!("snug-no-file-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let pipe = folder.join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        for no_file in [pipe.as_path(), Path::new("/dev/zero"), &folder] {
            assert_eq!(open_file(no_file).unwrap_err().to_string(), "it is no file");
        }
        std::fs::write(folder.join("file"), "text").unwrap();
        assert_eq!(io::read_to_string(open_file(&folder.join("file")).unwrap()).unwrap(), "text");
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn no_more_is_read_than_a_file_may_have() {
        let file = std::env::temp_dir().join(format!("snug-small-file-{}", std::process::id()));
        std::fs::write(&file, "text").unwrap();
        assert_eq!(read_small(&file, 4).unwrap(), b"text");
        assert!(read_small(&file, 3).unwrap_err().to_string().contains("too large"));
        std::fs::remove_file(&file).unwrap();
        assert_eq!(read_small(&file, 4).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(read_small(Path::new("/dev/zero"), 4).unwrap_err().to_string(), "it is no file");
    }
}
