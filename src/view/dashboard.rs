//! The dashboard of `--tui`, which uses the whole terminal: curves of loss and accuracy, and one lane per worker.

use crate::console;
use crate::record::{Effect, Outcome};
use ratatui::Terminal;
use ratatui::backend::{Backend, CrosstermBackend};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Axis, Block, Chart, Dataset, Gauge, GraphType, Paragraph};
use ratatui::{Frame, prelude::Stylize};
use std::collections::VecDeque;
use std::io::{Stderr, stderr};

/// Largest number of points of a curve. A longer curve loses every other point.
const POINTS: usize = 1000;

/// Largest number of jobs that are kept per worker.
const JOBS: usize = 256;
/// Mean number of jobs per worker that the lanes show.
const LOOK_BACK: usize = 8;

/// A job that arrived.
struct Job {
    began: f64,
    ended: f64,
    effect: Effect,
}

/// The content of the dashboard.
#[derive(Default)]
pub struct View {
    title: String,
    /// Time and mean of the latest batch losses.
    loss: Vec<(f64, f64)>,
    /// Time and test accuracy in percent. For theory problems, log10 of the gradient norm.
    accuracy: Vec<(f64, f64)>,
    /// The latest jobs of each worker.
    lanes: Vec<VecDeque<Job>>,
    /// Times of the latest arrivals. The lanes begin at the first one.
    recent: VecDeque<f64>,
}

/// A dashboard on a terminal.
pub struct Dashboard {
    terminal: Terminal<CrosstermBackend<Stderr>>,
    view: View,
}

impl Dashboard {
    /// Takes over the terminal until the dashboard is dropped. Keys work as usual, so Ctrl-C sends a signal.
    pub fn new(title: String, workers: usize) -> std::io::Result<Self> {
        execute!(stderr(), EnterAlternateScreen)?;
        let mut terminal = Terminal::new(CrosstermBackend::new(stderr()))?;
        terminal.clear()?;
        terminal.hide_cursor()?;
        console::hold();
        Ok(Dashboard { terminal, view: View::new(title, workers) })
    }

    /// Adds an arrived job to the lane of its worker.
    pub fn arrived(&mut self, worker: usize, began: f64, ended: f64, effect: Effect) {
        self.view.arrived(worker, Job { began, ended, effect });
    }

    /// Adds an evaluation to the curve of the accuracy.
    pub fn evaluated(&mut self, outcome: &Outcome) {
        self.view.evaluated(outcome);
    }

    /// Redraws the dashboard. `line` is the line of progress, and `done` the finished share of the run, 0 to 1.
    pub fn draw(&mut self, line: &str, done: f64, outcome: &Outcome) {
        self.view.draw(&mut self.terminal, line, done, outcome);
    }
}

impl Drop for Dashboard {
    fn drop(&mut self) {
        let _ = self.terminal.show_cursor();
        let _ = execute!(stderr(), LeaveAlternateScreen);
        console::release();
    }
}

impl View {
    fn new(title: String, workers: usize) -> Self {
        View { title, lanes: (0..workers).map(|_| VecDeque::new()).collect(), ..View::default() }
    }

    fn arrived(&mut self, worker: usize, job: Job) {
        let most = LOOK_BACK * self.lanes.len();
        if self.recent.len() >= most {
            self.recent.pop_front();
        }
        self.recent.push_back(job.ended);
        let lane = &mut self.lanes[worker];
        if lane.len() >= JOBS {
            lane.pop_front();
        }
        lane.push_back(job);
    }

    fn evaluated(&mut self, outcome: &Outcome) {
        let found = &outcome.evaluation;
        let score = found.test_accuracy.map(|accuracy| 100.0 * accuracy).or(found.grad_norm.map(f64::log10));
        push(&mut self.accuracy, outcome.time, score);
    }

    fn draw<B: Backend>(&mut self, terminal: &mut Terminal<B>, line: &str, done: f64, outcome: &Outcome) {
        push(&mut self.loss, outcome.time, outcome.recent_loss);
        // An error is ignored: a closed terminal must not stop the run.
        let _ = terminal.draw(|frame| self.frame(frame, line, done, outcome));
    }

    fn frame(&self, frame: &mut Frame, line: &str, done: f64, outcome: &Outcome) {
        let lanes = (self.lanes.len() as u16 + 2).min(frame.area().height / 2);
        let rows = [Constraint::Length(1), Constraint::Length(1), Constraint::Min(6), Constraint::Length(lanes)];
        let [head, bar, curves, below] = Layout::vertical(rows).areas(frame.area());
        frame.render_widget(Paragraph::new(format!("{}   {line}", self.title)).bold(), head);
        let gauge = Gauge::default().ratio(done.clamp(0.0, 1.0)).gauge_style(Style::new().fg(Color::Blue));
        frame.render_widget(gauge, bar);
        let [left, right] = Layout::horizontal([Constraint::Fill(1); 2]).areas(curves);
        curve(frame, left, "training loss", &self.loss);
        let theory = outcome.evaluation.grad_norm.is_some();
        let name = if theory { "log10 of the gradient norm" } else { "test accuracy [%]" };
        curve(frame, right, name, &self.accuracy);
        self.workers(frame, below, outcome.time);
    }

    /// Draws one lane per worker, which shows what the server did with the latest gradients.
    fn workers(&self, frame: &mut Frame, area: Rect, now: f64) {
        let since = self.recent.front().copied().unwrap_or(0.0);
        let title = format!("workers, {since:.1} to {now:.1} s: step, fold, dropped; blank: no gradient that arrived");
        let block = Block::bordered().title(title);
        let inside = block.inner(area);
        frame.render_widget(block, area);
        let (room, label) = (inside.height as usize, 4);
        let width = (inside.width as usize).saturating_sub(label + 1);
        let shown = if self.lanes.len() > room { room.saturating_sub(1) } else { self.lanes.len() };
        let mut lines: Vec<Line> = Vec::new();
        for (i, lane) in self.lanes.iter().take(shown).enumerate() {
            let mut spans = vec![Span::raw(format!("{i:>label$} "))];
            let length = (now - since).max(1e-12) / width.max(1) as f64;
            for column in 0..width {
                let middle = since + (column as f64 + 0.5) * length;
                let job = lane.iter().find(|job| job.began <= middle && middle < job.ended);
                spans.push(match job.map(|job| job.effect) {
                    Some(Effect::Step) => Span::styled("█", Color::Blue),
                    Some(Effect::Fold) => Span::styled("▒", Color::Cyan),
                    Some(Effect::Drop) => Span::styled("x", Color::Yellow),
                    None => Span::raw(" "),
                });
            }
            lines.push(Line::from(spans));
        }
        if shown < self.lanes.len() {
            lines.push(Line::raw(format!("and {} more", self.lanes.len() - shown)));
        }
        frame.render_widget(Paragraph::new(lines), inside);
    }
}

/// Appends a point if its value is finite and its time is later than the last one.
fn push(curve: &mut Vec<(f64, f64)>, time: f64, value: Option<f64>) {
    let Some(value) = value.filter(|value| value.is_finite()) else { return };
    if curve.last().is_some_and(|last| last.0 >= time) {
        return;
    }
    curve.push((time, value));
    if curve.len() > POINTS {
        let mut odd = false;
        curve.retain(|_| {
            odd = !odd;
            odd
        });
    }
}

/// Draws one curve over time.
fn curve(frame: &mut Frame, area: Rect, name: &str, points: &[(f64, f64)]) {
    let end = points.last().map_or(1.0, |last| last.0);
    let start = points.first().map_or(0.0, |first| first.0).min(end);
    let least = points.iter().map(|p| p.1).fold(f64::INFINITY, f64::min);
    let most = points.iter().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max);
    let (least, most) = if least < most { (least, most) } else { (least.min(0.0), most.max(1.0)) };
    let (least, most) = if least.is_finite() && most.is_finite() { (least, most) } else { (0.0, 1.0) };
    let ends = |a: f64, b: f64| [format!("{a:.3}"), format!("{b:.3}")];
    let line = Dataset::default()
        .marker(Marker::Braille)
        .graph_type(GraphType::Line)
        .style(Style::new().fg(Color::Blue))
        .data(points);
    let chart = Chart::new(vec![line])
        .block(Block::bordered().title(name.to_string()))
        .x_axis(Axis::default().title("time [s]").bounds([start, end]).labels(ends(start, end)))
        .y_axis(Axis::default().bounds([least, most]).labels(ends(least, most)));
    frame.render_widget(chart, area);
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::backend::TestBackend;

    #[test]
    fn lanes_and_curves_are_drawn() {
        let mut view = View::new("dude, 3 workers".into(), 3);
        let job = |began, ended, effect| Job { began, ended, effect };
        for k in 0..8 {
            view.arrived(0, job(k as f64, k as f64 + 1.0, Effect::Step));
        }
        view.arrived(1, job(0.0, 4.0, Effect::Fold));
        view.arrived(2, job(1.0, 8.0, Effect::Drop));
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        for (time, loss) in [(2.0, 2.3), (8.0, 1.1)] {
            let mut outcome = Outcome { time, recent_loss: Some(loss), ..Outcome::default() };
            outcome.evaluation.test_accuracy = Some(0.1 * time);
            view.evaluated(&outcome);
            view.draw(&mut terminal, "update 8", 0.5, &outcome);
        }
        let shown = terminal.backend().to_string();
        for part in [
            "dude, 3 workers",
            "update 8",
            "training loss",
            "test accuracy [%]",
            "80.000",
            "2.300",
            "1.100",
            "█",
            "▒",
            "x",
        ] {
            assert!(shown.contains(part), "`{part}` is not in\n{shown}");
        }
        let mut many = View::new(String::new(), 500);
        many.arrived(499, job(0.0, 1.0, Effect::Step));
        many.draw(&mut terminal, "", 2.0, &Outcome::default());
        assert!(terminal.backend().to_string().contains("more"));
    }
}
