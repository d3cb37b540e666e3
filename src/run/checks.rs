//! Checks of a run that need neither its data nor its device.

use super::data;
use crate::config::{ClockChoice, Options, Settings};
use crate::engine::clock::delay::DelayModel;
use crate::error::{Error, Result};
use crate::fault::OnFailure;
use crate::problem::StepKind;
use crate::rule::{Needs, ServerOptimizer, Setting};
use stagger_kernels::Dtype;

/// The facts about a run that its rule may use.
pub fn setting(settings: &Settings, workers: usize) -> Setting {
    // Without a delay model, job times are known only under the virtual clock.
    let known = settings.delay != DelayModel::None || settings.clock == ClockChoice::Virtual;
    let seconds = known.then(|| (0..workers).map(|i| settings.delay.mean(settings.seed, i)).collect());
    Setting { workers, seed: settings.seed, lr: settings.lr, seconds }
}

/// Checks the options of a run, as far as this is possible without its data and device.
pub fn check(options: &Options) -> Result<()> {
    let settings = options.resolve()?;
    let workers = data::workers_unread(&settings);
    let rule = settings.rule.build(&setting(&settings, workers))?;
    combines(&settings, &rule.needs(), workers)
}

/// Refuses settings that cannot be combined with the rule or with each other.
pub fn combines(settings: &Settings, needs: &Needs, workers: usize) -> Result<()> {
    check_momentum(settings, needs)?;
    check_weight_decay(settings, needs)?;
    check_table(settings, needs)?;
    check_faults(settings, workers)?;
    check_stacked(settings, needs)?;
    check_clock(settings, needs)
}

/// The error of a flag that does not combine with the rule.
fn refused(settings: &Settings, flag: &str, why: &str) -> Result<()> {
    let rule = settings.rule.name();
    Err(Error::usage(format!("{flag} does not combine with --rule {rule}: {why}")))
}

fn check_momentum(settings: &Settings, needs: &Needs) -> Result<()> {
    if settings.momentum == 0.0 {
        return Ok(());
    }
    if needs.mixes {
        return refused(
            settings,
            "--momentum",
            "it mixes models, so the server has no direction that momentum could accumulate",
        );
    }
    if needs.live {
        return refused(
            settings,
            "--momentum",
            "its workers write the weights themselves, and these writes have no order",
        );
    }
    if needs.optimizer != ServerOptimizer::Plain {
        return refused(settings, "--momentum", "its server has a momentum of its own (see `stagger rules`)");
    }
    Ok(())
}

fn check_weight_decay(settings: &Settings, needs: &Needs) -> Result<()> {
    if settings.weight_decay != 0.0 && needs.mixes {
        return refused(
            settings,
            "--weight-decay",
            "it mixes models, so the server makes no step that could decay the weights",
        );
    }
    Ok(())
}

fn check_table(settings: &Settings, needs: &Needs) -> Result<()> {
    if settings.table_dtype != Dtype::F32 && needs.tables == 0 {
        return refused(settings, "--table-dtype bf16", "it keeps no table of gradients");
    }
    Ok(())
}

fn check_faults(settings: &Settings, workers: usize) -> Result<()> {
    if let Some(fault) = settings.faults.0.iter().find(|fault| fault.worker >= workers) {
        return Err(Error::usage(format!(
            "--inject: there is no worker {}; the {workers} workers are numbered from 0",
            fault.worker
        )));
    }
    Ok(())
}

fn check_stacked(settings: &Settings, needs: &Needs) -> Result<()> {
    if !matches!(settings.step, Some(StepKind::Stacked(_))) {
        return Ok(());
    }
    let has_faults = !settings.faults.0.is_empty();
    let handles_failures = settings.policy.timeout.is_some() || settings.policy.on_failure != OnFailure::Stop;
    if has_faults || handles_failures {
        return Err(Error::usage(
            "--inject, --worker-timeout and --on-failure are for workers that compute separately; leave --step stacked \
             out",
        ));
    }
    if settings.clock == ClockChoice::Wall {
        return Err(Error::usage(
            "--step stacked computes several workers in one pass, so they have no real time of their own: use --clock \
             virtual",
        ));
    }
    if settings.device_timeline > 0 {
        return Err(Error::usage(
            "--device-timeline shows the streams of single workers, and --step stacked computes several workers in one \
             pass: leave one of them out",
        ));
    }
    if settings.threads_per_worker.is_some() {
        return Err(Error::usage(
            "--threads-per-worker is for workers that compute separately; --step stacked uses all cores: leave it out",
        ));
    }
    if needs.local.walks() {
        return refused(settings, "--step stacked", "its workers take steps of their own between two models");
    }
    Ok(())
}

fn check_clock(settings: &Settings, needs: &Needs) -> Result<()> {
    if needs.live && settings.clock != ClockChoice::Wall {
        return refused(
            settings,
            "--clock virtual or replay",
            "its workers write the weights at any time, in an order that no clock determines; use --clock wall",
        );
    }
    Ok(())
}
