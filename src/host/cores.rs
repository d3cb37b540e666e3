//! The two cores that the host's part of a GPU run keeps to: one for the threads that submit, one for the thread that issues.
//!
//! Every launch is handed from the one to the other, and what it names is given back that way, so how far apart they lie decides
//! what a step costs the host: in a virtual machine whose cores came to lie in one complex and in two, by turns, 3,500 and 2,000 eager
//! steps a second were made (`docs/history.md`). All of it is best effort: nothing depends on it.

use core_affinity::{CoreId, get_core_ids, set_for_current};
use std::sync::OnceLock;

/// Keeps this thread on the one core that all submitting threads of a GPU run share.
///
/// Only one of them works at a time (the gate has one permit), and what they touch is alike, so together they find a warm
/// cache; the thread of the runtime that issues the launches keeps another core to itself. On two cores, eight workers on
/// the null driver: 250 steps a second without, 380 with (`docs/history.md`).
pub fn submit_here() {
    keep_to(|[submits, _]| submits);
}

/// Keeps this thread on the core beside that: for the thread of the runtime that issues a GPU's launches.
pub fn issue_here() {
    keep_to(|[_, issues]| issues);
}

fn keep_to(which: fn([usize; 2]) -> usize) {
    // Asked once: threads that keep to a core are told of that one alone.
    static PAIR: OnceLock<Option<[usize; 2]>> = OnceLock::new();
    let chosen = PAIR.get_or_init(|| {
        let ids: Vec<usize> = get_core_ids().unwrap_or_default().into_iter().map(|core| core.id).collect();
        // Not the same cores for every process. Numbers of processes that are started in turn go up in equal steps, so they are mixed
        // first: else one of two kinds of run would always be on the core that something else disturbs, and be told as the slower one.
        let mixed = (std::process::id().wrapping_mul(0x9e37_79b9) >> 16) as usize;
        pair(&ids, mixed, told_by_linux)
    });
    if let Some(pair) = *chosen {
        set_for_current(CoreId { id: which(pair) });
    }
}

/// Whom a core shares something with, as lists of cores; empty where it is not known.
#[derive(PartialEq, Eq)]
struct Shares {
    /// Its arithmetic: the hardware threads of one core.
    units: String,
    /// Its last cache.
    cache: String,
}

fn told_by_linux(id: usize) -> Shares {
    let list =
        |file: &str| std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu{id}/{file}")).unwrap_or_default();
    Shares { units: list("topology/thread_siblings_list"), cache: list("cache/index3/shared_cpu_list") }
}

/// The `nth` core, and the next behind it that shares its last cache but not its arithmetic, or at least not that.
fn pair(ids: &[usize], nth: usize, shares: impl Fn(usize) -> Shares) -> Option<[usize; 2]> {
    let first = *ids.get(nth % ids.len().max(1))?;
    let of_first = shares(first);
    let others = (1..ids.len()).map(|step| ids[(nth % ids.len() + step) % ids.len()]);
    let far = |id: &usize| {
        let of_id = shares(*id);
        (!of_id.units.is_empty() && of_id.units == of_first.units, of_id.cache != of_first.cache)
    };
    Some([first, others.min_by_key(far)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Eight hardware threads, two of each core, two cores of each cache.
    fn small(id: usize) -> Shares {
        Shares { units: format!("{}", id / 2), cache: format!("{}", id / 4) }
    }

    #[test]
    fn a_pair_shares_a_cache_and_no_core() {
        let all: Vec<usize> = (0..8).collect();
        for nth in 0..20 {
            let [a, b] = pair(&all, nth, small).unwrap();
            assert!(a == nth % 8 && a / 4 == b / 4 && a / 2 != b / 2, "{a} and {b}");
        }
    }

    #[test]
    fn with_fewer_cores_the_nearest_that_are_there() {
        assert_eq!(pair(&[0, 1, 6], 0, small), Some([0, 6]), "another cache before the same core");
        assert_eq!(pair(&[2, 3], 1, small), Some([3, 2]), "the same core before none");
        assert_eq!(pair(&[5], 3, small), None);
        assert_eq!(pair(&[], 3, small), None);
    }

    #[test]
    fn where_nothing_is_known_the_next_core() {
        let unknown = |_| Shares { units: String::new(), cache: String::new() };
        assert_eq!(pair(&[0, 1, 2], 5, unknown), Some([2, 0]));
    }
}
