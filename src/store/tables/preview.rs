//! Previews of links that were made lately: a bounded number, each with the time at which it is over.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use crate::store::schema::{PREVIEW, PREVIEW_END};
use crate::store::{Error, Get, Result, Write, tables};

/// Rows at most, about 1.5 KB each.
pub const PREVIEWS_MAX: u64 = 4_000;
/// Rows that one write takes out at most.
const GONE_MAX: usize = 16;
/// A longer answer is not kept.
const ANSWER_BYTES_MAX: usize = 16 << 10;
/// The row of their number; a key of [`PREVIEW`] has sixteen bytes.
const COUNT: &[u8] = b"count";

/// The preview of one link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preview {
    pub expires_ms: u64,
    /// The JSON that apps are answered with.
    pub answer: String,
    /// Why there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    /// The local file of its picture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_id: Option<String>,
}

pub fn get(get: &impl Get, url: &str) -> Result<Option<Preview>> {
    tables::get_json(get, &PREVIEW, &key(get, url))
}

/// Records a preview, and forgets some that are over, or over soonest where there are too many. Answers the pictures of those.
pub fn put(w: &mut Write<'_>, url: &str, preview: &Preview, now_ms: u64) -> Result<Vec<String>> {
    if preview.answer.len() > ANSWER_BYTES_MAX {
        return Ok(preview.media_id.clone().into_iter().collect());
    }
    let key = key(w, url);
    let (mut pictures, mut count) = (Vec::new(), count(w)?);
    remove(w, &key, &mut count, &mut pictures)?;
    let mut gone = Vec::new();
    w.range(&PREVIEW_END, &[], None, false, &mut |end, _| {
        let (ends_ms, key) = parted(end).ok_or_else(|| Error::corrupt(&PREVIEW_END, end))?;
        let is_over = ends_ms <= now_ms || count - gone.len() as u64 >= PREVIEWS_MAX;
        if !is_over || gone.len() == GONE_MAX {
            return Ok(ControlFlow::Break(()));
        }
        gone.push(key);
        Ok(ControlFlow::Continue(()))
    })?;
    for key in gone {
        remove(w, &key, &mut count, &mut pictures)?;
    }
    tables::put_json(w, &PREVIEW, &key, preview)?;
    w.put(&PREVIEW_END, &end(preview.expires_ms, &key), b"")?;
    w.put(&PREVIEW, COUNT, &(count + 1).to_be_bytes())?;
    Ok(pictures)
}

fn remove(w: &mut Write<'_>, key: &[u8; 16], count: &mut u64, pictures: &mut Vec<String>) -> Result<()> {
    let Some(old) = tables::get_json::<Preview>(w, &PREVIEW, key)? else { return Ok(()) };
    w.remove(&PREVIEW, key)?;
    w.remove(&PREVIEW_END, &end(old.expires_ms, key))?;
    *count = count.saturating_sub(1);
    pictures.extend(old.media_id);
    Ok(())
}

fn count(get: &impl Get) -> Result<u64> {
    let Some(value) = get.get(&PREVIEW, COUNT)? else { return Ok(0) };
    Ok(u64::from_be_bytes(value.as_slice().try_into().map_err(|_| Error::corrupt(&PREVIEW, COUNT))?))
}

fn key(get: &impl Get, url: &str) -> [u8; 16] {
    get.hash128(&[url.as_bytes()])
}

fn end(expires_ms: u64, key: &[u8; 16]) -> Vec<u8> {
    [&expires_ms.to_be_bytes()[..], key].concat()
}

fn parted(end: &[u8]) -> Option<(u64, [u8; 16])> {
    let (ends_ms, key) = end.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*ends_ms), key.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    #[test]
    fn what_is_over_goes_first_and_there_are_never_too_many() {
        let store = Store::in_memory();
        let of = |nth: u64| Preview {
            expires_ms: 1000 + nth,
            answer: "{}".to_owned(),
            failed: None,
            media_id: Some(format!("picture {nth}")),
        };
        let url = |nth: u64| format!("https://example.org/{nth}");
        for step in 0..(PREVIEWS_MAX + 100) / 100 {
            let done = store.write_blocking(move |w| {
                for nth in 100 * step..100 * step + 100 {
                    let gone = put(w, &url(nth), &of(nth), 0)?;
                    assert_eq!(
                        gone,
                        nth.checked_sub(PREVIEWS_MAX)
                            .map(|old| format!("picture {old}"))
                            .into_iter()
                            .collect::<Vec<_>>()
                    );
                }
                Ok::<_, Error>(())
            });
            done.unwrap();
        }
        store
            .write_blocking(move |w| {
                assert_eq!((count(w)?, get(w, &url(99))?, get(w, &url(100))?), (PREVIEWS_MAX, None, Some(of(100))));
                assert_eq!(put(w, &url(100), &of(9000), 0)?, ["picture 100"], "its own old picture, and no other row");
                assert_eq!(put(w, &url(5), &of(9001), 1500)?.len(), GONE_MAX);
                assert_eq!(count(w)?, PREVIEWS_MAX - GONE_MAX as u64 + 1);
                Ok::<_, Error>(())
            })
            .unwrap();
    }
}
