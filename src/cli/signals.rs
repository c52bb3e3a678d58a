//! SIGINT and SIGTERM for work that looks up now and then.

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

/// Calls `raised` at each SIGINT and SIGTERM, on a thread of its own: whatever goes on meanwhile need not return to any
/// loop. What the signals do otherwise, they do not do any more.
pub fn watch(mut raised: impl FnMut() + Send + 'static) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("cannot watch for signals")?;
    let (mut interrupt, mut terminate) = {
        let _guard = runtime.enter();
        (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        )
    };
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            runtime.block_on(async {
                loop {
                    tokio::select! {
                        _ = interrupt.recv() => {}
                        _ = terminate.recv() => {}
                    }
                    raised();
                }
            });
        })?;
    Ok(())
}
