//! Random numbers that are a function of a seed and a position: the counter-based generator Philox4x32-10 of "Parallel
//! Random Numbers: As Easy as 1, 2, 3" (Salmon et al., SC 2011). Any device draws the same, in any order.

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Ten rounds.
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let [a, b] = [0, 1].map(|half| u64::from(MULTIPLIERS[half]) * u64::from(counter[2 * half]));
        let high = |product: u64| (product >> 32) as u32;
        counter = [high(b) ^ counter[1] ^ key[0], b as u32, high(a) ^ counter[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// 64 random bits: the seed is the key (low word first), the position the first two words of the counter (low word
/// first), and the bits are the result's first two words, the first being the upper one.
pub fn bits(seed: u64, position: u64) -> u64 {
    let [high, low, ..] = philox([position as u32, (position >> 32) as u32, 0, 0], [seed as u32, (seed >> 32) as u32]);
    u64::from(high) << 32 | u64::from(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that the authors' library Random123 is tested with.
    #[test]
    fn known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
        assert_eq!(
            philox([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0]),
            [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]
        );
    }

    #[test]
    fn numbers_are_spread_over_the_interval() {
        let numbers: Vec<f64> = (0..10_000).map(|position| bits(7, position) as f64 / 2f64.powi(64)).collect();
        let mean = numbers.iter().sum::<f64>() / 1e4;
        // Six standard deviations of the mean of uniform numbers.
        assert!((mean - 0.5).abs() < 6.0 * (1.0 / 12f64).sqrt() / 100.0, "{mean}");
        assert_ne!(bits(7, 0), bits(8, 0));
        assert_ne!(bits(7, 0), bits(7, 1 << 32));
    }
}
