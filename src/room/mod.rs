//! Everything that changes or reads a room.
