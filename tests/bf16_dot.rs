//! The bf16 dot-product tier: against the reference on rounded operands, with the certified bound of the tier; removed keys; the same bits on any number of threads and in any company.
//!
//! On a CPU without the instruction these tests say so and pass; `unavailable` runs everywhere.

mod common;

use common::cases::{
    self, Ask, Place, Results, Rng, Rules, STORAGES, Storage, VALUES, Values, assert_equal, assert_same, run,
};
use common::verify::turn;
use half::{bf16, f16};
use lucid_attention::certify::{self, Bound};
use lucid_attention::{
    AttentionError, Element, Inputs, Intervals, KeyPanels, KeyPath, Level, Mask, Outputs, Plan, PlanOptions,
    Problem, QueryStart, ScoreStage, Span, View, ViewMut, reference,
};

/// False, loudly, where there is nothing to test.
fn available() -> bool {
    let available = Level::Avx512.is_available() && Level::Avx512.has_bf16_dot();
    if !available {
        eprintln!("SKIPPED: this CPU has no bf16 dot products (AVX512-BF16)");
    }
    available
}

/// The output and LSE in this tier.
fn ask() -> Ask<'static> {
    Ask { bf16_dot: true, lse: true, ..Ask::at(Level::Avx512) }
}

/// Numbers in -1.7..1.7 that are not bf16.
fn numbers<T: Element>(count: usize, seed: u64) -> Vec<T> {
    let mut rng = Rng::new(seed);
    (0..count).map(|_| T::from_f32(rng.uniform() * 1.7)).collect()
}

fn rounded<T: Element>(values: &[T]) -> Vec<T> {
    values.iter().map(|x| T::from_f32(bf16::from_f32(x.to_f32()).to_f32())).collect()
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Rule {
    Full,
    Causal,
    Window,
    Allowed,
    KvLens,
    Intervals,
    Shaped,
}

const RULES: [Rule; 7] =
    [Rule::Full, Rule::Causal, Rule::Window, Rule::Allowed, Rule::KvLens, Rule::Intervals, Rule::Shaped];

/// `[batch, q_heads, kv_heads, q_len, kv_len, head_dim, v_dim]`
type Shape = [usize; 7];

#[derive(Clone)]
struct Case<Q, T> {
    shape: Shape,
    rule: Rule,
    q: Vec<Q>,
    k: Vec<T>,
    v: Vec<T>,
    allowed: Vec<bool>,
    kv_lens: Vec<usize>,
    offsets: Vec<usize>,
    spans: Vec<Span>,
    bias: Vec<f32>,
    slopes: Vec<f32>,
    sinks: Vec<f32>,
}

impl<Q: Element, T: Element> Case<Q, T> {
    fn new(shape: Shape, rule: Rule) -> Self {
        let [batch, q_heads, kv_heads, q_len, kv_len, head_dim, v_dim] = shape;
        let seed = shape.iter().fold(rule as u64, |seed, &n| seed * 31 + n as u64);
        let (mut offsets, mut spans) = (vec![0], vec![]);
        for row in 0..q_len {
            let third = kv_len / 3;
            if row % 5 != 4 {
                spans.push(Span { start: row % 7 % (third + 1), end: third });
                spans.push(Span { start: third + row % 3, end: (third + 2 * row + 3).min(kv_len) });
            }
            spans.retain(|span| span.start < span.end);
            offsets.push(spans.len());
        }
        let bias: Vec<f32> = numbers(q_len * kv_len, seed + 4);
        Self {
            shape,
            rule,
            q: numbers(batch * q_heads * q_len * head_dim, seed + 1),
            k: numbers(batch * kv_heads * kv_len * head_dim, seed + 2),
            v: numbers(batch * kv_heads * kv_len * v_dim, seed + 3),
            allowed: bias.iter().enumerate().map(|(i, &x)| x > 0.3 && i / kv_len.max(1) % 6 != 3).collect(),
            kv_lens: (0..batch).map(|b| kv_len.saturating_sub(3 * b + 2)).collect(),
            offsets,
            spans,
            bias: bias.into_iter().map(|x| if x > 1.5 { f32::NEG_INFINITY } else { x }).collect(),
            slopes: numbers(q_heads, seed + 5),
            sinks: numbers(q_heads, seed + 6),
        }
    }

    fn rounded(&self) -> Self {
        Self { q: rounded(&self.q), k: rounded(&self.k), v: rounded(&self.v), ..self.clone() }
    }

    fn views(&self) -> (View<'_, Q>, View<'_, T>, View<'_, T>) {
        let [batch, q_heads, kv_heads, q_len, kv_len, head_dim, v_dim] = self.shape;
        (
            View::new(&self.q, [batch, q_heads, q_len, head_dim]).unwrap(),
            View::new(&self.k, [batch, kv_heads, kv_len, head_dim]).unwrap(),
            View::new(&self.v, [batch, kv_heads, kv_len, v_dim]).unwrap(),
        )
    }

    fn mask(&self) -> Mask<'_> {
        let [_, _, _, q_len, kv_len, ..] = self.shape;
        match self.rule {
            Rule::Full => Mask::default(),
            Rule::Causal | Rule::Shaped => Mask::causal(),
            Rule::Window => Mask::default().window(Some(9), Some(4)),
            Rule::Allowed => {
                Mask::default().allowed(View::new(&self.allowed, [1, 1, q_len, kv_len]).unwrap())
            }
            Rule::KvLens => Mask::causal().kv_lens(&self.kv_lens),
            Rule::Intervals => {
                Mask::default().intervals(Intervals::new([1, 1, q_len], &self.offsets, &self.spans).unwrap())
            }
        }
    }

    fn shaped<'a>(&'a self, inputs: Inputs<'a, Q, T>) -> Inputs<'a, Q, T> {
        let [_, _, _, q_len, kv_len, ..] = self.shape;
        let inputs = inputs.mask(self.mask()).q_start(QueryStart::BottomRight);
        if self.rule != Rule::Shaped {
            return inputs;
        }
        let bias = View::new(&self.bias, [1, 1, q_len, kv_len]).unwrap();
        inputs.scale(-0.3).softcap(2.5).alibi(&self.slopes).bias(bias).sinks(&self.sinks)
    }

    fn inputs(&self) -> Inputs<'_, Q, T> {
        let (q, k, v) = self.views();
        self.shaped(Inputs::new(q, k, v))
    }
}

/// Asserts that one row of some results is another of others.
#[track_caller]
fn assert_row<Q: Element>(got: &Results<Q>, at: usize, expected: &Results<Q>, row: usize, what: &str) {
    let v_dim = expected.out.len() / expected.lse.len();
    let of = |all: &Results<Q>, row: usize| all.out[row * v_dim..][..v_dim].to_vec();
    assert_same(&of(got, at), &of(expected, row), &format!("{what}: out"));
    assert_same(&[got.lse[at]], &[expected.lse[row]], &format!("{what}: lse"));
}

const SHAPES: [Shape; 12] = [
    [1, 1, 1, 1, 1, 1, 1],
    [2, 4, 2, 9, 33, 7, 5],
    [1, 3, 1, 70, 131, 17, 33],
    [2, 2, 1, 40, 257, 64, 64],
    [1, 1, 1, 100, 300, 33, 80],
    [1, 4, 1, 1, 1030, 48, 20],
    [1, 2, 2, 3, 2311, 64, 128],
    [1, 1, 1, 37, 1291, 130, 16],
    [1, 2, 1, 6, 64, 32, 130],
    [3, 2, 2, 5, 95, 2, 3],
    [1, 1, 1, 200, 200, 64, 64],
    [1, 1, 1, 4, 5, 3, 0],
];

fn close<Q: Element, T: Element>() {
    let mut worst: f64 = 0.0;
    for shape in SHAPES {
        for rule in RULES {
            let case = Case::<Q, T>::new(shape, rule);
            let inputs = case.inputs();
            let got = run(&inputs, &ask());
            let out = View::new(&got.out, inputs.output_shape()).unwrap();
            let certificate = certify::check(&inputs, &out, Some(&got.lse), &Bound::bf16_dot()).unwrap();
            certificate.verdict().unwrap_or_else(|wrong| panic!("{shape:?}, {rule:?}: {wrong}"));
            assert_eq!(certificate.uncertified_rows, 0, "{shape:?}, {rule:?}: rows without a bound");
            worst = worst.max(certificate.worst.ratio);
            let rounded = case.rounded();
            let inputs = rounded.inputs();
            assert_equal(&run(&inputs, &ask()), &got, &format!("{shape:?}, {rule:?}: rounded before"));
        }
    }
    eprintln!("{} and {}: the worst error is {worst:.3} of its bound", Q::DTYPE, T::DTYPE);
}

#[test]
fn close_to_the_reference() {
    if available() {
        close::<f32, f32>();
        close::<bf16, bf16>();
        close::<f16, f16>();
        close::<f32, bf16>();
        close::<bf16, f32>();
    }
}

/// Also that the option binds: the exact tier's bits are others.
#[test]
fn panels_and_rows_agree() {
    if !available() {
        return;
    }
    fn agree<T: Element>() {
        for shape in SHAPES {
            for rule in [Rule::Full, Rule::Causal, Rule::Allowed] {
                let case = Case::<f32, T>::new(shape, rule);
                let (q, k, v) = case.views();
                let panels = KeyPanels::from_rows(k, shape[4]).unwrap();
                let from_rows = run(&case.inputs(), &ask());
                let from_panels = run(&case.shaped(Inputs::new(q, &panels, v)), &ask());
                assert_equal(&from_panels, &from_rows, &format!("{} {shape:?} {rule:?}", T::DTYPE));
                if shape[4] > 30 && shape[5] > 1 && shape[6] > 0 {
                    let exact = run(&case.inputs(), &Ask { bf16_dot: false, ..ask() });
                    assert!(exact.out != from_rows.out, "{shape:?}, {rule:?}: the same as the exact tier");
                }
            }
        }
    }
    agree::<f32>();
    agree::<f16>();
    agree::<bf16>();
}

/// A call of few rows, of any shape, layout and rules, whose sizes are around those of vectors, tiles and pairs.
fn few_rows(seed: u64) -> cases::Case {
    let rng = &mut Rng::new(seed);
    let (rows, kv_heads) = (turn(&ROWS, seed as usize), rng.between(1..=2));
    let q_len = rng.pick(&[1, 1, rows]);
    let mut case = cases::Case {
        seed,
        batch: rng.between(1..=2),
        heads: [rows.div_ceil(q_len) * kv_heads, kv_heads],
        q_len,
        kv_len: rng.pick(&[1, 2, 15, 16, 17, 33, 63, 64, 65, 95, 128, 255, 256, 257, 300, 1031, 2100]),
        head_dim: rng.pick(&[1, 2, 7, 8, 9, 16, 31, 40, 64, 127, 128]),
        v_dim: rng.pick(&[0, 1, 15, 16, 17, 32, 33, 48, 64, 80, 127, 128, 130, 144]),
        storage: if rng.chance(0.4) { Storage::Panels } else { rng.pick(&STORAGES) },
        values: if rng.chance(0.5) { Values::Spread(1.0) } else { rng.pick(&VALUES) },
        rules: rng.pick(&Rules::FEW),
        ..cases::Case::default()
    };
    for _ in 0..rng.between(0..=2) {
        rng.pick(&Rules::OPTIONS)(&mut case.rules);
    }
    case.possible()
}

/// Rows of a KV head, around the 18 (from panels, 32) up to which what is stored as bf16 is paired in registers.
const ROWS: [usize; 15] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 18, 19, 32, 33];

/// Few rows read keys and values in bf16 as they are stored. Those in f32 that round to them are laid out for the tier first.
#[test]
fn bf16_counts_as_what_rounds_to_it() {
    if !available() {
        return;
    }
    for seed in 0..9000 {
        let case = few_rows(seed);
        let _announced = common::guard::announce(&case);
        let place = [Place::Heap, Place::AtEnd][seed as usize / ROWS.len() % 2];
        let ask = Ask { place, ..ask() }.scores(ScoreStage::Raw);
        let stored = run(&case.operands::<f32, bf16>(place).inputs(), &ask);
        let rounded = run(&case.operands::<f32, f32>(place).inputs(), &ask);
        assert_equal(&stored, &rounded, &format!("{case:?}"));
    }
}

/// What a plan says of the way that keys take.
#[test]
fn explained_paths() {
    if !available() {
        return;
    }
    let values = vec![bf16::ONE; 2 * 600 * 8];
    let wide = vec![1.0f32; 2 * 600 * 8];
    let options = PlanOptions { bf16_dot: true, level: Some(Level::Avx512), ..PlanOptions::default() };
    for (q_len, from_rows, from_panels) in [
        (1, KeyPath::Transposed, KeyPath::Panels),
        (9, KeyPath::Transposed, KeyPath::Panels),
        (10, KeyPath::PackedTile, KeyPath::Panels),
        (16, KeyPath::PackedTile, KeyPath::Panels),
        (17, KeyPath::PackedTile, KeyPath::PackedTile),
        (300, KeyPath::Packed, KeyPath::Packed),
    ] {
        let shapes = ([1, 2, q_len, 8], [1, 1, 600, 8]);
        let (q, k) = (View::new(&values, shapes.0).unwrap(), View::new(&values, shapes.1).unwrap());
        let panels = KeyPanels::from_rows(k, 600).unwrap();
        let problem = Problem { q_heads: 2, ..Problem::new(1, 8, q_len, 600) };
        let plan = Plan::with_options(&problem, &options).unwrap();
        let path = |inputs: &Inputs<'_, bf16, bf16>| plan.explain(inputs).unwrap().keys;
        assert_eq!(path(&Inputs::new(q, k, k)), from_rows, "{q_len} queries");
        assert_eq!(path(&Inputs::new(q, &panels, k)), from_panels, "{q_len} queries, panels");
        let wide = View::new(&wide, shapes.1).unwrap();
        let converted = if q_len == 300 { KeyPath::Packed } else { KeyPath::PackedTile };
        let got = plan.explain(&Inputs::new(q, wide, wide)).unwrap().keys;
        assert_eq!(got, converted, "{q_len} queries, f32");
    }
}

/// Whatever lies at the keys that a row may not attend changes no bit of it: not even of the other half of a pair.
#[test]
fn removed_keys_do_not_show() {
    if !available() {
        return;
    }
    for shape in [[1, 2, 1, 40, 90, 15, 19], [2, 1, 1, 3, 75, 32, 64], [1, 1, 1, 50, 1100, 16, 16]] {
        for rule in RULES {
            let case = Case::<f32, f32>::new(shape, rule);
            let expected = run(&case.inputs(), &ask());
            let [_, q_heads, _, q_len, kv_len, head_dim, v_dim] = shape;
            let group = q_heads / shape[2];
            // The last row (of each batch entry and KV head) that attends something, and one of the first.
            for target in [q_len / 3, q_len - 1] {
                for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, f32::MAX, -1e-40] {
                    let mut poisoned = case.clone();
                    reference::for_each_row(&case.inputs(), |row| {
                        let [b, h, query] = row.index;
                        if query != target || h % group != 0 {
                            return;
                        }
                        for key in 0..kv_len {
                            let kept = row.scores.get(key).is_some_and(|score| score.attended);
                            if !kept {
                                let at = (b * shape[2] + h / group) * kv_len + key;
                                poisoned.k[at * head_dim..][..head_dim].fill(poison);
                                poisoned.v[at * v_dim..][..v_dim].fill(poison);
                            }
                        }
                    })
                    .unwrap();
                    let got = run(&poisoned.inputs(), &ask());
                    for head in 0..shape[0] * q_heads {
                        let row = head * q_len + target;
                        let what = format!("{shape:?}, {rule:?}, row {target} of head {head}: {poison:e}");
                        assert_row(&got, row, &expected, row, &what);
                    }
                }
            }
        }
    }
}

/// NaN and infinity in what is attended do show.
#[test]
fn attended_numbers_show() {
    if !available() {
        return;
    }
    let mut case = Case::<f32, f32>::new([1, 1, 1, 10, 10, 8, 8], Rule::Causal);
    case.v[5 * 8 + 3] = f32::INFINITY;
    case.k[7 * 8 + 1] = f32::NAN;
    let Results { out, lse, .. } = run(&case.inputs(), &ask());
    for query in 0..10 {
        for d in 0..8 {
            let x = out[query * 8 + d];
            if query >= 7 {
                assert!(x.is_nan(), "row {query}: a key is NaN, got {x}");
            } else if query >= 5 && d == 3 {
                assert_eq!(x, f32::INFINITY, "row {query}: an infinite value");
            } else {
                assert!(x.is_finite(), "row {query}, {d}: got {x}");
            }
        }
        assert_eq!(lse[query].is_nan(), query >= 7, "row {query}: lse");
    }
}

/// D1 and D2.
#[cfg(feature = "rayon")]
#[test]
fn any_number_of_threads() {
    if !available() {
        return;
    }
    for shape in [[2, 4, 2, 150, 300, 64, 48], [1, 2, 1, 1, 9000, 64, 64], [1, 1, 1, 4, 12_345, 32, 32]] {
        for rule in [Rule::Full, Rule::Causal, Rule::Allowed, Rule::KvLens] {
            let case = Case::<f32, bf16>::new(shape, rule);
            let alone = run(&case.inputs(), &ask());
            for threads in 1..=3 {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                for most in [2, threads] {
                    let ask = Ask { threads: most, ..ask() };
                    let got = pool.install(|| run(&case.inputs(), &ask));
                    assert_equal(&got, &alone, &format!("{shape:?}, {rule:?}, {threads} threads"));
                }
            }
        }
    }
}

/// D3, and D4: a row alone is the row in its block.
#[test]
fn any_company() {
    if !available() {
        return;
    }
    for shape in [[3, 4, 2, 75, 290, 36, 20], [2, 1, 1, 45, 1500, 64, 64]] {
        for rule in [Rule::Full, Rule::Causal, Rule::Shaped] {
            let case = Case::<f16, f16>::new(shape, rule);
            let (q, k, v) = case.views();
            let [batch, q_heads, kv_heads, q_len, kv_len, head_dim, v_dim] = shape;
            let together = run(&case.inputs(), &ask());
            for b in 0..batch {
                let q = &q.data()[b * q_heads * q_len * head_dim..][..q_heads * q_len * head_dim];
                let k = &k.data()[b * kv_heads * kv_len * head_dim..][..kv_heads * kv_len * head_dim];
                let v = &v.data()[b * kv_heads * kv_len * v_dim..][..kv_heads * kv_len * v_dim];
                let k = View::new(k, [1, kv_heads, kv_len, head_dim]).unwrap();
                let v = View::new(v, [1, kv_heads, kv_len, v_dim]).unwrap();
                let own = q_heads * q_len;
                let expected = Results {
                    out: together.out[b * own * v_dim..][..own * v_dim].to_vec(),
                    lse: together.lse[b * own..][..own].to_vec(),
                    ..Results::default()
                };
                let q = View::new(q, [1, q_heads, q_len, head_dim]).unwrap();
                let got = run(&case.shaped(Inputs::new(q, k, v)), &ask());
                assert_equal(&got, &expected, &format!("{shape:?}, {rule:?}, batch {b} alone"));
                if rule == Rule::Shaped {
                    continue;
                }
                for query in [0, 1, q_len / 2, q_len - 1] {
                    let strides = q.strides();
                    let one =
                        View::with_strides(&q.data()[query * head_dim..], [1, q_heads, 1, head_dim], strides)
                            .unwrap();
                    let start = (kv_len - q_len + query) as i64;
                    let inputs = Inputs::new(one, k, v).mask(case.mask()).q_start(QueryStart::At(start));
                    let got = run(&inputs, &ask());
                    for h in 0..q_heads {
                        let row = h * q_len + query;
                        let what = format!("{shape:?}, {rule:?}: row {query} of head {h} alone");
                        assert_row(&got, h, &expected, row, &what);
                    }
                }
            }
        }
    }
}

/// Scores are those of the tier's own dot products.
#[test]
fn scores() {
    if !available() {
        return;
    }
    let case = Case::<f32, f32>::new([1, 2, 1, 20, 300, 31, 16], Rule::Shaped).rounded();
    let inputs = case.inputs();
    let plain = run(&inputs, &ask());
    for stage in [ScoreStage::Raw, ScoreStage::Capped, ScoreStage::Biased, ScoreStage::Softmax] {
        let got = run(&inputs, &ask().scores(stage));
        assert_same(&got.out, &plain.out, &format!("{stage:?}: the output with scores"));
        let expected = reference::scores(&inputs, stage).unwrap();
        for (at, (&got, &expected)) in got.scores.iter().zip(&expected).enumerate() {
            let close = f64::from(got) == expected || (f64::from(got) - expected).abs() < 1e-4;
            assert!(close, "{stage:?}[{at}]: got {got:e}, expected {expected:e}");
        }
    }
}

/// What its products are worth is measured where there are any.
#[test]
fn worth_of_its_products() {
    for level in Level::ALL {
        let gain = level.bf16_dot_gain();
        assert_eq!(gain.is_some(), level.has_bf16_dot(), "{level}");
        // A measurement, of cores that give 0.5 and 2: wide enough for neighbours.
        assert!(gain.is_none_or(|gain| (0.05..20.0).contains(&gain)), "{level}: {gain:?}");
    }
}

/// Asking for it where it does not exist is an error, and a workspace of the other tier is refused.
#[test]
fn unavailable() {
    let problem = Problem::new(1, 8, 4, 4);
    for level in Level::available().filter(|level| !level.has_bf16_dot()) {
        let options = PlanOptions { level: Some(level), bf16_dot: true, ..PlanOptions::default() };
        let error = Plan::with_options(&problem, &options).unwrap_err();
        assert_eq!(error, AttentionError::Bf16DotUnavailable { level: level.name() }, "{level}");
    }
    if !available() {
        return;
    }
    let options = PlanOptions { level: Some(Level::Avx512), bf16_dot: true, ..PlanOptions::default() };
    let plan = Plan::with_options(&problem, &options).unwrap();
    assert!(plan.bf16_dot(), "the plan says so");
    let exact = Plan::with_options(&problem, &PlanOptions { bf16_dot: false, ..options }).unwrap();
    let (x, mut out) = (vec![0.5f32; 32], vec![0.0f32; 32]);
    let view = View::new(&x, [1, 1, 4, 8]).unwrap();
    let inputs = Inputs::new(view, view, view);
    let explanation = plan.explain(&inputs).unwrap();
    assert!(explanation.bf16_dot, "the explanation says so");
    assert!(explanation.to_string().starts_with("bf16 dot-product attention"), "{explanation}");
    let outputs = Outputs::new(ViewMut::new(&mut out, [1, 1, 4, 8]).unwrap());
    let error = plan.run(&inputs, outputs, &mut exact.workspace().unwrap()).unwrap_err();
    assert!(matches!(error, AttentionError::Workspace { .. }), "{error}");
}
