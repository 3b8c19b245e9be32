//! The commands about images and the search of files, as a user meets them.

mod catalogue;
mod place;
mod scan;
mod scan_trees;
mod verify;
