//! One run, in four steps. [`plan`] checks the settings, reads the data and opens the device. [`build`]
//! creates the folder, the workers and the server. The server runs. [`summary`] reports.

pub mod build;
pub mod checks;
pub mod data;
pub mod measure;
pub mod memory;
pub mod plan;
pub mod resume;
pub mod summary;

pub use checks::check;
pub use measure::{Measured, measure};
pub use resume::resumed;

use crate::config::Options;
use crate::error::{Error, Result};
use crate::host::backend;
use crate::record::Summary;
use build::Built;
use jiff::Timestamp;
use plan::Plan;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Runs `stagger train`.
pub fn train(options: &Options, place: Place, profile: bool, tui: bool) -> Result<()> {
    let finished = run(options, place, Audience::People { tui })?;
    summary::report(&finished, profile);
    if finished.summary.interrupted {
        let folder = finished.folder.display();
        let way = match options.checkpoint_every {
            Some(0) => String::new(),
            _ => format!("; `stagger train --resume {folder}` continues the run"),
        };
        return Err(Error::Interrupted(format!("interrupted; the results so far are in {folder}{way}")));
    }
    Ok(())
}

/// Where a run's folder is.
pub enum Place {
    /// A new folder at this path, or else `runs/<time>-<rule>`.
    New(Option<PathBuf>),
    /// The folder of a resumed run.
    Resumed {
        /// Path of the folder.
        folder: PathBuf,
        /// Resume with another version of the program or on another backend, although the bytes may then
        /// differ.
        anyway: bool,
    },
}

/// Who reads the output of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Audience {
    /// People: lines of text, a progress bar, or the dashboard.
    People {
        /// Show the dashboard.
        tui: bool,
    },
    /// A measurement. Nothing is printed, and no checkpoint is saved.
    Program {
        /// Test accuracy, 0 to 1. The run ends at the first evaluation that reaches it. `None`: nothing is
        /// evaluated.
        target: Option<f64>,
    },
}

impl Audience {
    fn is_people(self) -> bool {
        matches!(self, Audience::People { .. })
    }

    /// Prints a line, if people read the output.
    fn say(self, line: &str) {
        if self.is_people() {
            say!("{line}");
        }
    }
}

/// A finished run.
pub struct Finished {
    /// The summary.
    pub summary: Summary,
    /// The run's folder.
    pub folder: PathBuf,
    /// The executor that computed the gradients, and the reason for it.
    pub executor: plan::Execution,
}

/// Plans, builds, runs and summarises one run.
fn run(options: &Options, place: Place, audience: Audience) -> Result<Finished> {
    let plan = Plan::of(options, &place, audience)?;
    let mut folder = build::create_folder(&plan, place)?;
    let Built { setup, update, initial, facts, tuning } = build::build(plan, &mut folder, audience)?;
    let (began, computed) = (Instant::now(), backend::cpu_seconds());
    let (outcome, weights) = setup.run(&facts.layout, update, initial)?;
    let seconds = began.elapsed().as_secs_f64().max(1e-9);
    let cores_busy = backend::cpu_seconds().zip(computed).map(|(now, before)| (now - before) / seconds);

    if outcome.untold > 0 {
        let count = outcome.untold;
        audience.say(&format!("NOTE       the device did not report the times of {count} gradients and updates"));
    }
    let weights_sha256 = folder.weights(&facts.layout, weights.host())?;
    let summary = Summary { cores_busy, ..summary::summarise(&facts, &outcome, weights_sha256) };
    folder.summary(&summary)?;
    if let Some((new, all)) = tuning.map(|tuning| tuning.finish()).transpose()? {
        audience.say(&format!("tuning     {new} of {all} matrix products were measured in this run"));
    }
    Ok(Finished { summary, folder: folder.path().to_path_buf(), executor: facts.executor })
}

/// The path `runs/<time>-<rule>`, with a number appended if it exists already. The time is UTC.
pub fn fresh_folder(rule: &str) -> PathBuf {
    let time = Timestamp::now().strftime("%Y%m%d-%H%M%S");
    let name = |k: usize| match k {
        0 => format!("{time}-{rule}"),
        k => format!("{time}-{rule}-{k}"),
    };
    let mut candidates = (0..).map(|k| Path::new("runs").join(name(k)));
    candidates.find(|path| !path.exists()).expect("some number is free")
}
