//! The same bits whatever the workspace served before, the threads, and the level that fuses.

use crate::{DIMS, Vectors, filled, projected};
use lucid_attention::module::*;
use lucid_attention::titans::lucidia::*;
use lucid_attention::titans::*;
use lucid_attention::{Level, PlanOptions};

/// What all three variants give, for every focus, after 51 steps.
fn outputs(level: Level, max_threads: usize, identity: bool, workspace: &mut TitansWorkspace) -> Vec<u32> {
    let plan = PlanOptions { level: Some(level), max_threads: Some(max_threads), ..PlanOptions::default() };
    let attention = |value: usize| {
        if identity {
            return HistoryAttention::Identity { heads: 4, plan };
        }
        let (config, weights) = projected(InputDims { query: DIMS.query, key: DIMS.key, value }, value);
        let options = ModuleOptions { plan, ..ModuleOptions::default() };
        MultiHeadAttention::with_options(config, &weights, options).expect("valid parts").into()
    };
    let mac = Mac::new(attention(DIMS.y), DIMS).expect("valid parts");
    let gates = DenseGates::initial(DIMS.key).expect("a size");
    let mag = Mag::new(attention(DIMS.key), gates, DIMS).expect("valid parts");
    let mal = Mal::new(attention(DIMS.value), DIMS).expect("valid parts");
    let (mut context, _) = filled(DIMS, 51);
    let now = Vectors::new(DIMS, 1000);
    let current = context.begin(now.step(0.0, "now")).expect("a valid step");
    let mut all = Vec::new();
    for focus in Focus::ALL {
        let hints = Some(Hints { focus, ..Hints::default() });
        let (mut y, mut v) = (vec![0.0; DIMS.y], vec![0.0; DIMS.value]);
        let metrics =
            mac.process_input(&current, &now.y, hints.as_ref(), &mut y, workspace).expect("a valid call");
        all.extend(y.iter().chain(workspace.weights()).map(|x| x.to_bits()));
        all.push(metrics.attention_weights_entropy.expect("a history").to_bits());
        let (_, metrics) = mag.process_input(&current, hints.as_ref(), workspace).expect("a valid call");
        all.push(metrics.attention_norm.expect("a history").to_bits());
        mal.process_input(&current, hints.as_ref(), &mut v, workspace).expect("a valid call");
        all.extend(v.iter().map(|x| x.to_bits()));
    }
    all
}

#[test]
fn the_same_bits() {
    for identity in [true, false] {
        let mut fused = None;
        for level in Level::available() {
            let fresh = outputs(level, 1, identity, &mut TitansWorkspace::new());
            let mut used = TitansWorkspace::new();
            outputs(level, 1, !identity, &mut used);
            assert_eq!(outputs(level, 1, identity, &mut used), fresh, "{level}: a used workspace");
            assert_eq!(outputs(level, 2, identity, &mut used), fresh, "{level}: threads");
            if level.is_fused() {
                assert_eq!(*fused.get_or_insert_with(|| fresh.clone()), fresh, "{level}: levels that fuse");
            }
        }
    }
}
