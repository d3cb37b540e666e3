//! `stagger bench`: measurements of this machine, as a table, JSON, CSV and a figure.
//!
//! Every report states the hardware, the driver or adapter, the version, the commit and the configuration. If a
//! value cannot be measured on this machine, the report says so and gives no value.

mod engine;
mod kernels;
mod model;
mod plot;
mod scaling;
mod time_to_accuracy;

use crate::error::{Error, Result};
use crate::host::backend::{self, Backend, Choice, RunsOn};
use crate::host::tuning::Tuning;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What `stagger bench` measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// Gradients and samples per second against the number of workers
    Scaling,
    /// Time to a target accuracy against the number of workers, with injected stragglers
    TimeToAccuracy,
    /// Each fused update kernel against Burn's tensor operations and against a copy on the same device
    Kernels,
    /// Events of the virtual clock per second, and the latency of passing a message between threads
    Engine,
    /// Parts of a worker's step: forward pass, data gradient, weight gradient, update
    Model,
}

/// The flags of `bench`.
#[derive(clap::Args, Clone, Debug, serde::Serialize)]
pub struct BenchOptions {
    /// What to measure
    #[arg(value_enum, default_value_t = Subject::Scaling)]
    pub subject: Subject,
    /// Device backends: auto, cuda, wgpu or cpu; several, such as cpu,wgpu, are measured one after another
    #[arg(long, value_delimiter = ',', default_value = "auto", value_name = "BACKEND,..")]
    pub backend: Vec<String>,
    /// Model: cnn, resnet18, mlp or logreg
    #[arg(long, default_value = "cnn")]
    pub model: String,
    /// Samples per gradient
    #[arg(long, default_value_t = 32)]
    pub batch: usize,
    /// Numbers of workers to measure [default: 1,2,4,... to 16]
    #[arg(long, value_delimiter = ',', value_name = "N,N,..")]
    pub workers: Vec<usize>,
    /// CPU threads per worker [default: cores / workers; all cores for `model`]
    #[arg(long, value_name = "N")]
    pub threads_per_worker: Option<usize>,
    /// How a worker's step is launched on a GPU: auto, eager or captured
    #[arg(long, default_value = "auto")]
    pub step: String,
    /// File of measured GPU kernels, as for `train` (scaling, time-to-accuracy, model)
    #[arg(long, value_name = "FILE")]
    pub tune_kernels: Option<PathBuf>,
    /// Rules to compare (time-to-accuracy)
    #[arg(long, value_delimiter = ';', default_value = "asgd;dude;sync", value_name = "RULE;RULE;..")]
    pub rules: Vec<String>,
    /// Distribution of the simulated job times, as for `train` (time-to-accuracy)
    #[arg(long, default_value = "fixed:1,1,1,4")]
    pub delay: String,
    /// Clock of the runs: simulated seconds, or real seconds with real delays (time-to-accuracy)
    #[arg(long, value_parser = ["virtual", "wall"], default_value = "virtual")]
    pub clock: String,
    /// Test accuracy to reach, in percent (time-to-accuracy)
    #[arg(long, default_value_t = 60.0)]
    pub target: f64,
    /// Data set: auto, cifar10 or synthetic (scaling, time-to-accuracy)
    #[arg(long, default_value = "synthetic")]
    pub dataset: String,
    /// Folder of the data set [default: datasets]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Seconds per measurement; `engine` measures a fixed number of events instead
    #[arg(long, default_value_t = 5.0)]
    pub seconds: f64,
    /// Rounds over all numbers of workers; the table shows the median round, or the lower median if N is even (scaling)
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub rounds: usize,
    /// Folder of the report [default: runs/TIME-bench-SUBJECT]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// A table of measurements, with its notes and its figure.
pub struct Report {
    title: String,
    columns: Vec<&'static str>,
    rows: Vec<Vec<Value>>,
    notes: Vec<String>,
    figure: Figure,
}

/// How the figure shows the rows.
#[derive(Clone)]
enum Figure {
    /// Curves. The fields are indices of columns.
    Curves {
        /// Column on the x axis.
        x: usize,
        /// Column on the y axis.
        y: usize,
        /// The columns with the smallest and the largest y, for an error bar.
        range: Option<[usize; 2]>,
        /// Columns whose values name a curve. Rows with the same values form one curve.
        by: Vec<usize>,
    },
    /// The label of the axis, and the bars of every row. The first column names the row.
    Bars(&'static str, Vec<Bar>),
}

/// One bar of every row.
#[derive(Clone)]
struct Bar {
    /// Name in the legend; empty if each row has only one bar.
    name: &'static str,
    /// The length of the bar, or `None` if the row has no such bar.
    of: fn(&[Value]) -> Option<f64>,
}

impl Report {
    fn new(title: impl Into<String>, columns: &[&'static str], figure: Figure) -> Self {
        Report { title: title.into(), columns: columns.to_vec(), rows: Vec::new(), notes: Vec::new(), figure }
    }

    fn row(&mut self, row: Vec<Value>) {
        assert_eq!(row.len(), self.columns.len(), "a row has one value per column");
        self.rows.push(row);
    }
}

/// Runs `stagger bench`.
pub fn bench(options: &BenchOptions) -> Result<()> {
    let counts = options.workers.iter().chain([&options.batch, &options.rounds]);
    if counts.into_iter().any(|n| *n == 0) || !options.seconds.is_finite() || options.seconds <= 0.0 {
        return Err(Error::usage("--batch, --workers, --rounds and --seconds of a benchmark must be more than 0"));
    }
    if !(0.0..=100.0).contains(&options.target) {
        return Err(Error::usage(format!("--target {} is not a percentage", options.target)));
    }
    // The engine runs on the host only, so `--backend` does not apply.
    let choices = match options.subject {
        Subject::Engine => vec![Choice::Cpu],
        _ => options.backend.iter().map(|name| name.parse()).collect::<Result<Vec<Choice>>>()?,
    };
    // All backends are opened before the first measurement, so that a missing one is reported at once.
    let backends = choices.into_iter().map(backend::open).collect::<Result<Vec<_>>>()?;
    if let Some(twice) = (1..backends.len()).find(|k| backends[..*k].iter().any(|b| b.name == backends[*k].name)) {
        return Err(Error::usage(format!("--backend names {} twice", backends[twice].name)));
    }
    // The folder of the report is created before the first measurement, too.
    let name = format!("{:?}", options.subject).to_lowercase();
    let folder = options.out.clone().unwrap_or_else(|| crate::run::fresh_folder(&format!("bench-{name}")));
    std::fs::create_dir_all(&folder).map_err(|e| {
        Error::usage(format!("cannot write {}: {e}; choose another folder with --out", folder.display()))
    })?;
    let mut parts = Vec::new();
    for backend in &backends {
        say!("backend    {}", backend.why);
        let mut report = measure(options, backend)?;
        report.notes.extend(caveat(backend).map(String::from));
        parts.push((report, facts(backend)));
    }
    let (report, facts) = merged(parts);
    print(&report, &facts);
    write(&report, &facts, options, &folder)?;
    say!("folder     {}", folder.display());
    Ok(())
}

/// A warning for readers of the numbers, if the backend is not real hardware.
fn caveat(backend: &Backend) -> Option<&'static str> {
    match backend.runs_on {
        RunsOn::Hardware => None,
        RunsOn::Software => Some(
            "these numbers are from a software adapter, which computes on the CPU: correct, but slow; they say nothing \
             about a GPU",
        ),
        RunsOn::Nothing => Some(
            "this driver runs no kernel: the numbers show what the host can submit, and all times of the device are \
             simulated",
        ),
    }
}

/// Runs the measurement on one backend.
fn measure(options: &BenchOptions, backend: &Backend) -> Result<Report> {
    match options.subject {
        Subject::Scaling => scaling::run(options, backend),
        Subject::TimeToAccuracy => time_to_accuracy::run(options, backend),
        Subject::Kernels => kernels::run(options, backend),
        Subject::Engine => engine::run(options),
        Subject::Model => {
            let tuning = Tuning::open(options.tune_kernels.as_deref(), backend)?;
            let report = model::run(options, backend)?;
            tuning.map(Tuning::finish).transpose()?;
            Ok(report)
        }
    }
}

/// Merges the reports of several backends into one, with an additional first column that names the backend. A single
/// report stays as it is.
fn merged(mut parts: Vec<(Report, Value)>) -> (Report, Value) {
    if parts.len() == 1 {
        return parts.remove(0);
    }
    let name = |facts: &Value| cell(&facts["backend"]);
    let all = |key: &str| parts.iter().map(|(_, facts)| cell(&facts[key])).collect::<Vec<_>>();
    let mut facts = parts[0].1.clone();
    for (key, between) in [("backend", " and "), ("device", "; "), ("driver", "; ")] {
        facts[key] = json!(all(key).join(between));
    }
    let (first, _) = &parts[0];
    let columns: Vec<_> = std::iter::once("backend").chain(first.columns.iter().copied()).collect();
    let figure = match first.figure.clone() {
        Figure::Curves { x, y, range, by } => Figure::Curves {
            x: x + 1,
            y: y + 1,
            range: range.map(|ends| ends.map(|k| k + 1)),
            by: std::iter::once(0).chain(by.into_iter().map(|k| k + 1)).collect(),
        },
        bars => bars,
    };
    let mut report = Report::new(first.title.clone(), &columns, figure);
    for (part, facts) in parts {
        part.rows.into_iter().for_each(|row| report.row(std::iter::once(json!(name(&facts))).chain(row).collect()));
        report.notes.extend(part.notes.into_iter().map(|note| format!("{}: {note}", name(&facts))));
    }
    (report, facts)
}

/// The machine, the version and the command of the measurements.
fn facts(backend: &Backend) -> Value {
    json!({
        "device": backend.name,
        "backend": backend.device.name(),
        "driver": backend.driver,
        "host": backend::processor(),
        "cores": backend::cores(),
        "version": env!("CARGO_PKG_VERSION"),
        "commit": env!("STAGGER_COMMIT"),
        "command": std::env::args_os().map(|arg| quoted(&arg.to_string_lossy())).collect::<Vec<_>>().join(" "),
    })
}

/// An argument, quoted for a shell if necessary.
fn quoted(argument: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./,:=+@%".contains(c);
    if !argument.is_empty() && argument.chars().all(is_plain) {
        return argument.into();
    }
    format!("'{}'", argument.replace('\'', r"'\''"))
}

/// Formats a value for the printed table. Numbers have about four significant digits.
fn cell(value: &Value) -> String {
    match value {
        Value::Number(n) if n.is_f64() => {
            let x = n.as_f64().expect("a float");
            let digits = if x == 0.0 { 1 } else { (3 - x.abs().log10().floor() as i32).clamp(0, 6) as usize };
            format!("{x:.digits$}")
        }
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Prints the table, the notes and the facts.
fn print(report: &Report, facts: &Value) {
    let cells: Vec<Vec<String>> = report.rows.iter().map(|row| row.iter().map(cell).collect()).collect();
    let width =
        |k: usize| cells.iter().map(|row| row[k].chars().count()).max().unwrap_or(0).max(report.columns[k].len());
    say!("\n{}, {}", report.title, cell(&facts["backend"]));
    let line = |texts: Vec<&str>| {
        let mut text = String::new();
        for (k, cell) in texts.iter().enumerate() {
            let pad = width(k) - cell.chars().count();
            let (before, behind) = if k == 0 { (0, pad) } else { (pad + 2, 0) };
            text += &format!("{}{cell}{}", " ".repeat(before), " ".repeat(behind));
        }
        say!("{text}");
    };
    line(report.columns.clone());
    cells.iter().for_each(|row| line(row.iter().map(String::as_str).collect()));
    report.notes.iter().for_each(|note| say!("NOTE       {note}"));
    let fact = |key: &str| cell(&facts[key]);
    say!("device     {}, driver {}, host {}, {} cores", fact("device"), fact("driver"), fact("host"), fact("cores"));
    say!("version    {} at commit {}", fact("version"), fact("commit"));
    say!("command    {}", fact("command"));
}

/// Writes `bench.json`, `bench.csv` and, if there is something to draw, the figure.
fn write(report: &Report, facts: &Value, options: &BenchOptions, folder: &Path) -> Result<()> {
    let failed =
        |e: std::io::Error| Error::failed(format!("the report cannot be written to {}: {e}", folder.display()));
    let rows: Vec<Value> = report
        .rows
        .iter()
        .map(|row| {
            report
                .columns
                .iter()
                .map(|c| c.to_string())
                .zip(row.iter().cloned())
                .collect::<serde_json::Map<_, _>>()
                .into()
        })
        .collect();
    let whole = json!({
        "title": report.title, "facts": facts, "configuration": options, "notes": report.notes, "rows": rows
    });
    std::fs::write(folder.join("bench.json"), format!("{whole:#}\n")).map_err(failed)?;
    // CSV requires quotes around a field that contains a comma or a quote.
    let field = |text: String| {
        if text.contains([',', '"']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
    };
    let mut csv = report.columns.join(",") + "\n";
    for row in &report.rows {
        let cells = row.iter().map(|v| match v {
            Value::Null => String::new(),
            Value::String(text) => field(text.clone()),
            other => other.to_string(),
        });
        csv += &(cells.collect::<Vec<_>>().join(",") + "\n");
    }
    std::fs::write(folder.join("bench.csv"), csv).map_err(failed)?;
    if let Some(svg) = plot::draw(report, facts)? {
        crate::view::figure::save(folder, "bench", &svg)?;
    }
    Ok(())
}

/// Median time of `work` in seconds. The repetitions take about `seconds` in total. There are at least three of them,
/// after one that is not measured.
fn median_seconds(seconds: f64, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    in_turn(seconds, |_| work()).map(|[median]| median)
}

/// Like [`median_seconds`], for `N` alternatives. `work` receives the index of the alternative, from 0. The
/// alternatives take turns, so that changes in the speed of the machine affect all of them equally.
fn in_turn<const N: usize>(seconds: f64, mut work: impl FnMut(usize) -> Result<()>) -> Result<[f64; N]> {
    (0..N).try_for_each(&mut work)?;
    let (begin, mut times) = (Instant::now(), [const { Vec::new() }; N]);
    while times[0].len() < 3 || begin.elapsed().as_secs_f64() < seconds {
        for (number, times) in times.iter_mut().enumerate() {
            let start = Instant::now();
            work(number)?;
            times.push(start.elapsed().as_secs_f64());
        }
    }
    Ok(times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printed_command_is_quoted_for_a_shell() {
        let arguments = ["bench", "--rules", "asgd;dude:c=1", "a b", "it's", "", "fixed:1,4"];
        let line = arguments.map(quoted).join(" ");
        assert_eq!(line, r"bench --rules 'asgd;dude:c=1' 'a b' 'it'\''s' '' fixed:1,4");
    }

    #[test]
    fn each_alternative_has_its_own_median() {
        let mut calls = [0; 2];
        let times: [f64; 2] = in_turn(0.0, |which| {
            calls[which] += 1;
            Ok(())
        })
        .unwrap();
        assert_eq!(calls, [4, 4], "one call that is not measured, and three that are");
        assert!(times.iter().all(|t| (0.0..1.0).contains(t)));
    }
}
