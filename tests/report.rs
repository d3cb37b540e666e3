//! A report is one page that needs no other file. Its figures are labelled.

mod common;

use common::{scratch, stagger};

#[test]
fn report_is_one_self_contained_page_with_labelled_figures() {
    let folder = scratch("report");
    let (runs, page, figures) = (folder.join("compare"), folder.join("page.html"), folder.join("figures"));
    let flags = "compare --backend cpu --dataset synthetic --model logreg --rules asgd;sync;kbatchsync:k=2 --seeds 1,2 --workers 3 --partition dirichlet:0.3 --delay fixed:1,2,4 --updates 24 --eval-every 4 --test-samples 200";
    let output = stagger(&[&flags.split(' ').collect::<Vec<_>>()[..], &["--out", runs.to_str().unwrap()]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let [runs, page_name, figures_name] = [&runs, &page, &figures].map(|path| path.to_str().unwrap());
    let output = stagger(&["report", runs, "--out", page_name, "--figures", figures_name]);
    let text = String::from_utf8_lossy(&output.stdout).to_string();
    assert!(output.status.success() && text.contains("6 runs"), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let html = std::fs::read_to_string(&page).unwrap();
    // The page fetches nothing and executes nothing.
    for absent in ["<script", "src=", "http://", "@import", "url("] {
        let without = html.replace("http://www.w3.org/2000/svg", "");
        assert!(!without.contains(absent), "{absent} in the page");
    }
    assert!(html.len() < 1_000_000, "{} bytes", html.len());
    for figure in ["accuracy-time", "loss-sent", "staleness", "workers", "timeline-0", "timeline-2", "partition-1"] {
        assert!(html.contains(&format!("<figure id=\"{figure}\">")), "no figure {figure}");
        assert!(figures.join(format!("{figure}.svg")).is_file(), "no {figure}.svg");
        let png = std::fs::read(figures.join(format!("{figure}.png"))).unwrap();
        // The width follows the signature and the header's length and name. It is twice the width of the drawing.
        assert!(
            png.starts_with(b"\x89PNG\r\n") && png[16..20] == 1720u32.to_be_bytes(),
            "{figure}.png: {:?}",
            &png[..24]
        );
    }
    for label in
        ["time [s]", "test accuracy [%]", "staleness [updates]", "sent between server and workers [MB]", "class"]
    {
        assert!(html.contains(label), "no axis says `{label}`");
    }
    // Every drawing's opening tag has a closing tag.
    assert_eq!(html.matches("<svg").count(), html.matches("</svg>").count());
    assert!(html.contains("rule = &quot;sync&quot;") && html.contains("kbatchsync:k=2"));
    // The report of a run on a GPU shows the device timeline.
    let mut entries = std::fs::read_dir(folder.join("compare/runs")).unwrap().map(|entry| entry.unwrap().path());
    let run = entries.find(|path| path.join("summary.json").is_file()).unwrap();
    let spans = "gradient,0,0,0,0.002\ngradient,1,0,0.001,0.003\nupdate,0,0,0.002,0.0025\ngradient,2,0,0.005,0.006\nupdate,2,0,0.006,0.007\n";
    std::fs::write(run.join("device.csv"), format!("work,worker,job,began,ended\n{spans}")).unwrap();
    assert!(stagger(&["report", run.to_str().unwrap(), "--out", page_name]).status.success());
    let html = std::fs::read_to_string(&page).unwrap();
    for said in [
        "<figure id=\"device-0\">",
        "time on the device [ms]",
        "5 of the 5 gradients",
        "1.50 were in flight",
        "in 40.0 % of the time",
    ] {
        assert!(html.contains(said), "the timeline of the device does not say {said}");
    }
    let output = stagger(&["report", folder.join("nowhere").to_str().unwrap()]);
    let errors = String::from_utf8_lossy(&output.stderr).to_string();
    assert!(output.status.code() == Some(2) && errors.contains("nowhere holds no finished run"), "{errors}");
}
