//! `tracing` events to ROS: the console and log files through rcutils, and `/rosout`.
//!
//! rcl makes no `/rosout` publisher for r2r's nodes (from Iron on), so warnings and errors are
//! published here.

use std::fmt::Write;

use r2r::rcl_interfaces::msg::Log;
use tokio::sync::mpsc;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::text::printable;

/// Messages that may wait for `/rosout`; more are not published, but logged all the same.
const QUEUE: usize = 100;

/// Longest message that is logged whole, in characters.
const LONGEST: usize = 4000;

/// Sends all events to ROS from here on. Returns what is to be published on `/rosout`.
pub fn install(logger: &str) -> mpsc::Receiver<Log> {
    let (rosout, messages) = mpsc::channel(QUEUE);
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("warn,centerpoint_ptq=debug"));
    let layer = RosLayer {
        logger: logger.to_owned(),
        rosout,
    };
    // Fails only when a subscriber is there already; its output is as good.
    drop(
        tracing_subscriber::registry()
            .with(layer.with_filter(filter))
            .try_init(),
    );
    messages
}

struct RosLayer {
    logger: String,
    rosout: mpsc::Sender<Log>,
}

#[derive(Default)]
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing to a string cannot fail.
        let _ = match field.name() {
            "message" => write!(self.0, "{value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}

impl<S: Subscriber> Layer<S> for RosLayer {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let mut text = Text::default();
        event.record(&mut text);
        // Names from other nodes may hold what a terminal obeys, and be of any length. r2r makes C strings of both
        // texts and cannot take a NUL.
        let text = printable(&text.0, LONGEST);
        let logger = &self.logger;
        let level = *event.metadata().level();
        match level {
            Level::ERROR => r2r::log_error!(logger, "{text}"),
            Level::WARN => r2r::log_warn!(logger, "{text}"),
            Level::INFO => r2r::log_info!(logger, "{text}"),
            _ => r2r::log_debug!(logger, "{text}"),
        }
        if level <= Level::WARN {
            let message = Log {
                level: if level == Level::ERROR {
                    Log::ERROR as u8
                } else {
                    Log::WARN as u8
                },
                name: logger.clone(),
                msg: text,
                file: event.metadata().file().unwrap_or_default().to_owned(),
                line: event.metadata().line().unwrap_or_default(),
                ..Default::default()
            };
            // Full: nobody takes them away, and the log has them.
            drop(self.rosout.try_send(message));
        }
    }
}
