//! What shapes scores.

use lucid_attention::DType::{self, F16, F32};

/// Where the queries stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    TopLeft,
    BottomRight,
    At(i64),
    /// Somewhere else in each sequence.
    PerSequence,
}

/// Everything that shapes scores; flags stand for data drawn from the seed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rules {
    pub start: Option<Start>,
    pub ragged: bool,
    pub causal: bool,
    /// Implies `causal`.
    pub prefix: bool,
    pub left: Option<usize>,
    pub right: Option<usize>,
    pub last_n: Option<usize>,
    pub kv_lens: bool,
    pub documents: bool,
    pub intervals: bool,
    /// Layouts of blocks, drawn for sequences and heads.
    pub blocks: bool,
    /// A dense mask that allows this share of keys.
    pub allowed: Option<f64>,
    /// A dense bias stored like this, one entry in ten -inf.
    pub bias: Option<DType>,
    pub alibi: bool,
    pub softcap: Option<f32>,
    pub sinks: bool,
    pub scale: Option<f32>,
}

impl Rules {
    /// Full attention.
    pub const NONE: Rules = Rules {
        start: None,
        ragged: false,
        causal: false,
        prefix: false,
        left: None,
        right: None,
        last_n: None,
        kv_lens: false,
        documents: false,
        intervals: false,
        blocks: false,
        allowed: None,
        bias: None,
        alibi: false,
        softcap: None,
        sinks: false,
        scale: None,
    };

    /// Causal, the last query at the last key.
    pub const CAUSAL: Rules = Rules { causal: true, start: Some(Start::BottomRight), ..Rules::NONE };

    /// A few that between them take every way through the kernels.
    pub const FEW: [Rules; 6] = [
        Rules::NONE,
        Rules::CAUSAL,
        Rules { left: Some(20), right: Some(3), start: Some(Start::TopLeft), ..Rules::NONE },
        Rules { allowed: Some(0.5), ..Rules::NONE },
        Rules { bias: Some(F32), sinks: true, ..Rules::CAUSAL },
        Rules { softcap: Some(2.0), alibi: true, kv_lens: true, start: Some(Start::At(5)), ..Rules::NONE },
    ];

    /// Changes to rules, one for each thing that can be asked for.
    pub const OPTIONS: [fn(&mut Rules); 23] = [
        |rules| rules.start = Some(Start::TopLeft),
        |rules| rules.start = Some(Start::BottomRight),
        |rules| rules.start = Some(Start::At(-3)),
        |rules| rules.start = Some(Start::PerSequence),
        |rules| rules.ragged = true,
        |rules| rules.causal = true,
        |rules| rules.prefix = true,
        |rules| rules.left = Some(9),
        |rules| rules.right = Some(4),
        |rules| rules.last_n = Some(6),
        |rules| rules.kv_lens = true,
        |rules| rules.documents = true,
        |rules| rules.intervals = true,
        |rules| rules.blocks = true,
        |rules| rules.allowed = Some(0.0),
        |rules| rules.allowed = Some(0.5),
        |rules| rules.allowed = Some(0.99),
        |rules| rules.bias = Some(F32),
        |rules| rules.bias = Some(F16),
        |rules| rules.alibi = true,
        |rules| rules.softcap = Some(1.5),
        |rules| rules.sinks = true,
        |rules| rules.scale = Some(-0.4),
    ];
}
