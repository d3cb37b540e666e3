//! Centres c_i of the quadratics f_i(x) = ½‖x - c_i‖²: one line per worker, with numbers separated by commas.

use crate::{DataError, Result};
use std::path::Path;

/// Reads the centres. All have the same dimension, and there is at least one.
///
/// # Errors
///
/// If the file cannot be read, or a line is not a list of finite numbers of the same length as the first.
pub fn load(path: &Path) -> Result<Vec<Vec<f64>>> {
    let text = String::from_utf8(crate::read(path, 1 << 30)?).map_err(|_| {
        DataError(format!("{} is not text: it needs one centre per line, numbers separated by commas", path.display()))
    })?;
    let mut centres: Vec<Vec<f64>> = Vec::new();
    for (k, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
        let centre: Vec<f64> = line
            .split(',')
            .map(|x| x.trim().parse().ok().filter(|x: &f64| x.is_finite()))
            .collect::<Option<_>>()
            .ok_or_else(|| {
                DataError(format!(
                    "{} line {}: `{}` is not a list of finite numbers separated by commas",
                    path.display(),
                    k + 1,
                    line.trim()
                ))
            })?;
        if let Some(first) = centres.first().filter(|c| c.len() != centre.len()) {
            return Err(DataError(format!(
                "{} line {}: {} numbers, but the first centre has {}",
                path.display(),
                k + 1,
                centre.len(),
                first.len()
            )));
        }
        centres.push(centre);
    }
    if centres.is_empty() {
        return Err(DataError(format!("{} contains no centre: it needs one per line", path.display())));
    }
    Ok(centres)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn centres_are_read_and_errors_name_the_line() {
        let folder = crate::scratch("quadratic");
        let path = folder.join("q");
        std::fs::write(&path, "0, 1\n\n3,-6e0\n").unwrap();
        assert_eq!(load(&path).unwrap(), [[0.0, 1.0], [3.0, -6.0]]);
        for (text, part) in [("1\n2,3\n", "line 2"), ("1\nx\n", "line 2"), ("inf\n", "line 1"), ("\n", "no centre")] {
            std::fs::write(&path, text).unwrap();
            assert!(load(&path).unwrap_err().0.contains(part), "{text:?}");
        }
        std::fs::remove_dir_all(folder).unwrap();
    }
}
