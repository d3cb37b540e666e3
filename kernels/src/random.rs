//! Counter-based random numbers: each number is a function of a key and a position. Host and device compute
//! the same numbers.
//!
//! There is no generator state, so the batch that worker i draws for its job k does not depend on what any
//! thread did before. The mixing step is MurmurHash3's 32-bit finaliser (Appleby, 2008). It uses 32-bit
//! integer operations only, so it is exact on every backend.

use cubecl::prelude::*;

/// What a key is used for. Each purpose has keys of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// The order in which a worker goes through its partition.
    Order = 1,
    /// The random crops and flips.
    Augment = 2,
}

/// Difference between the keys of two Feistel rounds. If round keys differed in a few bits only, the rounds
/// would be too similar.
const ROUND: u32 = 0x632b_e5ab;

/// One mixing round: combines `hash` and `word`.
pub fn mix(hash: u32, word: u32) -> u32 {
    let mut h = hash.wrapping_add(0x9e37_79b9) ^ word;
    h ^= h >> 16;
    h = h.wrapping_mul(0x85eb_ca6b);
    h ^= h >> 13;
    h = h.wrapping_mul(0xc2b2_ae35);
    h ^ (h >> 16)
}

/// The key of worker `worker` for one purpose.
pub fn key(seed: u64, purpose: Purpose, worker: usize) -> u32 {
    [(seed >> 32) as u32, purpose as u32, worker as u32].into_iter().fold(mix(0, seed as u32), mix)
}

/// Evaluates a pseudo-random permutation of `0..count` at `position`.
///
/// A four-round Feistel network permutes the numbers of the next even number of bits. It is applied until the
/// result is below `count` (cycle walking; fewer than four times on average).
pub fn permute(position: u32, count: u32, key: u32) -> u32 {
    let half = half_bits(count);
    let mask = (1u32 << half) - 1;
    let mut x = position;
    loop {
        let (mut left, mut right) = (x >> half, x & mask);
        for round in 0..4 {
            let round_key = key.wrapping_add(ROUND.wrapping_mul(round));
            (left, right) = (right, left ^ (mix(round_key, right) & mask));
        }
        x = (left << half) | right;
        if x < count {
            return x;
        }
    }
}

/// Half the number of bits of the Feistel domain: the smallest h >= 1 with 4^h >= count.
pub fn half_bits(count: u32) -> u32 {
    (32 - count.saturating_sub(1).leading_zeros()).div_ceil(2).max(1)
}

/// [`mix`] on the device.
#[cube]
pub(crate) fn device_mix(hash: u32, word: u32) -> u32 {
    let a = (hash + 0x9e37_79b9u32) ^ word;
    let b = (a ^ (a >> 16u32)) * 0x85eb_ca6bu32;
    let c = (b ^ (b >> 13u32)) * 0xc2b2_ae35u32;
    c ^ (c >> 16u32)
}

/// One pass of the Feistel network of [`permute`] on the device.
#[cube]
pub(crate) fn device_feistel(x: u32, key: u32, half: u32, mask: u32) -> u32 {
    let l0 = x >> half;
    let r0 = x & mask;
    let r1 = l0 ^ (device_mix(key, r0) & mask);
    let r2 = r0 ^ (device_mix(key + 0x632b_e5abu32, r1) & mask);
    let r3 = r1 ^ (device_mix(key + 0xc657_cb56u32, r2) & mask);
    let r4 = r2 ^ (device_mix(key + 0x2983_b101u32, r3) & mask);
    (r3 << half) | r4
}

/// [`permute`] on the device.
#[cube]
pub(crate) fn device_permute(position: u32, count: u32, key: u32, half: u32) -> u32 {
    let mask = (1u32 << half) - 1u32;
    let mut x = device_feistel(position, key, half, mask);
    while x >= count {
        x = device_feistel(x, key, half, mask);
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn permute_is_a_bijection_of_the_partition(count in 1u32..3000, key: u32) {
            let mut seen = vec![false; count as usize];
            for i in 0..count {
                let j = permute(i, count, key) as usize;
                prop_assert!(!seen[j]);
                seen[j] = true;
            }
        }
    }

    #[test]
    fn different_keys_give_different_orders() {
        let order = |key| (0..100).map(|i| permute(i, 100, key)).collect::<Vec<_>>();
        assert_ne!(order(1), order(2));
        assert_ne!(key(0, Purpose::Order, 1), key(0, Purpose::Augment, 1));
        assert_ne!(key(0, Purpose::Order, 1), key(1 << 32, Purpose::Order, 1));
    }

    #[test]
    fn positions_are_spread_evenly() {
        // Mean position of the first of 1,000 over 4,000 keys: 499.5 with a standard error of 4.6.
        let mean = (0..4000).map(|k| permute(0, 1000, mix(7, k)) as f64).sum::<f64>() / 4000.0;
        assert!((mean - 499.5).abs() < 20.0, "{mean}");
    }
}
