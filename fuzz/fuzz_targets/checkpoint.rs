//! A checkpoint. The input is the length of the manifest in two bytes, the manifest and the state; the target
//! inserts the matching checksum.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};
use stagger_fuzz::{file, scratch};

fuzz_target!(|bytes: &[u8]| {
    let _ = std::fs::create_dir_all(scratch().join("checkpoints/7"));
    let Some((length, rest)) = bytes.split_first_chunk::<2>() else { return };
    let (manifest, state) = rest.split_at((u16::from_le_bytes(*length) as usize).min(rest.len()));
    let sum: String = Sha256::digest(state).iter().map(|b| format!("{b:02x}")).collect();
    let manifest = String::from_utf8_lossy(manifest).replace("CHECKSUM", &sum);
    file("checkpoints/7/manifest.json", manifest.as_bytes());
    file("checkpoints/7/state.safetensors", state);
    if let Ok(checkpoint) = stagger::engine::checkpoint::newest(&scratch()) {
        let _ = checkpoint.tensor("weights", 3);
    }
});
