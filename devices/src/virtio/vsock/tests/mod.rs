//! The device from its rings to real Unix sockets.

mod bulk;
mod connections;
mod guest;
mod hostile;
mod snapshot;
mod states;
