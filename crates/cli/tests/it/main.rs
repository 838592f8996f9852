//! The program as a person or a script uses it.

mod batch;
mod clips;
mod commands;
mod doctor;
mod embedded;
mod memory;
mod privacy;
mod reliability;
mod serving;
mod support;
