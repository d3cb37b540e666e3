//! Every subject of `stagger bench`, with very short measurements: its table, files, figure and facts.

mod common;

use common::{has_wgpu, scratch};
use libtest_mimic::{Arguments, Trial};
use serde_json::Value;
use std::process::{Command, Output};

/// Variables that hide the Vulkan drivers. WGPU then uses an OpenGL adapter, if there is one. Mesa's software
/// adapter binds at most 16 buffers in a launch, and wgpu itself uses one of them.
const NO_VULKAN: [&str; 2] = ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"];

fn run(flags: &str, folder: &str, hide_vulkan: bool) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stagger"));
    command.arg("bench").args(flags.split_whitespace()).args(["--out", folder]);
    if hide_vulkan {
        command.envs(NO_VULKAN.map(|name| (name, "/nowhere")));
    }
    command.output().unwrap()
}

/// Runs a benchmark and checks its output. There are `rows` rows, each with a number above 0 in `column`.
/// Every other number is finite and not negative.
fn check(flags: &str, hide_vulkan: bool, rows: usize, column: &str) {
    let folder = scratch("bench");
    let output = run(flags, folder.to_str().unwrap(), hide_vulkan);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{flags}\n{err}");
    let whole: Value = serde_json::from_slice(&std::fs::read(folder.join("bench.json")).unwrap()).unwrap();
    let found = whole["rows"].as_array().unwrap();
    assert_eq!(found.len(), rows, "{whole:#}");
    let svg = std::fs::read_to_string(folder.join("bench.svg")).unwrap();
    for row in found {
        assert!(row[column].as_f64().unwrap() > 0.0, "{column} is not above 0 in {row}");
        for (name, value) in row.as_object().unwrap() {
            assert!(
                value.as_f64().is_none_or(|x| x.is_finite() && x >= 0.0),
                "{name} is negative or not finite in {row}"
            );
        }
        if let Some(least) = row["least"].as_f64() {
            let [median, most] = ["samples/s", "most"].map(|name| row[name].as_f64().unwrap());
            assert!(least <= median && median <= most, "least, median and most are not in order: {row}");
            let is_of_rounds = whole["configuration"]["rounds"] != 1;
            assert_eq!(svg.contains("bars: the least to the most"), is_of_rounds);
        }
    }
    for fact in ["device", "driver", "host", "version", "commit", "command"] {
        assert!(whole["facts"][fact].as_str().is_some_and(|text| !text.is_empty()), "no {fact} in {whole:#}");
    }
    assert!(whole["configuration"]["seconds"].as_f64().is_some_and(|s| s > 0.0), "{whole:#}");
    // Table and notes say when a software adapter made the figures.
    let is_soft = |text: &str| text.contains("software adapter");
    let notes = whole["notes"].to_string();
    assert_eq!(is_soft(&out) && is_soft(&notes), whole["facts"]["device"].to_string().contains("llvmpipe"), "{notes}");
    let csv = std::fs::read_to_string(folder.join("bench.csv")).unwrap();
    assert_eq!(csv.lines().count(), rows + 1);
    let bars = svg.matches("<rect").count() + svg.matches("<circle").count();
    assert!(bars > rows, "expected a background and one mark per row, found {bars} shapes");
    assert!(std::fs::read(folder.join("bench.png")).unwrap().starts_with(b"\x89PNG"));
}

fn main() {
    let arguments = Arguments::from_args();
    let trial = |flags: &'static str, hide_vulkan: bool, rows: usize, column: &'static str, missing: &str| {
        let hidden = if hide_vulkan { ", without Vulkan" } else { "" };
        let name = format!("bench {flags}{hidden}{missing}");
        let work = move || {
            check(flags, hide_vulkan, rows, column);
            Ok(())
        };
        Trial::test(name, work).with_ignored_flag(!missing.is_empty())
    };
    // Only a missing adapter is a reason to skip. Any other error must fail the trial.
    let lacks_opengl = || {
        let flags = "model --backend wgpu --model logreg --batch 2 --seconds 0.001";
        let output = run(flags, scratch("probe").to_str().unwrap(), true);
        String::from_utf8_lossy(&output.stderr).contains("--backend wgpu cannot be used here: no adapter")
    };
    let suffix = |available: bool| if available { "" } else { " (SKIPPED: no WGPU adapter)" };
    let (vulkan, opengl) = (suffix(has_wgpu()), suffix(!lacks_opengl()));
    let trials = vec![
        trial("kernels --backend cpu --seconds 0.001", false, 17, "ms", ""),
        trial("engine", false, 6, "events/s", ""),
        trial("model --backend cpu --seconds 0.001", false, 19, "ms", ""),
        trial("scaling --backend cpu --model mlp --workers 1,2 --seconds 0.3", false, 2, "gradients/s", ""),
        trial("time-to-accuracy --backend cpu --model logreg --workers 1,2 --target 15", false, 6, "updates", ""),
        // On the adapter that binds the fewest buffers in a launch.
        trial("kernels --backend wgpu --seconds 0.001", true, 17, "ms", opengl),
        trial("model --backend cpu,wgpu --model mlp --seconds 0.001", false, 8, "ms", vulkan),
        trial(
            "scaling --backend wgpu --model mlp --workers 1,2 --seconds 1 --rounds 1",
            false,
            2,
            "gradients/s",
            vulkan,
        ),
    ];
    libtest_mimic::run(&arguments, trials).exit();
}
