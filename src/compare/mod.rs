//! `stagger compare`: rules × seeds × whatever else varies, over one scenario.
//!
//! Each run is a process (`stagger train`) with its own folder. The name of the folder contains the rule, the varied
//! values, the seed and a hash of the whole configuration. A folder with a complete summary is a finished run, which
//! is not repeated. Initial weights and partitions depend only on the seed, so all rules of a seed start from the same
//! weights and the same parts.

mod reading;
mod runs;
mod table;

pub use reading::{Point, Reading, Span};
pub use table::{Axis, Group, Mean, Table, figure};

use crate::config::Options;
use crate::config::section::{self, Plan};
use crate::error::{Error, Result};
use runs::{Run, run_all};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Images of the training set that are held out for `--tune`.
const VALIDATION: usize = 5000;

/// The flags of `compare` in addition to those of a run.
// These comments are what `--help` prints.
#[allow(rustdoc::broken_intra_doc_links, rustdoc::invalid_html_tags)]
#[derive(clap::Args, Clone, Debug, Default)]
pub struct CompareOptions {
    /// Scenario: a TOML file with the keys of a run and a section [compare]; flags override it
    ///
    /// The keys of the section are rules, seeds, vary, target, tune and jobs.
    #[arg(long, value_name = "FILE", verbatim_doc_comment)]
    pub config: Option<PathBuf>,
    /// Set one key of the scenario, such as --set lr=0.1 or --set compare.target=60
    #[arg(long = "set", value_name = "KEY=VALUE", hide_short_help = true)]
    pub sets: Vec<String>,
    /// Rules, separated by semicolons, such as "dude;asgd;fedbuff:b=5"
    #[arg(long, value_delimiter = ';', value_name = "RULE;RULE;..")]
    pub rules: Vec<String>,
    /// Random seeds; every rule runs with each seed [default: 1,2,3]
    ///
    /// All rules of a seed start from the same weights and the same partition.
    #[arg(long, value_delimiter = ',', value_name = "N,N,..", verbatim_doc_comment)]
    pub seeds: Vec<u64>,
    /// Key of a run and its values, such as "workers=4;8"; may be repeated
    ///
    /// Every rule runs with every combination of the values.
    #[arg(long, value_name = "KEY=VALUE;VALUE;..", verbatim_doc_comment)]
    pub vary: Vec<String>,
    /// Report the time and the number of gradients needed to reach this test accuracy (percent)
    #[arg(long, value_name = "PERCENT")]
    pub target: Option<f64>,
    /// Candidate learning rates; each rule uses its best one
    ///
    /// The best learning rate has the highest accuracy on 5,000 held-out training images, after the same budget
    /// and with the first seed.
    #[arg(long, value_delimiter = ',', value_name = "LR,LR,..", verbatim_doc_comment)]
    pub tune: Vec<f64>,
    /// Number of runs at the same time [default: 1; one per core for quadratic and libsvm data]
    ///
    /// One run uses the whole machine.
    #[arg(long, value_name = "N", verbatim_doc_comment)]
    pub jobs: Option<usize>,
    /// Folder of the comparison [default: runs/compare-<hash of the scenario>]
    ///
    /// Repeating the same command continues a comparison that was interrupted.
    #[arg(long, value_name = "DIR", verbatim_doc_comment)]
    pub out: Option<PathBuf>,
}

impl Plan {
    /// Checks the keys of the section `[compare]`. Flags override them.
    fn of(section: toml::Table, options: &CompareOptions) -> Result<Plan> {
        if let Some(why) = section.iter().find_map(|(key, value)| section::mistake(key, value)) {
            return Err(Error::usage(why));
        }
        let mut plan: Plan =
            section.try_into().map_err(|e: toml::de::Error| Error::usage(format!("[compare]: {}", e.message())))?;
        for vary in &options.vary {
            let (key, values) = vary
                .split_once('=')
                .ok_or_else(|| Error::usage(format!("--vary `{vary}` is not KEY=VALUE;VALUE;..")))?;
            plan.vary.insert(key.trim().into(), values.split(';').map(crate::config::value).collect());
        }
        if !options.rules.is_empty() {
            plan.rules = options.rules.clone();
        }
        if !options.seeds.is_empty() {
            plan.seeds = options.seeds.clone();
        }
        if !options.tune.is_empty() {
            plan.tune = options.tune.clone();
        }
        plan.target = options.target.or(plan.target);
        plan.jobs = options.jobs.or(plan.jobs);
        if plan.rules.is_empty() {
            return Err(Error::usage("compare: name the rules, such as --rules \"dude;asgd\""));
        }
        if plan.seeds.is_empty() {
            plan.seeds = vec![1, 2, 3];
        }
        if plan.jobs == Some(0) {
            return Err(Error::usage("--jobs 0: at least one run at a time is needed"));
        }
        for key in ["rule", "seed", "out"] {
            if plan.vary.contains_key(key) {
                return Err(Error::usage(format!(
                    "--vary {key}: this key cannot vary; use --rules, --seeds and --out"
                )));
            }
        }
        if let Some((key, _)) = plan.vary.iter().find(|(_, values)| values.is_empty()) {
            return Err(Error::usage(format!("--vary {key}: at least one value is needed")));
        }
        let twice =
            |what: &str, values: Vec<String>| match (1..values.len()).find(|k| values[..*k].contains(&values[*k])) {
                Some(k) => Err(Error::usage(format!(
                    "{what} {} twice: the same runs would count as different runs; leave one out",
                    values[k]
                ))),
                None => Ok(()),
            };
        twice("--rules:", plan.rules.iter().map(|rule| rule.trim_end_matches(':').to_string()).collect())?;
        twice("--seeds:", plan.seeds.iter().map(u64::to_string).collect())?;
        for (key, values) in &plan.vary {
            twice(&format!("--vary {key}:"), values.iter().map(plain).collect())?;
        }
        let sets_lr =
            |(key, values): (&String, &Vec<toml::Value>)| key == "lr" || values.iter().any(|v| v.get("lr").is_some());
        if plan.vary.iter().any(sets_lr) && !plan.tune.is_empty() {
            return Err(Error::usage(
                "--vary lr and --tune: tuning chooses the learning rate of every row; leave one out",
            ));
        }
        if let Some(lr) = plan.tune.iter().find(|lr| !lr.is_finite() || **lr <= 0.0) {
            return Err(Error::usage(format!("--tune {lr}: learning rates are numbers above 0")));
        }
        if let Some(target) = plan.target.filter(|target| !(0.0..=100.0).contains(target)) {
            return Err(Error::usage(format!("--target {target} is not a percentage")));
        }
        Ok(plan)
    }

    /// The rows: every rule with every combination of the varied values.
    fn cells(&self) -> Vec<Cell> {
        let of = |varied: Vec<(String, toml::Value)>| {
            self.rules.iter().map(move |rule| Cell { rule: rule.clone(), varied: varied.clone(), lr: None })
        };
        self.grid().into_iter().flat_map(of).collect()
    }

    /// Every combination of the varied values.
    fn grid(&self) -> Vec<Vec<(String, toml::Value)>> {
        let mut grid = vec![Vec::new()];
        for (key, values) in &self.vary {
            let with = |cell: Vec<(String, toml::Value)>| {
                values.iter().map(move |value| [cell.clone(), vec![(key.clone(), value.clone())]].concat())
            };
            grid = grid.into_iter().flat_map(with).collect();
        }
        grid
    }
}

/// One row of the table.
struct Cell {
    rule: String,
    /// The varied keys with their values.
    varied: Vec<(String, toml::Value)>,
    /// The tuned learning rate; `None` without `--tune`.
    lr: Option<f64>,
}

impl Cell {
    /// Name of the row, such as `dude, workers 4, lr 0.1`.
    fn name(&self) -> String {
        // A path is shortened to the name of the file.
        let short = |value: String| value.rsplit('/').next().unwrap_or("").trim_end_matches(".txt").to_string();
        let varied = self.settings().into_iter().map(|(key, value)| format!(", {key} {}", short(plain(&value))));
        let lr = self.lr.map(|lr| format!(", lr {lr}"));
        std::iter::once(self.rule.clone()).chain(varied).chain(lr).collect()
    }

    /// The varied settings. A value that is a table sets several keys together.
    fn settings(&self) -> Vec<(String, toml::Value)> {
        let all = self.varied.iter().flat_map(|(key, value)| match value {
            toml::Value::Table(panel) => panel.clone().into_iter().collect(),
            value => vec![(key.clone(), value.clone())],
        });
        all.collect()
    }

    /// The settings of the run with this seed, checked as far as possible before a run.
    fn check(&self, scenario: &toml::Table, seed: u64) -> Result<Options> {
        let options = self.options(scenario, seed)?;
        crate::run::check(&options).map_err(|error| Error::usage(format!("{}: {error}", self.name())))?;
        Ok(options)
    }

    /// The settings of the run with this seed.
    fn options(&self, scenario: &toml::Table, seed: u64) -> Result<Options> {
        let mut table = scenario.clone();
        table.extend(self.settings());
        table.insert("rule".into(), self.rule.clone().into());
        table.insert("seed".into(), (seed as i64).into());
        if let Some(lr) = self.lr {
            table.insert("lr".into(), lr.into());
        }
        // By default, rules are compared over simulated time.
        table.entry("clock").or_insert("virtual".into());
        // By default, a row whose learning rate is too large does not end the comparison.
        table.entry("on_nan").or_insert("skip".into());
        // A short run is evaluated halfway, so that its curve has at least two points.
        let updates =
            table.get("updates").and_then(toml::Value::as_integer).filter(|updates| (2..200).contains(updates));
        if let Some(updates) = updates.filter(|_| !is_theory(table.get("dataset"))) {
            table.entry("eval_every").or_insert((updates / 2).into());
        }
        Options::of(table)
    }
}

/// Whether the data set is a theory problem with a smooth objective and no images. The names of these data sets have a
/// parameter, such as `quadratic:FILE`.
fn is_theory(dataset: Option<&toml::Value>) -> bool {
    dataset.and_then(toml::Value::as_str).is_some_and(|set| set.contains(':'))
}

/// Meaning of "train loss" for image classifiers.
pub const LOSS_OF_ARRIVALS: &str = "train loss: the mean batch loss of the latest arrivals, and so only of the workers \
    that sent them; it does not compare rules that receive unequal numbers of gradients from the workers";

/// A value as it is written on the command line: a string has no quotes.
fn plain(value: &toml::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), String::from)
}

/// Runs `stagger compare`.
pub fn compare(flags: &Options, options: &CompareOptions) -> Result<()> {
    let is_set = |key: &str| {
        let set = |set: &String| set.split(['=', '.']).next().is_some_and(|name| name.trim() == key);
        options.sets.iter().any(set)
    };
    if flags.rule.is_some() || is_set("rule") {
        return Err(Error::usage(
            "compare takes its rules, with their parameters, from --rules, such as --rules \"dude:c=2;asgd\"",
        ));
    }
    if flags.seed.is_some() || is_set("seed") {
        return Err(Error::usage("compare takes its seeds from --seeds, such as --seeds 1,2,3"));
    }
    let (scenario, section) = Options::scenario(flags, options.config.as_deref(), &options.sets)?;
    compare_scenario(scenario, section, options)
}

/// Checks a scenario and its section `[compare]` as far as possible without a run.
pub fn check(scenario: &toml::Table, section: toml::Table) -> Result<()> {
    let plan = Plan::of(section, &CompareOptions::default())?;
    plan.cells().iter().try_for_each(|cell| cell.check(scenario, plan.seeds[0]).map(drop))
}

/// Runs a comparison on a scenario with its section `[compare]`. The flags in `options` override the section.
pub fn compare_scenario(scenario: toml::Table, section: toml::Table, options: &CompareOptions) -> Result<()> {
    let plan = Plan::of(section, options)?;
    let mut cells = plan.cells();
    // All settings and data are checked before the first run.
    for cell in &cells {
        crate::run::data::is_there(&cell.check(&scenario, plan.seeds[0])?.resolve()?)?;
    }
    let folder = options.out.clone().unwrap_or_else(|| {
        let text = toml::to_string(&scenario).unwrap_or_default() + &format!("{plan:?}");
        Path::new("runs").join(format!("compare-{}", hash(&text)))
    });
    let unwritable = |e: std::io::Error| {
        Error::usage(format!("cannot write {}: {e}; choose another folder with --out", folder.display()))
    };
    std::fs::create_dir_all(folder.join("runs")).map_err(unwritable)?;
    // The lock is held until this function returns.
    let writer = std::fs::File::create(folder.join("runs/.writer")).map_err(unwritable)?;
    if let Err(std::fs::TryLockError::WouldBlock) = writer.try_lock() {
        return Err(Error::usage(format!(
            "another comparison is writing to {}: wait for it, or choose another folder with --out",
            folder.display()
        )));
    }
    let set = |cell: &Cell| cell.settings().into_iter().find(|(key, _)| key == "dataset").map(|(_, set)| set);
    let theory = cells.iter().all(|cell| is_theory(set(cell).as_ref().or(scenario.get("dataset"))));
    let jobs = plan.jobs.unwrap_or(if theory { crate::host::backend::cores() } else { 1 });
    let n = cells.len() * plan.seeds.len();
    say!("compare    {} rows of {} seeds: {n} runs, {jobs} at a time", cells.len(), plan.seeds.len());

    if !plan.tune.is_empty() {
        tune(&mut cells, &plan, &scenario, &folder, jobs)?;
    }
    let mut all = Vec::new();
    for cell in &cells {
        for seed in &plan.seeds {
            all.push(Run::of(&folder, &cell.name(), &cell.options(&scenario, *seed)?)?);
        }
    }
    run_all(&all, jobs)?;
    let mut folders = all.iter().map(|run| &run.folder);
    let mut groups = Vec::new();
    for cell in &cells {
        let runs = folders.by_ref().take(plan.seeds.len()).map(|folder| Reading::of(folder)).collect::<Result<_>>()?;
        groups.push(Group { name: cell.name(), runs });
    }
    finish(&groups, &plan, &folder)
}

/// Gives every row the candidate learning rate with the highest accuracy on held-out training images, after the same
/// budget.
fn tune(cells: &mut [Cell], plan: &Plan, scenario: &toml::Table, folder: &Path, jobs: usize) -> Result<()> {
    say!(
        "tuning     {} learning rates for each row, on {VALIDATION} held-out training images, seed {}",
        plan.tune.len(),
        plan.seeds[0]
    );
    let mut tried = Vec::new();
    for cell in cells.iter() {
        for lr in &plan.tune {
            let cell = Cell { rule: cell.rule.clone(), varied: cell.varied.clone(), lr: Some(*lr) };
            let mut options = cell.options(scenario, plan.seeds[0])?;
            options.validation.get_or_insert(VALIDATION);
            tried.push(Run::of(folder, &format!("tune {}", cell.name()), &options)?);
        }
    }
    run_all(&tried, jobs)?;
    for (cell, tried) in cells.iter_mut().zip(tried.chunks(plan.tune.len())) {
        let mut best: Option<(f64, f64)> = None;
        for (lr, run) in plan.tune.iter().zip(tried) {
            let reading = Reading::of(&run.folder)?;
            let Some(accuracy) = reading.number("final_test_accuracy") else {
                return Err(Error::usage("--tune compares test accuracies: this data set has none; leave it out"));
            };
            if best.is_none_or(|(most, _)| accuracy > most) {
                best = Some((accuracy, *lr));
            }
        }
        if let Some((accuracy, lr)) = best {
            say!("tuned      {}: lr {lr} ({:.2} % of the held-out images)", cell.name(), 100.0 * accuracy);
            cell.lr = Some(lr);
        }
    }
    Ok(())
}

/// Prints the table, and writes the table and the figures.
fn finish(groups: &[Group], plan: &Plan, folder: &Path) -> Result<()> {
    let table = Table::of(groups, plan.target.map(|percent| percent / 100.0));
    let write = |name: &str, text: String| {
        let file = folder.join(name);
        std::fs::write(&file, text).map_err(|e| Error::failed(format!("cannot write {}: {e}", file.display())))
    };
    let facts = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "commit": env!("STAGGER_COMMIT"),
        "device": groups.first().and_then(|g| g.runs.first()).map(|run| run.summary["device"].clone()),
        "host": crate::host::backend::processor(),
        "seeds": plan.seeds,
        "target": plan.target,
        "tuned_over": plan.tune,
        "rows": table.json(),
    });
    say!("\n{}", table.text());
    say!(
        "mean ± standard error over seeds {:?}; idle: time in which a worker computes no gradient that arrives",
        plan.seeds
    );
    // The number of gradients per update differs between rules.
    let spent = groups.iter().flat_map(|g| &g.runs).filter_map(|run| run.number("gradients"));
    let (least, most) = spent.fold((f64::INFINITY, 0.0), |(l, m), g| (g.min(l), g.max(m)));
    if ended_by_updates(groups) && most > 1.5 * least {
        say!(
            "NOTE: the rows took {least} to {most} gradients for the same number of updates; --time or --epochs gives \
             all rows the same budget"
        );
    }
    for group in groups {
        let lost: f64 = group.runs.iter().filter_map(|run| run.number("not_finite")).sum();
        if lost > 0.0 {
            say!(
                "NOTE: {}: {lost} gradients were not finite and were left out (--on-nan skip), so this row does not \
                 show what the rule can do; a smaller --lr may help",
                group.name
            );
        }
    }
    if groups.iter().flat_map(|g| &g.runs).any(|run| run.number("final_test_accuracy").is_some()) {
        say!("{}", LOSS_OF_ARRIVALS);
    }
    if let Some(target) = plan.target {
        say!("target: {target} % test accuracy, at the first evaluation that reaches it (n/m: n of m seeds did)");
    }
    write("table.md", table.markdown())?;
    write("table.csv", table.csv())?;
    write("compare.json", serde_json::to_string_pretty(&facts).expect("plain data") + "\n")?;
    let mut drawn = 0;
    for (name, figure) in figures(groups).into_iter().filter(|(_, figure)| !figure.is_empty()) {
        crate::view::figure::save(folder, name, &figure.svg((860, 520))?)?;
        drawn += 1;
    }
    if drawn == 0 {
        say!("NOTE: no figure: no run has two evaluations that can be drawn; --eval-every N evaluates every N updates");
    }
    say!("folder     {}", folder.display());
    Ok(())
}

/// Whether only the number of updates could end the runs.
fn ended_by_updates(groups: &[Group]) -> bool {
    let by_updates = |run: &Reading| !run.config.contains_key("time") && !run.config.contains_key("epochs");
    groups.iter().flat_map(|group| &group.runs).all(by_updates)
}

/// The figures of a comparison, with the names of their files.
pub fn figures(groups: &[Group]) -> Vec<(&'static str, crate::view::figure::Figure)> {
    let accuracy = |p: &Point| p.test_accuracy.map(|a| 100.0 * a);
    let loss = |p: &Point| p.train_loss;
    let norm = |p: &Point| p.grad_norm;
    vec![
        ("accuracy-time", figure(groups, "Test accuracy over time", Axis::Time, "test accuracy [%]", false, accuracy)),
        (
            "accuracy-gradients",
            figure(groups, "Test accuracy over gradients", Axis::Gradients, "test accuracy [%]", false, accuracy),
        ),
        (
            "accuracy-sent",
            figure(groups, "Test accuracy over communication", Axis::Sent, "test accuracy [%]", false, accuracy),
        ),
        ("loss-time", figure(groups, "Training loss over time", Axis::Time, "training loss", false, loss)),
        (
            "loss-gradients",
            figure(groups, "Training loss over gradients", Axis::Gradients, "training loss", false, loss),
        ),
        (
            "norm-time",
            figure(groups, "Norm of the full gradient over time", Axis::Time, "norm of the gradient", true, norm),
        ),
    ]
}

/// The first eight hexadecimal digits of the SHA-256 of a text.
fn hash(text: &str) -> String {
    Sha256::digest(text).iter().take(4).map(|b| format!("{b:02x}")).collect()
}
