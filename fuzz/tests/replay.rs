//! Every committed input through its target, on a stable compiler and without libFuzzer.

use lucid_attention_fuzz::TARGETS;
use std::fs;
use std::path::Path;

#[test]
fn corpora() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (name, target) in TARGETS {
        let directory = fs::read_dir(corpora.join(name)).expect("a corpus for each target");
        let mut files: Vec<_> = directory.map(|entry| entry.expect("a file").path()).collect();
        files.sort();
        assert!(files.len() >= 10, "{name}: only {} inputs", files.len());
        for file in files {
            println!("{}", file.display());
            target(&fs::read(&file).expect("a file"));
        }
    }
}

/// What there is not, and a little of anything.
#[test]
fn short_inputs() {
    for (_, target) in TARGETS {
        target(&[]);
        for byte in [0, 1, 7, 0x7f, 0xff] {
            (1..80).for_each(|len| target(&vec![byte; len]));
        }
    }
}
