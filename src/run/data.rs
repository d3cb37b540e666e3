//! From settings to a problem: reads the data set, divides it among the workers, and builds the model.

use crate::config::{Dataset, Options, Settings};
use crate::error::{Error, Result};
use crate::problem::{self, ImageOptions, Problem, StepKind};
use stagger_datasets::partition::{self, Partition};
use stagger_datasets::{ImageData, cifar10, clusters, default_folder, libsvm, mnist, quadratic, syn, synthetic};
use stagger_kernels::Device;
use stagger_kernels::gather::Augment;
use stagger_kernels::layers::Precision;
use std::path::Path;

/// Training data that was read and checked.
pub enum Data {
    /// Labelled images, or vectors in classes.
    Images {
        /// Name of the data set: `cifar10`, `mnist`, `synthetic` or `clusters`.
        name: &'static str,
        /// The images, as bytes.
        set: ImageData,
    },
    /// Sparse rows with one of two labels.
    Libsvm(libsvm::SparseRows),
    /// The centres of quadratics, one per worker.
    Quadratic(Vec<Vec<f64>>),
}

/// Default number of workers.
const WORKERS: usize = 8;

/// Largest number of workers for Syn(α, β). The data of each takes half a megabyte.
const MOST_OF_SYN: usize = 10_000;

/// Reads the data set.
pub fn read(settings: &Settings) -> Result<Data> {
    let folder = || settings.data.clone().unwrap_or_else(default_folder);
    let cifar10 = |folder: &Path| Ok(Data::Images { name: "cifar10", set: cifar10::load(folder)? });
    let synthetic = || Data::Images { name: "synthetic", set: synthetic::generate(settings.seed) };
    match &settings.dataset {
        Dataset::Cifar10 => cifar10(&folder()),
        Dataset::Mnist => Ok(Data::Images { name: "mnist", set: mnist::load(&folder())? }),
        Dataset::Synthetic => Ok(synthetic()),
        Dataset::Clusters => Ok(Data::Images { name: "clusters", set: clusters::generate(settings.seed) }),
        Dataset::Syn(alpha, beta) => {
            let workers = settings.workers.unwrap_or(WORKERS);
            if workers > MOST_OF_SYN {
                return Err(Error::usage(format!("--workers {workers}: --dataset syn allows at most {MOST_OF_SYN}")));
            }
            Ok(Data::Libsvm(syn::generate(*alpha, *beta, workers, settings.seed)))
        }
        Dataset::Libsvm(file) => Ok(Data::Libsvm(libsvm::load(file)?)),
        Dataset::Quadratic(file) => Ok(Data::Quadratic(quadratic::load(file)?)),
        // A folder given by --data must contain the data set. Only the default folder may be empty.
        Dataset::Auto if settings.data.is_some() || cifar10::find(&folder()).is_some() => cifar10(&folder()),
        Dataset::Auto => {
            say!("*** CIFAR-10 is not in {}/: training on the built-in SYNTHETIC set instead. ***", folder().display());
            say!("*** `stagger data fetch` downloads CIFAR-10; --data DIR names another folder. ***");
            Ok(synthetic())
        }
    }
}

/// Number of workers: the value of `--workers`, or the number that the data determines.
///
/// # Errors
///
/// If `--workers` is larger than the number of training samples, or differs from the number of centres.
pub fn workers(settings: &Settings, data: &Data) -> Result<usize> {
    // Checked before anything is allocated per worker.
    let at_most = |samples: usize| match settings.workers.unwrap_or(WORKERS) {
        n if n > samples => Err(Error::usage(format!(
            "--workers {n}: there are only {samples} training samples, and every worker needs one"
        ))),
        n => Ok(n),
    };
    match data {
        Data::Quadratic(centres) => match settings.workers {
            Some(n) if n != centres.len() => {
                let have = centres.len();
                Err(Error::usage(format!(
                    "--workers {n}: the file has {have} centres, one per worker; leave --workers out or give {have}"
                )))
            }
            _ => Ok(centres.len()),
        },
        Data::Images { set, .. } => at_most(set.train.labels.len()),
        Data::Libsvm(rows) => at_most(rows.len()),
    }
}

/// Number of workers, as far as it is known without reading the data. Only the file of a quadratic is read.
pub fn workers_unread(settings: &Settings) -> usize {
    let read = match &settings.dataset {
        Dataset::Quadratic(file) => quadratic::load(file).ok().map(|centres| centres.len()),
        _ => None,
    };
    read.or(settings.workers).unwrap_or(WORKERS)
}

/// Checks that the files of the data set exist, which takes less time than reading them.
///
/// # Errors
///
/// The error of reading the data set, if a file does not exist.
pub fn is_there(settings: &Settings) -> Result<()> {
    let folder = || settings.data.clone().unwrap_or_else(default_folder);
    let absent = match &settings.dataset {
        Dataset::Quadratic(file) | Dataset::Libsvm(file) => !file.is_file(),
        Dataset::Cifar10 => cifar10::find(&folder()).is_none(),
        _ => false,
    };
    // The error of reading names what is missing.
    if absent { read(settings).map(drop) } else { Ok(()) }
}

/// Reads the complete data set that `options` name. Returns a description of its size.
pub fn read_whole(options: &Options) -> Result<String> {
    Ok(match read(&options.resolve()?)? {
        Data::Images { set, .. } => {
            let (train, test) = (set.train.labels.len(), set.test.labels.len());
            format!("{train} training and {test} test images of {}x{s}x{s}", set.channels, s = set.side)
        }
        Data::Libsvm(rows) => format!("{} rows of dimension {}", rows.len(), rows.dimension),
        Data::Quadratic(centres) => format!("{} centres of dimension {}", centres.len(), centres[0].len()),
    })
}

/// Describes the data set that `options` name, and the part of each worker, in lines of text.
pub fn who_holds_what(options: &Options) -> Result<Vec<String>> {
    let settings = options.resolve()?;
    let data = read(&settings)?;
    let workers = workers(&settings, &data)?;
    let problem = build(&settings, data, workers, &Device::Cpu, &mut options.clone())?;
    let mut lines = problem.description;
    if let Some((classes, held)) = problem.held {
        // All workers are listed here; a run lists only the first ones.
        lines.truncate(1);
        lines.extend(partition::table(&held, &classes, held.len()));
    }
    Ok(lines)
}

/// Builds the problem. Writes the settings that the data determines to `resolved`.
pub fn build(
    settings: &Settings,
    data: Data,
    workers: usize,
    device: &Device,
    resolved: &mut Options,
) -> Result<Problem> {
    check_data(settings, &data, device, resolved)?;
    let init = settings.init.unwrap_or(0.0);
    match data {
        Data::Quadratic(centres) => {
            resolved.model = Some(only_model(settings, "quadratic")?);
            Ok(problem::quadratic(device, centres, init))
        }
        Data::Libsvm(rows) => {
            resolved.model = Some(only_model(settings, "logreg")?);
            let partition = settings.partition.clone().unwrap_or(Partition::Blocks);
            resolved.partition = Some(partition.to_string());
            let Settings { batch, regularizer, seed, .. } = *settings;
            problem::libsvm(device, rows, workers, &partition, batch, regularizer, init, seed)
        }
        Data::Images { name, set } => build_images(settings, name, set, workers, device, resolved),
    }
}

/// The model of a data set for which there is only one.
fn only_model(settings: &Settings, only: &str) -> Result<String> {
    match settings.model.as_deref() {
        Some(model) if model != only => {
            Err(Error::usage(format!("--model {model} does not fit this data set; it needs {only}")))
        }
        _ => Ok(only.to_string()),
    }
}

/// Refuses settings that do not apply to the data or the device.
fn check_data(settings: &Settings, data: &Data, device: &Device, resolved: &Options) -> Result<()> {
    let is_images = matches!(data, Data::Images { .. });
    if !matches!(data, Data::Libsvm(_)) && settings.regularizer != problem::Regularizer::None {
        return Err(Error::usage("--regularizer is for libsvm data; images have --weight-decay"));
    }
    if !is_images && settings.precision != Precision::F32 {
        return Err(Error::usage("--precision is for the networks on images: this objective is computed in f32"));
    }
    if !settings.precision.is_supported(device) {
        return Err(Error::usage(format!(
            "--precision {}: this device cannot compute in this format on {}; leave it out",
            resolved.precision.as_deref().unwrap_or_default(),
            device.name()
        )));
    }
    if !is_images && settings.validation.is_some() {
        return Err(Error::usage("--validation is for images: this data set is evaluated on its training objective"));
    }
    if !is_images && settings.test_samples.is_some() {
        return Err(Error::usage("--test-samples is for images: this data set is evaluated on its training objective"));
    }
    if !is_images && matches!(settings.step, Some(StepKind::Stacked(_))) {
        return Err(Error::usage(
            "--step stacked is for the networks on images: this objective has no launches to share",
        ));
    }
    Ok(())
}

/// Builds a classification problem on images, or on vectors in classes.
fn build_images(
    settings: &Settings,
    name: &'static str,
    mut set: ImageData,
    workers: usize,
    device: &Device,
    resolved: &mut Options,
) -> Result<Problem> {
    if let Some(held_out) = settings.validation {
        set.hold_out(held_out).map_err(|have| {
            Error::usage(format!(
                "--validation {held_out}: there are only {have} training images, and some must remain"
            ))
        })?;
    }
    set.test.truncate(settings.test_samples.unwrap_or(usize::MAX));
    let partition = settings.partition.clone().unwrap_or(Partition::Iid);
    let is_vectors = name == "clusters";
    let model = settings.model.clone().unwrap_or_else(|| if is_vectors { "mlp" } else { "cnn" }.into());
    if is_vectors && ["cnn", "resnet18"].contains(&model.as_str()) {
        return Err(Error::usage(format!(
            "--model {model} needs images, and --dataset clusters contains vectors; use mlp or logreg"
        )));
    }
    if let Some(augment) = settings.augment.as_ref().filter(|augment| is_vectors && *augment != "none") {
        return Err(Error::usage(format!(
            "--augment {augment} moves pixels, and --dataset clusters contains vectors; leave it out"
        )));
    }
    let default = if name == "cifar10" { "crop-flip" } else { "none" };
    let augment = settings.augment.clone().unwrap_or_else(|| default.into());
    resolved.dataset = Some(name.into());
    resolved.partition = Some(partition.to_string());
    resolved.model = Some(model.clone());
    resolved.augment = Some(augment.clone());
    let augment = Augment { pad: if augment == "none" { 0 } else { 4 }, flip: augment == "crop-flip" };
    let options = ImageOptions {
        model: &model,
        workers,
        partition: &partition,
        batch: settings.batch,
        seed: settings.seed,
        augment,
        step: StepKind::on(settings.step, device)?,
        precision: settings.precision,
    };
    let mut problem = problem::images(device, set, &options)?;
    if let Some(value) = settings.init {
        problem.initial.fill(value);
    }
    Ok(problem)
}
