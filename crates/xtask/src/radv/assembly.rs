//! What the loop of a shader is made of, from the text of its machine code for RDNA 3.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// What runs an instruction, and how long it keeps the lanes busy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    /// Vector ALU; one lane is busy for so many slots, a slot being the time of an addition.
    Vector(usize),
    /// Two vector operations in the slot of one.
    Pair,
    /// Multiplies matrices of a whole subgroup.
    Matrix,
    /// Loads and stores of the lanes.
    VectorMemory,
    /// Loads of a whole subgroup: constants, addresses.
    ScalarMemory,
    /// Shared memory.
    Shared,
    /// Arithmetic of a whole subgroup.
    Scalar,
    /// Branches, waits and hints.
    Control,
}

impl Unit {
    fn of(mnemonic: &str) -> Unit {
        let is = |prefixes: &[&str]| prefixes.iter().any(|prefix| mnemonic.starts_with(prefix));
        match () {
            () if is(&["v_mul_lo_", "v_mul_hi_", "v_mad_u64_", "v_mad_i64_"]) && !mnemonic.contains("16") => {
                Unit::Vector(4)
            }
            () if is(&["v_dot4_"]) => Unit::Vector(2),
            () if is(&["v_dual_"]) => Unit::Pair,
            () if is(&["v_wmma_"]) => Unit::Matrix,
            () if is(&["v_"]) => Unit::Vector(1),
            () if is(&["buffer_", "global_", "flat_", "scratch_", "tbuffer_", "image_"]) => Unit::VectorMemory,
            () if is(&["s_load_", "s_buffer_load_"]) => Unit::ScalarMemory,
            () if is(&["ds_"]) => Unit::Shared,
            () if is(&["s_branch", "s_cbranch", "s_wait", "s_delay", "s_nop", "s_clause", "s_sleep", "s_barrier"]) => {
                Unit::Control
            }
            () if is(&["s_endpgm", "s_sendmsg", "s_set", "s_inst_prefetch"]) => Unit::Control,
            () => Unit::Scalar,
        }
    }
}

/// The instructions of one iteration of a loop, all of its blocks counted as if they ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mix {
    /// All instructions.
    pub instructions: usize,
    /// Vector ALU instructions, a pair counting once.
    pub vector: usize,
    /// Of these, multiplications of 32-bit integers: 4 slots each.
    pub multiplies: usize,
    /// Of these, dot products of four bytes: 2 slots each.
    pub dot4: usize,
    /// Of these, pairs issued together: 1 slot each.
    pub pairs: usize,
    /// Time of one lane in the vector ALU, in slots.
    pub slots: usize,
    /// Multiplications of matrices; they are in no slot.
    pub matrix: usize,
    /// Loads and stores of lanes.
    pub vector_memory: usize,
    /// Loads of a whole subgroup.
    pub scalar_memory: usize,
    /// Accesses to shared memory.
    pub shared: usize,
    /// Scalar arithmetic.
    pub scalar: usize,
}

impl Mix {
    fn of(instructions: &[&str]) -> Mix {
        let mut mix = Mix { instructions: instructions.len(), ..Mix::default() };
        for mnemonic in instructions {
            match Unit::of(mnemonic) {
                Unit::Vector(slots) => {
                    mix.vector += 1;
                    mix.slots += slots;
                    mix.multiplies += usize::from(slots == 4);
                    mix.dot4 += usize::from(slots == 2);
                }
                Unit::Pair => {
                    mix.vector += 1;
                    mix.slots += 1;
                    mix.pairs += 1;
                }
                Unit::Matrix => mix.matrix += 1,
                Unit::VectorMemory => mix.vector_memory += 1,
                Unit::ScalarMemory => mix.scalar_memory += 1,
                Unit::Shared => mix.shared += 1,
                Unit::Scalar => mix.scalar += 1,
                Unit::Control => {}
            }
        }
        mix
    }
}

/// Of the loops that contain no other, the one with the most instructions; nothing if there is no loop.
///
/// A loop goes from a label to the last branch back to it.
pub(super) fn hot_loop(assembly: &str) -> Option<Mix> {
    let mut labels = BTreeMap::new();
    let mut ends: BTreeMap<usize, usize> = BTreeMap::new();
    let mut instructions = Vec::new();
    for line in assembly.lines() {
        let mut words = line.split(';').next().unwrap_or_default().split_whitespace();
        let Some(mnemonic) = words.next() else { continue };
        if let Some(label) = mnemonic.strip_suffix(':') {
            labels.insert(label, instructions.len());
            continue;
        }
        if mnemonic == "s_branch" || mnemonic.starts_with("s_cbranch_") {
            // A label that is not known yet is ahead.
            let target = words.next().and_then(|label| labels.get(label));
            ends.extend(target.map(|start| (*start, instructions.len())));
        }
        instructions.push(mnemonic);
    }
    let loops: Vec<RangeInclusive<usize>> = ends.into_iter().map(|(start, end)| start..=end).collect();
    let contains = |outer: &RangeInclusive<usize>, inner: &RangeInclusive<usize>| {
        outer != inner && outer.contains(inner.start()) && outer.contains(inner.end())
    };
    let innermost = loops.iter().filter(|outer| !loops.iter().any(|inner| contains(outer, inner)));
    let longest = innermost.max_by_key(|range| range.end() - range.start())?;
    Some(Mix::of(&instructions[longest.clone()]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_and_slots() {
        let cases = [
            ("v_mul_lo_u32", Unit::Vector(4)),
            ("v_mul_hi_u32", Unit::Vector(4)),
            ("v_mad_u64_u32", Unit::Vector(4)),
            ("v_mul_lo_u16", Unit::Vector(1)),
            ("v_mul_u32_u24_e32", Unit::Vector(1)),
            ("v_pk_mul_lo_u16", Unit::Vector(1)),
            ("v_dot4_i32_iu8", Unit::Vector(2)),
            ("v_dot2_f32_f16", Unit::Vector(1)),
            ("v_dual_fmac_f32", Unit::Pair),
            ("v_wmma_f32_16x16x16_f16", Unit::Matrix),
            ("buffer_load_b128", Unit::VectorMemory),
            ("global_load_b32", Unit::VectorMemory),
            ("s_load_b128", Unit::ScalarMemory),
            ("s_buffer_load_b32", Unit::ScalarMemory),
            ("ds_load_b32", Unit::Shared),
            ("s_add_u32", Unit::Scalar),
            ("s_waitcnt", Unit::Control),
            ("s_cbranch_scc1", Unit::Control),
        ];
        for (mnemonic, unit) in cases {
            assert_eq!(Unit::of(mnemonic), unit, "{mnemonic}");
        }
    }

    #[test]
    fn the_longest_of_the_innermost_loops() {
        let text = "BB0:\n\ts_mov_b32 s0, 0 ; be800080\nBB1:\n\tv_mov_b32_e32 v0, 0\nBB2:\n\tv_add_f32 v0, v0, v0\n\
                    \ts_cbranch_scc0 BB2 ; bfa10001\nBB3:\n\tv_mul_lo_u32 v0, v0, v0\n\ts_cbranch_scc1 BB5\nBB4:\n\
                    \tds_load_b32 v0, v1\n\ts_cbranch_vccnz BB3\n\
                    \tv_wmma_f32_16x16x16_f16 v[0:7], v[8:15], v[16:23], v[0:7]\n\ts_branch BB3\n\
                    BB5:\n\ts_branch BB1\n";
        let mix = hot_loop(text).expect("three loops");
        let expected =
            Mix { instructions: 6, vector: 1, multiplies: 1, slots: 4, matrix: 1, shared: 1, ..Mix::default() };
        assert_eq!(mix, expected);
        assert_eq!(hot_loop("BB0:\n\ts_cbranch_scc0 BB1\nBB1:\n\ts_endpgm\n"), None);
        assert_eq!(hot_loop(""), None);
    }
}
