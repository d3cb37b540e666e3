//! What can be checked before a run reads data or opens a device.

use super::data;
use crate::config::{ClockChoice, Options, Settings};
use crate::engine::clock::delay::DelayModel;
use crate::error::{Error, Result};
use crate::fault::OnFailure;
use crate::problem::StepKind;
use crate::rule::{Needs, ServerOptimizer, Setting};
use stagger_kernels::Dtype;

/// What a rule is told before the run.
pub fn setting(settings: &Settings, workers: usize) -> Setting {
    // Without a delay model only the virtual clock knows how long a job takes.
    let known = settings.delay != DelayModel::None || settings.clock == ClockChoice::Virtual;
    let seconds = known.then(|| (0..workers).map(|i| settings.delay.mean(settings.seed, i)).collect());
    Setting { workers, seed: settings.seed, lr: settings.lr, seconds }
}

/// Finds what is wrong with a run as far as that is possible without its data or device.
pub fn check(options: &Options) -> Result<()> {
    let settings = options.resolve()?;
    let workers = data::workers_unread(&settings);
    let rule = settings.rule.build(&setting(&settings, workers))?;
    combines(&settings, &rule.needs(), workers)
}

/// Refuses what the rule's mathematics has no place for, with the reason.
pub fn combines(settings: &Settings, needs: &Needs, workers: usize) -> Result<()> {
    let rule = settings.rule.name();
    let refuse =
        |what: &str, why: &str| Err(Error::usage(format!("{what} does not combine with --rule {rule}: {why}")));
    if settings.momentum != 0.0 {
        if needs.mixes {
            return refuse("--momentum", "it mixes models, so the server has no direction that momentum could gather");
        }
        if needs.live {
            return refuse("--momentum", "its workers write the weights themselves, and there is no order to remember");
        }
        if needs.optimizer != ServerOptimizer::Plain {
            return refuse("--momentum", "its server has a momentum of its own (see `stagger rules`)");
        }
    }
    if settings.weight_decay != 0.0 && needs.mixes {
        return refuse(
            "--weight-decay",
            "it mixes models, so there is no step of the server's that weights could decay in",
        );
    }
    if settings.table_dtype != Dtype::F32 && needs.tables == 0 {
        return refuse("--table-dtype bf16", "it keeps no table of gradients");
    }
    if let Some(fault) = settings.faults.0.iter().find(|fault| fault.worker >= workers) {
        return Err(Error::usage(format!("--inject: there is no worker {}; they count from 0", fault.worker)));
    }
    if matches!(settings.step, Some(StepKind::Stacked(_))) {
        if !settings.faults.0.is_empty()
            || settings.policy.timeout.is_some()
            || settings.policy.on_failure != OnFailure::Stop
        {
            return Err(Error::usage(
                "--inject, --worker-timeout and --on-failure are for workers that compute by themselves; leave --step stacked out",
            ));
        }
        if settings.clock == ClockChoice::Wall {
            return Err(Error::usage(
                "--step stacked computes whole groups of workers at once, so they have no time of their own: use --clock virtual",
            ));
        }
        if settings.device_timeline > 0 {
            return Err(Error::usage(
                "--device-timeline tells workers' streams apart, and --step stacked computes many workers in one pass: leave one out",
            ));
        }
        if settings.threads_per_worker.is_some() {
            return Err(Error::usage(
                "--threads-per-worker is for workers that compute by themselves; --step stacked takes all cores: leave it out",
            ));
        }
        if needs.local.walks() {
            return refuse("--step stacked", "its workers take steps of their own between two models");
        }
    }
    if needs.live && settings.clock != ClockChoice::Wall {
        return refuse(
            "--clock virtual or replay",
            "its workers write the weights whenever they can, which no clock can order; use --clock wall",
        );
    }
    Ok(())
}
