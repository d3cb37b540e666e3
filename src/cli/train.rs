//! `stagger train`.

use crate::config::Options;
use crate::error::Result;
use crate::run::{Place, resumed};
use std::path::PathBuf;

/// The flags of `train`.
// These comments are what `--help` prints.
#[derive(clap::Args)]
pub(super) struct TrainOptions {
    #[command(flatten)]
    options: Options,
    /// Read settings from a TOML file, such as the config.toml of a run's folder; flags override it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Set one key of the configuration, such as --set lr=0.1
    #[arg(long = "set", value_name = "KEY=VALUE", hide_short_help = true)]
    sets: Vec<String>,
    /// Folder of the run [default: runs/<time>-<rule>]
    ///
    /// If the folder already holds a run, that run is moved to DIR.1.
    #[arg(long, value_name = "DIR", help_heading = "Evaluation and output", verbatim_doc_comment)]
    out: Option<PathBuf>,
    /// Continue the run in this folder from its newest checkpoint
    ///
    /// The run keeps its settings. Flags may only change when it ends (--updates, --time, --epochs), how often it
    /// is evaluated, how failures are handled, and how fast it runs.
    #[arg(
        long,
        value_name = "DIR",
        conflicts_with_all = ["out", "config", "sets"],
        help_heading = "Checkpoints and failures",
        verbatim_doc_comment
    )]
    resume: Option<PathBuf>,
    /// With --resume: allow another backend or another version, for which identical bits are not guaranteed
    #[arg(long, requires = "resume", help_heading = "Checkpoints and failures", hide_short_help = true)]
    resume_anyway: bool,
    /// Show the run on the full terminal: curves, and a timeline per worker
    #[arg(long, help_heading = "Evaluation and output")]
    tui: bool,
    /// Print how many kernels the updates launched
    #[arg(long, help_heading = "Device and speed", hide_short_help = true)]
    profile: bool,
}

/// Starts a new run, or resumes one.
pub(super) fn train(flags: TrainOptions) -> Result<()> {
    let TrainOptions { options, config, sets, out, resume, resume_anyway: anyway, tui, profile } = flags;
    let (options, place) = match resume {
        Some(folder) => (resumed(&folder, &options, anyway)?, Place::Resumed { folder, anyway }),
        None => (Options::layered(&options, config.as_deref(), &sets)?, Place::New(out)),
    };
    crate::run::train(&options, place, profile, tui)
}
