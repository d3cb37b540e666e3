//! Pins the host threads of a GPU run to two cores: one for the threads that submit launches, one for the
//! thread that issues them.
//!
//! Every launch is passed from the first core to the second, and its resources are passed back. The distance
//! between the two cores therefore determines what a step costs the host. In a virtual machine whose two cores
//! were at times in the same core complex and at times in different ones, a run made 3,500 and 2,000 eager
//! steps per second (`docs/history.md`). Pinning is best effort: no result depends on it.

use core_affinity::{CoreId, get_core_ids, set_for_current};
use std::sync::OnceLock;

/// Pins this thread to the core that all submitting threads of a GPU run share.
///
/// Only one of these threads works at a time, because the gate has one permit. They use similar data, so on one
/// core they share a warm cache. The thread of the runtime that issues the launches has another core for
/// itself. On two cores, eight workers on the null driver made 250 steps per second without pinning and 380
/// with it (`docs/history.md`).
pub fn submit_here() {
    pin_to(|[submits, _]| submits);
}

/// Pins this thread to the second core. For the thread of the runtime that issues a GPU's launches.
pub fn issue_here() {
    pin_to(|[_, issues]| issues);
}

fn pin_to(which: fn([usize; 2]) -> usize) {
    // Read once, because a pinned thread sees only its own core.
    static PAIR: OnceLock<Option<[usize; 2]>> = OnceLock::new();
    let chosen = PAIR.get_or_init(|| {
        let ids: Vec<usize> = get_core_ids().unwrap_or_default().into_iter().map(|core| core.id).collect();
        // Processes use different cores. The ids of processes that are started one after another grow in equal
        // steps, so they are hashed first. Otherwise, in a comparison of two kinds of run, one kind could
        // always get a core that another program disturbs, and would look slower.
        let mixed = (std::process::id().wrapping_mul(0x9e37_79b9) >> 16) as usize;
        pair(&ids, mixed, read_from_sysfs)
    });
    if let Some(pair) = *chosen {
        set_for_current(CoreId { id: which(pair) });
    }
}

/// The cores with which a core shares hardware, as lists in the format of Linux. A list is empty if it is not
/// known.
#[derive(PartialEq, Eq)]
struct Shares {
    /// Cores that share the execution units: the hardware threads of one physical core.
    units: String,
    /// Cores that share the last-level cache.
    cache: String,
}

fn read_from_sysfs(id: usize) -> Shares {
    let list =
        |file: &str| std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu{id}/{file}")).unwrap_or_default();
    Shares { units: list("topology/thread_siblings_list"), cache: list("cache/index3/shared_cpu_list") }
}

/// Returns the `nth` core of `ids` (modulo their number) and a second core: the next one that shares the
/// last-level cache but not the execution units. If there is none, it takes a core with other execution units,
/// and then any other core.
fn pair(ids: &[usize], nth: usize, shares: impl Fn(usize) -> Shares) -> Option<[usize; 2]> {
    let first = *ids.get(nth % ids.len().max(1))?;
    let of_first = shares(first);
    let others = (1..ids.len()).map(|step| ids[(nth % ids.len() + step) % ids.len()]);
    let distance = |id: &usize| {
        let of_id = shares(*id);
        (!of_id.units.is_empty() && of_id.units == of_first.units, of_id.cache != of_first.cache)
    };
    Some([first, others.min_by_key(distance)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Eight hardware threads: two per physical core, and two physical cores per cache.
    fn topology(id: usize) -> Shares {
        Shares { units: format!("{}", id / 2), cache: format!("{}", id / 4) }
    }

    #[test]
    fn pair_shares_a_cache_but_no_physical_core() {
        let all: Vec<usize> = (0..8).collect();
        for nth in 0..20 {
            let [a, b] = pair(&all, nth, topology).unwrap();
            assert!(a == nth % 8 && a / 4 == b / 4 && a / 2 != b / 2, "{a} and {b}");
        }
    }

    #[test]
    fn few_cores_give_the_nearest_core() {
        assert_eq!(pair(&[0, 1, 6], 0, topology), Some([0, 6]), "another cache is better than the same physical core");
        assert_eq!(pair(&[2, 3], 1, topology), Some([3, 2]), "the same physical core is better than no second core");
        assert_eq!(pair(&[5], 3, topology), None);
        assert_eq!(pair(&[], 3, topology), None);
    }

    #[test]
    fn unknown_topology_gives_the_next_core() {
        let unknown = |_| Shares { units: String::new(), cache: String::new() };
        assert_eq!(pair(&[0, 1, 2], 5, unknown), Some([2, 0]));
    }
}
