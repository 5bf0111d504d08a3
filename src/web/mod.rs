//! Folders of the operator's, served at paths: a web client at the same address as the server.
//!
//! Owns nothing but the list of folders. Never: a path of the server's own, which always wins; what is outside of a folder;
//! what a link leads to; what begins with a dot, but for the folder `.well-known`. A file is opened step by step, each
//! without following a link, so no change of the folder meanwhile leads out of it. Read `mod.rs`, then `file.rs` (a file as
//! an answer) and `kinds.rs` (types, and which names never change).

mod file;
mod kinds;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::RwLock;
use percent_encoding::percent_decode_str;
use rustix::fs::{Mode, OFlags};

use crate::base::{blocking, sort_few_by};
use crate::budget::{Account, Budget};
use crate::http::{ErrorResponse, Fallback, Method, Request, Response, StatusCode};
use file::Encoding;

/// Folders deep, at most; each is one open file for a moment.
const DEEP_MAX: usize = 32;
/// Prefixes that are the server's own, whatever the folders are.
const OWN: [&str; 4] = ["/_matrix", "/_snug", "/_synapse", "/.well-known/matrix"];

/// A folder at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// `/`, or a path without a slash at its end.
    pub path: String,
    pub folder: PathBuf,
}

/// The folders. Cloning gives the same.
#[derive(Clone)]
pub struct Folders(Arc<Inner>);

struct Inner {
    /// The longest path first.
    mounts: RwLock<Arc<[Mount]>>,
    answers: Account,
}

impl Folders {
    pub fn new(budget: &Budget) -> Folders {
        Folders(Arc::new(Inner { mounts: RwLock::default(), answers: budget.account("response_bodies") }))
    }

    pub fn set(&self, mut mounts: Vec<Mount>) {
        sort_few_by(&mut mounts, |mount| std::cmp::Reverse(mount.path.len()));
        *self.0.mounts.write() = mounts.into();
    }

    /// The folder for a path, and what of the path is inside it.
    fn at(&self, path: &str) -> Option<(PathBuf, String)> {
        let mounts = self.0.mounts.read().clone();
        mounts.iter().find_map(|mount| {
            let inside = match mount.path.as_str() {
                "/" => path,
                at => path.strip_prefix(at).filter(|rest| rest.is_empty() || rest.starts_with('/'))?,
            };
            Some((mount.folder.clone(), inside.to_owned()))
        })
    }

    async fn answer(&self, request: Request) -> Response {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return ErrorResponse::wrong_method().into_response();
        }
        let Some((folder, inside)) = self.at(request.path()) else { return missing() };
        // A folder is named with a slash at its end, or its page's own links would be wrong. Relative, so that it leads nowhere
        // else.
        let to_folder =
            |name: &str| Response::empty(StatusCode::PERMANENT_REDIRECT).header("location", &format!("./{name}/"));
        if inside.is_empty() {
            return to_folder(request.path().rsplit('/').next().unwrap_or_default());
        }
        let Some(steps) = steps(&inside) else { return missing() };
        let accepted = Encoding::accepted(&request);
        let (is_folder, last) = (inside.ends_with('/'), crate::http::encoded(steps.last().map_or("", String::as_str)));
        let found = blocking(move || open(folder, steps, is_folder, accepted)).await;
        match found {
            Ok(Found::File(found)) => file::answer(&request, *found, &self.0.answers).await,
            Ok(Found::Folder) => to_folder(&last),
            Err(failed) if failed.kind() == std::io::ErrorKind::NotFound => missing(),
            Err(failed) => {
                tracing::warn!("a file for the web cannot be read: {failed}");
                missing()
            }
        }
    }
}

impl Fallback for Folders {
    fn claims(&self, path: &str) -> bool {
        let is_own =
            OWN.iter().any(|own| path.strip_prefix(own).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')));
        !is_own && self.at(path).is_some()
    }

    fn respond(&self, request: Request) -> std::pin::Pin<Box<dyn Future<Output = Response> + Send>> {
        let folders = self.clone();
        Box::pin(async move { folders.answer(request).await })
    }
}

fn missing() -> Response {
    Response::bytes(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "There is nothing here.\n")
}

/// The names on the way from the folder to the file; none when a name may not be served. An empty last name is the
/// folder itself.
fn steps(inside: &str) -> Option<Vec<String>> {
    let mut steps = Vec::new();
    for part in inside.split('/').filter(|part| !part.is_empty()) {
        let name = percent_decode_str(part).decode_utf8().ok()?.into_owned();
        let is_hidden = name.starts_with('.') && !(steps.is_empty() && name == ".well-known");
        if is_hidden || name.is_empty() || name.contains(['/', '\0', '\\']) || steps.len() >= DEEP_MAX {
            return None;
        }
        steps.push(name);
    }
    Some(steps)
}

enum Found {
    File(Box<file::Opened>),
    /// There is a folder where a file was asked for.
    Folder,
}

/// Opens a file below `folder`, or the best form of it that the caller takes. Blocking.
fn open(folder: PathBuf, mut steps: Vec<String>, is_folder: bool, accepted: Vec<Encoding>) -> std::io::Result<Found> {
    let through = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut at: OwnedFd = rustix::fs::open(&folder, through, Mode::empty())?;
    let name = match steps.pop() {
        Some(last) if !is_folder => last,
        last => {
            steps.extend(last);
            "index.html".to_owned()
        }
    };
    for step in &steps {
        at = rustix::fs::openat(&at, step.as_str(), through | OFlags::NOFOLLOW, Mode::empty())
            .map_err(|failed| not_found(failed.into()))?;
    }
    let open_one = |name: &str| -> std::io::Result<(File, std::fs::Metadata)> {
        // Not blocking: a pipe in the folder is waited for by nobody.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&at, name, flags, Mode::empty()).map_err(|failed| not_found(failed.into()))?;
        let file = File::from(file);
        let found = file.metadata()?;
        Ok((file, found))
    };
    for encoding in accepted {
        if let Ok((file, found)) = open_one(&format!("{name}{}", encoding.ending()))
            && found.is_file()
        {
            let steps = steps.clone();
            return Ok(Found::File(Box::new(file::Opened { file, found, name, steps, encoding: Some(encoding) })));
        }
    }
    let (file, found) = open_one(&name)?;
    match () {
        () if found.is_file() => Ok(Found::File(Box::new(file::Opened { file, found, name, steps, encoding: None }))),
        () if found.is_dir() && !is_folder => Ok(Found::Folder),
        () => Err(std::io::ErrorKind::NotFound.into()),
    }
}

/// A link, a file in place of a folder, and what is not there are all the same to a caller.
fn not_found(failed: std::io::Error) -> std::io::Error {
    use rustix::io::Errno;
    let not_there = [Errno::LOOP, Errno::NOTDIR, Errno::NAMETOOLONG, Errno::NXIO, Errno::NOENT];
    match failed.raw_os_error().is_some_and(|code| not_there.iter().any(|errno| errno.raw_os_error() == code)) {
        true => std::io::ErrorKind::NotFound.into(),
        false => failed,
    }
}

#[cfg(test)]
mod tests;
