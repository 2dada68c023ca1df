//! The document with the tables.

use std::fmt::Write;

use super::assembly::Mix;
use super::pipeline::{Pipeline, SCRATCH, SPILLED_SCALAR, SPILLED_VECTOR};

/// Slots of the vector ALU that decoding and multiplying one weight may take.
///
/// The 768 lanes of the Radeon 780M at 2.7 GHz have 2.07e12 slots a second. DDR5-5600 delivers at most 89.6 GB/s, which
/// are 3.0e11 weights of 2.4 bits: 6.9 slots each. What is above 6 is for addresses, loops and reductions.
const SLOTS_MAX: f64 = 6.0;

const INTRODUCTION: &str = "\
# Compute pipelines on gfx1103

`cargo xtask radv` writes this file: every compute pipeline of `backend-vulkan` as RADV, Mesa's driver, compiles it for
gfx1103, the GPU of AMD's Phoenix chips (Radeon 780M). No GPU is needed for that. The command fails if a pipeline spills
registers, uses scratch memory, or fits fewer subgroups on a SIMD than it declares.
";

const PIPELINES: &str = "
## Resources

Registers per subgroup (SGPR) and per lane (VGPR); shared memory (LDS) of a workgroup, scratch memory of an invocation
and code in bytes; subgroups that fit on a SIMD, and how many the pipeline declares that it needs; instructions in all
and by kind: vector ALU (VOPD: those issued in pairs), scalar ALU, vector and scalar memory.

| pipeline | constants | subgroup | SGPR | VGPR | spilled | LDS | scratch | subgroups per SIMD | code | instructions | \
VALU | VOPD | SALU | VMEM | SMEM |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|
";

const LOOPS: &str = "
## Loops that decode weights

One iteration of the longest innermost loop, as if all of its blocks ran. A slot is the time of one vector addition in
a lane: a multiplication of 32-bit integers takes 4, a dot product of four bytes 2, a pair 1, everything else 1;
multiplications of matrices (WMMA) are counted apart. In the time in which DDR5-5600 delivers a weight of 2.4 bits
(89.6 GB/s) the 768 lanes of a Radeon 780M have 6.9 slots for it at 2.7 GHz; the budget is 6.

| pipeline | constants | instructions | VALU | multiply | dot4 | pairs | WMMA | VMEM | SMEM | LDS | SALU | slots | \
weights | slots per weight |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|
";

/// The whole document.
pub(super) fn document(version: &str, pipelines: &[Pipeline]) -> String {
    let mut text = format!("{INTRODUCTION}\nDriver: Mesa {version}.\n{PIPELINES}");
    pipelines.iter().for_each(|pipeline| text += &resources(pipeline));
    let loops: Vec<String> = pipelines.iter().filter_map(hot_loop).collect();
    if !loops.is_empty() {
        text += LOOPS;
        text.extend(loops);
    }
    text
}

fn row(cells: &[String]) -> String {
    let mut row = String::from("|");
    for cell in cells {
        // Writing to a string does not fail.
        write!(row, " {} |", if cell.is_empty() { "–" } else { cell }).ok();
    }
    row + "\n"
}

fn resources(pipeline: &Pipeline) -> String {
    let of = |name: &str| pipeline.statistic(name).to_string();
    row(&[
        pipeline.name.clone(),
        pipeline.constants(),
        pipeline.subgroup.to_string(),
        of("SGPRs"),
        of("VGPRs"),
        (pipeline.statistic(SPILLED_SCALAR) + pipeline.statistic(SPILLED_VECTOR)).to_string(),
        of("LDS size"),
        of(SCRATCH),
        format!("{} (≥ {})", pipeline.waves(), pipeline.declared_waves),
        of("Code size"),
        of("Instructions"),
        of("VALU"),
        of("VOPD"),
        of("SALU"),
        of("VMEM"),
        of("SMEM"),
    ])
}

fn hot_loop(pipeline: &Pipeline) -> Option<String> {
    let hot_loop = pipeline.hot_loop?;
    let mut cells = vec![pipeline.name.clone(), pipeline.constants()];
    match hot_loop.mix {
        Some(mix) => cells.extend(counts(&mix).map(|count| count.to_string())),
        None => cells.extend(counts(&Mix::default()).map(|_| "no loop".into())),
    }
    cells.push(hot_loop.weights.map(|weights| weights.to_string()).unwrap_or_default());
    cells.push(hot_loop.slots_per_weight().map(against_budget).unwrap_or_default());
    Some(row(&cells))
}

/// In the order of the columns.
fn counts(mix: &Mix) -> [usize; 11] {
    [
        mix.instructions,
        mix.vector,
        mix.multiplies,
        mix.dot4,
        mix.pairs,
        mix.matrix,
        mix.vector_memory,
        mix.scalar_memory,
        mix.shared,
        mix.scalar,
        mix.slots,
    ]
}

fn against_budget(slots: f64) -> String {
    let over = if slots > SLOTS_MAX { ", too many" } else { "" };
    format!("{slots:.2} of {SLOTS_MAX}{over}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::radv::SAMPLE;

    fn lines(pipelines: &[Pipeline], start: &str) -> Vec<String> {
        let text = document("25.0.7", pipelines);
        assert!(text.contains("\nDriver: Mesa 25.0.7.\n"), "{text}");
        text.lines().filter(|line| line.starts_with(start)).map(str::to_owned).collect()
    }

    #[test]
    fn rows_of_a_captured_sample() {
        let mut pipelines = Pipeline::parse_lines(SAMPLE).expect("what the driver said");
        let expected = [
            "| sample.dot4 | SUBGROUP=32 | 32 | 128 | 16 | 0 | 512 | 0 | 16 (≥ 8) | 444 | 82 | 27 | 4 | 15 | 3 | 3 |",
            "| sample.dot4 | SUBGROUP=32 | 37 | 16 | 1 | 3 | 2 | 0 | 2 | 2 | 0 | 6 | 22 | 16 | 1.38 of 6 |",
        ];
        assert_eq!(lines(&pipelines[..1], "| sample"), expected);
        assert_eq!(lines(&pipelines, "| sample.plain | – | 64 |").len(), 1);
        assert_eq!(lines(&pipelines, "| sample.nested").len(), 2);
        let hot_loop = pipelines[0].hot_loop.as_mut().expect("it decodes");
        hot_loop.weights = Some(3);
        assert!(lines(&pipelines[..1], "| sample")[1].ends_with("| 3 | 7.33 of 6, too many |"));
        assert_eq!(lines(&pipelines[2..3], "## Loops").len(), 0);
    }

    #[test]
    fn rows_are_as_wide_as_their_heads() {
        let mut pipelines = Pipeline::parse_lines(SAMPLE).expect("what the driver said");
        pipelines[3].hot_loop.as_mut().expect("it decodes").mix = None;
        let mut widths = Vec::new();
        for line in lines(&pipelines, "|") {
            if line.starts_with("| pipeline") {
                widths.clear();
            }
            widths.push(line.matches('|').count());
            assert_eq!(widths[0], widths[widths.len() - 1], "{line}");
        }
    }
}
