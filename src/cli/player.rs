//! `centerpoint_ptq_play`, which `centerpoint_ptq play` becomes: publishes a bag to the ROS 2 graph at its
//! own rate.
//!
//! Messages go out as the bytes that were recorded. Only where stamps must move (`--loop`,
//! `--restamp`) are those of the header rewritten in place, and transforms decoded.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Parser;
use futures::StreamExt;
use r2r::std_srvs::srv::Trigger;
use r2r::{PublisherUntyped, QosProfile};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::play::Args;
use super::{Ended, Global, exit, signals, terminal};
use crate::bag::msg::{Detection3DArray, Message, PointCloud2, TfMessage};
use crate::bag::{BagError, Limits, RawMessage, Reader, Stamp};
use crate::node::ros::{Spinner, create_node};
use crate::text::span;

/// Time for the last messages to reach their subscribers.
const LINGER: Duration = Duration::from_millis(500);
/// Time without a new subscriber on any topic until all that are coming have come, and have seen us too. Transforms
/// that are lost at the start cannot be had again.
const HANDSHAKE: Duration = Duration::from_secs(1);
/// Transforms that a late subscriber of `/tf_static` still gets.
const STATIC_DEPTH: usize = 100;

/// What was played.
#[derive(Debug, Default, Serialize)]
struct Summary {
    clouds: u64,
    transforms: u64,
    other: u64,
    passes: u64,
    seconds: f64,
    /// How late the latest message went out.
    max_late_ms: f64,
    /// What was added to the stamps of the first pass.
    stamp_shift_ns: i64,
    /// What was added for each further pass.
    pass_ns: i64,
    /// Pauses of the recording that were cut to `--max-pause`, and what was cut from them.
    cut_pauses: u64,
    cut_seconds: f64,
    /// Messages at which the recording's clock went back by more than a second.
    steps_back: u64,
    /// Messages, or parts of the recording, that could not be played.
    lost: u64,
    interrupted: bool,
}

/// What a topic holds, as far as playing it goes.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Cloud,
    Transforms,
    StaticTransforms,
    /// Begins with a header.
    Headed,
    Other,
}

impl Kind {
    fn of(topic: &str, type_name: &str) -> Self {
        match type_name {
            PointCloud2::TYPE => Kind::Cloud,
            TfMessage::TYPE if topic == "/tf_static" => Kind::StaticTransforms,
            TfMessage::TYPE => Kind::Transforms,
            Detection3DArray::TYPE => Kind::Headed,
            _ => Kind::Other,
        }
    }

    fn qos(self, best_effort: bool) -> QosProfile {
        let reliable = QosProfile::default();
        match self {
            Kind::Cloud if best_effort => reliable.keep_last(5).best_effort(),
            Kind::Cloud => reliable.keep_last(5),
            Kind::StaticTransforms => reliable.keep_last(STATIC_DEPTH).transient_local(),
            _ => reliable.keep_last(100),
        }
    }
}

struct Output {
    kind: Kind,
    publisher: PublisherUntyped,
}

#[derive(Parser)]
#[command(
    name = "centerpoint_ptq_play",
    version,
    about = "Publish a bag to the ROS 2 graph at its own rate"
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(flatten)]
    args: Args,
}

/// The program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    terminal::install(cli.global.quiet);
    exit(run(cli.args))
}

fn run(args: Args) -> anyhow::Result<Ended> {
    let stop = Arc::new(AtomicBool::new(false));
    let limits = Limits {
        stop: Some(Arc::clone(&stop)),
        ..args.limits.limits()
    };
    let reader = Reader::open_with(&args.bag, &limits)?;
    let names = remappings(&args.remap)?;
    let selected = select(&reader, &args)?;

    let mut node = create_node("centerpoint_player")?;
    let mut outputs = BTreeMap::new();
    for (topic, type_name) in &selected {
        let kind = Kind::of(topic, type_name);
        if (args.repeat || args.restamp) && kind == Kind::Other {
            bail!(
                "{topic} ({type_name}): stamps of this type cannot be moved; \
                 play it without --loop and --restamp"
            );
        }
        let name = names.get(topic).unwrap_or(topic);
        let publisher = node
            .create_publisher_untyped(name, type_name, kind.qos(args.best_effort))
            .with_context(|| format!("cannot publish {topic} as {name} ({type_name})"))?;
        outputs.insert(topic.clone(), Output { kind, publisher });
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let _inside = runtime.enter();

    let paused = watch::Sender::new(args.start_paused);
    for (service, pause) in [("~/pause", true), ("~/resume", false)] {
        let mut requests =
            node.create_service::<Trigger::Service>(service, QosProfile::services_default())?;
        let paused = paused.clone();
        tokio::spawn(async move {
            while let Some(request) = requests.next().await {
                paused.send_replace(pause);
                let response = Trigger::Response {
                    success: true,
                    message: if pause { "paused" } else { "playing" }.into(),
                };
                if let Err(error) = request.respond(response) {
                    tracing::debug!("a caller got no answer: {error}");
                }
            }
        });
    }
    if args.start_paused {
        terminal::note("paused until somebody calls ~/resume");
    }
    let spinner = Spinner::start(node)?;
    let mut player = Player {
        reader,
        args,
        outputs,
        paused: paused.subscribe(),
        begin: None,
        latest: None,
        summary: Summary::default(),
    };
    // Between two messages of a bag that is damaged there may be much to read.
    signals::watch(move || stop.store(true, Ordering::Relaxed))?;
    let played = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let ended = tokio::select! {
            ended = player.play() => Some(ended),
            _ = interrupt.recv() => None,
            _ = terminate.recv() => None,
        };
        if let Some(begin) = player.begin {
            player.summary.seconds = begin.elapsed().as_secs_f64();
        }
        match ended {
            Some(ended) => {
                ended?;
                sleep(LINGER).await;
            }
            None => player.summary.interrupted = true,
        }
        anyhow::Ok(())
    });
    spinner.stop();
    played?;
    player.print()?;
    Ok(match player.summary.lost {
        0 => Ended::Done,
        _ => Ended::WithLosses,
    })
}

/// `FROM:=TO` pairs.
fn remappings(given: &[String]) -> anyhow::Result<BTreeMap<String, String>> {
    given
        .iter()
        .map(|pair| match pair.split_once(":=") {
            Some((from, to)) if !from.is_empty() && !to.is_empty() => {
                Ok((from.to_owned(), to.to_owned()))
            }
            _ => bail!("--remap {pair}: give FROM:=TO, for example /points:=/lidar/points"),
        })
        .collect()
}

/// Topics to publish, with their types.
fn select(reader: &Reader, args: &Args) -> anyhow::Result<Vec<(String, String)>> {
    let topics = reader.topics();
    let present = || {
        let list: Vec<_> = topics
            .iter()
            .map(|t| format!("{} ({})", t.name, t.type_name))
            .collect();
        list.join(", ")
    };
    if let Some(absent) = args
        .topic
        .iter()
        .find(|name| topics.iter().all(|t| t.name != **name))
    {
        bail!(
            "{} has no topic {absent}; it has {}",
            args.bag.display(),
            present()
        );
    }
    let selected: Vec<(String, String)> = topics
        .iter()
        .filter(|t| {
            let transforms = t.type_name == TfMessage::TYPE;
            match args.topic.is_empty() {
                true => transforms || t.type_name == PointCloud2::TYPE,
                false => args.topic.contains(&t.name) || transforms,
            }
        })
        .map(|t| (t.name.clone(), t.type_name.clone()))
        .collect();
    if args.topic.is_empty() && selected.iter().all(|(_, t)| t != PointCloud2::TYPE) {
        bail!(
            "{} has no point cloud; it has {}",
            args.bag.display(),
            present()
        );
    }
    Ok(selected)
}

/// Counts what cannot be played, which is an error where nothing may be lost.
fn lose(args: &Args, summary: &mut Summary, error: anyhow::Error) -> anyhow::Result<()> {
    if args.strict {
        return Err(error.context("with --strict every message must be played"));
    }
    summary.lost += 1;
    tracing::warn!("left out: {}", terminal::causes(&error));
    Ok(())
}

/// When messages are due: the recording's own clock, without what is cut from its pauses.
struct Clock {
    rate: f64,
    max_pause: i64,
    due: Instant,
    /// Log time of the latest message.
    at: i64,
    /// What was played, nanoseconds of the recording.
    played: i64,
}

/// From one message to the next, nanoseconds of the recording.
#[derive(Debug, Default, PartialEq)]
struct Step {
    /// What is waited for.
    kept: i64,
    /// The same as it takes.
    wait: Duration,
    /// What was cut.
    cut: u64,
    /// How far the clock went back.
    back: u64,
}

impl Clock {
    /// Messages that are older by less than this were only recorded in another order.
    const BACK: i128 = 1_000_000_000;

    fn new(args: &Args, log_time: i64) -> Self {
        Clock {
            rate: args.rate,
            max_pause: (args.max_pause * 1e9) as i64,
            due: Instant::now(),
            at: log_time,
            played: 0,
        }
    }

    /// The time that some of the recording takes.
    fn real(&self, recorded: i64) -> Duration {
        Duration::try_from_secs_f64(recorded as f64 / 1e9 / self.rate).unwrap_or_default()
    }

    /// Moves on to a message.
    fn advance(&mut self, log_time: i64) -> Step {
        let gap = i128::from(log_time) - i128::from(self.at);
        if gap < 0 {
            let back = match -gap < Self::BACK {
                true => 0,
                false => u64::try_from(-gap).unwrap_or(u64::MAX),
            };
            if back > 0 {
                self.at = log_time;
            }
            return Step {
                back,
                ..Step::default()
            };
        }
        let kept = gap.min(i128::from(self.max_pause)) as i64;
        let wait = self.real(kept);
        self.at = log_time;
        self.played = self.played.saturating_add(kept);
        self.due += wait;
        Step {
            kept,
            wait,
            cut: u64::try_from(gap - i128::from(kept)).unwrap_or(u64::MAX),
            back: 0,
        }
    }
}

struct Player {
    reader: Reader,
    args: Args,
    outputs: BTreeMap<String, Output>,
    paused: watch::Receiver<bool>,
    /// When the first message was due.
    begin: Option<Instant>,
    /// The latest stamp of a message, as it was recorded.
    latest: Option<Stamp>,
    summary: Summary,
}

impl Player {
    async fn play(&mut self) -> anyhow::Result<()> {
        self.wait_for_subscribers().await?;
        self.begin = Some(Instant::now());
        let mut shift = self.first_shift()?;
        self.summary.stamp_shift_ns = shift;
        self.publish_static(shift)?;
        loop {
            let Some(length) = self.pass(shift).await? else {
                break;
            };
            self.summary.passes += 1;
            self.summary.pass_ns = length;
            if !self.args.repeat {
                break;
            }
            shift = shift.saturating_add(length);
            let latest = self.latest.unwrap_or_default();
            ensure!(
                i32::try_from(moved(latest, shift).0 / 1_000_000_000).is_ok(),
                "the recording's stamps span {}: another pass would move them beyond what a ROS stamp holds",
                span(length.unsigned_abs())
            );
        }
        Ok(())
    }

    async fn wait_for_subscribers(&self) -> anyhow::Result<()> {
        let wanted = self.args.wait_for_subscribers;
        if wanted > 0 {
            terminal::note(&format!(
                "waiting up to {} s for {wanted} subscribers of each cloud topic",
                self.args.wait_timeout
            ));
        }
        let clouds = || self.outputs.iter().filter(|(_, o)| o.kind == Kind::Cloud);
        let count = |output: &Output| output.publisher.get_inter_process_subscription_count();
        let ready = async {
            loop {
                let mut all = true;
                for (_, output) in clouds() {
                    all &= count(output)? >= wanted;
                }
                if all {
                    return anyhow::Ok(());
                }
                sleep(Duration::from_millis(50)).await;
            }
        };
        let patience = Duration::try_from_secs_f64(self.args.wait_timeout)
            .context("--wait-timeout is not a time")?;
        if let Ok(ready) = timeout(patience, ready).await {
            ready?;
            if wanted > 0
                && let Ok(settled) = timeout(patience, self.wait_until_settled(count)).await
            {
                settled?;
            }
            return Ok(());
        }
        let mut counts = Vec::new();
        for (topic, output) in clouds() {
            counts.push(format!("{topic} has {}", count(output)?));
        }
        bail!(
            "no {wanted} subscribers within {} s: {}",
            self.args.wait_timeout,
            counts.join(", ")
        )
    }

    /// Until no topic, those of transforms included, has got another subscriber for a while.
    async fn wait_until_settled(
        &self,
        count: impl Fn(&Output) -> r2r::Result<usize>,
    ) -> anyhow::Result<()> {
        let mut before = Vec::new();
        loop {
            let mut counts = Vec::with_capacity(self.outputs.len());
            for output in self.outputs.values() {
                counts.push(count(output)?);
            }
            if counts == before {
                return Ok(());
            }
            before = counts;
            sleep(HANDSHAKE).await;
        }
    }

    fn first_shift(&self) -> anyhow::Result<i64> {
        if !self.args.restamp {
            return Ok(0);
        }
        let stamped = |message: &RawMessage| {
            let output = self.outputs.get(&*message.topic)?;
            let (_, stamp) = header(&message.data).ok()?;
            matches!(output.kind, Kind::Cloud | Kind::Headed).then_some(stamp.0)
        };
        let readable = || self.messages().filter_map(Result::ok);
        let first = readable()
            .find_map(|message| stamped(&message))
            .or_else(|| readable().next().map(|message| message.log_time))
            .context("the bag holds no message that can be read")?;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        Ok(i64::try_from(now.as_nanos())?.saturating_sub(first))
    }

    fn messages(&self) -> impl Iterator<Item = Result<RawMessage, BagError>> + use<> {
        let topics: Vec<&str> = self
            .outputs
            .iter()
            .filter(|(_, output)| output.kind != Kind::StaticTransforms)
            .map(|(topic, _)| topic.as_str())
            .collect();
        self.reader.messages(&topics)
    }

    /// All static transforms at once: a subscriber that comes later gets them too.
    fn publish_static(&mut self, shift: i64) -> anyhow::Result<()> {
        for (topic, output) in &self.outputs {
            if output.kind != Kind::StaticTransforms {
                continue;
            }
            let mut all = TfMessage::default();
            for message in self.reader.messages(&[topic.as_str()]) {
                let read = message.map_err(anyhow::Error::from);
                match read.and_then(|message| Ok(TfMessage::decode(&message.data)?)) {
                    Ok(tf) => all.transforms.extend(tf.transforms),
                    Err(error) => {
                        lose(&self.args, &mut self.summary, error.context(topic.clone()))?
                    }
                }
            }
            for transform in &mut all.transforms {
                transform.header.stamp = moved(transform.header.stamp, shift);
            }
            output.publisher.publish_raw(&all.encode())?;
            self.summary.transforms += 1;
        }
        Ok(())
    }

    /// Plays the bag once; returns its length in nanoseconds, up to where a next pass would
    /// start, or `None` when enough clouds were played.
    async fn pass(&mut self, shift: i64) -> anyhow::Result<Option<i64>> {
        let mut clock: Option<Clock> = None;
        let mut clouds: Vec<i64> = Vec::new();
        let mut stamps: Option<(Stamp, Stamp)> = None;
        for message in self.messages() {
            let message = match message {
                Ok(message) => message,
                // The signal ends the play.
                Err(BagError::Stopped(_)) => std::future::pending().await,
                Err(error) => {
                    self.lose(error.into())?;
                    continue;
                }
            };
            if *self.paused.borrow() {
                let before = Instant::now();
                self.paused.wait_for(|paused| !*paused).await?;
                if let Some(clock) = &mut clock {
                    clock.due += before.elapsed();
                }
            }
            let clock = clock.get_or_insert_with(|| Clock::new(&self.args, message.log_time));
            let before = Stamp(clock.at);
            let step = clock.advance(message.log_time);
            let due = clock.due;
            self.tell(before, &step);
            sleep_until(due).await;
            let late = due.elapsed().as_secs_f64() * 1e3;
            self.summary.max_late_ms = self.summary.max_late_ms.max(late);

            let log_time = message.log_time;
            let stamp = header(&message.data).map(|(_, stamp)| stamp).ok();
            let kind = match self.publish(message, shift) {
                Ok(kind) => kind,
                Err(error) => {
                    self.lose(error)?;
                    continue;
                }
            };
            if let (Some(Kind::Cloud | Kind::Headed), Some(stamp)) = (kind, stamp) {
                let (first, last) = stamps.get_or_insert((stamp, stamp));
                (*first, *last) = ((*first).min(stamp), (*last).max(stamp));
            }
            if kind == Some(Kind::Cloud) {
                clouds.push(log_time);
                if self
                    .args
                    .clouds
                    .is_some_and(|max| self.summary.clouds >= max)
                {
                    return Ok(None);
                }
            }
        }
        let clock =
            clock.context("the bag holds no message on the selected topics that can be played")?;
        // From the last cloud to the first of the next pass it takes as long as between most others.
        let period = median_period(&clouds);
        let pause = period.min(clock.max_pause);
        if self.args.repeat {
            sleep_until(clock.due + clock.real(pause)).await;
        }
        // Time goes on in the next pass, by the stamps as well as by the clock that recorded them.
        let (first, last) = stamps.unwrap_or_default();
        self.latest = self.latest.max(stamps.map(|(_, last)| last));
        let length = clock.played.max(last.0.saturating_sub(first.0));
        Ok(Some(length.saturating_add(period)))
    }

    /// Says what the recording's clock did, where somebody who waits would wonder.
    fn tell(&mut self, before: Stamp, step: &Step) {
        /// Waits that need a word.
        const LONG: Duration = Duration::from_secs(5);
        if step.cut > 0 {
            self.summary.cut_pauses += 1;
            self.summary.cut_seconds += step.cut as f64 / 1e9;
            // Who waits for nothing does not want to hear of it.
            if self.args.max_pause > 0.0 {
                let all = span(step.cut.saturating_add(step.kept.unsigned_abs()));
                tracing::warn!(
                    "the recording pauses for {all} after {before}; that is cut to {} s (--max-pause)",
                    self.args.max_pause
                );
            }
        } else if step.wait > LONG {
            let wait = u64::try_from(step.wait.as_nanos()).unwrap_or(u64::MAX);
            terminal::note(&format!(
                "the recording pauses after {before}: waiting {}",
                span(wait)
            ));
        }
        if step.back > 0 {
            self.summary.steps_back += 1;
            tracing::warn!(
                "the recording's clock goes back by {} after {before}; playing on from there",
                span(step.back)
            );
        }
    }

    fn lose(&mut self, error: anyhow::Error) -> anyhow::Result<()> {
        lose(&self.args, &mut self.summary, error)
    }

    fn publish(&mut self, mut message: RawMessage, shift: i64) -> anyhow::Result<Option<Kind>> {
        let Some(output) = self.outputs.get(&*message.topic) else {
            return Ok(None);
        };
        let place = || format!("a message of {} at {}", message.topic, message.log_time);
        if shift != 0 {
            match output.kind {
                Kind::Cloud | Kind::Headed => {
                    shift_header(&mut message.data, shift).with_context(place)?;
                }
                Kind::Transforms => {
                    let mut tf = TfMessage::decode(&message.data).with_context(place)?;
                    for transform in &mut tf.transforms {
                        transform.header.stamp = moved(transform.header.stamp, shift);
                    }
                    message.data = tf.encode();
                }
                Kind::StaticTransforms | Kind::Other => {}
            }
        }
        output
            .publisher
            .publish_raw(&message.data)
            .with_context(place)?;
        match output.kind {
            Kind::Cloud => self.summary.clouds += 1,
            Kind::Transforms | Kind::StaticTransforms => self.summary.transforms += 1,
            Kind::Headed | Kind::Other => self.summary.other += 1,
        }
        Ok(Some(output.kind))
    }

    fn print(&self) -> anyhow::Result<()> {
        let s = &self.summary;
        if self.args.json {
            return terminal::print_json_line(s);
        }
        let mut more = String::new();
        if s.cut_pauses > 0 {
            let cut = span((s.cut_seconds * 1e9) as u64);
            more += &format!("; {cut} cut from {} pauses", s.cut_pauses);
        }
        if s.lost > 0 {
            more += &format!("; {} could not be played", s.lost);
        }
        terminal::print(&format!(
            "played {} clouds, {} transform messages and {} others in {:.2} s, \
             at the latest {:.1} ms late{more}{}\n",
            s.clouds,
            s.transforms,
            s.other,
            s.seconds,
            s.max_late_ms,
            if s.interrupted { " (interrupted)" } else { "" }
        ))
    }
}

/// The median time between neighbours, or a second where there are none.
fn median_period(times: &[i64]) -> i64 {
    let mut periods: Vec<i64> = times.windows(2).map(|w| w[1] - w[0]).collect();
    periods.sort_unstable();
    periods
        .get(periods.len() / 2)
        .copied()
        .filter(|p| *p > 0)
        .unwrap_or(1_000_000_000)
}

fn moved(stamp: Stamp, shift: i64) -> Stamp {
    Stamp(stamp.0.saturating_add(shift))
}

/// Byte order (whether little) and stamp of a CDR message that begins with a header: four bytes of
/// encapsulation, then seconds and nanoseconds.
fn header(data: &[u8]) -> anyhow::Result<(bool, Stamp)> {
    let (Some(&order), Some(stamp)) = (data.get(1), data.get(4..12)) else {
        bail!("{} bytes are too few for a header", data.len());
    };
    let little = order & 1 == 1;
    let word = |bytes: &[u8]| {
        let mut word = [0; 4];
        word.copy_from_slice(bytes);
        if little {
            u32::from_le_bytes(word)
        } else {
            u32::from_be_bytes(word)
        }
    };
    let stamp = Stamp::from_sec_nanosec(word(&stamp[..4]) as i32, word(&stamp[4..]));
    Ok((little, stamp))
}

/// Moves the stamp of a CDR message that begins with a [`header`].
fn shift_header(data: &mut [u8], shift: i64) -> anyhow::Result<()> {
    let (little, old) = header(data)?;
    let new = moved(old, shift);
    for (at, value) in [(4, new.sec() as u32), (8, new.nanosec())] {
        let bytes = if little {
            value.to_le_bytes()
        } else {
            value.to_be_bytes()
        };
        data[at..at + 4].copy_from_slice(&bytes);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bag::msg::Header;

    #[test]
    fn only_the_stamp_moves() {
        let cloud = PointCloud2 {
            header: Header {
                stamp: Stamp(1_999_999_999),
                frame_id: "lidar".into(),
            },
            width: 3,
            data: vec![1, 2, 3],
            ..Default::default()
        };
        for shift in [1, -2_000_000_000, 1_700_000_000_000_000_000] {
            let mut bytes = cloud.encode();
            shift_header(&mut bytes, shift).unwrap();
            let mut expected = cloud.clone();
            expected.header.stamp.0 += shift;
            assert_eq!(PointCloud2::decode(&bytes).unwrap(), expected);
        }
        assert!(shift_header(&mut [0; 11], 1).is_err());
    }

    fn clock(rate: f64) -> Clock {
        Clock {
            rate,
            max_pause: 10_000_000_000,
            due: Instant::now(),
            at: 0,
            played: 0,
        }
    }

    #[test]
    fn a_pause_is_waited_for_no_longer_than_allowed() {
        const YEAR: i64 = 31_557_600_000_000_000;
        let mut clock = clock(2.0);
        let begin = clock.due;
        assert_eq!(clock.advance(100_000_000).wait, Duration::from_millis(50));
        let long = clock.advance(55 * YEAR);
        assert_eq!(
            (long.kept, long.wait),
            (10_000_000_000, Duration::from_secs(5))
        );
        assert_eq!(span(long.cut), "55.0 years");
        assert_eq!(clock.advance(55 * YEAR + 1_000_000_000).cut, 0);
        assert_eq!(clock.played, 11_100_000_000);
        assert_eq!(clock.due - begin, Duration::from_millis(5550));
        clock.advance(i64::MIN);
        assert_eq!(clock.advance(i64::MAX).wait, Duration::from_secs(5));
    }

    #[test]
    fn a_clock_that_goes_back_is_followed_and_another_order_is_none() {
        let mut clock = clock(1.0);
        clock.advance(5_000_000_000);
        assert_eq!(clock.advance(4_900_000_000), Step::default());
        assert_eq!(clock.advance(5_100_000_000).kept, 100_000_000);
        let back = clock.advance(1_000_000_000);
        assert_eq!((back.back, back.wait), (4_100_000_000, Duration::ZERO));
        assert_eq!(clock.advance(1_100_000_000).kept, 100_000_000);
    }

    #[test]
    fn a_gap_in_the_recording_does_not_stretch_the_period() {
        assert_eq!(median_period(&[0, 100, 200, 9000, 9100]), 100);
        assert_eq!(median_period(&[5]), 1_000_000_000);
    }

    #[test]
    fn a_remapping_needs_both_names() {
        let given = ["/a:=/b".to_owned()];
        assert_eq!(remappings(&given).unwrap()["/a"], "/b");
        for bad in ["/a", ":=/b", "/a:="] {
            assert!(remappings(&[bad.to_owned()]).is_err(), "{bad}");
        }
    }
}
