//! The table of a comparison: means with standard errors over the seeds.

use super::reading::Reading;
use crate::view::figure::{Curve, Figure, short};
use serde_json::{Value, json};

/// Mean of several values, with its standard error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mean {
    /// The mean.
    pub mean: f64,
    /// Sample standard deviation divided by the square root of the number of values; 0 for a single value.
    pub error: f64,
    /// Number of values.
    pub count: usize,
}

impl Mean {
    /// The mean of the values that are present; `None` if there are none.
    pub fn of(values: impl IntoIterator<Item = Option<f64>>) -> Option<Mean> {
        let values: Vec<f64> = values.into_iter().flatten().collect();
        let count = values.len();
        // The sums are relative to the first value, so that equal values have an error of exactly 0.
        let first = values.first().copied().unwrap_or(0.0);
        let mean = first + values.iter().map(|x| x - first).sum::<f64>() / count as f64;
        let squares: f64 = values.iter().map(|x| (x - mean) * (x - mean)).sum();
        let error = if count > 1 { (squares / (count - 1) as f64 / count as f64).sqrt() } else { 0.0 };
        (count > 0).then_some(Mean { mean, error, count })
    }
}

/// A column of the table: its name with the unit, and its value for a run and a target test accuracy (0 to 1).
struct Column {
    name: &'static str,
    value: fn(&Reading, Option<f64>) -> Option<f64>,
}

const COLUMNS: [Column; 15] = [
    Column { name: "test accuracy [%]", value: |run, _| run.number("final_test_accuracy").map(|a| 100.0 * a) },
    Column { name: "accuracy over time [%]", value: |run, _| run.over_time(|p| p.test_accuracy).map(|a| 100.0 * a) },
    Column { name: "train loss", value: |run, _| run.number("final_train_loss") },
    Column { name: "gradient norm", value: |run, _| run.number("final_grad_norm") },
    Column { name: "its mean at the end", value: |run, _| run.at_the_end(|p| p.grad_norm) },
    Column { name: "time to target [s]", value: |run, target| Some(run.reached(target?)?.time) },
    Column { name: "gradients to target", value: |run, target| Some(run.reached(target?)?.gradients as f64) },
    Column { name: "time [s]", value: |run, _| Some(run.time()) },
    Column { name: "gradients", value: |run, _| run.number("gradients") },
    Column { name: "sent [MB]", value: |run, _| Some(run.bytes() / 1e6) },
    Column { name: "wasted gradients", value: |run, _| Some(run.wasted()) },
    Column { name: "idle [%]", value: |run, _| Some(100.0 * run.idle()) },
    Column { name: "mean staleness", value: |run, _| run.number("mean_staleness") },
    Column { name: "real time [s]", value: |run, _| run.number("wall_seconds") },
    Column {
        name: "samples/s in real time",
        value: |run, _| run.number("samples_per_second").filter(|_| run.is_wall()),
    },
];

/// The runs of one row.
pub struct Group {
    /// Name of the row, such as `dude, workers 4`.
    pub name: String,
    /// One run per seed.
    pub runs: Vec<Reading>,
}

/// The table of a comparison.
pub struct Table {
    /// Names of the columns.
    pub columns: Vec<&'static str>,
    /// The rows: a name, and one mean per column. `None` if no seed has a value.
    pub rows: Vec<(String, Vec<Option<Mean>>)>,
}

impl Table {
    /// The table of these groups, for a target test accuracy (0 to 1). Columns without any value are left out.
    pub fn of(groups: &[Group], target: Option<f64>) -> Table {
        let mean = |column: &Column, group: &Group| Mean::of(group.runs.iter().map(|run| (column.value)(run, target)));
        let filled = |column: &&Column| groups.iter().any(|group| mean(column, group).is_some());
        let columns: Vec<&Column> = COLUMNS.iter().filter(filled).collect();
        let row = |group: &Group| (group.name.clone(), columns.iter().map(|c| mean(c, group)).collect());
        Table { columns: columns.iter().map(|c| c.name).collect(), rows: groups.iter().map(row).collect() }
    }

    /// The cells as text. The first row is the header.
    pub fn cells(&self) -> Vec<Vec<String>> {
        let head = std::iter::once("rule").chain(self.columns.iter().copied()).map(String::from).collect();
        let cell = |mean: &Option<Mean>, most: usize| match mean {
            None => "-".to_string(),
            Some(m) => {
                // Not every seed has a value.
                let few = if m.count < most { format!(" ({}/{most})", m.count) } else { String::new() };
                let error = if m.count > 1 { format!(" ± {}", digits(m.error, 2)) } else { String::new() };
                format!("{}{error}{few}", digits(m.mean, 4))
            }
        };
        let row = |(name, row): &(String, Vec<Option<Mean>>)| {
            let most = row.iter().flatten().map(|m| m.count).max().unwrap_or(0);
            std::iter::once(name.clone()).chain(row.iter().map(|mean| cell(mean, most))).collect()
        };
        std::iter::once(head).chain(self.rows.iter().map(row)).collect()
    }

    /// The table for a terminal, with aligned columns.
    pub fn text(&self) -> String {
        let cells = self.cells();
        let width = |k: usize| cells.iter().map(|row| row[k].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..cells[0].len()).map(width).collect();
        let line = |row: &Vec<String>| {
            let cell = |(k, cell): (usize, &String)| {
                let room = " ".repeat(widths[k] - cell.chars().count());
                if k == 0 { format!("{cell}{room}") } else { format!("{room}{cell}") }
            };
            row.iter().enumerate().map(cell).collect::<Vec<_>>().join("  ").trim_end().to_string() + "\n"
        };
        cells.iter().map(line).collect()
    }

    /// The table in Markdown.
    pub fn markdown(&self) -> String {
        let cells = self.cells();
        let line = |row: &Vec<String>| format!("| {} |\n", row.join(" | "));
        let rule = format!("|{}\n", " --- |".repeat(cells[0].len()));
        line(&cells[0]) + &rule + &cells[1..].iter().map(line).collect::<String>()
    }

    /// The table as CSV, with mean, standard error and number of runs of every cell.
    pub fn csv(&self) -> String {
        let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
        let of =
            |name: &&str| ["", ", standard error", ", runs"].map(|part| quoted(&format!("{name}{part}"))).join(",");
        let head = std::iter::once("rule".to_string()).chain(self.columns.iter().map(of)).collect::<Vec<_>>().join(",");
        let cell = |mean: &Option<Mean>| mean.map_or(",,0".into(), |m| format!("{},{},{}", m.mean, m.error, m.count));
        let row = |(name, row): &(String, Vec<Option<Mean>>)| {
            std::iter::once(quoted(name)).chain(row.iter().map(cell)).collect::<Vec<_>>().join(",") + "\n"
        };
        head + "\n" + &self.rows.iter().map(row).collect::<String>()
    }

    /// The table as JSON, with mean, standard error and number of runs of every cell.
    pub fn json(&self) -> Value {
        let cell = |(name, mean): (&&str, &Option<Mean>)| {
            (name.to_string(), json!(mean.map(|m| json!({"mean": m.mean, "standard_error": m.error, "runs": m.count}))))
        };
        let row = |(name, row): &(String, Vec<Option<Mean>>)| {
            let cells: serde_json::Map<String, Value> = self.columns.iter().zip(row).map(cell).collect();
            json!({"rule": name, "columns": cells})
        };
        json!(self.rows.iter().map(row).collect::<Vec<_>>())
    }
}

/// Formats a number with `count` significant digits. Whole numbers have no decimals.
fn digits(x: f64, count: i32) -> String {
    if !x.is_finite() || (x != 0.0 && !(1e-3..1e6).contains(&x.abs())) {
        return short(x);
    }
    if x.fract() == 0.0 {
        return format!("{x:.0}");
    }
    let places = (count - 1 - x.abs().log10().floor() as i32).clamp(0, 6) as usize;
    format!("{x:.places$}")
}

/// Number of intervals between the points of a mean curve.
const GRID: usize = 120;

/// The x axis of a figure.
#[derive(Clone, Copy)]
pub enum Axis {
    /// Simulated or real seconds.
    Time,
    /// Number of gradients that have arrived.
    Gradients,
    /// Megabytes sent between server and workers.
    Sent,
}

impl Axis {
    fn label(self) -> &'static str {
        match self {
            Axis::Time => "time [s]",
            Axis::Gradients => "gradients",
            Axis::Sent => "sent between server and workers [MB]",
        }
    }

    fn of(self, run: &Reading, point: &super::reading::Point) -> f64 {
        match self {
            Axis::Time => point.time,
            Axis::Gradients => point.gradients as f64,
            // The total in proportion to the gradients: on average, every gradient causes the same communication.
            Axis::Sent => run.bytes() / 1e6 * point.gradients as f64 / run.number("gradients").unwrap_or(1.0).max(1.0),
        }
    }
}

/// Number of segments of a long curve (see [`thinned`]).
const SEGMENTS: usize = 300;

/// Reduces the curve of a single run to the points that a figure can show, so that a page stays small: the lowest and
/// the highest point of each segment, and the last point of the curve.
fn thinned(run: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if run.len() <= 2 * SEGMENTS {
        return run.to_vec();
    }
    let extremes = |segment: &[(f64, f64)]| {
        let order = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let ends = (segment.iter().min_by(order), segment.iter().max_by(order));
        let (&low, &high) = ends.0.zip(ends.1).expect("a segment has at least one point");
        if low.0 <= high.0 { [low, high] } else { [high, low] }
    };
    run.chunks(run.len().div_ceil(SEGMENTS)).flat_map(extremes).chain(run.last().copied()).collect()
}

/// A figure of a metric. Each group gives one curve: the mean over its seeds, with the standard error as a band.
pub fn figure(
    groups: &[Group],
    title: &str,
    axis: Axis,
    label: &str,
    log_y: bool,
    value: fn(&super::reading::Point) -> Option<f64>,
) -> Figure {
    let curve = |group: &Group| {
        let known = |run: &Reading| -> Vec<(f64, f64)> {
            run.curve.iter().filter_map(|p| Some((axis.of(run, p), value(p)?))).collect()
        };
        let runs: Vec<Vec<(f64, f64)>> = group.runs.iter().map(known).filter(|run| !run.is_empty()).collect();
        // The range in which every seed has a value. A value holds until the next one.
        let first = runs.iter().map(|run| run[0].0).fold(0.0, f64::max);
        let last = runs.iter().map(|run| run[run.len() - 1].0).fold(f64::INFINITY, f64::min);
        let at = |run: &[(f64, f64)], x: f64| run[run.partition_point(|p| p.0 <= x).max(1) - 1].1;
        let points = if let [run] = runs.as_slice() {
            thinned(run).into_iter().map(|p| (p.0, p.1, 0.0)).collect()
        } else if runs.is_empty() || first >= last {
            // The seeds have no range in common. The curve is one point, the mean of their last points.
            let end = |of: fn(&(f64, f64)) -> f64| Mean::of(runs.iter().map(|run| run.last().map(of)));
            end(|p| p.0).zip(end(|p| p.1)).map(|(x, y)| (x.mean, y.mean, y.error)).into_iter().collect()
        } else {
            let grid = (0..=GRID).map(|k| first + (last - first) * k as f64 / GRID as f64);
            let mean = |x: f64| Mean::of(runs.iter().map(|run| Some(at(run, x)))).map(|m| (x, m.mean, m.error));
            grid.filter_map(mean).collect()
        };
        Curve { name: group.name.clone(), points }
    };
    let (title, x, y) = (title.into(), axis.label().into(), label.into());
    Figure { title, x, y, curves: groups.iter().map(curve).collect(), log_y }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_and_error_of_three_values() {
        let mean = Mean::of([Some(1.0), None, Some(2.0), Some(3.0)]).unwrap();
        assert_eq!((mean.mean, mean.count), (2.0, 3));
        assert!((mean.error - (1.0f64 / 3.0).sqrt()).abs() < 1e-12);
        assert_eq!(Mean::of([None, None]), None);
        assert_eq!(Mean::of([Some(0.1); 3]), Some(Mean { mean: 0.1, error: 0.0, count: 3 }));
    }

    #[test]
    fn thinned_curve_keeps_its_extremes_and_its_end() {
        let curve: Vec<(f64, f64)> = (0..5000).map(|k| (k as f64, ((k * 37) % 101) as f64)).collect();
        let thin = thinned(&curve);
        assert!(thin.len() <= 2 * SEGMENTS + 1 && thin.is_sorted_by(|a, b| a.0 <= b.0) && thin.last() == curve.last());
        let range =
            |points: &[(f64, f64)]| points.iter().fold((f64::MAX, f64::MIN), |(l, h), p| (l.min(p.1), h.max(p.1)));
        assert_eq!(range(&thin), range(&curve));
        assert_eq!(thinned(&curve[..500]), curve[..500]);
    }

    #[test]
    fn numbers_have_significant_digits() {
        let four = |x| digits(x, 4);
        assert_eq!([56.7891, 0.012345, 1234.6, 400.0, 3.0e-7].map(four), ["56.79", "0.01235", "1235", "400", "3e-7"]);
    }
}
