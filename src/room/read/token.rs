//! Places in a room's history and in the stream of changes, in the form apps get them.

use crate::store::Position;

/// A place between two events of a timeline, as a token: `t` and the order of the event before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token(pub i64);

impl Token {
    /// Also parses the token of a sync of any kind, which then stands for the end of the timeline.
    pub fn parse(text: &str) -> Option<Token> {
        match text.split_at_checked(1)? {
            ("t", order) => order.parse().ok().map(Token),
            ("s", _) => SyncToken::parse(text).map(|since| Token(since.at.0 as i64)),
            ("p", _) => SlidingToken::parse(text).map(|pos| Token(pos.at.0 as i64)),
            _ => None,
        }
    }
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "t{}", self.0)
    }
}

/// A sync token: the position up to which everything was told, and the serials of typing and of presence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyncToken {
    pub at: Position,
    pub typing: u64,
    /// The position up to which to-device messages were told: there may be more than fit one answer.
    pub messages: Position,
    /// 0 where no presence is told.
    pub presence: u64,
}

impl SyncToken {
    pub fn parse(text: &str) -> Option<SyncToken> {
        let (at, rest) = text.strip_prefix('s')?.split_once('_')?;
        let (rest, presence) = rest.split_once('p').unwrap_or((rest, "0"));
        let (typing, messages) = rest.split_once('_').unwrap_or((rest, at));
        let (at, messages) = (Position(at.parse().ok()?), Position(messages.parse().ok()?));
        let (typing, presence) = (typing.parse().ok()?, presence.parse().ok()?);
        Some(SyncToken { at, typing, messages: messages.min(at), presence })
    }
}

impl std::fmt::Display for SyncToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "s{}_{}", self.at, self.typing)?;
        if self.messages < self.at {
            write!(f, "_{}", self.messages)?;
        }
        match self.presence {
            0 => Ok(()),
            presence => write!(f, "p{presence}"),
        }
    }
}

/// The `pos` of a sliding sync: the number of the answer that the connection remembers, and up to where the app was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlidingToken {
    /// 0 for a connection of which nothing is remembered.
    pub num: Position,
    pub at: Position,
    pub typing: u64,
    /// Up to here every room that the connection was told of was told whole, whatever is remembered of it.
    pub complete: Position,
    /// Which extensions were asked for; the meaning of the bits is the sliding sync's.
    pub extensions: u64,
}

impl SlidingToken {
    pub fn parse(text: &str) -> Option<SlidingToken> {
        let mut parts = text.strip_prefix('p')?.split('_');
        let mut number = || parts.next()?.parse::<u64>().ok();
        let (num, at, typing) = (Position(number()?), Position(number()?), number()?);
        let complete = match parts.next() {
            Some(complete) => Position(complete.parse().ok()?),
            None => at,
        };
        let extensions = match parts.next() {
            Some(extensions) => u64::from_str_radix(extensions, 16).ok()?,
            None => 0,
        };
        let is_whole = parts.next().is_none() && complete <= at;
        is_whole.then_some(SlidingToken { num, at, typing, complete, extensions })
    }
}

impl std::fmt::Display for SlidingToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "p{}_{}_{}", self.num, self.at, self.typing)?;
        match self.extensions {
            0 if self.complete == self.at => Ok(()),
            0 => write!(f, "_{}", self.complete),
            extensions => write!(f, "_{}_{extensions:x}", self.complete),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_are_a_token_or_none() {
        crate::base::any_bytes::any_bytes(
            &[
                b"t-5",
                b"s12_3_4",
                b"s9_0",
                b"s9_0p7",
                b"s9_4_8p7",
                b"p7_9_0_4",
                b"p7_9_0_9_1f",
                b"t9223372036854775807",
            ],
            |bytes| {
                let text = String::from_utf8_lossy(bytes);
                if let Some(token) = Token::parse(&text) {
                    assert_eq!(Token::parse(&token.to_string()), Some(token));
                }
                if let Some(token) = SlidingToken::parse(&text) {
                    assert_eq!(SlidingToken::parse(&token.to_string()), Some(token));
                }
                if let Some(token) = SyncToken::parse(&text) {
                    assert_eq!(SyncToken::parse(&token.to_string()), Some(token));
                }
            },
        );
    }
}
