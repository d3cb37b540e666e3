//! Promise 22: any content of a configuration, an event log, a checkpoint or a data file is read or refused.
//! Readers do not panic, and take no more memory than the file has.
//! `STAGGER_FUZZ=100000 cargo test --release --test readers_never_panic` tries more cases.

mod common;

use common::{scratch, train};
use rand_chacha::rand_core::RngCore;
use stagger::config::Options;
use stagger_datasets::{cifar10, keyed, libsvm, mnist, quadratic};
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

/// Number of changed copies for each file.
fn cases() -> u64 {
    std::env::var("STAGGER_FUZZ").ok().and_then(|n| n.parse().ok()).unwrap_or(300)
}

/// Text that occurs in such files, so that changed files are often almost valid.
const WORDS: [&[u8]; 19] = [
    b"0",
    b"-1",
    b"1e999",
    b"nan",
    b"18446744073709551615",
    b"\"",
    b"{",
    b"}",
    b"[",
    b":",
    b",",
    b"\n",
    b"=",
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"null",
    b"1.7e308",
    b"-1e308",
    b"\x01",
];

/// Makes one to six random changes to a valid file.
fn changed(bytes: &[u8], key: u64) -> Vec<u8> {
    let mut random = keyed([key, 0x66757a7a, 0, 0]);
    let mut bytes = bytes.to_vec();
    for _ in 0..1 + random.next_u32() % 6 {
        let at = random.next_u64() as usize % (bytes.len() + 1);
        let to = (at + random.next_u32() as usize % 9).min(bytes.len());
        match random.next_u32() % 4 {
            0 => bytes.truncate(at),
            1 => _ = bytes.splice(at..to, WORDS[random.next_u32() as usize % WORDS.len()].iter().copied()),
            2 => bytes.iter_mut().skip(at).take(1).for_each(|b| *b = random.next_u32() as u8),
            _ => {
                let piece = bytes[at..to].to_vec();
                _ = bytes.splice(at..at, piece);
            }
        }
    }
    bytes
}

/// Writes changed copies of `good` to the file `name` and reads them with `read`, which returns whether the
/// file was accepted.
fn feed(name: &str, good: &[u8], read: impl Fn(&Path) -> bool + std::panic::RefUnwindSafe) {
    let folder = scratch("fuzz");
    let file = folder.join(name);
    std::fs::write(&file, good).unwrap();
    assert!(read(&file), "{name}: the valid file is refused");
    let mut refused = 0;
    for key in 0..cases() {
        let bytes = changed(good, key);
        std::fs::write(&file, &bytes).unwrap();
        match catch_unwind(|| read(&file)) {
            Ok(was_read) => refused += !was_read as u64,
            Err(_) => {
                let kept = common::scratch("panic").file(name);
                std::fs::write(&kept, &bytes).unwrap();
                panic!("{name}: case {key} panics; the file is kept in {}", kept.display());
            }
        }
    }
    assert!(refused > 0, "{name}: no changed file is refused");
}

#[test]
fn changed_data_files_do_not_panic() {
    feed("rows.txt", b"+1 1:0.5 3:1e-3 7:2\n-1 2:1 4:0.25\n+1 1:1\n-1 7:1\n", |file| libsvm::load(file).is_ok());
    feed("centres.csv", b"0,1.5\n3,-6e0\n-6,2\n", |file| quadratic::load(file).is_ok());
    // The other readers look for files with fixed names and sizes.
    let idx: Vec<u8> = [2049u32, 10_000].iter().flat_map(|w| w.to_be_bytes()).chain([3; 10_000]).collect();
    let folder = scratch("sets");
    for key in 0..cases() {
        std::fs::write(folder.join("t10k-labels-idx1-ubyte"), changed(&idx, key)).unwrap();
        std::fs::write(folder.join("train-images-idx3-ubyte.gz"), changed(&idx, key + 1)).unwrap();
        std::fs::write(folder.join("data_batch_1.bin"), changed(&idx, key)).unwrap();
        assert!(mnist::load(&folder).is_err() && cifar10::load(&folder).is_err());
    }
}

#[test]
fn changed_configurations_do_not_panic() {
    let good = b"rule = \"dude:c=2\"\nworkers = 4\nlr = 0.05\nbatch = 32\ndelay = \"exp:1,2\"\npartition = \"dirichlet:0.1\"\nclip = 1.0\n";
    feed("config.toml", good, |file| {
        Options::layered(&Options::default(), Some(file), &[]).and_then(|options| options.resolve()).is_ok()
    });
}

#[test]
fn changed_timelines_do_not_panic() {
    let good = b"work,worker,job,began,ended\ngradient,0,0,0.000000000,0.000125000\nupdate,0,0,0.000130000,0.000131000\ngradient,1,0,0.000010000,0.000140000\n";
    feed("device.csv", good, |file| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        stagger::record::device_spans(&text, 2).map(|spans| stagger::record::Occupancy::of(&spans)).is_ok()
    });
}

#[test]
fn changed_logs_and_checkpoints_do_not_panic() {
    let run = train("--rule dude --dataset clusters --workers 2 --clock virtual --backend cpu --updates 30 --batch 2");
    let log = std::fs::read(run.join("events.jsonl")).unwrap();
    feed("events.jsonl", &log, |file| match stagger::record::recorded(file, u64::MAX, 2) {
        Ok(mut events) => events.all(|event| event.is_ok()),
        Err(_) => false,
    });
    let folder = std::fs::read_dir(run.join("checkpoints")).unwrap().next().unwrap().unwrap().path();
    let manifest = std::fs::read(folder.join("manifest.json")).unwrap();
    let state = std::fs::read(folder.join("state.safetensors")).unwrap();
    let newest = |_: &Path| stagger::engine::checkpoint::newest(&run).is_ok();
    assert!(newest(&run));
    let mut refused = 0;
    for key in 0..cases() {
        // A wrong checksum would hide the damage from the reader, so the manifest gets the checksum of the
        // damaged state.
        let (bytes, named) = if key % 2 == 0 {
            (state.clone(), changed(&manifest, key))
        } else {
            (changed(&state, key), manifest.clone())
        };
        std::fs::write(folder.join("state.safetensors"), &bytes).unwrap();
        let sum: String = <sha2::Sha256 as sha2::Digest>::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
        let named = String::from_utf8_lossy(&named).into_owned();
        let old = named.split("\"sha256\": \"").nth(1).and_then(|rest| rest.get(..64)).map(String::from);
        let named = if key % 2 == 1 { named.replace(&old.unwrap(), &sum) } else { named };
        std::fs::write(folder.join("manifest.json"), named).unwrap();
        let found = catch_unwind(std::panic::AssertUnwindSafe(|| {
            stagger::engine::checkpoint::newest(&run).map(|c| c.tensor("weights", 5).is_ok())
        }));
        refused += found.unwrap_or_else(|_| panic!("case {key} panics")).is_err() as u64;
    }
    assert!(refused > 0, "no changed checkpoint is refused");
}

/// A logarithmic axis cannot show a gradient norm that is always zero.
#[test]
fn report_of_a_zero_gradient_is_written() {
    let file = common::centres_at("1\n-1\n");
    let run = train(&format!(
        "--rule sync --dataset quadratic:{} --init const:0 --clock virtual --backend cpu --updates 9 --eval-every 1",
        file.display()
    ));
    let page = run.join("page.html");
    let (folders, figures) = (vec![run.to_path_buf()], Some(page.with_file_name("figures")));
    stagger::report::report(&stagger::report::ReportOptions { folders, out: page, figures, target: None }).unwrap();
}

/// Reports on run folders with changed files.
#[test]
fn reports_on_changed_run_folders_do_not_panic() {
    let run = train(
        "--rule asgd --dataset clusters --workers 3 --partition dirichlet:0.3 --clock virtual --backend cpu --updates 30 --batch 2 --eval-every 10",
    );
    let page = scratch("page").file("page.html");
    let figures = page.with_file_name("figures");
    let reported = |figures: Option<&PathBuf>| {
        let (folders, out, figures) = (vec![run.to_path_buf()], page.to_path_buf(), figures.cloned());
        stagger::report::report(&stagger::report::ReportOptions { folders, out, figures, target: None })
    };
    let report = || reported(None);
    reported(Some(&figures)).unwrap();
    for name in ["summary.json", "config.toml", "metrics.csv", "events.jsonl", "partition.csv"] {
        let good = std::fs::read(run.join(name)).unwrap();
        let mut refused = 0;
        for key in 0..cases() {
            let bytes = changed(&good, key);
            std::fs::write(run.join(name), &bytes).unwrap();
            // Writing the figures takes longer.
            let figures = Some(&figures).filter(|_| key % 30 == 0);
            match catch_unwind(std::panic::AssertUnwindSafe(|| reported(figures))) {
                Ok(result) => refused += result.is_err() as u64,
                Err(_) => panic!("{name}: case {key} panics: {}", String::from_utf8_lossy(&bytes)),
            }
        }
        std::fs::write(run.join(name), &good).unwrap();
        assert!(refused > 0 || name == "partition.csv", "{name}: no changed file is refused");
    }
    // Numbers that would take more memory than the machine has, and text that a browser would execute.
    let with = |name: &str, from: &str, to: &str| {
        let good = std::fs::read_to_string(run.join(name)).unwrap();
        assert!(good.contains(from), "{name} has no {from}");
        std::fs::write(run.join(name), good.replacen(from, to, 1)).unwrap();
        let result = report();
        std::fs::write(run.join(name), good).unwrap();
        result.map_err(|e| e.to_string())
    };
    let refused = with("summary.json", "\"workers\": 3", "\"workers\": 1000000000000000").unwrap_err();
    assert!(refused.contains("summary.json") && refused.contains("workers"), "{refused}");
    // Numbers for which an axis would search for marks without end are refused, or not shown.
    let log = std::fs::read_to_string(run.join("events.jsonl")).unwrap();
    let time = log.split("\"time\":").nth(1).unwrap().split(',').next().unwrap();
    assert!(with("events.jsonl", &format!("\"time\":{time}"), "\"time\":1.7e308").unwrap_err().contains("time"));
    let metrics = std::fs::read_to_string(run.join("metrics.csv")).unwrap();
    let last = metrics.lines().last().unwrap();
    let (cells, header): (Vec<&str>, Vec<&str>) =
        (last.split(',').collect(), metrics.lines().next().unwrap().split(',').collect());
    for (k, name) in header.iter().enumerate().skip(1) {
        for huge in ["1.7e308", "-1.7e308"] {
            let mut cells = cells.clone();
            cells[k] = huge;
            assert_eq!(with("metrics.csv", last, &cells.join(",")).is_err(), *name == "time", "{name} {huge}");
        }
    }
    for name in ["metrics.csv", "summary.json", "events.jsonl"] {
        let kept = run.join("kept");
        std::fs::rename(run.join(name), &kept).unwrap();
        std::os::unix::fs::symlink("/dev/zero", run.join(name)).unwrap();
        assert!(report().is_err(), "{name} without an end is accepted");
        std::fs::rename(&kept, run.join(name)).unwrap();
    }
    for (from, to) in [("\"t\":1", "\"t\":1000000000000000"), ("\"staleness\":0", "\"staleness\":1000000000000000")] {
        let refused = with("events.jsonl", from, to).unwrap_err();
        assert!(refused.contains("line") && refused.contains("no run has"), "{refused}");
    }
    for (name, from) in
        [("config.toml", "dirichlet:0.3"), ("summary.json", "dirichlet:0.3"), ("partition.csv", "worker,")]
    {
        with(name, from, &format!("{}<script>alert(1)</script>", from)).unwrap();
        let html = std::fs::read_to_string(&page).unwrap();
        assert!(!html.contains("<script"), "text of {name} becomes a script");
    }
}
