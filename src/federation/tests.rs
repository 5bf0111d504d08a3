//! The server-server API over a server without a network.

use std::sync::Arc;

use crate::base::Random;
use crate::budget::Budget;
use crate::federation::Federation;
use crate::matrix::sign::Key;
use crate::remote::{Remote, RemoteOptions};
use crate::room::testing::House;

pub(super) fn federation(house: &House, budget: &Budget) -> Federation {
    let (server, clock) = (house.server.clone(), house.clock.clone());
    let (random, key) = (Random::seeded(4), Arc::new(Key::from_seed("1", [2; 32])));
    let options = RemoteOptions::new(server.clone(), key.clone());
    let store = house.store.clone();
    let remote = Remote::new(options, clock.clone(), random.clone(), budget, store.clone()).unwrap();
    let users = crate::user::Users::new(crate::user::Parts {
        store: store.clone(),
        feed: house.feed.clone(),
        clock: clock.clone(),
        random: random.clone(),
        budget: budget.clone(),
        remote: remote.clone(),
        server: server.clone(),
    });
    let scratch = std::env::temp_dir();
    let media = crate::media::Media::new(crate::media::Parts {
        store,
        clock: clock.clone(),
        random,
        budget: budget.clone(),
        remote: remote.clone(),
        server: server.clone(),
        folder: scratch.join("snug-no-media"),
        options: crate::media::Options::default(),
    });
    Federation {
        rooms: house.rooms.clone(),
        users,
        media,
        remote,
        postage: crate::federation::postage::Postage::new(clock.clone(), true),
        clock,
        answers: budget.account("response_bodies"),
        budget: budget.clone(),
        server_name: server,
        key,
        old_keys: Vec::new(),
        scratch,
        lookups: crate::federation::Lookups::new(house.clock.clone(), 8),
        senders: Default::default(),
        transactions: Default::default(),
        well_known_server: Default::default(),
    }
}
