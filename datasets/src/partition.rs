//! Partitions: which worker holds which samples. Every worker has weight 1/n in the objective, regardless of
//! the size of its part.

use crate::{DataError, Result, keyed};
use rand::{Rng, seq::SliceRandom};
use rand_distr::{Distribution, Gamma};
use std::fmt;
use std::str::FromStr;

/// How samples are divided among workers. N is the number of samples, n the number of workers, C the number of
/// classes.
#[derive(Clone, Debug, PartialEq)]
pub enum Partition {
    /// Shuffled; the sizes differ by at most one.
    Iid,
    /// Each class is split in proportions drawn from Dirichlet(α·1_n). With `equal`, every worker holds ⌊N/n⌋
    /// samples whose classes follow the worker's draw from Dirichlet(α·1_C).
    Dirichlet {
        /// Concentration α; a small value makes the parts heterogeneous.
        alpha: f64,
        /// Whether all parts have the same size.
        equal: bool,
    },
    /// Sorted by label and cut into n·k shards; each worker gets k random shards (McMahan et al., 2017).
    Shards(usize),
    /// Shuffled; the sizes are drawn from Dirichlet(β·1_n).
    Quantity(f64),
    /// Consecutive blocks of ⌊N/n⌋ samples in the order of the file; the remaining samples are not used.
    Blocks,
}

impl FromStr for Partition {
    type Err = DataError;

    fn from_str(text: &str) -> Result<Self> {
        let (name, value) = text.split_once(':').map_or((text, None), |(n, v)| (n, Some(v)));
        let wrong = || {
            DataError(format!(
                "--partition `{text}` is not one of iid, dirichlet:ALPHA, dirichlet:ALPHA,equal, shards:K, quantity:BETA, blocks (ALPHA, BETA above 0, K at least 1)"
            ))
        };
        let positive = |v: &str| v.parse::<f64>().ok().filter(|a| a.is_finite() && *a > 0.0).ok_or_else(wrong);
        match (name, value) {
            ("iid", None) => Ok(Partition::Iid),
            ("blocks", None) => Ok(Partition::Blocks),
            ("dirichlet", Some(v)) => {
                let (alpha, equal) = v.strip_suffix(",equal").map_or((v, false), |v| (v, true));
                Ok(Partition::Dirichlet { alpha: positive(alpha)?, equal })
            }
            ("quantity", Some(v)) => Ok(Partition::Quantity(positive(v)?)),
            ("shards", Some(v)) => v.parse().ok().filter(|k| *k > 0).map(Partition::Shards).ok_or_else(wrong),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Partition::Iid => write!(f, "iid"),
            Partition::Dirichlet { alpha, equal } => {
                write!(f, "dirichlet:{alpha}{}", if *equal { ",equal" } else { "" })
            }
            Partition::Shards(k) => write!(f, "shards:{k}"),
            Partition::Quantity(beta) => write!(f, "quantity:{beta}"),
            Partition::Blocks => write!(f, "blocks"),
        }
    }
}

/// Maximum number of draws until every worker has a sample.
const ATTEMPTS: u64 = 1000;

impl Partition {
    /// Divides `labels.len()` samples of `classes` classes among `workers` workers. Every worker
    /// gets at least one. Returns the sample indices of each worker. The result depends only on the arguments.
    ///
    /// # Errors
    ///
    /// If there are more workers or shards than samples, or if no draw gives every worker a sample.
    pub fn deal(&self, labels: &[u8], classes: usize, workers: usize, seed: u64) -> Result<Vec<Vec<u32>>> {
        let all = labels.len();
        if workers == 0 {
            return Err(DataError("--workers 0: at least one worker is needed".into()));
        }
        if workers > all {
            return Err(DataError(format!(
                "--workers {workers}: there are only {all} training samples, and every worker needs one"
            )));
        }
        if let Partition::Shards(k) = self
            && workers.checked_mul(*k).is_none_or(|need| need > all)
        {
            return Err(DataError(format!(
                "--partition {self}: {workers} workers with {k} shards each need {} samples, there are {all}",
                workers.saturating_mul(*k)
            )));
        }
        // The attempt is part of the key: a draw that leaves a worker without samples is followed by another,
        // reproducibly.
        (0..ATTEMPTS)
            .map(|attempt| self.attempt(labels, classes, workers, &mut keyed([seed, 0x70617274, attempt, workers as u64])))
            .find(|parts| parts.iter().all(|p| !p.is_empty()))
            .ok_or_else(|| {
                DataError(format!("--partition {self}: {ATTEMPTS} draws each left at least one of {workers} workers without a sample; use a larger parameter, fewer workers, or `,equal`"))
            })
    }

    fn attempt(&self, labels: &[u8], classes: usize, workers: usize, random: &mut impl Rng) -> Vec<Vec<u32>> {
        let all = labels.len();
        match self {
            Partition::Blocks => {
                let m = all / workers;
                (0..workers).map(|i| (i * m..(i + 1) * m).map(|r| r as u32).collect()).collect()
            }
            Partition::Iid => cut(&shuffled(all, random), &vec![1.0 / workers as f64; workers]),
            Partition::Quantity(beta) => cut(&shuffled(all, random), &dirichlet(*beta, workers, random)),
            Partition::Dirichlet { alpha, equal: false } => {
                let mut parts = vec![Vec::new(); workers];
                for class in 0..classes {
                    let rows: Vec<u32> =
                        shuffled(all, random).into_iter().filter(|&r| labels[r as usize] as usize == class).collect();
                    for (part, rows) in parts.iter_mut().zip(cut(&rows, &dirichlet(*alpha, workers, random))) {
                        part.extend(rows);
                    }
                }
                parts
            }
            Partition::Dirichlet { alpha, equal: true } => {
                let mut left: Vec<Vec<u32>> = vec![Vec::new(); classes];
                for r in shuffled(all, random) {
                    left[labels[r as usize] as usize].push(r);
                }
                (0..workers)
                    .map(|_| {
                        let proportions = dirichlet(*alpha, classes, random);
                        (0..all / workers).map(|_| take(&mut left, &proportions, random)).collect()
                    })
                    .collect()
            }
            Partition::Shards(k) => {
                let mut rows: Vec<u32> = (0..all as u32).collect();
                rows.sort_by_key(|&r| (labels[r as usize], r));
                let shards = cut(&rows, &vec![1.0 / (workers * k) as f64; workers * k]);
                let order = shuffled(shards.len(), random);
                order
                    .chunks(*k)
                    .map(|own| own.iter().flat_map(|&s| shards[s as usize].iter().copied()).collect())
                    .collect()
            }
        }
    }
}

/// Removes and returns a sample. Its class is drawn by `proportions` among the classes that still have samples.
fn take(left: &mut [Vec<u32>], proportions: &[f64], random: &mut impl Rng) -> u32 {
    // A small weight for every class, so that a worker whose classes are used up gets samples of other classes.
    let weight = |c: usize| if left[c].is_empty() { 0.0 } else { proportions[c] + 1e-12 };
    let mut at = random.random::<f64>() * (0..left.len()).map(weight).sum::<f64>();
    let class = (0..left.len()).find(|&c| {
        at -= weight(c);
        at < 0.0
    });
    let class = class.or_else(|| (0..left.len()).rfind(|&c| !left[c].is_empty())).expect("samples remain");
    left[class].pop().expect("the class has samples")
}

/// A random permutation of `0..count`.
fn shuffled(count: usize, random: &mut impl Rng) -> Vec<u32> {
    let mut rows: Vec<u32> = (0..count as u32).collect();
    rows.shuffle(random);
    rows
}

/// Cuts `rows` at the cumulative `shares`, which sum to one. Every row is in exactly one part.
fn cut(rows: &[u32], shares: &[f64]) -> Vec<Vec<u32>> {
    let mut upto = 0.0;
    let mut first = 0;
    shares
        .iter()
        .enumerate()
        .map(|(i, share)| {
            upto += share;
            let end = if i + 1 == shares.len() {
                rows.len()
            } else {
                ((upto * rows.len() as f64).round() as usize).clamp(first, rows.len())
            };
            let part = rows[first..end].to_vec();
            first = end;
            part
        })
        .collect()
}

/// One draw from Dirichlet(a·1_k): k Gamma(a, 1) variates, normalised.
fn dirichlet(a: f64, k: usize, random: &mut impl Rng) -> Vec<f64> {
    let gamma = Gamma::new(a, 1.0).expect("the parameter is positive");
    let mut draw: Vec<f64> = (0..k).map(|_| gamma.sample(random)).collect();
    let sum: f64 = draw.iter().sum();
    if sum > 0.0 {
        draw.iter_mut().for_each(|x| *x /= sum);
    } else {
        // All variates underflowed to 0. For small a the distribution approaches a random one-hot vector.
        let one = (random.random::<f64>() * k as f64) as usize;
        draw[one.min(k - 1)] = 1.0;
    }
    draw
}

/// Number of samples of each class in each part, indexed `[part][class]`.
pub fn held(parts: &[Vec<u32>], labels: &[u8], classes: usize) -> Vec<Vec<usize>> {
    let count = |part: &Vec<u32>| {
        let mut counts = vec![0; classes];
        part.iter().for_each(|row| counts[labels[*row as usize] as usize] += 1);
        counts
    };
    parts.iter().map(count).collect()
}

/// Formats the result of [`held`] as a table of at most `shown` workers, one line each.
pub fn table(held: &[Vec<usize>], classes: &[String], shown: usize) -> Vec<String> {
    let width = classes.iter().map(|c| c.len()).max().unwrap_or(1).clamp(6, 10);
    let mut lines = vec![format!(
        "worker  samples{}",
        classes.iter().map(|c| format!("  {:>width$.width$}", c)).collect::<String>()
    )];
    for (i, counts) in held.iter().enumerate().take(shown) {
        let cells: String = counts
            .iter()
            .map(|n| if *n == 0 { format!("  {:>width$}", "·") } else { format!("  {n:>width$}") })
            .collect();
        lines.push(format!("{i:>6}  {:>7}{cells}", counts.iter().sum::<usize>()));
    }
    if held.len() > shown {
        lines.push(format!("   … and {} more workers", held.len() - shown));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn labels(n: usize) -> Vec<u8> {
        (0..n).map(|i| (i * 7 % 10) as u8).collect()
    }

    proptest! {
        #[test]
        fn each_sample_has_one_worker_and_each_worker_has_samples(
            spec in prop_oneof![Just("iid"), Just("dirichlet:0.5"), Just("dirichlet:0.1,equal"), Just("shards:2"), Just("quantity:0.7"), Just("blocks")],
            workers in 1usize..20, n in 100usize..500, seed: u64,
        ) {
            let partition: Partition = spec.parse().unwrap();
            prop_assert_eq!(partition.to_string(), spec);
            let parts = partition.deal(&labels(n), 10, workers, seed).unwrap();
            prop_assert_eq!(parts.len(), workers);
            let mut dealt: Vec<u32> = parts.iter().flatten().copied().collect();
            dealt.sort_unstable();
            prop_assert!(dealt.windows(2).all(|w| w[0] < w[1]));
            let whole = spec == "blocks" || spec.ends_with("equal");
            prop_assert_eq!(dealt.len(), if whole { n / workers * workers } else { n });
            prop_assert!(parts.iter().all(|p| !p.is_empty()));
            prop_assert_eq!(&parts, &partition.deal(&labels(n), 10, workers, seed).unwrap());
        }
    }

    #[test]
    fn a_small_alpha_is_more_heterogeneous() {
        let labels = labels(5000);
        // Mean share of each worker's largest class.
        let skew = |spec: &str| {
            let parts = spec.parse::<Partition>().unwrap().deal(&labels, 10, 10, 1).unwrap();
            let largest = |p: &Vec<u32>| {
                let mut counts = [0usize; 10];
                p.iter().for_each(|&r| counts[labels[r as usize] as usize] += 1);
                *counts.iter().max().unwrap() as f64 / p.len() as f64
            };
            parts.iter().map(largest).sum::<f64>() / 10.0
        };
        assert!(skew("iid") < 0.2);
        assert!(skew("dirichlet:0.1") > 0.5);
        assert!(skew("dirichlet:0.1,equal") > 0.5);
        assert!(skew("dirichlet:100") < 0.2);
        assert!(skew("shards:2") > 0.4);
    }

    #[test]
    fn errors_quote_the_partition() {
        for spec in ["dirichlet", "dirichlet:0", "dirichlet:x", "shards:0", "iid:1", "blocks:2", "zipf"] {
            assert!(spec.parse::<Partition>().unwrap_err().0.contains(spec), "{spec}");
        }
        let error = Partition::Iid.deal(&labels(5), 10, 6, 0).unwrap_err();
        assert!(error.0.contains("only 5"), "{error}");
    }
}
