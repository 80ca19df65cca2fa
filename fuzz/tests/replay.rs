//! Every committed input through its target, on a stable compiler and without libFuzzer.

use lucid_attention_fuzz::{TARGETS, Tally};
use std::fs;
use std::path::Path;

#[test]
fn corpora() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for target in TARGETS {
        let name = target.name;
        let directory = fs::read_dir(corpora.join(name)).expect("a corpus for each target");
        let mut files: Vec<_> = directory.map(|entry| entry.expect("a file").path()).collect();
        files.sort();
        assert!(files.len() >= 10, "{name}: only {} inputs", files.len());
        let mut tally = Tally::default();
        for file in files {
            println!("{}", file.display());
            (target.run)(&fs::read(&file).expect("a file"), &mut tally);
        }
        let compared = tally.outputs + tally.close + tally.same + tally.refused;
        assert!(compared > 0, "{name}: nothing was compared");
        println!("{name}: {tally:?}");
    }
}

/// What there is not, and a little of anything.
#[test]
fn short_inputs() {
    for target in TARGETS {
        for byte in [0, 1, 7, 0x7f, 0xff] {
            (0..80).for_each(|len| (target.run)(&vec![byte; len], &mut Tally::default()));
        }
    }
}
