//! `stagger report`: one HTML page about runs. The page contains its figures, and needs no scripts and no network.

use crate::compare::{Axis, Group, LOSS_OF_ARRIVALS, Point, Reading, Table, figures};
use crate::config::shortened;
use crate::error::{Error, Result};
use crate::record::Effect;
use crate::record::{Occupancy, Span, Work};
use crate::view::figure::{bars, heat_map, lanes};
use indicatif::HumanBytes;
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

/// The flags of `report`.
#[derive(clap::Args, Clone, Debug)]
pub struct ReportOptions {
    /// Folders of runs or comparisons
    #[arg(required = true, value_name = "DIR")]
    pub folders: Vec<PathBuf>,
    /// HTML file to write
    #[arg(long, value_name = "FILE.html", default_value = "report.html")]
    pub out: PathBuf,
    /// Also write every figure to this folder, as SVG and PNG
    #[arg(long, value_name = "DIR")]
    pub figures: Option<PathBuf>,
    /// Report the time and the number of gradients needed to reach this test accuracy (percent)
    #[arg(long, value_name = "PERCENT")]
    pub target: Option<f64>,
}

/// Width and height of a figure, in pixels.
const SIZE: (u32, u32) = (860, 460);

/// Largest number of jobs in one timeline. The bars of more jobs would be too thin.
const JOBS: usize = 600;
/// Largest number of jobs in all timelines of a page, so that the page stays small.
const ALL_JOBS: usize = 4000;

/// Largest number of workers in the figure of their shares.
const BARS: usize = 512;
/// Largest numbers of workers and of classes in the figure of a partition.
const ROWS: (usize, usize) = (128, 100);

/// Keys that do not separate groups: runs of one group may differ in them.
const IGNORED_KEYS: [&str; 11] = [
    "seed",
    "data",
    "tune_kernels",
    "eval_every",
    "test_samples",
    "checkpoint_every",
    "keep_checkpoints",
    "on_failure",
    "on_nan",
    "worker_timeout",
    "device_timeline",
];

/// Runs `stagger report`.
pub fn report(options: &ReportOptions) -> Result<()> {
    if let Some(target) = options.target.filter(|target| !(0.0..=100.0).contains(target)) {
        return Err(Error::usage(format!("--target {target} is not a percentage")));
    }
    let (mut runs, mut seen) = (Vec::new(), HashSet::new());
    for folder in &options.folders {
        for run in find(folder)? {
            // A run that is found twice counts once.
            if seen.insert(run.canonicalize().unwrap_or_else(|_| run.clone())) {
                runs.push(Reading::of(&run)?);
            }
        }
    }
    let groups = grouped(runs);
    let page = Page { groups: &groups, target: options.target };
    let figures = page.figures()?;
    let unwritable = |file: &Path, e: std::io::Error| Error::usage(format!("cannot write {}: {e}", file.display()));
    let html = page.html(&figures);
    std::fs::write(&options.out, &html).map_err(|e| unwritable(&options.out, e))?;
    if let Some(folder) = &options.figures {
        std::fs::create_dir_all(folder).map_err(|e| unwritable(folder, e))?;
        for (name, _, svg) in &figures {
            crate::view::figure::save(folder, name, svg)?;
        }
    }
    let size = HumanBytes(html.len() as u64);
    say!("report     {} runs, {} figures, {size}", page.runs().count(), figures.len());
    say!("page       {}", options.out.display());
    Ok(())
}

/// The folders of finished runs: `folder` itself, or the folders in it or in its subfolder `runs`.
fn find(folder: &Path) -> Result<Vec<PathBuf>> {
    if folder.join("summary.json").is_file() {
        return Ok(vec![folder.into()]);
    }
    let mut found = Vec::new();
    for place in [folder.join("runs"), folder.into()] {
        let entries = std::fs::read_dir(place).into_iter().flatten().flatten();
        // Runs of `compare --tune` only choose a learning rate. They are not results.
        let is_run = |path: &PathBuf| {
            let name = path.file_name().map(|n| n.to_string_lossy().to_string()).unwrap_or_default();
            !name.starts_with("tune_") && !name.contains(".part-") && path.join("summary.json").is_file()
        };
        found.extend(entries.map(|entry| entry.path()).filter(is_run));
        if !found.is_empty() {
            found.sort();
            return Ok(found);
        }
    }
    Err(Error::usage(format!(
        "{} holds no finished run: name the folder of a run or of a comparison",
        folder.display()
    )))
}

/// Groups the runs that differ only in the seed and in [`IGNORED_KEYS`]. The name of a group is its rule and the
/// settings that differ between groups.
fn grouped(runs: Vec<Reading>) -> Vec<Group> {
    let settings = |run: &Reading| -> BTreeMap<String, String> {
        let compared = run.config.iter().filter(|(key, _)| !IGNORED_KEYS.contains(&key.as_str()));
        // A path is shortened to the name of the file.
        let short = |value: &str| match value.rsplit_once('/') {
            Some((_, file)) => file.trim_end_matches(".txt").to_string(),
            None => value.to_string(),
        };
        compared.map(|(key, value)| (key.clone(), value.as_str().map_or_else(|| value.to_string(), short))).collect()
    };
    let mut found: Vec<(BTreeMap<String, String>, Vec<Reading>)> = Vec::new();
    for run in runs {
        let own = settings(&run);
        match found.iter_mut().find(|(of, _)| *of == own) {
            Some((_, runs)) => runs.push(run),
            None => found.push((own, vec![run])),
        }
    }
    let same = |key: &str| found.iter().all(|(of, _)| of.get(key) == found[0].0.get(key));
    let keys: Vec<String> = found.iter().flat_map(|(of, _)| of.keys().cloned()).collect();
    let mut differ: Vec<&String> = keys.iter().filter(|key| *key != "rule" && !same(key)).collect();
    differ.sort();
    differ.dedup();
    let label = |of: &BTreeMap<String, String>| -> Vec<(String, String)> {
        differ.iter().filter_map(|key| Some(((*key).clone(), of.get(*key)?.clone()))).collect()
    };
    let labels: Vec<_> = found.iter().map(|(of, _)| label(of)).collect();
    let name = |rule: &str, labels: &[(String, String)]| {
        let parts = labels.iter().map(|(key, value)| format!(", {key} {value}"));
        std::iter::once(rule.to_string()).chain(parts).collect()
    };
    let rules: Vec<String> = found.iter().map(|(of, _)| of.get("rule").cloned().unwrap_or_default()).collect();
    let runs = found.into_iter().map(|(_, runs)| runs);
    let groups = rules.iter().zip(labels).zip(runs);
    groups.map(|((rule, labels), runs)| Group { name: name(rule, &labels), runs }).collect()
}

/// The content of the page.
struct Page<'a> {
    groups: &'a [Group],
    /// Target test accuracy in percent.
    target: Option<f64>,
}

/// A figure: the name of its file, its caption, and its SVG.
type Drawn = (String, String, String);

impl Page<'_> {
    fn runs(&self) -> impl Iterator<Item = &Reading> {
        self.groups.iter().flat_map(|group| &group.runs)
    }

    /// All figures of the page, in their order.
    fn figures(&self) -> Result<Vec<Drawn>> {
        let mut drawn = self.curves()?;
        drawn.push(self.staleness()?);
        drawn.push(self.shares()?);
        let jobs = JOBS.min(ALL_JOBS / self.groups.len().max(1)).max(1);
        for (k, group) in self.groups.iter().enumerate() {
            let Some(run) = group.runs.first() else { continue };
            drawn.push(timeline(k, &group.name, run, jobs)?);
            drawn.extend(device_timeline(k, &group.name, run, jobs)?);
        }
        drawn.extend(self.partitions()?);
        Ok(drawn)
    }

    /// The curves of the metrics. Empty figures are left out.
    fn curves(&self) -> Result<Vec<Drawn>> {
        let mut drawn: Vec<Drawn> = Vec::new();
        let band = "The line is the mean over the seeds; the band is its standard error.";
        let mut curves = figures(self.groups);
        let loss = |p: &Point| p.train_loss;
        let sent = crate::compare::figure(
            self.groups,
            "Training loss over communication",
            Axis::Sent,
            "training loss",
            false,
            loss,
        );
        curves.push(("loss-sent", sent));
        for (name, figure) in curves {
            if !figure.is_empty() {
                drawn.push((name.into(), band.into(), figure.svg(SIZE)?));
            }
        }
        Ok(drawn)
    }

    /// The distribution of the staleness in each group, over all seeds.
    fn staleness(&self) -> Result<Drawn> {
        let share = |group: &Group| {
            let longest = group.runs.iter().map(|run| run.staleness.len()).max().unwrap_or(0);
            let all: f64 = group.runs.iter().flat_map(|run| &run.staleness).map(|n| *n as f64).sum();
            let at =
                |k: usize| group.runs.iter().map(|run| run.staleness.get(k).copied().unwrap_or(0) as f64).sum::<f64>();
            (group.name.clone(), (0..longest).map(|k| 100.0 * at(k) / all.max(1.0)).collect())
        };
        let groups: Vec<(String, Vec<f64>)> = self.groups.iter().map(share).collect();
        let svg = bars("Staleness", "staleness [updates]", "share of the gradients [%]", &groups, SIZE)?;
        let what = "Number of updates between the version of a gradient's snapshot and the gradient's arrival.";
        Ok(("staleness".into(), what.into(), svg))
    }

    /// Each worker's share of the applied gradients in each group, over all seeds.
    fn shares(&self) -> Result<Drawn> {
        let share = |group: &Group| {
            let workers = group.runs.iter().map(|run| run.spans.len()).max().unwrap_or(0).min(BARS);
            let applied = |run: &Reading, i: usize| {
                run.spans.get(i).map_or(0, |spans| spans.iter().filter(|s| s.effect != Effect::Drop).count()) as f64
            };
            let all: f64 = (0..workers).flat_map(|i| group.runs.iter().map(move |run| applied(run, i))).sum();
            let at = |i: usize| group.runs.iter().map(|run| applied(run, i)).sum::<f64>();
            (group.name.clone(), (0..workers).map(|i| 100.0 * at(i) / all.max(1.0)).collect())
        };
        let groups: Vec<(String, Vec<f64>)> = self.groups.iter().map(share).collect();
        let svg = bars("Shares of the workers", "worker", "share of the applied gradients [%]", &groups, SIZE)?;
        Ok(("workers".into(), "Each worker's share of the applied gradients, over all seeds.".into(), svg))
    }

    /// The partitions of the data, at most three different ones.
    fn partitions(&self) -> Result<Vec<Drawn>> {
        let mut drawn: Vec<Drawn> = Vec::new();
        let mut shown: Vec<&(Vec<String>, Vec<Vec<f64>>)> = Vec::new();
        for run in self.runs() {
            let Some(partition) = &run.partition else { continue };
            if shown.contains(&partition) || shown.len() == 3 {
                continue;
            }
            shown.push(partition);
            let (rows, columns) = (partition.1.len().min(ROWS.0), partition.0.len().min(ROWS.1));
            let title = format!(
                "Partition {}, seed {}{}",
                run.summary["partition"].as_str().unwrap_or(""),
                run.number("seed").unwrap_or(0.0),
                if rows < partition.1.len() { format!(", the first {rows} workers") } else { String::new() }
            );
            let height = (110 + 28 * rows as u32).clamp(200, 900);
            let counts: Vec<_> = partition.1[..rows].iter().map(|row| row[..columns.min(row.len())].to_vec()).collect();
            let svg = heat_map(&title, ("class", "worker"), &partition.0[..columns], &counts, (SIZE.0, height))?;
            let what = "Number of training samples of each class that each worker holds.";
            drawn.push((format!("partition-{}", shown.len()), what.into(), svg));
        }
        Ok(drawn)
    }

    /// The text of the page.
    fn html(&self, figures: &[Drawn]) -> String {
        // A fact of the runs. If runs differ, all values are listed.
        let fact = |key: &str| {
            let mut values: Vec<&str> = self.runs().map(|run| run.summary[key].as_str().unwrap_or("?")).collect();
            values.sort();
            values.dedup();
            shortened(&values.join(" / "))
        };
        let table = Table::of(self.groups, self.target.map(|percent| percent / 100.0));
        let rows: String = table
            .cells()
            .iter()
            .enumerate()
            .map(|(k, row)| {
                let tag = if k == 0 { "th" } else { "td" };
                let cells: String = row.iter().map(|cell| format!("<{tag}>{}</{tag}>", escaped(cell))).collect();
                format!("<tr>{cells}</tr>\n")
            })
            .collect();
        let drawings: String = figures
            .iter()
            .map(|(name, what, svg)| {
                format!("<figure id=\"{name}\">{svg}<figcaption>{}</figcaption></figure>\n", escaped(what))
            })
            .collect();
        let settings: String = self
            .groups
            .iter()
            .filter_map(|group| Some((group, group.runs.first()?)))
            .map(|(group, run)| {
                let seeds: Vec<String> =
                    group.runs.iter().filter_map(|r| Some(r.number("seed")?.to_string())).collect();
                format!(
                    "<details><summary>{} (seeds {})</summary><pre>{}</pre></details>\n",
                    escaped(&group.name),
                    seeds.join(", "),
                    escaped(&toml::to_string(&run.config).unwrap_or_default())
                )
            })
            .collect();
        format!(
            "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <link rel=\"icon\" href=\"data:,\"><title>stagger: {count} runs</title>\n<style>{STYLE}</style></head><body>\n\
             <h1>stagger: {count} runs</h1>\n<p>{device} ({backend}), clock {clock}, {dataset}, {model}, stagger {version} at commit {commit}.</p>\n\
             <div class=\"wide\"><table>{rows}</table></div>\n\
             <p class=\"small\">Mean ± standard error over the seeds; (n/m): n of m seeds have a value. \
             Idle: time in which a worker computes no gradient that arrives.{loss}</p>\n\
             {drawings}<h2>Settings</h2>\n{settings}</body></html>\n",
            loss = if self.runs().any(|run| run.number("final_test_accuracy").is_some()) {
                format!(" {}", LOSS_OF_ARRIVALS.replacen("train", "Train", 1))
            } else {
                String::new()
            },
            count = self.runs().count(),
            device = escaped(&fact("device")),
            backend = escaped(&fact("backend")),
            clock = escaped(&fact("clock")),
            dataset = escaped(&fact("dataset")),
            model = escaped(&fact("model")),
            version = escaped(&fact("version")),
            commit = env!("STAGGER_COMMIT"),
        )
    }
}

/// The first jobs of `run` on its time axis, about `jobs` in total. `k` is the index of the group.
fn timeline(k: usize, group: &str, run: &Reading, jobs: usize) -> Result<Drawn> {
    // The timeline ends with the last job that is shown.
    let mut ends: Vec<f64> = run.spans.iter().flatten().map(|span| span.ended).collect();
    ends.sort_by(f64::total_cmp);
    let end = ends.get(jobs.min(ends.len()).saturating_sub(1)).copied().unwrap_or(0.0);
    let kind = |effect| match effect {
        Effect::Step => 0,
        Effect::Fold => 1,
        Effect::Drop => 2,
    };
    let lane = |spans: &Vec<crate::compare::Span>| {
        let shown = spans.iter().filter(|span| span.ended <= end);
        shown.map(|span| (span.began, span.ended, kind(span.effect))).collect::<Vec<_>>()
    };
    let all: Vec<_> = run.spans.iter().map(lane).collect();
    let title = format!("Timeline: {group}");
    let kinds = [("made an update", 0), ("was folded", 5), ("was dropped", 3)];
    let svg = lanes(&title, "time [s]", &all, &kinds, timeline_size(run))?;
    let restarted = run.number("restarted").unwrap_or(0.0);
    let what = format!(
        "Each bar is a job of the first seed. Its colour shows what the server did with the gradient. Between two bars \
         the worker waited, or computed a job that was cancelled ({restarted} jobs in the whole run)."
    );
    Ok((format!("timeline-{k}"), what, svg))
}

/// The first gradients and updates of `run` on the device, at most `jobs`. `None` if the run recorded no device
/// timeline.
fn device_timeline(k: usize, group: &str, run: &Reading, jobs: usize) -> Result<Option<Drawn>> {
    let Some(occupancy) = Occupancy::of(&run.device) else { return Ok(None) };
    let shown = &run.device[..jobs.min(run.device.len())];
    let mut all = vec![Vec::new(); run.spans.len().max(1)];
    for Span { work, worker, began, ended, .. } in shown {
        let [began, ended] = [began, ended].map(|time| 1e3 * (time - shown[0].began));
        all[*worker].push((began, ended, (*work == Work::Update) as usize));
    }
    let title = format!("Timeline of the device: {group}");
    let kinds = [("gradient, on the worker's stream", 5), ("its update, on the server's stream", 3)];
    let svg = lanes(&title, "time on the device [ms]", &all, &kinds, timeline_size(run))?;
    let what = format!(
        "What the device did for the first seed, by its own clock: {} of the {} gradients and updates that were \
         recorded. If a worker's step is many launches (eager), a bar is as long as the host needed to request them. \
         On average, {:.2} were in flight at once; in {:.1} % of the time the device was idle.",
        shown.len(),
        run.device.len(),
        occupancy.at_once,
        100.0 * occupancy.idle
    );
    Ok(Some((format!("device-{k}"), what, svg)))
}

/// Width and height of a timeline with one lane per worker, in pixels.
fn timeline_size(run: &Reading) -> (u32, u32) {
    let workers = run.spans.len().max(1);
    (SIZE.0, (90 + 26 * workers.min(100) as u32).clamp(200, 900))
}

/// The style of the page. It follows the light or dark mode of the reader's system.
const STYLE: &str = "
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 900px; margin: 2rem auto; padding: 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; white-space: nowrap; }
th, td { padding: 0.25rem 0.6rem; text-align: right; border-bottom: 1px solid #8886; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1.5rem 0; }
figure svg { max-width: 100%; height: auto; }
figcaption, .small { font-size: 0.85rem; opacity: 0.8; }
pre { overflow-x: auto; font-size: 0.85rem; }
@media (prefers-color-scheme: dark) { figure svg { filter: invert(0.92) hue-rotate(180deg); } }
";

/// Escapes a text for HTML.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
