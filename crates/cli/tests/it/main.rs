//! The program as a person or a script uses it.

mod batch;
mod budget;
mod clips;
mod commands;
mod doctor;
mod embedded;
mod memory;
mod privacy;
mod reliability;
mod serving;
#[cfg(target_os = "linux")]
#[path = "../../../hub/tests/it/stand_in.rs"]
#[allow(dead_code, reason = "the hub's own tests use all of it")]
mod stand_in;
mod support;
#[cfg(target_os = "linux")]
mod terminal;
