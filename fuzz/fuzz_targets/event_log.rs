//! An event log: every event that the reader accepts is consistent.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stagger::record::recorded;

fuzz_target!(|bytes: &[u8]| {
    let file = stagger_fuzz::file("events.jsonl", bytes);
    let Ok(events) = recorded(&file, u64::MAX, 4) else { return };
    for event in events.map_while(|event| event.ok()) {
        assert!(event.worker < 4 && event.staleness <= event.t && event.t <= event.seq + 1);
    }
});
