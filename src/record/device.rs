//! `device.csv`: the times at which the device computed gradients and updates.

use super::LATEST;
use serde::Serialize;

/// A kind of work of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// A gradient, on its worker's stream.
    Gradient,
    /// The server's launch for an arrival, on the server's stream.
    Update,
}

/// One piece of work of the device: a line of `device.csv`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    /// The kind of work.
    pub work: Work,
    /// Index of the worker that computed the gradient, from 0.
    pub worker: usize,
    /// Number of the worker's job, from 0.
    pub job: u64,
    /// Start on the device, in seconds of the run's real time (without evaluations).
    pub began: f64,
    /// End on the device, on the same axis.
    pub ended: f64,
}

/// How busy the device was.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Occupancy {
    /// Mean number of gradients and updates in progress, over the time in which there is at least one.
    pub at_once: f64,
    /// Share of the time in which nothing is in progress, 0 to 1.
    pub idle: f64,
}

impl Occupancy {
    /// Computes the occupancy from spans that are sorted by their start.
    ///
    /// The measured interval begins with the first span and ends at the start of the last gradient, because
    /// work that overlaps the last gradient may not be recorded. `None` if the device is busy at no time in
    /// this interval.
    pub fn of(spans: &[Span]) -> Option<Self> {
        let begin = spans.first()?.began;
        let end = spans.iter().rfind(|span| span.work == Work::Gradient)?.began;
        let (mut until, mut busy, mut all) = (begin, 0.0, 0.0);
        for span in spans.iter().filter(|span| span.began < end) {
            let ended = span.ended.min(end);
            all += ended - span.began;
            busy += (ended - span.began.max(until)).max(0.0);
            until = until.max(ended);
        }
        (busy > 0.0).then(|| Occupancy { at_once: all / busy, idle: (1.0 - busy / (end - begin)).max(0.0) })
    }
}

/// The first line of `device.csv`.
const HEADER: &str = "work,worker,job,began,ended";

/// Formats spans as the text of a `device.csv`.
pub fn device_times(spans: &[Span]) -> String {
    let line = |span: &Span| {
        let work = if span.work == Work::Gradient { "gradient" } else { "update" };
        format!("{work},{},{},{:.9},{:.9}\n", span.worker, span.job, span.began, span.ended)
    };
    format!("{HEADER}\n") + &spans.iter().map(line).collect::<String>()
}

/// Parses the text of a `device.csv` of a run with `workers` workers. Returns the spans sorted by their start.
/// The error is a clause without a subject.
pub fn device_spans(text: &str, workers: usize) -> Result<Vec<Span>, String> {
    let mut lines = text.lines();
    if lines.next() != Some(HEADER) {
        return Err(format!("its first line is not `{HEADER}`"));
    }
    let span = |line: &str| {
        let mut cells = line.split(',');
        let work = match cells.next()? {
            "gradient" => Work::Gradient,
            "update" => Work::Update,
            _ => return None,
        };
        let worker = cells.next()?.parse().ok().filter(|worker| *worker < workers)?;
        let job = cells.next()?.parse().ok()?;
        let mut time = || cells.next()?.parse().ok().filter(|time: &f64| (0.0..LATEST).contains(time));
        let (began, ended) = (time()?, time()?);
        (began <= ended).then_some(Span { work, worker, job, began, ended })
    };
    let spans =
        lines.enumerate().map(|(k, line)| span(line).ok_or(format!("line {} is not a span of this run", k + 2)));
    let mut spans: Vec<Span> = spans.collect::<Result<_, _>>()?;
    spans.sort_by(|a, b| a.began.total_cmp(&b.began));
    Ok(spans)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(work: Work, worker: usize, began: f64, ended: f64) -> Span {
        Span { work, worker, job: 3, began, ended }
    }

    #[test]
    fn spans_survive_a_round_trip() {
        let spans = [span(Work::Gradient, 0, 0.0, 0.5), span(Work::Update, 9, 0.25, 0.75)];
        assert_eq!(device_spans(&device_times(&spans), 10), Ok(spans.to_vec()));
        let why = device_spans(&device_times(&spans), 9).unwrap_err();
        assert!(why.contains("line 3"), "{why}");
        for text in ["", "work\n", "work,worker,job,began,ended\ngradient,0,1,2,1\n"] {
            assert!(device_spans(text, 1).is_err(), "{text}");
        }
    }

    #[test]
    fn occupancy_counts_overlaps_and_gaps() {
        let gradient = |worker, began, ended| span(Work::Gradient, worker, began, ended);
        assert_eq!(Occupancy::of(&[]), None);
        assert_eq!(Occupancy::of(&[gradient(0, 1.0, 2.0)]), None, "work that overlaps the last gradient is unknown");
        let alone = [gradient(0, 1.0, 3.0), span(Work::Update, 0, 3.0, 4.0), gradient(0, 4.0, 6.0)];
        assert_eq!(Occupancy::of(&alone), Some(Occupancy { at_once: 1.0, idle: 0.0 }));
        // Two spans overlap, one lies inside another, then there is a gap of two seconds, and one span has not
        // ended when the last one begins.
        let spans = [
            gradient(0, 1.0, 4.0),
            gradient(1, 2.0, 5.0),
            span(Work::Update, 0, 3.0, 4.0),
            gradient(0, 7.0, 12.0),
            gradient(2, 9.0, 11.0),
        ];
        assert_eq!(Occupancy::of(&spans), Some(Occupancy { at_once: 1.5, idle: 0.25 }));
    }
}
