//! CIFAR-10 and MNIST: the reader rejects any other content in place of one of their files.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stagger_datasets::{cifar10, mnist};
use stagger_fuzz::{file, scratch};

fuzz_target!(|bytes: &[u8]| {
    for name in ["data_batch_1.bin", "train-images-idx3-ubyte.gz"] {
        file(name, bytes);
    }
    assert!(cifar10::load(&scratch()).is_err() && cifar10::verify(&scratch()).is_err());
    assert!(mnist::load(&scratch()).is_err());
});
