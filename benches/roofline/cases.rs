//! What is timed.

use super::common::Case;
use lucid_attention::DType::{self, Bf16, F16, F32};
use lucid_attention::Level;

/// Which physical limit a case runs against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    /// With the vectors of a level.
    MultiplyAdds(Level),
    Bf16Dots,
    Read,
}

/// One line of the table.
#[derive(Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) group: &'static str,
    pub(crate) case: Case,
    /// Of all operands.
    pub(crate) dtype: DType,
    pub(crate) level: Level,
    /// Keys from `KeyPanels`.
    pub(crate) panels: bool,
    pub(crate) bf16_dot: bool,
    /// Keys a query sees before itself, if not all.
    pub(crate) window: Option<usize>,
    pub(crate) limit: Limit,
    /// The share of the limit below which something broke: at most half of what the kernel reaches on a quiet machine.
    pub(crate) floor: Option<f64>,
}

impl Setup {
    pub(crate) fn id(&self) -> String {
        let keys = match (self.bf16_dot, self.panels) {
            (true, true) => "bf16_dot_panels",
            (true, false) => "bf16_dot",
            (_, true) => "panels",
            _ => "rows",
        };
        let window = self.window.map_or(String::new(), |window| format!("_window{window}"));
        format!("{}/{keys}/{}/{}/{}{window}", self.group, self.level, self.dtype, self.case)
    }

    /// Operations or bytes of a call.
    pub(crate) fn work(&self) -> f64 {
        if self.limit == Limit::Read {
            return self.case.kv_bytes(self.dtype.bytes()) as f64;
        }
        let Case { q_heads, batch, q_len, kv_len, dim, .. } = self.case;
        // What a causal row sees, or a window of it.
        let seen = |i: usize| match (self.case.causal, self.window) {
            (false, _) => kv_len,
            (true, None) => i + 1 + kv_len - q_len,
            (true, Some(window)) => (i + 1 + kv_len - q_len).min(window + 1),
        };
        (4 * batch * q_heads * dim) as f64 * (0..q_len).map(|i| seen(i) as f64).sum::<f64>()
    }
}

const fn square(heads: usize, len: usize, dim: usize, causal: bool) -> Case {
    Case { batch: 1, q_heads: heads, kv_heads: heads, q_len: len, kv_len: len, dim, causal }
}

const fn few([q_heads, kv_heads]: [usize; 2], q_len: usize, kv_len: usize, dim: usize) -> Case {
    Case { batch: 1, q_heads, kv_heads, q_len, kv_len, dim, causal: q_len > 1 }
}

/// All lines, for every level there is; with `quick` only those with a floor.
pub(crate) fn setups(quick: bool) -> Vec<Setup> {
    let mut setups: Vec<Setup> = Level::available().flat_map(of_level).collect();
    setups.retain(|setup| !quick || setup.floor.is_some());
    setups
}

fn of_level(level: Level) -> Vec<Setup> {
    let mut setups = Vec::new();
    let best = Level::available().last() == Some(level);
    let base = Setup {
        group: "prefill",
        case: square(8, 512, 64, false),
        dtype: F32,
        level,
        panels: false,
        bf16_dot: false,
        window: None,
        limit: Limit::MultiplyAdds(level),
        floor: None,
    };
    // The lost inlining that a floor is there to catch costs a factor of ten and more.
    let floor = |share: f64| (level.is_fused() && level > Level::Portable).then_some(share);
    for (case, share) in [
        (square(8, 2048, 64, false), floor(0.33)),
        (square(8, 2048, 64, true), floor(0.33)),
        (square(8, 2048, 128, false), floor(0.35)),
        (square(8, 2048, 128, true), None),
        (square(8, 512, 64, false), floor(0.3)),
        (square(8, 512, 64, true), None),
    ] {
        setups.push(Setup { case, floor: share, ..base });
    }
    for dtype in [F16, Bf16] {
        setups.push(Setup { case: square(8, 2048, 64, false), dtype, ..base });
    }
    let read = Setup { group: "decode", panels: true, limit: Limit::Read, ..base };
    let decode = few([32, 32], 1, 4096, 128);
    // On one thread AVX2 reaches 59 %, AVX-512 92 %.
    let share = floor(if level == Level::Avx2 { 0.25 } else { 0.4 });
    setups.push(Setup { case: decode, floor: share, ..read });
    setups.push(Setup { case: decode, panels: false, floor: share, ..read });
    // What surrounds the sums shows here: one thread does it all, at 4 % of its limit (Zen 4), which is 2 % of what two have. Where
    // AVX-512 has twice the peak of AVX2 (Emerald Rapids) it is half of that, and in slow hours 0.7 % of what two have.
    setups.push(Setup { group: "small", case: few([4, 4], 1, 10, 32), floor: floor(0.005), ..base });
    if !best {
        return setups;
    }

    for (heads, len, dim) in
        [(4, 8192, 64), (4, 4096, 64), (4, 4096, 128), (8, 2048, 32), (8, 2048, 80), (8, 2048, 256)]
    {
        setups.push(Setup { case: square(heads, len, dim, false), ..base });
        setups.push(Setup { case: square(heads, len, dim, true), ..base });
    }
    for (heads, len, dim) in [
        (8, 16, 64),
        (8, 32, 64),
        (8, 64, 64),
        (8, 128, 64),
        (12, 128, 32),
        (8, 197, 64),
        (8, 256, 64),
        (8, 512, 128),
    ] {
        setups.push(Setup { case: square(heads, len, dim, false), ..base });
        setups.push(Setup { case: square(heads, len, dim, true), ..base });
    }
    setups.push(Setup { case: square(8, 4096, 64, true), window: Some(512), ..base });
    for dtype in [F16, Bf16] {
        for case in [square(8, 2048, 128, false), square(8, 2048, 64, true), square(8, 512, 64, false)] {
            setups.push(Setup { case, dtype, ..base });
        }
    }
    if level.has_bf16_dot() {
        for case in [
            square(8, 2048, 64, false),
            square(8, 2048, 128, false),
            square(8, 2048, 64, true),
            square(8, 2048, 128, true),
            square(8, 512, 64, false),
            square(8, 512, 64, true),
        ] {
            setups.push(Setup { case, dtype: Bf16, bf16_dot: true, limit: Limit::Bf16Dots, ..base });
        }
    }

    for dtype in [F32, F16, Bf16] {
        for (case, panels) in [
            (few([32, 8], 1, 16384, 128), true),
            (few([32, 4], 1, 32768, 128), true),
            (few([32, 8], 1, 16384, 128), false),
            (Case { batch: 32, ..few([8, 8], 1, 1024, 128) }, true),
            (few([32, 32], 1, 4096, 64), true),
        ] {
            setups.push(Setup { case, dtype, panels, ..read });
        }
        if dtype != F32 {
            setups.push(Setup { case: decode, dtype, ..read });
            setups.push(Setup { case: decode, dtype, panels: false, ..read });
        }
    }
    // With few rows per key a call is bound by memory, with more by multiply-adds.
    for (case, limit) in [
        (few([32, 32], 2, 4096, 128), Limit::Read),
        (few([32, 32], 4, 4096, 128), Limit::Read),
        (few([32, 8], 4, 4096, 128), base.limit),
        (few([32, 8], 8, 4096, 128), base.limit),
        (few([32, 8], 16, 4096, 128), base.limit),
        (few([32, 32], 16, 4096, 128), base.limit),
        (few([32, 1], 2, 8192, 128), base.limit),
    ] {
        setups.push(Setup { group: "few", case, limit, ..read });
        setups.push(Setup { group: "few", case, limit, panels: false, ..read });
    }
    if level.has_bf16_dot() {
        let tier = Setup { dtype: Bf16, bf16_dot: true, limit: Limit::Bf16Dots, ..read };
        for (heads, q_len) in [([32, 8], 1), ([32, 4], 1), ([32, 8], 2), ([32, 8], 4), ([32, 8], 16)] {
            let case = few(heads, q_len, 4096, 128);
            setups.push(Setup { group: "few", case, ..tier });
            setups.push(Setup { group: "few", case, panels: false, ..tier });
        }
    }
    for (kv_len, panels) in [(10, true), (50, false), (50, true), (200, false), (200, true)] {
        setups.push(Setup { group: "small", case: few([4, 4], 1, kv_len, 32), panels, ..base });
    }
    setups
}
