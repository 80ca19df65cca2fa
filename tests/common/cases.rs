//! Cases: plain descriptions of calls, the operands they stand for, and the calls themselves.
//!
//! A [`Case`] is a few numbers and flags and a seed; it prints as the Rust expression that makes it again. All data
//! follows from it: values, lengths, boundaries, masks. [`Case::operands`] makes them, in the layout the case names and
//! in memory that ends or begins at an inaccessible page if asked; [`run`] makes the call.

use super::guard::Guarded;
use half::{bf16, f16};
use lucid_attention::DType::{self, Bf16, F16, F32};
use lucid_attention::{
    Element, Inputs, Intervals, KeyPanels, Keys, Level, Mask, Outputs, Plan, PlanOptions, Problem,
    QueryStart, Ragged, ScoreStage, Scores, Span, View, ViewMut,
};
use std::ops::{Deref, DerefMut, Range, RangeInclusive};

/// The levels to test: all that are available, among them those that `LUCID_TEST_LEVELS` names (`avx2,avx512`).
pub fn levels() -> Vec<Level> {
    let levels: Vec<Level> = Level::available().collect();
    for name in std::env::var("LUCID_TEST_LEVELS").iter().flat_map(|names| names.split(',')) {
        let level = Level::from_name(name).expect("LUCID_TEST_LEVELS names levels");
        assert!(levels.contains(&level), "LUCID_TEST_LEVELS names {level}, which cannot run here");
    }
    levels
}

/// Runs `$body` with `$q` and `$t` as the types that `$types` names.
#[macro_export]
macro_rules! with_types {
    ($types:expr, $q:ident, $t:ident => $body:expr) => {{
        use half::{bf16, f16};
        use lucid_attention::DType::{Bf16, F16, F32};
        macro_rules! arm {
            ($first:ty, $second:ty) => {{
                type $q = $first;
                type $t = $second;
                $body
            }};
        }
        match $types {
            [F32, F32] => arm!(f32, f32),
            [F32, F16] => arm!(f32, f16),
            [F32, Bf16] => arm!(f32, bf16),
            [F16, F32] => arm!(f16, f32),
            [F16, F16] => arm!(f16, f16),
            [F16, Bf16] => arm!(f16, bf16),
            [Bf16, F32] => arm!(bf16, f32),
            [Bf16, F16] => arm!(bf16, f16),
            [Bf16, Bf16] => arm!(bf16, bf16),
            #[allow(unreachable_patterns, reason = "the crate's own tests know that there is no other")]
            other => panic!("a new storage type: {other:?}"),
        }
    }};
}

/// All pairs of storage types: of queries and output, of keys and values.
pub const TYPES: [[DType; 2]; 9] = [
    [F32, F32],
    [F16, F16],
    [Bf16, Bf16],
    [F32, F16],
    [F32, Bf16],
    [F16, F32],
    [Bf16, F32],
    [F16, Bf16],
    [Bf16, F16],
];

/// Query heads and KV heads.
pub const RATIOS: [[usize; 2]; 7] = [[1, 1], [2, 1], [3, 3], [6, 2], [8, 1], [28, 4], [48, 2]];

/// A small generator (splitmix64): the same numbers everywhere.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    pub fn between(&mut self, range: RangeInclusive<usize>) -> usize {
        range.start() + (self.bits() % (range.end() - range.start() + 1) as u64) as usize
    }

    pub fn chance(&mut self, probability: f64) -> bool {
        ((self.bits() >> 11) as f64) < probability * (1u64 << 53) as f64
    }

    pub fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.between(0..=list.len() - 1)]
    }

    /// In -1..1.
    pub fn uniform(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    }

    /// Close to normal: four uniforms.
    pub fn normal(&mut self) -> f32 {
        let bits = self.bits();
        let sum: u64 = (0..4).map(|part| bits >> (16 * part) & 0xffff).sum();
        (sum as f32 / 65536.0 - 2.0) * 1.732
    }

    /// Ascending bounds from 0 to `len`, `parts + 1` of them.
    fn bounds(&mut self, parts: usize, len: usize) -> Vec<usize> {
        let mut bounds: Vec<usize> = (1..parts).map(|_| self.between(0..=len)).collect();
        bounds.extend([0, len]);
        bounds.sort_unstable();
        bounds
    }
}

/// How operands lie in memory. What lies between their elements is NaN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    HeadMajor,
    TokenMajor,
    /// Gaps between rows, heads and batches.
    Gaps,
    /// As parts of one packed projection, `[batch, token, q_heads + 2 kv_heads, dim]`.
    Packed,
    /// One key and value for all heads of KV and all batches: stride 0.
    SharedHeads,
    /// One key and value for all tokens: stride 0.
    SharedTokens,
    /// Keys in panels, the rest head-major.
    Panels,
}

pub const STORAGES: [Storage; 7] = [
    Storage::HeadMajor,
    Storage::TokenMajor,
    Storage::Gaps,
    Storage::Packed,
    Storage::SharedHeads,
    Storage::SharedTokens,
    Storage::Panels,
];

/// What the numbers look like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Values {
    /// Normal, with logits of about this size.
    Spread(f32),
    /// Two different keys, values of one sign: the maximum is shared by half of all keys.
    Ties,
    /// One key: all logits are the same.
    Equal,
    /// Keys and values that are unit vectors.
    OneHot,
    /// Each key's logit is above those before it: the maximum rises in every tile.
    Increasing,
    /// And below.
    Decreasing,
    /// Values of +-1000 that cancel.
    Cancelling,
    /// Subnormal products and values.
    Subnormal,
    /// Values near the largest finite number.
    Huge,
    /// Logits that overflow `f32` (if not stored as f16).
    Overflow,
}

pub const VALUES: [Values; 12] = [
    Values::Spread(1.0),
    Values::Spread(30.0),
    Values::Spread(300.0),
    Values::Ties,
    Values::Equal,
    Values::OneHot,
    Values::Increasing,
    Values::Decreasing,
    Values::Cancelling,
    Values::Subnormal,
    Values::Huge,
    Values::Overflow,
];

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
    pub const OPTIONS: [fn(&mut Rules); 22] = [
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

/// A call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Case {
    pub seed: u64,
    /// Of queries and output, of keys and values.
    pub types: [DType; 2],
    pub batch: usize,
    /// Query heads, KV heads.
    pub heads: [usize; 2],
    pub q_len: usize,
    pub kv_len: usize,
    pub head_dim: usize,
    pub v_dim: usize,
    pub storage: Storage,
    pub values: Values,
    pub rules: Rules,
}

impl Default for Case {
    fn default() -> Self {
        Case {
            seed: 1,
            types: [F32, F32],
            batch: 1,
            heads: [1, 1],
            q_len: 7,
            kv_len: 37,
            head_dim: 8,
            v_dim: 8,
            storage: Storage::HeadMajor,
            values: Values::Spread(1.0),
            rules: Rules::NONE,
        }
    }
}

impl Case {
    /// Any case: a little of everything, seldom large.
    pub fn random(seed: u64) -> Case {
        let rng = &mut Rng::new(seed);
        let size = |rng: &mut Rng, small: usize, large: usize| {
            if rng.chance(0.8) { rng.between(0..=small) } else { rng.between(0..=large) }
        };
        let ratios = if rng.chance(0.8) { &RATIOS[..4] } else { &RATIOS };
        let mut case = Case {
            seed,
            types: rng.pick(&TYPES),
            batch: if rng.chance(0.6) { 1 } else { rng.between(0..=3) },
            heads: rng.pick(ratios),
            q_len: size(rng, 12, 110),
            kv_len: size(rng, 70, 1100),
            head_dim: size(rng, 20, 130).max(1),
            v_dim: size(rng, 20, 130),
            storage: rng.pick(&STORAGES),
            values: if rng.chance(0.5) { Values::Spread(1.0) } else { rng.pick(&VALUES) },
            rules: Rules::NONE,
        };
        for _ in 0..rng.between(0..=4) {
            rng.pick(&Rules::OPTIONS)(&mut case.rules);
        }
        let most = 400_000;
        while case.work() > most && case.batch > 1 {
            case.batch = 1;
        }
        while case.work() > most && case.q_len > 1 {
            case.q_len /= 2;
        }
        if case.work() > most {
            case.heads = [1, 1];
        }
        case.possible()
    }

    /// Multiply-adds.
    pub fn work(&self) -> usize {
        self.batch * self.heads[0] * self.q_len * self.kv_len * (self.head_dim + self.v_dim)
    }

    /// The same but for what contradicts itself.
    pub fn possible(mut self) -> Case {
        if self.rules.ragged {
            self.batch = 1;
            if self.storage == Storage::Panels {
                self.storage = Storage::Gaps;
            }
        }
        // Lengths may differ within a ragged batch: positions then have to be said.
        if self.rules.start.is_none() && (self.rules.ragged || self.q_len != self.kv_len) {
            self.rules.start = Some(Start::BottomRight);
        }
        self
    }

    /// Makes the data.
    pub fn operands<Q: Element, T: Element>(&self, place: Place) -> Operands<Q, T> {
        let &Case { batch, heads: [q_heads, kv_heads], q_len, kv_len, head_dim, v_dim, rules, .. } = self;
        let rng = &mut Rng::new(self.seed ^ 0x1234_5678_9abc_def0);
        let sequences = if rules.ragged { rng.between(1..=4) } else { batch };
        let (q_bounds, kv_bounds) = if rules.ragged {
            (rng.bounds(sequences, q_len), rng.bounds(sequences, kv_len))
        } else {
            (vec![0, q_len], vec![0, kv_len])
        };
        let longest = |bounds: &[usize]| bounds.windows(2).map(|b| b[1] - b[0]).max().unwrap_or(0);
        let (longest_q, longest_kv) = (longest(&q_bounds), longest(&kv_bounds));
        let keys_of = |s: usize| {
            if rules.ragged { kv_bounds[s]..kv_bounds[s + 1] } else { 0..kv_len }
        };
        let kv_lens: Vec<usize> = (0..sequences).map(|s| rng.between(0..=keys_of(s).len())).collect();
        let prefix: Vec<usize> = (0..sequences).map(|_| rng.between(0..=longest_kv)).collect();
        let reach = (longest_q + longest_kv) as i64;
        let starts = (0..sequences).map(|_| rng.between(0..=2 * reach as usize) as i64 - reach).collect();
        let first = rng.between(0..=2);
        let documents = rng.bounds(4, longest_kv + 2).into_iter().map(|bound| bound + first).collect();

        let interval_shape = [rng.pick(&[1, sequences]), rng.pick(&[1, q_heads]), longest_q];
        let (mut offsets, mut spans) = (vec![0], Vec::new());
        for _ in 0..interval_shape.iter().product() {
            let count = rng.between(0..=3);
            let ends = rng.bounds(2 * count + 1, longest_kv + 1);
            spans.extend(ends[1..].chunks_exact(2).map(|ends| Span { start: ends[0], end: ends[1] }));
            offsets.push(spans.len());
        }

        let dense = |rng: &mut Rng| {
            [sequences, q_heads, longest_q, longest_kv].map(|n| if rng.chance(0.3) { 1 } else { n })
        };
        let allowed = rules.allowed.map(|share| {
            let shape = dense(rng);
            Operand::new(shape, contiguous(shape), place, false, |_| rng.chance(share))
        });
        let bias = rules.bias.map(|dtype| {
            let shape = dense(rng);
            // A last stride above 1 is legal for biases.
            let step = rng.pick(&[1, 1, 2]);
            let strides = contiguous(shape).map(|stride| stride * step);
            let number = |rng: &mut Rng| if rng.chance(0.1) { f32::NEG_INFINITY } else { rng.normal() };
            match dtype {
                F32 => Bias::F32(Operand::new(shape, strides, place, f32::NAN, |_| number(rng))),
                F16 => {
                    Bias::F16(Operand::new(shape, strides, place, f16::NAN, |_| f16::from_f32(number(rng))))
                }
                _ => Bias::Bf16(Operand::new(shape, strides, place, bf16::NAN, |_| {
                    bf16::from_f32(number(rng))
                })),
            }
        });
        let slopes = (0..q_heads).map(|_| rng.uniform().abs()).collect();
        let sinks = (0..q_heads).map(|_| rng.normal()).collect();

        let number = Numbers { case: self, q: Q::DTYPE, kv: T::DTYPE };
        // Keys and values past the key length must not matter; with stride 0 they are those before it, too.
        let shared = matches!(self.storage, Storage::SharedHeads | Storage::SharedTokens);
        let slack = |b: usize, t: usize| {
            let dead = |s: usize| keys_of(s).contains(&t) && t - keys_of(s).start >= kv_lens[s];
            rules.kv_lens && !shared && if rules.ragged { (0..sequences).any(dead) } else { dead(b) }
        };
        let [q_shape, k_shape, v_shape] = [
            [batch, q_heads, q_len, head_dim],
            [batch, kv_heads, kv_len, head_dim],
            [batch, kv_heads, kv_len, v_dim],
        ];
        let packed = q_heads + 2 * kv_heads;
        let q_strides = strides(self.storage, q_shape, packed);
        let nan = (Q::from_f32(f32::NAN), T::from_f32(f32::NAN));
        let q = Operand::new(q_shape, q_strides, place, nan.0, |_| Q::from_f32(number.q(rng)));
        let shared_strides = |shape| {
            let [b, h, t, d] = strides(self.storage, shape, packed);
            match self.storage {
                Storage::SharedHeads => [0, 0, t, d],
                Storage::SharedTokens => [b, h, 0, d],
                _ => [b, h, t, d],
            }
        };
        let mut keys = number.keys();
        let k = Operand::new(k_shape, shared_strides(k_shape), place, nan.1, |[b, _, t, d]| {
            if slack(b, t) { nan.1 } else { T::from_f32(keys.next(rng, t, d)) }
        });
        let v = Operand::new(v_shape, shared_strides(v_shape), place, nan.1, |[b, _, t, d]| {
            if slack(b, t) { nan.1 } else { T::from_f32(number.v(rng, t, d)) }
        });
        let panels = (self.storage == Storage::Panels)
            .then(|| KeyPanels::from_rows(k.view(), kv_len).expect("panels of these keys"));
        Operands {
            rules,
            q,
            k,
            v,
            panels,
            q_bounds,
            kv_bounds,
            kv_lens,
            prefix,
            starts,
            documents,
            interval_shape,
            offsets,
            spans,
            allowed,
            bias,
            slopes,
            sinks,
        }
    }
}

/// The numbers of a family.
struct Numbers<'a> {
    case: &'a Case,
    q: DType,
    kv: DType,
}

/// The numbers of keys.
struct KeyNumbers<'a> {
    numbers: &'a Numbers<'a>,
    /// Two keys to choose from.
    pattern: Vec<f32>,
}

impl Numbers<'_> {
    fn q(&self, rng: &mut Rng) -> f32 {
        match self.case.values {
            Values::Spread(spread) => rng.normal() * spread,
            Values::Increasing | Values::Decreasing => 1.0 + 0.01 * rng.normal(),
            Values::Subnormal if self.q == F16 => rng.normal() * 1e-4,
            Values::Subnormal => rng.normal() * 1e-20,
            Values::Overflow if self.q == F16 => rng.normal() * 18000.0,
            Values::Overflow => rng.normal() * 1e20,
            _ => rng.normal(),
        }
    }

    fn keys(&self) -> KeyNumbers<'_> {
        let mut rng = Rng::new(self.case.seed ^ 0x5555);
        KeyNumbers { numbers: self, pattern: (0..2 * self.case.head_dim).map(|_| rng.normal()).collect() }
    }

    fn v(&self, rng: &mut Rng, t: usize, d: usize) -> f32 {
        let largest = if self.kv == F16 { 65504.0 } else { 3.3e38 };
        match self.case.values {
            Values::Ties => rng.uniform().abs() + 0.5,
            Values::OneHot => f32::from(u8::from(d == t % self.case.v_dim)),
            Values::Cancelling => (if t.is_multiple_of(2) { 1000.0 } else { -1000.0 }) + rng.normal(),
            Values::Subnormal if self.kv == F16 => rng.normal() * 1e-6,
            Values::Subnormal => rng.normal() * 1e-39,
            Values::Huge => rng.uniform() * largest,
            _ => rng.normal(),
        }
    }
}

impl KeyNumbers<'_> {
    fn next(&mut self, rng: &mut Rng, t: usize, d: usize) -> f32 {
        let Numbers { case, kv, .. } = *self.numbers;
        let step = t as f32 * (1.0 / 8.0);
        match case.values {
            Values::Ties => self.pattern[t % 2 * case.head_dim + d],
            Values::Equal => self.pattern[d],
            Values::OneHot => 8.0 * f32::from(u8::from(d == t % case.head_dim)),
            Values::Increasing => step,
            Values::Decreasing => -step,
            Values::Cancelling => 0.1 * rng.normal(),
            Values::Subnormal if kv == F16 => rng.normal() * 1e-5,
            Values::Subnormal => rng.normal() * 1e-20,
            Values::Overflow if kv == F16 => rng.normal() * 18000.0,
            Values::Overflow => rng.normal() * 1e20,
            _ => rng.normal(),
        }
    }
}

/// Strides of a contiguous array.
fn contiguous([_, heads, tokens, dim]: [usize; 4]) -> [usize; 4] {
    [heads * tokens * dim, tokens * dim, dim, 1]
}

/// Strides of an operand; `packed` is the number of heads in a packed projection.
fn strides(storage: Storage, shape: [usize; 4], packed: usize) -> [usize; 4] {
    let [_, heads, tokens, dim] = shape;
    match storage {
        Storage::TokenMajor => [tokens * heads * dim, dim, heads * dim, 1],
        Storage::Packed => [tokens * packed * dim, dim, packed * dim, 1],
        Storage::Gaps => {
            let row = dim + 3;
            let head = tokens * row + 5;
            [heads * head + 1, head, row, 1]
        }
        _ => contiguous(shape),
    }
}

/// Where memory comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Heap,
    /// Followed by an inaccessible page.
    AtEnd,
    /// Preceded by one.
    AtStart,
}

/// A slice somewhere.
#[derive(Debug)]
pub enum Memory<T> {
    Heap(Vec<T>),
    Guarded(Guarded<T>),
}

impl<T: Copy> Memory<T> {
    pub fn new(values: Vec<T>, place: Place) -> Self {
        match place {
            Place::Heap => Memory::Heap(values),
            Place::AtEnd => Memory::Guarded(Guarded::new_at_end(&values)),
            Place::AtStart => Memory::Guarded(Guarded::new_at_start(&values)),
        }
    }
}

impl<T> Deref for Memory<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Memory::Heap(values) => values,
            Memory::Guarded(values) => values,
        }
    }
}

impl<T> DerefMut for Memory<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match self {
            Memory::Heap(values) => values,
            Memory::Guarded(values) => values,
        }
    }
}

/// Values with a shape and strides.
#[derive(Debug)]
pub struct Operand<T> {
    pub data: Memory<T>,
    pub shape: [usize; 4],
    pub strides: [usize; 4],
}

impl<T: Copy> Operand<T> {
    /// `value(index)` inside the shape, `gap` between.
    pub fn new(
        shape: [usize; 4],
        strides: [usize; 4],
        place: Place,
        gap: T,
        mut value: impl FnMut([usize; 4]) -> T,
    ) -> Self {
        let reach = (0..4).map(|axis| shape[axis].saturating_sub(1) * strides[axis]).sum::<usize>() + 1;
        let mut data = vec![gap; if shape.contains(&0) { 0 } else { reach }];
        for_each_index(shape, |index| data[offset(index, strides)] = value(index));
        Operand { data: Memory::new(data, place), shape, strides }
    }

    pub fn view(&self) -> View<'_, T> {
        View::with_strides(&self.data, self.shape, self.strides).expect("strides that fit the buffer")
    }

    /// The elements in the order of the shape.
    pub fn gather(&self) -> Vec<T> {
        let mut values = Vec::new();
        for_each_index(self.shape, |index| values.push(self.data[offset(index, self.strides)]));
        values
    }
}

fn offset(index: [usize; 4], strides: [usize; 4]) -> usize {
    (0..4).map(|axis| index[axis] * strides[axis]).sum()
}

/// Calls `visit` for every index of a shape, in order.
pub fn for_each_index([batch, heads, tokens, dim]: [usize; 4], mut visit: impl FnMut([usize; 4])) {
    for b in 0..batch {
        for h in 0..heads {
            for t in 0..tokens {
                for d in 0..dim {
                    visit([b, h, t, d]);
                }
            }
        }
    }
}

#[derive(Debug)]
enum Bias {
    F32(Operand<f32>),
    F16(Operand<f16>),
    Bf16(Operand<bf16>),
}

/// The data of a case.
#[derive(Debug)]
pub struct Operands<Q: Element, T: Element> {
    pub rules: Rules,
    pub q: Operand<Q>,
    pub k: Operand<T>,
    pub v: Operand<T>,
    pub panels: Option<KeyPanels<T>>,
    pub q_bounds: Vec<usize>,
    pub kv_bounds: Vec<usize>,
    pub kv_lens: Vec<usize>,
    pub prefix: Vec<usize>,
    pub starts: Vec<i64>,
    documents: Vec<usize>,
    interval_shape: [usize; 3],
    offsets: Vec<usize>,
    spans: Vec<Span>,
    pub allowed: Option<Operand<bool>>,
    bias: Option<Bias>,
    slopes: Vec<f32>,
    sinks: Vec<f32>,
}

impl<Q: Element, T: Element> Operands<Q, T> {
    pub fn mask(&self) -> Mask<'_> {
        self.mask_with(&self.kv_lens, self.allowed.as_ref().map(Operand::view))
    }

    /// The mask with other key lengths and another dense part, where it has them.
    pub fn mask_with<'a>(&'a self, lens: &'a [usize], allowed: Option<View<'a, bool>>) -> Mask<'a> {
        let Rules { causal, prefix, left, right, last_n, kv_lens, documents, intervals, .. } = self.rules;
        let mut mask = match (prefix, causal) {
            (true, _) => Mask::prefix_lm(&self.prefix),
            (false, true) => Mask::causal(),
            (false, false) => Mask::NONE,
        };
        mask = mask.window(left, right);
        if let Some(n) = last_n {
            mask = mask.last_n_keys(n);
        }
        if kv_lens {
            mask = mask.kv_lens(lens);
        }
        if documents {
            mask = mask.documents(&self.documents);
        }
        if intervals {
            let list = Intervals::new(self.interval_shape, &self.offsets, &self.spans);
            mask = mask.intervals(list.expect("sorted spans"));
        }
        allowed.map_or(mask, |allowed| mask.allowed(allowed))
    }

    pub fn inputs(&self) -> Inputs<'_, Q, T> {
        let keys = match &self.panels {
            Some(panels) => Keys::Panels(panels),
            None => Keys::Rows(self.k.view()),
        };
        self.inputs_with(self.q.view(), keys, self.v.view())
    }

    /// The same call with other operands.
    pub fn inputs_with<'a>(
        &'a self,
        q: View<'a, Q>,
        keys: impl Into<Keys<'a, T>>,
        v: View<'a, T>,
    ) -> Inputs<'a, Q, T> {
        let mut inputs = self.options(Inputs::new(q, keys, v).mask(self.mask()));
        if let Some(start) = self.rules.start {
            inputs = inputs.q_start(match start {
                Start::TopLeft => QueryStart::TopLeft,
                Start::BottomRight => QueryStart::BottomRight,
                Start::At(start) => QueryStart::At(start),
                Start::PerSequence => QueryStart::PerSequence(&self.starts),
            });
        }
        if self.rules.ragged {
            inputs = inputs.ragged(Ragged { q_bounds: &self.q_bounds, kv_bounds: &self.kv_bounds });
        }
        match &self.bias {
            None => inputs,
            Some(Bias::F32(bias)) => inputs.bias(bias.view()),
            Some(Bias::F16(bias)) => inputs.bias(bias.view()),
            Some(Bias::Bf16(bias)) => inputs.bias(bias.view()),
        }
    }

    /// Only these queries, where they stood, against other keys. For one sequence, and without intervals.
    pub fn inputs_of<'a>(&'a self, queries: Range<usize>, keys: impl Into<Keys<'a, T>>) -> Inputs<'a, Q, T> {
        assert!(self.q.shape[0] == 1 && !self.rules.ragged && !self.rules.intervals, "a plain sequence");
        let keys = keys.into();
        let [_, _, q_len, _] = self.q.shape;
        let kv_len = if self.rules.kv_lens { self.kv_lens[0] } else { self.k.shape[2] };
        let first = match self.rules.start {
            None | Some(Start::TopLeft) => 0,
            Some(Start::BottomRight) => kv_len as i64 - q_len as i64,
            Some(Start::At(start)) => start,
            Some(Start::PerSequence) => self.starts[0],
        };
        let v = slice(&self.v, 0..keys.shape()[2]);
        let allowed = self.allowed.as_ref().map(|allowed| rows_of(allowed, queries.clone()));
        let mask = self.mask_with(&self.kv_lens, allowed);
        let inputs = self.options(Inputs::new(slice(&self.q, queries.clone()), keys, v).mask(mask));
        let inputs = inputs.q_start(QueryStart::At(first + queries.start as i64));
        match &self.bias {
            None => inputs,
            Some(Bias::F32(bias)) => inputs.bias(rows_of(bias, queries)),
            Some(Bias::F16(bias)) => inputs.bias(rows_of(bias, queries)),
            Some(Bias::Bf16(bias)) => inputs.bias(rows_of(bias, queries)),
        }
    }

    /// Adds what is neither a mask nor depends on the query's index.
    pub fn options<'a>(&'a self, mut inputs: Inputs<'a, Q, T>) -> Inputs<'a, Q, T> {
        let rules = self.rules;
        if let Some(scale) = rules.scale {
            inputs = inputs.scale(scale);
        }
        if let Some(cap) = rules.softcap {
            inputs = inputs.softcap(cap);
        }
        if rules.alibi {
            inputs = inputs.alibi(&self.slopes);
        }
        if rules.sinks {
            inputs = inputs.sinks(&self.sinks);
        }
        inputs
    }
}

/// Some rows of a mask or bias, all of them where one stands for all.
fn rows_of<T: Copy>(mask: &Operand<T>, rows: Range<usize>) -> View<'_, T> {
    if mask.shape[2] == 1 { mask.view() } else { slice(mask, rows) }
}

/// Some tokens of an operand.
pub fn slice<T: Copy>(operand: &Operand<T>, tokens: Range<usize>) -> View<'_, T> {
    let Operand { shape: [batch, heads, _, dim], strides, .. } = *operand;
    let shape = [batch, heads, tokens.len(), dim];
    let data = if shape.contains(&0) { &[][..] } else { &operand.data[tokens.start * strides[2]..] };
    View::with_strides(data, shape, strides).expect("a part of the operand")
}

/// How a call is made, and what is asked for besides the output.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    pub level: Level,
    pub threads: usize,
    pub lse: bool,
    pub row_max: bool,
    pub stage: Option<ScoreStage>,
    /// Query heads and rows to ask scores of; all if not given.
    pub heads: Option<&'a [usize]>,
    pub rows: Option<&'a [usize]>,
    pub storage: Storage,
    pub place: Place,
}

impl Ask<'_> {
    /// The output and nothing else, on one thread.
    pub fn at(level: Level) -> Self {
        Ask {
            level,
            threads: 1,
            lse: false,
            row_max: false,
            stage: None,
            heads: None,
            rows: None,
            storage: Storage::HeadMajor,
            place: Place::Heap,
        }
    }

    /// The output, LSE and row maxima.
    pub fn all(level: Level) -> Self {
        Ask { lse: true, row_max: true, ..Ask::at(level) }
    }

    /// Scores of a stage, besides.
    pub fn scores(self, stage: ScoreStage) -> Self {
        Ask { stage: Some(stage), ..self }
    }
}

/// What a call wrote, contiguous; empty where nothing was asked for.
#[derive(Clone, Debug, Default)]
pub struct Results<Q> {
    pub out: Vec<Q>,
    pub lse: Vec<f32>,
    pub row_max: Vec<f32>,
    pub scores: Vec<f32>,
}

/// Makes a call. Everything it writes to starts as a NaN that no computation gives, and what lies between output
/// elements must still hold it afterwards.
pub fn run<Q: Element, T: Element>(inputs: &Inputs<'_, Q, T>, ask: &Ask<'_>) -> Results<Q> {
    let options =
        PlanOptions { level: Some(ask.level), max_threads: Some(ask.threads), ..PlanOptions::default() };
    let plan = Plan::with_options(&Problem::of(inputs), &options).expect("a plan");
    let mut workspace = plan.workspace().expect("memory");
    let shape = inputs.output_shape();
    let [batch, q_heads, q_len, _] = shape;
    let rows = batch * q_heads * q_len;
    let canary = f32::from_bits(0x7fd5_a000);
    let per_row = |wanted: bool| Memory::new(vec![canary; if wanted { rows } else { 0 }], ask.place);
    let (mut lse, mut row_max) = (per_row(ask.lse), per_row(ask.row_max));
    let score_shape = [
        batch,
        ask.heads.map_or(q_heads, <[usize]>::len),
        ask.rows.map_or(q_len, <[usize]>::len),
        inputs.k().shape()[2],
    ];
    let storage = |shape| strides(ask.storage, shape, q_heads + 1);
    let mut scores = ask.stage.map(|_| filled(score_shape, storage(score_shape), ask.place, canary));
    let mut out = filled(shape, storage(shape), ask.place, Q::from_f32(canary));

    let mut outputs = Outputs::new(view_mut(&mut out));
    if ask.lse {
        outputs = outputs.lse(&mut lse);
    }
    if ask.row_max {
        outputs = outputs.row_max(&mut row_max);
    }
    if let (Some(stage), Some(scores)) = (ask.stage, &mut scores) {
        let mut wanted = Scores::new(stage, view_mut(scores));
        if let Some(heads) = ask.heads {
            wanted = wanted.heads(heads);
        }
        if let Some(rows) = ask.rows {
            wanted = wanted.rows(rows);
        }
        outputs = outputs.scores(wanted);
    }
    plan.run(inputs, outputs, &mut workspace).expect("operands that fit");
    assert_gaps(&out, "the output");
    let scores = scores.map_or(Vec::new(), |scores| {
        assert_gaps(&scores, "the scores");
        scores.gather()
    });
    Results { out: out.gather(), lse: lse.to_vec(), row_max: row_max.to_vec(), scores }
}

fn filled<T: Copy>(shape: [usize; 4], strides: [usize; 4], place: Place, value: T) -> Operand<T> {
    Operand::new(shape, strides, place, value, |_| value)
}

fn view_mut<T>(operand: &mut Operand<T>) -> ViewMut<'_, T> {
    ViewMut::with_strides(&mut operand.data, operand.shape, operand.strides).expect("disjoint elements")
}

/// Asserts that nothing was written between the elements.
fn assert_gaps<T: Element>(operand: &Operand<T>, what: &str) {
    let canary = T::from_f32(f32::from_bits(0x7fd5_a000)).to_f32().to_bits();
    let mut inside = vec![false; operand.data.len()];
    for_each_index(operand.shape, |index| inside[offset(index, operand.strides)] = true);
    for (at, (x, inside)) in operand.data.iter().zip(inside).enumerate() {
        assert!(
            inside || x.to_f32().to_bits() == canary,
            "{what}: element {at} between rows was overwritten"
        );
    }
}

/// Asserts that two results have the same bits, all NaN being one.
#[track_caller]
pub fn assert_same<Q: Element>(got: &[Q], expected: &[Q], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}: length");
    for (at, (got, expected)) in got.iter().zip(expected).enumerate() {
        let (got, expected) = (got.to_f32(), expected.to_f32());
        let same = got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan();
        assert!(same, "{what}: element {at} is {got:e}, expected {expected:e}");
    }
}
