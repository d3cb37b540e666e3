//! Asynchronous SGD on logistic regression in float64; shares no code with the program.

/// One row of the file: label and entries.
type Row = (f64, Vec<(usize, f64)>);

fn parse(text: &str) -> (Vec<Row>, usize) {
    let mut dimension = 0;
    let rows = text
        .lines()
        .map(|line| {
            let mut words = line.split_whitespace();
            let label = if words.next().unwrap().parse::<f64>().unwrap() > 0.0 { 1.0 } else { -1.0 };
            let entries: Vec<(usize, f64)> = words
                .map(|w| w.split_once(':').map(|(i, v)| (i.parse::<usize>().unwrap() - 1, v.parse().unwrap())).unwrap())
                .collect();
            dimension = entries.iter().map(|e| e.0 + 1).fold(dimension, usize::max);
            (label, entries)
        })
        .collect();
    (rows, dimension)
}

/// Gradient of the mean logistic loss over `rows` plus λ Σ x²/(1+x²).
fn gradient(rows: &[Row], x: &[f64], lambda: f64) -> Vec<f64> {
    let mut g: Vec<f64> = x.iter().map(|x| 2.0 * lambda * x / (1.0 + x * x).powi(2)).collect();
    for (b, entries) in rows {
        let z: f64 = entries.iter().map(|(k, v)| v * x[*k]).sum();
        let pull = -b / (1.0 + (b * z).exp()) / rows.len() as f64;
        entries.iter().for_each(|(k, v)| g[*k] += pull * v);
    }
    g
}

/// Pure asynchronous SGD, or DuDe with a barrier start, at fixed speeds 1..n; returns the gradient's norm per update.
pub fn simulate(text: &str, n: usize, rule: &str, lr: f64, updates: usize) -> Vec<f64> {
    let (rows, d) = parse(text);
    let m = rows.len() / n;
    let part = |i: usize| &rows[i * m..(i + 1) * m];
    let (mut x, mut table) = (vec![1.0; d], vec![vec![0.0; d]; n]);
    let mut jobs: Vec<(f64, Vec<f64>)> = (0..n).map(|i| (i as f64 + 1.0, x.clone())).collect();
    let mut norms = Vec::new();
    let mut heard = 0;
    while norms.len() < updates {
        let i = (0..n).min_by(|a, b| jobs[*a].0.total_cmp(&jobs[*b].0)).unwrap();
        let (now, at) = jobs[i].clone();
        let g = gradient(part(i), &at, 0.1);
        let mut restart = vec![i];
        if rule == "asgd" {
            x.iter_mut().zip(&g).for_each(|(x, g)| *x -= lr * g);
        } else {
            table[i] = g;
            heard += 1;
            if heard < n {
                jobs[i].0 = f64::INFINITY;
                continue;
            }
            for k in 0..d {
                x[k] -= lr * table.iter().map(|row| row[k]).sum::<f64>() / n as f64;
            }
            if heard == n {
                restart = (0..n).collect();
            }
        }
        for j in restart {
            jobs[j] = (now + j as f64 + 1.0, x.clone());
        }
        let mut full = vec![0.0; d];
        for i in 0..n {
            gradient(part(i), &x, 0.1).iter().zip(&mut full).for_each(|(g, f)| *f += g / n as f64);
        }
        norms.push(full.iter().map(|g| g * g).sum::<f64>().sqrt());
    }
    norms
}
