//! What a user sees of a download: a bar on a terminal, otherwise a line when it begins and one when it has ended.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Smaller files come too soon to be worth a line.
const WORTH_A_LINE: u64 = 1 << 20;

/// How downloads are shown, on standard error or in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// A bar where standard error is a terminal, else lines.
    Automatic,
    /// Lines: to the log where one is set up, else to standard error.
    Lines,
    /// Nothing.
    Silent,
}

impl Report {
    /// Writes a line.
    pub(crate) fn line(self, text: &str) {
        if self == Report::Silent {
            return;
        }
        if tracing::dispatcher::has_been_set() {
            tracing::info!("{text}");
        } else {
            eprintln!("{text}");
        }
    }

    /// Begins the download of a file of which `have` bytes are here already.
    pub(crate) fn start(self, file: &str, bytes: Option<u64>, have: u64) -> Progress {
        let begun = Instant::now();
        let report = if bytes.is_some_and(|bytes| bytes < WORTH_A_LINE) { Report::Silent } else { self };
        if report == Report::Automatic && std::io::stderr().is_terminal() {
            let bar = ProgressBar::with_draw_target(bytes, ProgressDrawTarget::stderr()).with_style(style());
            bar.set_prefix(file.to_owned());
            bar.set_position(have);
            bar.reset_eta();
            return Progress { report, file: file.to_owned(), begun, bar: Some(bar), have };
        }
        let size = bytes.map_or_else(String::new, |bytes| format!(" ({})", megabytes(bytes)));
        match have {
            0 => report.line(&format!("downloading {file}{size}")),
            _ => report.line(&format!("downloading {file}{size} from {} on", megabytes(have))),
        }
        Progress { report, file: file.to_owned(), begun, bar: None, have }
    }
}

/// A download under way.
pub(crate) struct Progress {
    report: Report,
    file: String,
    begun: Instant,
    bar: Option<ProgressBar>,
    /// Bytes that were here when it began.
    have: u64,
}

impl Progress {
    pub(crate) fn position(&self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(bytes);
        }
    }

    pub(crate) fn done(self, bytes: u64) {
        let took = self.begun.elapsed().max(Duration::from_millis(1));
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
        let rate = bytes.saturating_sub(self.have) as f64 / took.as_secs_f64();
        self.report.line(&format!(
            "downloaded {} ({}) in {:.1} s, {:.1} MB/s",
            self.file,
            megabytes(bytes),
            took.as_secs_f64(),
            rate / 1e6
        ));
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{prefix} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
