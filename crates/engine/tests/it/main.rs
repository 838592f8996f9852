//! The engine against diffusers' own output (golden files), against a naive interpreter, and against itself.

mod fast;
mod golden;
mod golden_tiles;
mod golden_video;
mod golden_wan;
mod oracle;
mod parts_in_budget;
mod properties;
mod random_graphs;
mod real;
mod spare;
mod support;
