//! Ruma's rules for a room version, to compare with.

use super::version::RoomVersion;
use ruma::room_version_rules::RoomVersionRules;

pub fn rules(version: &RoomVersion) -> RoomVersionRules {
    ruma::RoomVersionId::try_from(version.id).unwrap().rules().expect("ruma knows versions 1 to 12")
}
