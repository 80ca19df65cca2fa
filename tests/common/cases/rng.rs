//! The source of all data.

use std::ops::RangeInclusive;

/// A small generator (splitmix64): the same numbers everywhere.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The numbers of this seed, from the first.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// In the range, both ends included.
    pub fn between(&mut self, range: RangeInclusive<usize>) -> usize {
        range.start() + (self.bits() % (range.end() - range.start() + 1) as u64) as usize
    }

    /// True with this probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        ((self.bits() >> 11) as f64) < probability * (1u64 << 53) as f64
    }

    /// One of the list.
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
    pub fn bounds(&mut self, parts: usize, len: usize) -> Vec<usize> {
        let mut bounds: Vec<usize> = (1..parts).map(|_| self.between(0..=len)).collect();
        bounds.extend([0, len]);
        bounds.sort_unstable();
        bounds
    }
}
