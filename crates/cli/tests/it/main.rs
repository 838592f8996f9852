//! The program as a person or a script uses it.

mod clips;
mod commands;
mod doctor;
mod embedded;
mod serving;
mod support;
