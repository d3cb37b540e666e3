//! The state in a checkpoint: which buffers it holds, saving and restoring.

use super::State;
use crate::engine::checkpoint::{Checkpoint, Counts, Tensors};
use crate::error::{Error, Result};
use stagger_kernels::{Buffer, Device, copy};

impl State {
    /// All buffers that a checkpoint holds, each with its name there. The ring of losses is not one of them:
    /// the server reads it before it saves.
    fn buffers(&mut self) -> Vec<(String, &mut Buffer)> {
        let mut all: Vec<(String, &mut Buffer)> = vec![("weights".into(), &mut self.snapshot.weights)];
        let sums = self.sums.iter_mut().enumerate();
        all.extend(sums.map(|(k, sum)| (format!("sum/{k}"), sum)));
        for (k, table) in self.tables.iter_mut().enumerate() {
            all.extend(table.iter_mut().enumerate().map(|(i, row)| (format!("table/{k}/{i}"), row.words())));
        }
        all.extend(self.base.iter_mut().map(|base| ("base".into(), base)));
        let squares = self.squares.iter_mut().enumerate();
        all.extend(squares.map(|(i, square)| (format!("square/{i}"), square)));
        let own = self.own.iter_mut().enumerate();
        all.extend(own.map(|(i, own)| (format!("own/{i}"), &mut own.weights)));
        all.extend(self.optimizer.buffers());
        all
    }

    /// Returns the state for a checkpoint, with the models of `jobs`. The caller has folded all pending
    /// gradients.
    ///
    /// Buffers that are written in place are copied, unless the run ends here (`last`). Published models are
    /// not copied, because they are never written again (I2).
    pub fn save(&mut self, jobs: Vec<(String, Buffer)>, last: bool) -> Result<(Counts, Tensors)> {
        debug_assert!(self.pending.is_empty(), "pending gradients are folded before a checkpoint");
        self.catch_up();
        let counts = Counts { arrivals: self.arrivals, since: self.optimizer.since(), counted: self.counted.clone() };
        let device = self.device.clone();
        let published = |name: &str| name == "weights" || name.starts_with("own/");
        let own = self.buffers().into_iter().map(|(name, buffer)| (last || published(&name), name, buffer.clone()));
        let all: Vec<_> = own.chain(jobs.into_iter().map(|(name, buffer)| (true, name, buffer))).collect();
        let on_host = |(shared, name, buffer): (bool, String, Buffer)| {
            if shared || matches!(device, Device::Gpu(_)) {
                return Ok((name, device.on_host(&buffer)?));
            }
            let mut own = device.uninitialised(buffer.len());
            copy(&device, &buffer, &mut own);
            Ok((name, own))
        };
        Ok((counts, all.into_iter().map(on_host).collect::<Result<_>>()?))
    }

    /// Restores the state from a checkpoint. The version is not restored: the replay of the log sets it.
    ///
    /// # Errors
    ///
    /// If a buffer is missing in the checkpoint or has another length, or the checkpoint's table has another
    /// number of rows.
    pub fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let device = self.device.clone();
        for (name, buffer) in self.buffers() {
            *buffer = device.upload(checkpoint.tensor(&name, buffer.len())?.to_vec());
        }
        let Counts { arrivals, since, counted } = checkpoint.manifest.counts.clone();
        if counted.len() != self.counted.len() {
            return Err(Error::usage("the checkpoint does not fit the run: its table has another number of rows"));
        }
        (self.arrivals, self.counted) = (arrivals, counted);
        self.optimizer.set_since(since);
        Ok(())
    }
}
