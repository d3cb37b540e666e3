//! The command line: words in, calls out. Nothing below here knows clap but the flags of [`Options`].

use crate::bench::BenchOptions;
use crate::compare::CompareOptions;
use crate::config::Options;
use crate::console::print;
use crate::error::{Error, Result};
use crate::recipe::Recipe;
use crate::report::ReportOptions;
use crate::rule::{self, Cost};
use crate::run::data;
use crate::run::{Place, resumed};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use stagger_datasets::{cifar10, default_folder};
use std::path::PathBuf;
use std::process::ExitCode;

const AFTER: &str =
    "Exit codes: 0 done; 1 the run failed (a worker, a device, a disk, a gradient that is not finite): what was reached before is saved, and
`stagger train --resume` goes on; 2 wrong usage or input, nothing was begun; 130 interrupted by SIGINT or SIGTERM: the state is saved (a
second signal ends the process at once, without that).";

/// Asynchronous SGD with many workers on one machine's GPU.
#[derive(Parser)]
#[command(version, about, after_help = AFTER)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train with workers that do not wait for each other
    #[command(after_help = EXAMPLES)]
    Train {
        #[command(flatten)]
        options: Box<Options>,
        /// Read the settings of a run from a TOML file, such as the config.toml of a run's folder; flags win over it
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Set one key of the configuration, such as --set lr=0.1
        #[arg(long = "set", value_name = "KEY=VALUE")]
        sets: Vec<String>,
        /// Folder of the run; one that it holds already is moved to DIR.1 [default: runs/<time>-<rule>]
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// Go on with the run in this folder, from its newest checkpoint, with its own settings; flags may only say when it ends (--updates,
        /// --time, --epochs), how often it is evaluated, what is done about failures, and how fast it is
        #[arg(long, value_name = "DIR", conflicts_with_all = ["out", "config", "sets"])]
        resume: Option<PathBuf>,
        /// With --resume: also on another backend or with another version, where the same bits cannot be promised
        #[arg(long, requires = "resume")]
        resume_anyway: bool,
        /// Show the run on the whole terminal: curves, and a lane per worker
        #[arg(long)]
        tui: bool,
        /// Print how many kernels the updates launched
        #[arg(long)]
        profile: bool,
    },
    /// Measure this machine: speed against workers, kernels against bandwidth, the engine, the model's step
    #[command(after_help = BENCH_EXAMPLES)]
    Bench(Box<BenchOptions>),
    /// Run several rules with several seeds on one scenario: a table with standard errors, and figures
    #[command(after_help = COMPARE_EXAMPLES)]
    Compare {
        #[command(flatten)]
        options: Box<Options>,
        #[command(flatten)]
        compare: Box<CompareOptions>,
    },
    /// Experiments of the papers that come with the program
    Recipe {
        #[command(subcommand)]
        command: Recipe,
    },
    /// Runs as one page: curves, staleness, timelines, partitions, settings
    Report(ReportOptions),
    /// What a configuration may hold
    Config {
        #[command(subcommand)]
        command: Config,
    },
    /// Fetch, verify or describe data
    Data {
        #[command(subcommand)]
        command: Data,
    },
    /// Print what makes a shell complete the commands and flags
    #[command(after_help = COMPLETION_EXAMPLES)]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    #[command(after_help = "Example:\n  stagger man > stagger.1 && man ./stagger.1")]
    Man,
    /// List the rules with their papers and parameters
    Rules {
        /// One rule, in full
        name: Option<String>,
        /// For programs
        #[arg(long)]
        json: bool,
    },
}

const EXAMPLES: &str = "Examples:
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

A scenario holds the keys of a run, and a section:
  dataset = \"cifar10\"
  workers = 10
  updates = 2000
  [compare]
  rules = [\"dude\", \"asgd\", \"fedbuff:b=5\"]
  seeds = [1, 2, 3]
  target = 40
  vary = { partition = [\"dirichlet:0.1\", \"iid\"] }";

#[derive(Subcommand)]
enum Config {
    /// Print the JSON schema of a configuration, for editors
    Schema,
    /// Check a configuration, and print it with everything that flags and --set add
    Check {
        /// The TOML file
        file: PathBuf,
        /// Set one key of it, such as --set lr=0.1 or --set rule.c=2
        #[arg(long = "set", value_name = "KEY=VALUE")]
        sets: Vec<String>,
    },
}

#[derive(Subcommand)]
enum Data {
    /// Download CIFAR-10 (170 MB), resuming what was interrupted, check it and unpack it
    Fetch {
        /// Folder to put it in [default: datasets]
        #[arg(long, value_name = "DIR")]
        data: Option<PathBuf>,
        /// Where to download from
        #[arg(long, default_value = cifar10::URL)]
        url: String,
    },
    /// Check a data set: the sizes and SHA-256 sums of CIFAR-10's files; of other sets, that every record can be read
    Verify {
        /// Its folder [default: datasets]
        #[arg(long, value_name = "DIR")]
        data: Option<PathBuf>,
        /// Which, as for `train`
        #[arg(long, default_value = "cifar10")]
        dataset: String,
    },
    /// Show who would hold what
    Describe {
        /// Its folder [default: datasets]
        #[arg(long, value_name = "DIR")]
        data: Option<PathBuf>,
        /// Which, as for `train`
        #[arg(long, default_value = "cifar10")]
        dataset: String,
        /// The partition [default: iid, blocks for libsvm]
        #[arg(long)]
        partition: Option<String>,
        /// Number of workers [default: 8, or the number of centres of a quadratic]
        #[arg(long, value_name = "N")]
        workers: Option<usize>,
        /// Keys the draw
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
}

/// A program's whole `main`: runs the command that the arguments name, prints what went wrong, gives the exit code.
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
    // A negative number is a value, if a wrong one, and no flag.
    let command = Cli::command().mut_subcommands(|command| command.allow_negative_numbers(true));
    let cli = Cli::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit());
    match cli.command {
        Command::Train { options, config, sets, out, resume, resume_anyway: anyway, tui, profile } => {
            let (options, place) = match resume {
                Some(folder) => (resumed(&folder, &options, anyway)?, Place::Resumed { folder, anyway }),
                None => (Options::layered(&options, config.as_deref(), &sets)?, Place::New(out)),
            };
            crate::run::train(&options, place, profile, tui)
        }
        Command::Bench(options) => crate::bench::bench(&options),
        Command::Compare { options, compare } => crate::compare::compare(&options, &compare),
        Command::Recipe { command } => crate::recipe::recipe(command),
        Command::Report(options) => crate::report::report(&options),
        Command::Config { command: Config::Schema } => {
            print((serde_json::to_string_pretty(&crate::config::schema()).expect("plain data") + "\n").as_bytes())
        }
        Command::Config { command: Config::Check { file, sets } } => {
            let (table, section) = Options::scenario(&Options::default(), Some(&file), &sets)?;
            Options::of(table.clone())?.resolve()?;
            let mut whole = table;
            if !section.is_empty() {
                crate::compare::check(&whole, section.clone())?;
                whole.insert("compare".into(), section.into());
            }
            print(toml::to_string(&whole).expect("plain data").as_bytes())
        }
        Command::Data { command } => data(command),
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "stagger", &mut text);
            print(&text)
        }
        Command::Man => print(&manual()?),
        Command::Rules { name, json } => print(rules(name, json)?.as_bytes()),
    }
}

fn lines(lines: &[String]) -> Result<()> {
    print((lines.join("\n") + "\n").as_bytes())
}

/// The manual: the page of the program, then those of its commands.
fn manual() -> Result<Vec<u8>> {
    let mut text = Vec::new();
    let failed = |e: std::io::Error| Error::failed(format!("the manual cannot be made: {e}"));
    let mut cli = Cli::command();
    cli.build();
    clap_mangen::Man::new(cli.clone()).render(&mut text).map_err(failed)?;
    for command in cli.get_subcommands().filter(|command| command.get_name() != "help") {
        let title = format!("stagger-{}", command.get_name());
        clap_mangen::Man::new(command.clone()).title(title).render(&mut text).map_err(failed)?;
    }
    Ok(text)
}

fn data(command: Data) -> Result<()> {
    match command {
        Data::Fetch { data, url } => {
            let folder = data.unwrap_or_else(default_folder);
            let bar = indicatif::ProgressBar::new(0).with_style(
                indicatif::ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left")
                    .expect("a valid template"),
            );
            let target = cifar10::fetch(&url, &folder, |have, all| {
                bar.set_length(all);
                bar.set_position(have);
            })
            .map_err(|e| Error::failed(e.0))?;
            bar.finish_and_clear();
            say!("CIFAR-10 is in {}; `cargo run --release -- train` finds it there.", target.display());
            Ok(())
        }
        Data::Verify { data, dataset } if dataset == "cifar10" => {
            lines(&cifar10::verify(&data.unwrap_or_else(default_folder))?)
        }
        Data::Verify { data, dataset } => {
            let size = data::read_whole(&Options { data, dataset: Some(dataset.clone()), ..Options::default() })?;
            lines(&[format!("{dataset}: ok, {size}")])
        }
        Data::Describe { data, dataset, partition, workers, seed } => {
            let dataset = Some(dataset);
            let options = Options { data, dataset, partition, workers, seed: Some(seed), ..Options::default() };
            lines(&data::who_holds_what(&options)?)
        }
    }
}

/// What `stagger rules` prints.
fn rules(name: Option<String>, json: bool) -> Result<String> {
    let chosen: Vec<_> = rule::entries().filter(|e| name.as_ref().is_none_or(|n| n == e.name)).collect();
    if let Some(name) = name.as_ref().filter(|_| chosen.is_empty()) {
        return Err(Error::usage(format!("no rule is called `{name}`; `stagger rules` lists them")));
    }
    if json {
        let list: Vec<_> = chosen.iter().map(|e| describe(e)).collect();
        return Ok(serde_json::to_string_pretty(&list).expect("plain data") + "\n");
    }
    let mut lines = Vec::new();
    if let (Some(_), [entry]) = (name, chosen.as_slice()) {
        lines.push(format!("{}  ({})\n", entry.name, entry.paper));
        lines.extend(entry.about().map(String::from));
        let Cost { server, worker, copies, biased } = entry.cost;
        lines.push(format!(
            "\nserver {server} d, each worker {worker} d beside its replica, models sent per update: {copies}"
        ));
        lines.push(format!("limit under unequal speeds and data: {}", limit(biased)));
        let without = if rule::goes_on_without_a_worker(entry) {
            "goes on"
        } else {
            "waits for it in the end, and the run stops"
        };
        lines.push(format!("without a worker that failed (--on-failure drop): {without}\n"));
        let none = entry.keys.is_empty();
        lines.push(if none { "no parameters" } else { "parameters (--rule NAME:key=value,key=value)" }.into());
        lines.extend(entry.keys.iter().map(|k| format!("  {:<12} {} [default: {}]", k.name, k.meaning, k.default)));
    } else {
        lines.push(LEGEND.into());
        lines.push(format!(
            "{:<15} {:<6} {:<13} {:<13} {:<9} rule (paper)",
            "name", "server", "worker", "models", "limit"
        ));
        for e in chosen {
            let Cost { server, worker, copies, biased } = e.cost;
            let limit = limit(biased);
            lines.push(format!(
                "{:<15} {server:<6} {worker:<13} {copies:<13} {limit:<9} {} ({})",
                e.name, e.summary, e.paper
            ));
            if !e.keys.is_empty() {
                let keys: Vec<_> = e.keys.iter().map(|k| format!("{}={}", k.name, k.default)).collect();
                lines.push(format!("{:<15} {}", "", keys.join(", ")));
            }
        }
    }
    Ok(lines.join("\n") + "\n")
}

const LEGEND: &str = "\
server, worker: copies of the parameters kept there, besides a worker's replica (queue: one for each version that waits there).
models: sent out per update. limit: where it ends under unequal speeds and data; unbiased is the minimiser of (1/n) Σ f_i.
Below a rule: its parameters with their defaults, set by --rule NAME:key=value,key=value.
`stagger rules NAME` tells all about one: recurrence, source, what is proved, where we differ, parameters.
";

fn limit(biased: bool) -> &'static str {
    if biased { "biased" } else { "unbiased" }
}

fn describe(entry: &rule::Entry) -> serde_json::Value {
    let keys: Vec<_> = entry
        .keys
        .iter()
        .map(|k| serde_json::json!({"name": k.name, "default": k.default, "meaning": k.meaning}))
        .collect();
    let Cost { server, worker, copies, biased } = entry.cost;
    serde_json::json!({
        "name": entry.name,
        "summary": entry.summary,
        "paper": entry.paper,
        "about": entry.about().collect::<Vec<_>>().join("\n"),
        "server_copies": server,
        "worker_copies": worker,
        "models_per_update": copies,
        "biased": biased,
        "goes_on_without_a_worker": rule::goes_on_without_a_worker(entry),
        "parameters": keys,
    })
}
