//! Thumbnails: which were made of a file, and how many bytes all of them have. They may be made again at any time.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use crate::store::schema::THUMBNAIL;
use crate::store::{Error, Get, Result, Write, tables};

/// What there is of a file in one shape.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thumbnail {
    pub bytes: u64,
    /// None: it could not be made, and the file itself is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
}

/// Rows that one write takes out at most.
const EVICTED_MAX: usize = 32;
/// The row of all their bytes; no file is named so.
const ALL: &[u8] = b"all";
/// A file's name: the SHA-256 in hex.
const FILE_CHARS: usize = 64;

pub fn get(get: &impl Get, file: &str, shape: &str) -> Result<Option<Thumbnail>> {
    tables::get_json(get, &THUMBNAIL, &row(file, shape))
}

/// Records a thumbnail. When all have more than `bytes_max` then others are forgotten, beginning behind `from`: their files and
/// shapes are the answer.
pub fn put(
    w: &mut Write<'_>,
    file: &str,
    shape: &str,
    thumbnail: &Thumbnail,
    bytes_max: u64,
    from: &str,
) -> Result<Vec<(String, String)>> {
    let (key, mut gone) = (row(file, shape), Vec::new());
    let mut all = used(w)?.saturating_sub(get(w, file, shape)?.unwrap_or_default().bytes) + thumbnail.bytes;
    for (from, to) in [(from.as_bytes(), None), (b"", Some(from.as_bytes()))] {
        w.range(&THUMBNAIL, from, to, false, &mut |other, value| {
            if all <= bytes_max || gone.len() == EVICTED_MAX {
                return Ok(ControlFlow::Break(()));
            }
            if other != ALL && other != key {
                let Thumbnail { bytes, .. } = tables::parse(&THUMBNAIL, other, value)?;
                all = all.saturating_sub(bytes);
                gone.push(other.to_vec());
            }
            Ok(ControlFlow::Continue(()))
        })?;
    }
    for key in &gone {
        w.remove(&THUMBNAIL, key)?;
    }
    tables::put_json(w, &THUMBNAIL, &key, thumbnail)?;
    w.put(&THUMBNAIL, ALL, &all.to_be_bytes())?;
    gone.iter().map(|key| parted(key).ok_or_else(|| Error::corrupt(&THUMBNAIL, key))).collect()
}

/// Forgets all thumbnails of a file.
pub fn forget(w: &mut Write<'_>, file: &str) -> Result<()> {
    let (mut bytes, mut keys) = (0, Vec::new());
    w.prefix(&THUMBNAIL, file.as_bytes(), &mut |key, value| {
        bytes += tables::parse::<Thumbnail>(&THUMBNAIL, key, value)?.bytes;
        keys.push(key.to_vec());
        Ok(ControlFlow::Continue(()))
    })?;
    if keys.is_empty() {
        return Ok(());
    }
    for key in keys {
        w.remove(&THUMBNAIL, &key)?;
    }
    let all = used(w)?.saturating_sub(bytes);
    w.put(&THUMBNAIL, ALL, &all.to_be_bytes())
}

/// Bytes all thumbnails take.
pub fn used(get: &impl Get) -> Result<u64> {
    let Some(value) = get.get(&THUMBNAIL, ALL)? else { return Ok(0) };
    let bytes = value.as_slice().try_into().map_err(|_| Error::corrupt(&THUMBNAIL, ALL))?;
    Ok(u64::from_be_bytes(bytes))
}

fn row(file: &str, shape: &str) -> Vec<u8> {
    [file.as_bytes(), shape.as_bytes()].concat()
}

fn parted(key: &[u8]) -> Option<(String, String)> {
    let (file, shape) = std::str::from_utf8(key).ok()?.split_at_checked(FILE_CHARS)?;
    Some((file.to_owned(), shape.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    #[test]
    fn what_is_made_takes_the_place_of_other_things_made() {
        let store = Store::in_memory();
        let of = |bytes| Thumbnail { bytes, content_type: Some("image/png".to_owned()) };
        let file = |name: &str| name.repeat(FILE_CHARS);
        store
            .write_blocking(move |w| {
                for name in ["a", "c", "e"] {
                    assert!(put(w, &file(name), "x", &of(30), 100, "d")?.is_empty());
                }
                assert!(put(w, &file("a"), "x", &of(40), 100, "d")?.is_empty(), "again is no more");
                assert_eq!(used(w)?, 100);
                // Behind "d" there is one, and then from the beginning.
                let gone = put(w, &file("b"), "x", &of(60), 100, "d")?;
                assert_eq!(gone, [(file("e"), "x".to_owned()), (file("a"), "x".to_owned())]);
                assert_eq!((used(w)?, get(w, &file("a"), "x")?, get(w, &file("c"), "x")?), (90, None, Some(of(30))));
                forget(w, &file("b"))?;
                forget(w, &file("b"))?;
                Ok::<_, Error>(assert_eq!(used(w)?, 30))
            })
            .unwrap();
    }
}
