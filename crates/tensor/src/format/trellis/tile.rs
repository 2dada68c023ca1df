//! One tile: 256 states in `32 · bits` bytes.
//!
//! The new bits of the states at positions 0, 1, … 255 follow each other in a ring of `256 · bits` bits, the highest
//! bit of each first. Bit `b` of the ring is bit `31 − b % 32` of the little-endian 32-bit word `b / 32`. So the state
//! at position `i` is the 16 bits of the ring that end where the new bits of `i` end ([`Rate::end`]), highest first;
//! the first states begin among the last bits of the ring. At 2 bits per weight:
//!
//! ```text
//! ring bits     … 506 508 510 │ 0 2 4 6 8 10 12 14 16 …
//! state 0         └──────────────┘                        the bits 498…511 and 0, 1
//! state 7                     └─────────────────┘         the bits 0…15
//! ```
//!
//! Positions and weights: the position `8 · t + j` has the weight of row `2 · (t % 4) + j % 2 + 8 · (j / 2 % 2)` and
//! column `t / 4 + 8 · (j / 4)`, where rows are inputs and columns are outputs. That is how the lane `t` of NVIDIA's
//! matrix instructions (`mma.m16n8k16`) holds its share of the second factor: eight neighbours in the ring belong to
//! one lane, and even and odd neighbours to neighbouring inputs.

use super::{Codebook, LEN, Rate, SIDE};

/// For each position of the ring, the weight's index in the tile, `row · 16 + column`.
pub const RING: [u8; LEN] = {
    let mut ring = [0; LEN];
    let mut position = 0;
    while position < LEN {
        let (lane, j) = (position / 8, position % 8);
        let row = 2 * (lane % 4) + j % 2 + 8 * (j / 2 % 2);
        let column = lane / 4 + 8 * (j / 4);
        ring[position] = (row * SIDE + column) as u8;
        position += 1;
    }
    ring
};

/// 32-bit words of the largest tile, at 8 bits per weight.
const WORDS_MAX: usize = LEN / 4;

/// Writes the new bits of each state of a ring.
///
/// # Panics
/// If `bytes` is not [`Rate::tile_bytes`] long, or a state does not go on from the one before it, which the format
/// can't express.
pub fn pack(rate: Rate, states: &[u16; LEN], bytes: &mut [u8]) {
    assert_eq!(bytes.len(), rate.tile_bytes(), "bytes of a tile at {rate} bits");
    bytes.fill(0);
    let mut before = states[LEN - 1];
    for (position, &state) in states.iter().enumerate() {
        let new_bits = rate.new_bits(position);
        assert_eq!(
            state >> new_bits,
            before << new_bits >> new_bits,
            "state {position} does not follow the one before"
        );
        for bit in 0..new_bits {
            let place = rate.end(position) - 1 - bit;
            bytes[byte_of(place)] |= ((state >> bit & 1) as u8) << (7 - place % 8);
        }
        before = state;
    }
}

/// Reads the states of a ring.
///
/// # Panics
/// If `bytes` is not [`Rate::tile_bytes`] long.
pub fn unpack(rate: Rate, bytes: &[u8]) -> [u16; LEN] {
    assert_eq!(bytes.len(), rate.tile_bytes(), "bytes of a tile at {rate} bits");
    // The words of the ring, with the last one once more before the first and the first after the last.
    let mut words = [0; WORDS_MAX + 2];
    let (chunks, count) = (bytes.as_chunks().0, bytes.len() / 4);
    words[0] = u64::from(u32::from_le_bytes(chunks[count - 1]));
    for (word, &chunk) in words[1..].iter_mut().zip(chunks.iter().chain(&chunks[..1])) {
        *word = u64::from(u32::from_le_bytes(chunk));
    }
    std::array::from_fn(|position| {
        let start = 32 + rate.end(position) - 16;
        let two_words = words[start / 32] << 32 | words[start / 32 + 1];
        (two_words >> (48 - start % 32)) as u16
    })
}

/// Reads the weights of a tile as `[16 inputs, 16 outputs]`.
///
/// # Panics
/// If `bytes` is not [`Rate::tile_bytes`] long.
pub fn decode(codebook: Codebook, rate: Rate, bytes: &[u8]) -> [f32; LEN] {
    let table = codebook.table();
    let mut values = [0.0; LEN];
    for (&index, state) in RING.iter().zip(unpack(rate, bytes)) {
        values[usize::from(index)] = table[usize::from(state)];
    }
    values
}

/// The weights `[16 inputs, 16 outputs]` of a tile in the order of the ring.
pub fn to_ring(values: &[f32; LEN]) -> [f32; LEN] {
    RING.map(|index| values[usize::from(index)])
}

/// The byte with that bit of the ring: the words are little-endian, and begin with their highest bit.
fn byte_of(bit: usize) -> usize {
    bit / 32 * 4 + 3 - bit % 32 / 8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_visits_every_weight_once() {
        let mut seen = [false; LEN];
        for index in RING {
            assert!(!std::mem::replace(&mut seen[usize::from(index)], true), "weight {index} twice");
        }
        // Lane 5 holds inputs 2, 3, 10 and 11 of output 1, then of output 9.
        assert_eq!(RING[40..48], [33, 49, 161, 177, 41, 57, 169, 185]);
    }

    #[test]
    fn bits_lie_where_the_format_says() {
        let rate = Rate::from_half_bits(4).expect("2 bits");
        let mut bytes = vec![0; rate.tile_bytes()];
        // The highest bit of the first little-endian word is the highest new bit of state 0.
        bytes[3] = 0x80;
        let states = unpack(rate, &bytes);
        assert_eq!(states[..9], [2, 8, 32, 128, 512, 2048, 8192, 32768, 0]);
        // The lowest bit of the last word is the lowest new bit of state 255, and the second lowest of state 0 onwards.
        let mut bytes = vec![0; rate.tile_bytes()];
        bytes[60] = 1;
        let states = unpack(rate, &bytes);
        assert_eq!((states[255], states[0], states[6], states[7], states[254]), (1, 4, 1 << 14, 0, 0));
    }

    #[test]
    #[should_panic(expected = "state 1 does not follow the one before")]
    fn states_that_are_no_ring_panic() {
        let rate = Rate::from_half_bits(4).expect("2 bits");
        let mut states = [0; LEN];
        states[1] = 0x8000;
        pack(rate, &states, &mut [0; 64]);
    }
}
