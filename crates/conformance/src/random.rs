//! Random numbers by counter: number `n` of a seed is the same wherever and whenever it is asked for.

/// A stream of numbers.
#[derive(Clone, Debug)]
pub struct Random {
    seed: u64,
    counter: u64,
}

impl Random {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        Random { seed: mix(seed), counter: 0 }
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.counter += 1;
        mix(self.seed ^ self.counter.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// An integer in `0..end`.
    pub fn below(&mut self, end: usize) -> usize {
        ((u128::from(self.bits()) * end as u128) >> 64) as usize
    }

    /// A number in `low..high`.
    pub fn uniform(&mut self, low: f32, high: f32) -> f32 {
        let unit = (self.bits() >> 11) as f64 / (1u64 << 53) as f64;
        (f64::from(low) + unit * (f64::from(high) - f64::from(low))) as f32
    }

    /// About normal with variance 1: the sum of twelve uniform numbers, so never beyond ±6.
    pub fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.uniform(-0.5, 0.5)).sum()
    }
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}
