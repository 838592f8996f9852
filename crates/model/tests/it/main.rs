//! Whole models through the public interface: architectures, naming schemes, configs, hostile files, real files.

mod architectures;
mod configs;
mod dc;
mod files;
mod hostile;
mod naming;
mod real;
mod support;
