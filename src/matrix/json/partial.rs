//! Reads the wanted members of JSON from elsewhere and skips the rest: unwanted members are not kept, so the memory of
//! a text does not depend on the extra content its writer added.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// Shows each member of an object, as it stands, until `visit` fails. Only a key with escapes is held beside the object.
pub fn each_member<E: From<serde_json::Error>>(
    object: &[u8],
    visit: &mut dyn FnMut(&str, &RawValue) -> Result<(), E>,
) -> Result<(), E> {
    each_raw_member(object, &mut |key, value| visit(&string(key)?, value))
}

/// Like [`each_member`], with the keys as they stand, so that nothing is held beside the object whatever its keys are; it
/// must not be nested too deeply, since of that a byte is kept for each level.
pub fn each_raw_member<'t, E: From<serde_json::Error>>(
    object: &'t [u8],
    visit: &mut dyn FnMut(&'t RawValue, &'t RawValue) -> Result<(), E>,
) -> Result<(), E> {
    // The parser's own error would quote the string, whatever its length.
    if object.trim_ascii_start().starts_with(b"\"") {
        return Err(serde_json::Error::custom("a string, not an object").into());
    }
    let mut failed = None;
    let mut text = serde_json::Deserializer::from_slice(object);
    let read = text.deserialize_map(Each { visit, failed: &mut failed }).and_then(|()| text.end());
    match failed {
        Some(failed) => Err(failed),
        None => Ok(read?),
    }
}

/// A string of JSON.
pub fn string(text: &RawValue) -> Result<Cow<'_, str>, serde_json::Error> {
    let inner = text.get().strip_prefix('"').and_then(|text| text.strip_suffix('"'));
    match inner.filter(|inner| !inner.contains('\\')) {
        Some(inner) => Ok(Cow::Borrowed(inner)),
        None => serde_json::from_str(text.get()).map(Cow::Owned),
    }
}

/// One member of an object that may have any shape; none when the member is missing or of another shape.
pub fn member<T: for<'t> Deserialize<'t>>(object: &[u8], name: &str) -> Option<T> {
    let mut found = None;
    let read = each_member(object, &mut |key, value| {
        if key == name {
            found = serde_json::from_str(value.get()).ok();
        }
        Ok::<_, serde_json::Error>(())
    });
    read.ok().and(found)
}

/// The first `MOST` elements of an array, for `#[serde(deserialize_with)]`; those behind them are read past.
pub fn first<'de, const MOST: usize, D, T>(text: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    text.deserialize_seq(First::<MOST, T>(PhantomData))
}

struct Each<'v, 't, E> {
    visit: &'v mut dyn FnMut(&'t RawValue, &'t RawValue) -> Result<(), E>,
    failed: &'v mut Option<E>,
}

impl<'de, E> Visitor<'de> for Each<'_, 'de, E> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some((key, value)) = map.next_entry::<&'de RawValue, &'de RawValue>()? {
            if let Err(failed) = (self.visit)(key, value) {
                *self.failed = Some(failed);
                return Err(A::Error::custom("enough was seen"));
            }
        }
        Ok(())
    }
}

struct First<const MOST: usize, T>(PhantomData<T>);

impl<'de, const MOST: usize, T: Deserialize<'de>> Visitor<'de> for First<MOST, T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
        let mut kept = Vec::new();
        while kept.len() < MOST {
            let Some(element) = list.next_element()? else { return Ok(kept) };
            kept.push(element);
        }
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_shown_one_by_one() {
        let mut seen = Vec::new();
        let all = each_member(br#" { "a\n" : 1, "b": {"c": [2]} } "#, &mut |key, value| {
            seen.push((key.to_owned(), value.get().to_owned()));
            Ok::<_, serde_json::Error>(())
        });
        all.unwrap();
        assert_eq!(seen, [("a\n".to_owned(), "1".to_owned()), ("b".to_owned(), r#"{"c": [2]}"#.to_owned())]);
        for wrong in ["[]", "{", "{} {}", "", "7", "\"{}\"", "{\"\\ud800\":1}"] {
            assert!(each_member(wrong.as_bytes(), &mut |_, _| Ok::<_, serde_json::Error>(())).is_err(), "{wrong}");
        }
    }

    #[test]
    fn strings_are_borrowed_where_they_can_be() {
        let mut seen = Vec::new();
        let object = r#"{"a\u00e4":"b","ä\\\"":"\t","":0}"#;
        let all = each_raw_member(object.as_bytes(), &mut |key, value| {
            seen.push((string(key)?.into_owned(), string(value).ok().map(Cow::into_owned)));
            Ok::<_, serde_json::Error>(())
        });
        all.unwrap();
        let wanted = [("aä", Some("b")), ("ä\\\"", Some("\t")), ("", None)];
        assert_eq!(seen, wanted.map(|(key, value)| (key.to_owned(), value.map(ToOwned::to_owned))));
        assert!(
            each_raw_member(br#"{"long":1}"#, &mut |key, _| match string(key)? {
                Cow::Borrowed("long") => Ok(()),
                _ => Err(serde_json::Error::custom("copied")),
            })
            .is_ok()
        );
    }

    /// The error of an object's reader once quoted the string that it met instead, with six bytes for each of some.
    #[test]
    fn a_string_in_place_of_an_object_is_not_quoted() {
        let text = format!("  \"{}\"", "\x7f".repeat(1_000));
        let read = each_member(text.as_bytes(), &mut |_, _| Ok::<_, serde_json::Error>(()));
        let wrong = read.unwrap_err();
        assert!(wrong.is_data() && wrong.to_string().len() < 100, "{wrong}");
    }

    #[test]
    fn one_member_of_anything() {
        let body = br#"{"errcode":"M_X","error":["a"],"retry_after_ms":7}"#;
        assert_eq!(member::<String>(body, "errcode").as_deref(), Some("M_X"));
        assert_eq!(member::<String>(body, "error"), None);
        assert_eq!(member::<u64>(body, "retry_after_ms"), Some(7));
        assert_eq!(member::<u64>(b"<html>", "retry_after_ms"), None);
    }

    /// An array of half a megabyte once became ten on the heap before its elements were counted.
    #[test]
    fn a_long_array_is_not_kept() {
        #[derive(serde::Deserialize)]
        struct Some<'a> {
            #[serde(borrow, deserialize_with = "first::<3, _, _>")]
            list: Vec<&'a RawValue>,
        }
        let text = format!("{{\"list\":[{}0]}}", "0,".repeat(100_000));
        let read: Some<'_> = serde_json::from_str(&text).unwrap();
        assert!(read.list.len() == 3 && read.list.capacity() < 10);
        assert!(serde_json::from_str::<Some<'_>>(r#"{"list":[0,0,0,0,}"#).is_err());
    }
}
