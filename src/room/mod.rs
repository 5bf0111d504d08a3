//! Everything that changes or reads a room.

mod order;
