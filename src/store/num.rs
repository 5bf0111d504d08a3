//! The small numbers that stand for long ids, and the position that orders everything.
//!
//! Four bytes each: four thousand million events are more than a board's card holds. They are keys, so they encode
//! big-endian, which keeps their order.

/// Makes one newtype. The newtypes differ only in name, so that one is not mistaken for another.
macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize)]
        pub struct $name(pub u32);

        impl $name {
            pub const fn to_key(self) -> [u8; 4] {
                self.0.to_be_bytes()
            }

            /// Reads the first four bytes; `None` when there are fewer.
            pub fn from_key(key: &[u8]) -> Option<Self> {
                key.first_chunk::<4>().map(|bytes| $name(u32::from_be_bytes(*bytes)))
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// An event. Within a room, every event has a larger number than its auth events.
    EventNum
}
number! {
    /// An event's body, by arrival.
    BodyNum
}
number! {
    /// A room.
    RoomNum
}
number! {
    /// A user, of this server or another.
    UserNum
}
number! {
    /// A pair of event type and state key.
    StateKeyNum
}
/// Numbers of state keys that are users' ids have this bit, all others have not. It stands in the middle, so that both
/// kinds are small numbers, as bitmaps like them, and lie close together, as state trees do.
const OF_USER: u32 = 1 << 8;
/// Neither kind has more than half of the numbers.
pub(super) const KEYS_OF_A_KIND_MAX: u32 = 1 << 31;

impl StateKeyNum {
    /// The number of a user's membership.
    pub const fn of_member(user: UserNum) -> StateKeyNum {
        StateKeyNum(spread(user.0) | OF_USER)
    }

    /// Whether it is the number of a user's membership.
    pub const fn is_of_member(self) -> bool {
        self.0 & OF_USER != 0
    }

    /// The number of the `nth` state key that is no user's id.
    pub(super) const fn of_other(nth: u32) -> StateKeyNum {
        StateKeyNum(spread(nth))
    }
}

/// For a number below [`KEYS_OF_A_KIND_MAX`].
const fn spread(number: u32) -> u32 {
    (number & !(OF_USER - 1)) << 1 | number & (OF_USER - 1)
}

number! {
    /// Another server.
    ServerNum
}

/// The progress of the server: one counter for everything clients or servers may follow. Sync tokens are positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize)]
pub struct Position(pub u64);

impl Position {
    pub const fn to_key(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }

    /// Reads the first eight bytes; `None` when there are fewer.
    pub fn from_key(key: &[u8]) -> Option<Self> {
        key.first_chunk::<8>().map(|bytes| Position(u64::from_be_bytes(*bytes)))
    }
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}
