//! `device.csv`: when the device computed what.

use super::LATEST;
use crate::timeline::{Span, Work};

/// The first line.
const HEADER: &str = "work,worker,job,began,ended";

/// The text of a `device.csv`.
pub fn device_times(spans: &[Span]) -> String {
    let line = |span: &Span| {
        let work = if span.work == Work::Gradient { "gradient" } else { "update" };
        format!("{work},{},{},{:.9},{:.9}\n", span.worker, span.job, span.began, span.ended)
    };
    format!("{HEADER}\n") + &spans.iter().map(line).collect::<String>()
}

/// Reads the text of a `device.csv` of a run with so many workers, in the order of the beginnings; the error is half a sentence.
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
    fn what_is_written_is_read_again() {
        let spans = [span(Work::Gradient, 0, 0.0, 0.5), span(Work::Update, 9, 0.25, 0.75)];
        assert_eq!(device_spans(&device_times(&spans), 10), Ok(spans.to_vec()));
        let why = device_spans(&device_times(&spans), 9).unwrap_err();
        assert!(why.contains("line 3"), "{why}");
        for text in ["", "work\n", "work,worker,job,began,ended\ngradient,0,1,2,1\n"] {
            assert!(device_spans(text, 1).is_err(), "{text}");
        }
    }
}
