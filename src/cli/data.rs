//! `stagger data`.

use crate::config::Options;
use crate::console::print;
use crate::error::{Error, Result};
use crate::run::data::{read_whole, who_holds_what};
use stagger_datasets::{cifar10, default_folder};
use std::path::PathBuf;

/// The subcommands of `data`.
#[derive(clap::Subcommand)]
pub(super) enum Data {
    /// Download CIFAR-10 (170 MB), check it and unpack it; an interrupted download is resumed
    Fetch {
        /// Folder for the data set [default: datasets]
        #[arg(long, value_name = "DIR")]
        data: Option<PathBuf>,
        /// URL of the archive
        #[arg(long, default_value = cifar10::URL)]
        url: String,
    },
    /// Check a data set: sizes and SHA-256 checksums of CIFAR-10; for other sets, that every record can be read
    Verify {
        /// Folder of the data set [default: datasets]
        #[arg(long, value_name = "DIR")]
        data: Option<PathBuf>,
        /// Data set, as for `train`
        #[arg(long, default_value = "cifar10")]
        dataset: String,
    },
    /// Show how the samples are divided among the workers
    Describe {
        /// Folder of the data set [default: datasets]
        #[arg(long, value_name = "DIR")]
        data: Option<PathBuf>,
        /// Data set, as for `train`
        #[arg(long, default_value = "cifar10")]
        dataset: String,
        /// Partition, as for `train` [default: iid, blocks for libsvm]
        #[arg(long)]
        partition: Option<String>,
        /// Number of workers [default: 8, or the number of centres of a quadratic]
        #[arg(long, value_name = "N")]
        workers: Option<usize>,
        /// Random seed
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
}

/// Runs `stagger data`.
pub(super) fn data(command: Data) -> Result<()> {
    match command {
        Data::Fetch { data, url } => {
            let folder = data.unwrap_or_else(default_folder);
            let bar = indicatif::ProgressBar::new(0).with_style(
                indicatif::ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left")
                    .expect("a valid template"),
            );
            let target = cifar10::fetch(&url, &folder, |have, all| {
                bar.set_length(all);
                bar.set_position(have);
            })
            .map_err(|e| Error::failed(e.0))?;
            bar.finish_and_clear();
            say!("CIFAR-10 is in {}; `cargo run --release -- train` finds it there.", target.display());
            Ok(())
        }
        Data::Verify { data, dataset } if dataset == "cifar10" => {
            lines(&cifar10::verify(&data.unwrap_or_else(default_folder))?)
        }
        Data::Verify { data, dataset } => {
            let size = read_whole(&Options { data, dataset: Some(dataset.clone()), ..Options::default() })?;
            lines(&[format!("{dataset}: ok, {size}")])
        }
        Data::Describe { data, dataset, partition, workers, seed } => {
            let dataset = Some(dataset);
            let options = Options { data, dataset, partition, workers, seed: Some(seed), ..Options::default() };
            lines(&who_holds_what(&options)?)
        }
    }
}

fn lines(lines: &[String]) -> Result<()> {
    print((lines.join("\n") + "\n").as_bytes())
}
