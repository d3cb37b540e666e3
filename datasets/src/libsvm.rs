//! LIBSVM files with two classes: one row `label index:value index:value …` per line, with indices from 1.

use crate::{DataError, Result};
use std::path::Path;

/// Sparse rows (compressed sparse row format) with labels ±1.
#[derive(Clone, Debug, Default)]
pub struct SparseRows {
    /// Row r holds entries `starts[r]..starts[r + 1]`.
    pub starts: Vec<usize>,
    /// Column of each entry, from 0.
    pub columns: Vec<u32>,
    /// Value of each entry.
    pub values: Vec<f64>,
    /// Label of each row: -1 for the smaller label of the file, +1 for the larger.
    pub labels: Vec<f64>,
    /// Number of columns: the largest index in the file.
    pub dimension: usize,
}

/// Maximum number of columns, checked before memory is allocated for them.
const MAX_DIMENSION: usize = 1 << 24;

impl SparseRows {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Entries of row `r` as (column, value).
    pub fn row(&self, r: usize) -> impl Iterator<Item = (usize, f64)> + '_ {
        (self.starts[r]..self.starts[r + 1]).map(|k| (self.columns[k] as usize, self.values[k]))
    }
}

/// Reads a LIBSVM file of at most 4 GiB.
pub fn load(path: &Path) -> Result<SparseRows> {
    let bytes = crate::read(path, 4 << 30)?;
    parse(&bytes).map_err(|e| DataError(format!("{} {e}", path.display())))
}

/// Parses the text of a LIBSVM file. A message about a row begins with its line number.
pub fn parse(bytes: &[u8]) -> Result<SparseRows> {
    let text = std::str::from_utf8(bytes).map_err(|_| DataError("is not text: a LIBSVM file was expected".into()))?;
    let mut rows = SparseRows { starts: vec![0], ..Default::default() };
    for (k, line) in text.lines().enumerate() {
        let mut words = line.split('#').next().unwrap_or("").split_ascii_whitespace();
        let Some(label) = words.next() else { continue };
        let at = |what: String| DataError(format!("line {}: {what}", k + 1));
        let number = |word: &str| word.parse::<f64>().ok().filter(|x| x.is_finite());
        rows.labels.push(number(label).ok_or_else(|| at(format!("`{label}` is not a label")))?);
        let mut last = 0;
        for word in words {
            let entry = word.split_once(':').and_then(|(i, v)| Some((i.parse::<usize>().ok()?, number(v)?)));
            let (index, value) = entry.ok_or_else(|| at(format!("`{word}` is not index:value")))?;
            if index <= last || index > MAX_DIMENSION {
                return Err(at(format!(
                    "index {index} must be greater than {last} (indices increase from 1) and at most {MAX_DIMENSION}"
                )));
            }
            last = index;
            rows.columns.push(index as u32 - 1);
            rows.values.push(value);
        }
        rows.dimension = rows.dimension.max(last);
        rows.starts.push(rows.columns.len());
    }
    let low = rows.labels.iter().copied().fold(f64::INFINITY, f64::min);
    let high = rows.labels.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if rows.dimension == 0 || low == high || rows.labels.iter().any(|&l| l != low && l != high) {
        return Err(DataError("does not contain rows of exactly two classes".into()));
    }
    for label in &mut rows.labels {
        *label = if *label == low { -1.0 } else { 1.0 };
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_smaller_label_becomes_minus_one() {
        let rows = parse(b"0 1:0.5 3:2\n1 2:1\n").unwrap();
        assert_eq!((rows.labels.clone(), rows.dimension), (vec![-1.0, 1.0], 3));
        assert_eq!(rows.row(0).collect::<Vec<_>>(), [(0, 0.5), (2, 2.0)]);
    }

    #[test]
    fn errors_name_the_line() {
        for (text, part) in [
            ("0 1:1\n1 x\n", "line 2"),
            ("0 1:1\n1 2:1 1:1\n", "line 2"),
            ("0 0:1\n", "line 1"),
            ("0 1:nan\n", "line 1"),
            ("0 1:1\n0 2:1\n", "two classes"),
            ("0 1:1\n1 1:1\n2 1:1\n", "two classes"),
            ("", "two classes"),
            ("0 99999999999:1\n", "line 1"),
        ] {
            assert!(parse(text.as_bytes()).unwrap_err().0.contains(part), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn the_parser_never_panics(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }
    }
}
