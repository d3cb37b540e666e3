//! The command line: parses the arguments and calls the command.
//!
//! A command that needs more than one call has its own file here. The other modules use clap only to define the
//! flags of their command.

mod config;
mod data;
mod rules;
mod shell;
mod train;

use crate::bench::BenchOptions;
use crate::compare::CompareOptions;
use crate::config::Options;
use crate::console::print;
use crate::error::Result;
use crate::recipe::Recipe;
use crate::report::ReportOptions;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use std::process::ExitCode;

const EXIT_CODES: &str = "Exit codes:
  0    success
  1    the run failed (a worker, a device, a disk or a non-finite gradient); the last state is
       saved if possible, and `stagger train --resume` continues the run
  2    wrong usage or input; nothing was started
  130  interrupted by SIGINT or SIGTERM; the state is saved (a second signal ends the process at once, without saving)";

/// Asynchronous SGD with many workers on one machine's GPU.
#[derive(Parser)]
#[command(version, about, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train a model with workers that do not wait for each other
    #[command(after_help = TRAIN_EXAMPLES)]
    Train(Box<train::TrainOptions>),
    /// Measure this machine: scaling with the workers, time to accuracy, kernels, the engine, the model's step
    #[command(after_help = BENCH_EXAMPLES)]
    Bench(Box<BenchOptions>),
    /// Compare rules over several seeds on one scenario: a table with standard errors, and figures
    #[command(after_help = COMPARE_EXAMPLES)]
    Compare {
        #[command(flatten)]
        options: Box<Options>,
        #[command(flatten)]
        compare: Box<CompareOptions>,
    },
    /// Run experiments from papers that are included with the program
    Recipe {
        #[command(subcommand)]
        command: Recipe,
    },
    /// Write an HTML page about runs: curves, staleness, timelines, partitions, settings
    Report(ReportOptions),
    /// Check a configuration, or print the schema of configurations
    Config {
        #[command(subcommand)]
        command: config::Config,
    },
    /// Download, verify or describe data sets
    Data {
        #[command(subcommand)]
        command: data::Data,
    },
    /// Print a shell script that completes commands and flags
    #[command(after_help = COMPLETION_EXAMPLES)]
    Completions {
        /// Name of the shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    #[command(after_help = "Example:\n  stagger man > stagger.1 && man ./stagger.1")]
    Man,
    /// List the rules with their papers and parameters
    Rules {
        /// Describe only this rule, in full
        name: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

const TRAIN_EXAMPLES: &str = "Examples:
  stagger train
  stagger train --data datasets --rule dude --workers 4 --partition dirichlet:0.1 --delay truncnormal:1,1 --clock virtual --updates 2000
  stagger train --checkpoint-every 500 --updates 5000 --out runs/a ; stagger train --resume runs/a --updates 10000
  stagger train --rule asgd --clock replay:runs/a/events.jsonl --config runs/a/config.toml";

const BENCH_EXAMPLES: &str = "Examples:
  stagger bench scaling --backend cpu --workers 1,2,4 --threads-per-worker 1
  stagger bench model --backend cpu --model resnet18 --batch 32 --threads-per-worker 1
  stagger bench kernels --backend cuda
  stagger bench engine --backend cpu
  stagger bench time-to-accuracy --workers 1,4,8 --delay fixed:1,1,1,4 --target 60";

const COMPLETION_EXAMPLES: &str = "Examples:
  stagger completions bash > ~/.local/share/bash-completion/completions/stagger
  stagger completions zsh > ~/.zfunc/_stagger
  stagger completions fish > ~/.config/fish/completions/stagger.fish";

const COMPARE_EXAMPLES: &str = "Examples:
  stagger compare --rules \"dude;asgd;shuffled\" --seeds 1,2,3 --partition dirichlet:0.1 --delay truncnormal:1,1 --updates 2000 --target 40
  stagger compare --rules \"asgd;dude\" --vary \"workers=4;16\" --vary \"partition=dirichlet:0.1;iid\" --tune 0.02,0.05,0.1 --out runs/grid
  stagger compare --config scenario.toml

A scenario is a TOML file with the keys of a run and a section [compare]:
  dataset = \"cifar10\"
  workers = 10
  updates = 2000
  [compare]
  rules = [\"dude\", \"asgd\", \"fedbuff:b=5\"]
  seeds = [1, 2, 3]
  target = 40
  vary = { partition = [\"dirichlet:0.1\", \"iid\"] }";

/// The whole `main` of a program: runs the command that the arguments name, prints an error, and returns the
/// exit code.
pub fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            note!("stagger: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// Runs the command that the arguments name. Wrong arguments end the process with exit code 2.
pub fn run() -> Result<()> {
    // Parse a negative number as a value, not as a flag, so that the error names the value.
    let command = Cli::command().mut_subcommands(|command| command.allow_negative_numbers(true));
    let cli = Cli::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit());
    match cli.command {
        Command::Train(options) => train::train(*options),
        Command::Bench(options) => crate::bench::bench(&options),
        Command::Compare { options, compare } => crate::compare::compare(&options, &compare),
        Command::Recipe { command } => crate::recipe::recipe(command),
        Command::Report(options) => crate::report::report(&options),
        Command::Config { command } => config::config(command),
        Command::Data { command } => data::data(command),
        Command::Completions { shell } => print(&shell::completions(shell, &mut Cli::command())),
        Command::Man => print(&shell::manual(Cli::command())?),
        Command::Rules { name, json } => print(rules::rules(name, json)?.as_bytes()),
    }
}
