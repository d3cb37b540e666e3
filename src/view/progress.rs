//! Shows the progress of a run: a bar on a terminal, the dashboard with `--tui`, and plain lines otherwise.

use crate::error::{Error, Result};
use crate::record::{Effect, Limits, Outcome};
use crate::view::dashboard::Dashboard;
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Time between two refreshes of the bar or the dashboard.
const BAR_EVERY: Duration = Duration::from_millis(200);
/// Time between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// The display of one run.
pub struct Progress {
    bar: Option<ProgressBar>,
    dashboard: Option<Box<Dashboard>>,
    silent: bool,
    limits: Limits,
    shown: Instant,
}

impl Progress {
    /// A display for a run with these limits.
    pub fn new(limits: Limits) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:30} {percent:>3}% {msg}").expect("a valid template");
            ProgressBar::new(1000).with_style(style)
        });
        Progress { bar, dashboard: None, silent: false, limits, shown: Instant::now() }
    }

    /// A display that shows nothing.
    pub fn silent(limits: Limits) -> Self {
        Progress { bar: None, dashboard: None, silent: true, limits, shown: Instant::now() }
    }

    /// The dashboard, which uses the whole terminal. It is an error if standard error is not a terminal.
    pub fn on_the_whole_terminal(limits: Limits, title: String, workers: usize) -> Result<Self> {
        let nowhere = |why: &str| Error::usage(format!("--tui needs a terminal: {why}; leave it out"));
        if !std::io::stderr().is_terminal() {
            return Err(nowhere("standard error is not a terminal"));
        }
        let dashboard = Dashboard::new(title, workers).map_err(|e| nowhere(&e.to_string()))?;
        Ok(Progress { dashboard: Some(Box::new(dashboard)), ..Progress::silent(limits) })
    }

    /// Called at every arrival. The job of `worker` ran from `began` to `ended`, in seconds on the run's time axis.
    pub fn arrived(&mut self, worker: usize, began: f64, ended: f64, effect: Effect) {
        if let Some(dashboard) = &mut self.dashboard {
            dashboard.arrived(worker, began, ended, effect);
        }
    }

    /// Refreshes the display, unless the last refresh was a short time ago. Called after arrivals.
    ///
    /// `seconds` returns the real time of the run in seconds. It is called only for a refresh.
    pub fn show(&mut self, seconds: impl FnOnce() -> f64, updates: u64, outcome: &Outcome) {
        let every = if self.bar.is_some() || self.dashboard.is_some() { BAR_EVERY } else { LINE_EVERY };
        if (self.silent && self.dashboard.is_none()) || self.shown.elapsed() < every {
            return;
        }
        self.shown = Instant::now();
        let seconds = seconds().max(1e-9);
        let share = |now: f64, limit: Option<f64>| limit.map_or(0.0, |limit| now / limit);
        let done = share(updates as f64, self.limits.updates.map(|u| u as f64))
            .max(share(outcome.time, self.limits.time))
            .max(share(outcome.samples as f64, self.limits.samples.map(|s| s as f64)))
            .min(1.0);
        let left = if done > 0.0 { format!(", {} left", duration(seconds / done - seconds)) } else { String::new() };
        let loss = outcome.recent_loss.map_or("…".into(), |l| format!("{l:.4}"));
        let line = format!(
            "update {updates}, {:.1} updates/s, {:.0} samples/s, loss {loss}, mean staleness {:.1}{left}",
            updates as f64 / seconds,
            outcome.samples as f64 / seconds,
            outcome.staleness as f64 / outcome.gradients.max(1) as f64,
        );
        if let Some(dashboard) = &mut self.dashboard {
            return dashboard.draw(&line, done, outcome);
        }
        match &self.bar {
            Some(bar) => {
                bar.set_position((1000.0 * done) as u64);
                bar.set_message(line);
            }
            None => note!("{:>3.0} %  {line}", 100.0 * done),
        }
    }

    /// Called after every evaluation. Prints the test accuracy, if there is one: theory problems have none.
    pub fn evaluated(&mut self, updates: u64, outcome: &Outcome) {
        if let Some(dashboard) = &mut self.dashboard {
            dashboard.evaluated(outcome);
        }
        let Some(accuracy) = outcome.evaluation.test_accuracy.filter(|_| !self.silent) else { return };
        let line = format!(
            "evaluation at update {updates} (time {:.1} s): test accuracy {:.2} %, test loss {:.4}",
            outcome.time,
            100.0 * accuracy,
            outcome.evaluation.test_loss.unwrap_or(f64::NAN),
        );
        match &self.bar {
            Some(bar) => bar.println(line),
            None => note!("{line}"),
        }
    }

    /// Removes the display.
    pub fn done(&mut self) {
        self.dashboard = None;
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A duration in seconds for people, such as `44 seconds` or `3 minutes`.
pub fn duration(seconds: f64) -> HumanDuration {
    let seconds = if seconds.is_nan() { 0.0 } else { seconds.clamp(0.0, 1e9) };
    HumanDuration(Duration::from_secs_f64(seconds))
}
