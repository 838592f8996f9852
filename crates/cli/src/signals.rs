//! Signals that end a command which has something to tidy up first. (A server has [`crate::serve`].)

use std::sync::{Mutex, Once, OnceLock, PoisonError};

use crate::draft;

type Farewell = Box<dyn FnOnce() + Send>;

/// What is done first when a signal comes.
static FAREWELL: Mutex<Option<Farewell>> = Mutex::new(None);

/// From now on Ctrl-C and its like do `farewell` in place of what was to be done before, remove files that are not whole, and
/// end the process.
pub(crate) fn end_with(farewell: impl FnOnce() + Send + 'static) {
    *FAREWELL.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(farewell));
    discard_drafts();
}

/// From now on Ctrl-C and its like remove files that are not whole, and end the process.
pub(crate) fn discard_drafts() {
    static LISTENS: Once = Once::new();
    LISTENS.call_once(listen);
}

fn listen() {
    let ignored = ignored();
    let wait = move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        let code = runtime.block_on(signal(ignored));
        let farewell = FAREWELL.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(farewell) = farewell {
            farewell();
        }
        draft::discard_all();
        std::process::exit(code);
    };
    // Without the thread the signal ends the process as ever.
    let _ = std::thread::Builder::new().name("signals".to_owned()).spawn(wait);
}

/// Signals that this process was started to ignore, as `nohup` does: a bit for each, from 1.
fn ignored() -> u64 {
    // Whoever listens to a signal ignores it no more, so this is read once, before.
    static IGNORED: OnceLock<u64> = OnceLock::new();
    *IGNORED.get_or_init(|| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
    })
}

/// The exit code of the signal that comes, as shells have it: 128 and its number.
async fn signal(ignored: u64) -> i32 {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let of = async |kind: SignalKind| {
            let number = kind.as_raw_value();
            let is_ignored = ignored >> (number - 1) & 1 == 1;
            if let (false, Ok(mut signals)) = (is_ignored, signal(kind)) {
                signals.recv().await;
            } else {
                std::future::pending::<()>().await;
            }
            128 + number
        };
        tokio::select! {
            code = of(SignalKind::interrupt()) => code,
            code = of(SignalKind::terminate()) => code,
            code = of(SignalKind::hangup()) => code,
        }
    }
    #[cfg(not(unix))]
    {
        let _ = (tokio::signal::ctrl_c().await, ignored);
        130
    }
}
