//! How many bits a weight costs.

use std::fmt;

/// Bits per weight: 1 to 8, or 1.5, 2.5, 3.5.
///
/// At a half rate, weights at even positions of the ring get the whole part and those at odd positions one bit more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rate {
    half_bits: u8,
}

impl Rate {
    /// All rates, in ascending order.
    pub const ALL: [Rate; 11] = {
        let half_bits = [2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16];
        let mut rates = [Rate { half_bits: 0 }; 11];
        let mut index = 0;
        while index < rates.len() {
            rates[index] = Rate { half_bits: half_bits[index] };
            index += 1;
        }
        rates
    };

    /// The rate of twice that many bits, if there is one: 5 is 2.5 bits per weight.
    pub fn from_half_bits(half_bits: usize) -> Option<Rate> {
        Rate::ALL.into_iter().find(|rate| usize::from(rate.half_bits) == half_bits)
    }

    /// The rate of tiles of that many 16-bit words, the last number of the shape of a `trellis` tensor.
    pub fn from_tile_words(words: usize) -> Option<Rate> {
        Rate::ALL.into_iter().find(|rate| rate.tile_words() == words)
    }

    /// Twice the bits per weight, a whole number: what to `match` on.
    pub fn half_bits(self) -> usize {
        usize::from(self.half_bits)
    }

    /// Bits per weight.
    pub fn bits(self) -> f32 {
        f32::from(self.half_bits) / 2.0
    }

    /// Whether it is 1.5, 2.5 or 3.5.
    pub fn is_half(self) -> bool {
        self.half_bits % 2 == 1
    }

    /// 16-bit words of a tile: 16 × the bits per weight.
    pub fn tile_words(self) -> usize {
        8 * self.half_bits()
    }

    /// Bytes of a tile: 32 × the bits per weight.
    pub fn tile_bytes(self) -> usize {
        2 * self.tile_words()
    }

    /// Bits of a tile's ring: 256 × the bits per weight.
    pub fn ring_bits(self) -> usize {
        16 * self.tile_words()
    }

    /// New bits of the state at a position of the ring.
    pub fn new_bits(self, position: usize) -> usize {
        (self.half_bits() + position % 2) / 2
    }

    /// Bits of all states up to that of `position`: the ring's bit that comes after the position's state.
    pub fn end(self, position: usize) -> usize {
        (position + 1) * self.half_bits() / 2
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.bits())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_bits_add_up_to_the_ends() {
        for rate in Rate::ALL {
            let mut sum = 0;
            for position in 0..256 {
                sum += rate.new_bits(position);
                assert_eq!(rate.end(position), sum, "{rate} at {position}");
            }
            assert_eq!(sum, rate.ring_bits(), "{rate}");
            assert_eq!(Rate::from_tile_words(rate.tile_words()), Some(rate));
            assert_eq!(Rate::from_half_bits(rate.half_bits()), Some(rate));
        }
        assert_eq!(Rate::from_half_bits(9), None);
        assert_eq!(Rate::from_tile_words(17), None);
        assert_eq!(Rate::from_half_bits(5).map(|rate| rate.to_string()).as_deref(), Some("2.5"));
    }
}
