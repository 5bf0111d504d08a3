//! How delayed events are joined to what the media server knows.

use crate::room::{Asked, CallWatch};
use crate::user::Users;

/// Asks the LiveKit server of the settings.
pub struct AtLiveKit(pub Users);

impl CallWatch for AtLiveKit {
    fn is_there<'a>(&'a self, alias: &'a str, identity: &'a str) -> Asked<'a> {
        Box::pin(self.0.is_at_livekit(alias, identity))
    }
}
