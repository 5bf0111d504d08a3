//! A peer's mistake, with a reason.

use std::borrow::Cow;

/// The check that failed. Surfaces turn it into an error code; the receiver decides by it whether to drop, redact or
/// reject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Not JSON, or not canonical JSON where the room version asks for it.
    Json,
    /// Larger than the specification's limits.
    TooLarge,
    /// A field is missing or of the wrong kind.
    Shape,
    /// A signature is missing or wrong.
    Signature,
    /// A signing key that is needed is not known here.
    Key,
    /// Refused by the authorisation rules.
    Auth,
    /// Events it cites or follows cannot be had, so that nothing is known for or against it.
    Missing,
}

/// Why data from another server or a client is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Reject {
    pub kind: Kind,
    pub reason: Cow<'static, str>,
}

impl Reject {
    pub fn new(kind: Kind, reason: impl Into<Cow<'static, str>>) -> Reject {
        Reject { kind, reason: reason.into() }
    }
    pub fn json(reason: impl Into<Cow<'static, str>>) -> Reject {
        Reject::new(Kind::Json, reason)
    }
    pub fn shape(reason: impl Into<Cow<'static, str>>) -> Reject {
        Reject::new(Kind::Shape, reason)
    }
    pub fn too_large(reason: impl Into<Cow<'static, str>>) -> Reject {
        Reject::new(Kind::TooLarge, reason)
    }
    pub fn signature(reason: impl Into<Cow<'static, str>>) -> Reject {
        Reject::new(Kind::Signature, reason)
    }
    pub fn auth(reason: impl Into<Cow<'static, str>>) -> Reject {
        Reject::new(Kind::Auth, reason)
    }
    pub fn missing(reason: impl Into<Cow<'static, str>>) -> Reject {
        Reject::new(Kind::Missing, reason)
    }
}
