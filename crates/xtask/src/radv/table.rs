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
registers, uses scratch memory, fits fewer subgroups on a SIMD than it declares, or multiplies matrices without matrix
instructions. The pipelines are those of decoding 1, 2, 4 and 8 sequences and of prompts of 512 tokens, for all
published sizes of Gemma 3, all formats of weights and caches, and both sizes of subgroups.
";

const PIPELINES: &str = "
## Resources

A row for each shader and size of subgroups, with the worst of its variants, which differ in their specialization
constants: registers per subgroup (SGPR) and per lane (VGPR); shared memory (LDS) of a workgroup, scratch memory and
code in bytes; subgroups that fit on a SIMD, and how many the pipeline declares that it needs; instructions in all and
by kind: vector ALU (VOPD: those issued in pairs), scalar ALU, vector and scalar memory, and multiplications of
matrices (WMMA; here the fewest of the variants) where a shader has to use them.

| pipeline | subgroup | variants | SGPR | VGPR | spilled | LDS | scratch | subgroups per SIMD | code | instructions | \
VALU | VOPD | SALU | VMEM | SMEM | WMMA |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|
";

const LOOPS: &str = "
## Loops that decode weights or multiply matrices

One iteration of the longest innermost loop, as if all of its blocks ran. For each shader and size of subgroups the
variant with the most slots per weight, of those that multiply the fewest columns. A slot is the time of one vector
addition in a lane: a multiplication of 32-bit integers takes 4, a dot product of four bytes 2, a pair 1, everything
else 1; multiplications of matrices (WMMA) are counted apart. In the time in which DDR5-5600 delivers a weight of 2.4
bits (89.6 GB/s) the 768 lanes of a Radeon 780M have 6.9 slots for it at 2.7 GHz; the budget is 6. Activations in f32
(the shaders that end in `f32`) are for comparing and for devices without integer dot products; they may pass it.

| pipeline | subgroup | constants | instructions | VALU | multiply | dot4 | pairs | WMMA | VMEM | SMEM | LDS | SALU | \
slots | weights | slots per weight |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|
";

/// The whole document.
pub(super) fn document(version: &str, pipelines: &[Pipeline]) -> String {
    let mut text = format!("{INTRODUCTION}\nDriver: Mesa {version}.\n{PIPELINES}");
    let groups = groups(pipelines);
    groups.iter().for_each(|variants| text += &resources(variants));
    let loops: Vec<String> = groups.iter().filter_map(|variants| hot_loop(slowest(variants)?)).collect();
    if !loops.is_empty() {
        text += LOOPS;
        text.extend(loops);
    }
    text
}

/// The pipelines of each shader and size of subgroups, in the order of the first of each.
fn groups(pipelines: &[Pipeline]) -> Vec<Vec<&Pipeline>> {
    let mut groups: Vec<Vec<&Pipeline>> = Vec::new();
    for pipeline in pipelines {
        let same =
            |group: &&mut Vec<&Pipeline>| (&group[0].name, group[0].subgroup) == (&pipeline.name, pipeline.subgroup);
        match groups.iter_mut().find(same) {
            Some(group) => group.push(pipeline),
            None => groups.push(vec![pipeline]),
        }
    }
    groups
}

/// Of the variants that multiply the fewest columns, the one with the most slots per weight.
fn slowest<'a>(variants: &[&'a Pipeline]) -> Option<&'a Pipeline> {
    let columns = |pipeline: &Pipeline| -> u64 {
        pipeline.specialization.get("COLUMNS").and_then(|columns| columns.parse().ok()).unwrap_or(1)
    };
    let fewest = variants.iter().map(|pipeline| columns(pipeline)).min()?;
    let fitting = variants.iter().filter(|pipeline| columns(pipeline) == fewest);
    let slots = |pipeline: &Pipeline| pipeline.hot_loop.and_then(|found| found.slots_per_weight()).unwrap_or_default();
    fitting.max_by(|a, b| slots(a).total_cmp(&slots(b))).copied()
}

fn row(cells: &[String]) -> String {
    let mut row = String::from("|");
    for cell in cells {
        // Writing to a string does not fail.
        write!(row, " {} |", if cell.is_empty() { "–" } else { cell }).ok();
    }
    row + "\n"
}

fn resources(variants: &[&Pipeline]) -> String {
    let most = |of: &dyn Fn(&Pipeline) -> u64| variants.iter().map(|pipeline| of(pipeline)).max().unwrap_or_default();
    let of = |name: &str| most(&|pipeline| pipeline.statistic(name)).to_string();
    let matrices = variants.iter().filter_map(|pipeline| pipeline.matrix_instructions).min();
    // The one that is closest to what it declares.
    let tightest = variants.iter().min_by_key(|pipeline| pipeline.waves() as i64 - pipeline.declared_waves as i64);
    let (waves, declared) = tightest.map_or((0, 0), |pipeline| (pipeline.waves(), pipeline.declared_waves));
    row(&[
        variants[0].name.clone(),
        variants[0].subgroup.to_string(),
        variants.len().to_string(),
        of("SGPRs"),
        of("VGPRs"),
        most(&|pipeline| pipeline.statistic(SPILLED_SCALAR) + pipeline.statistic(SPILLED_VECTOR)).to_string(),
        of("LDS size"),
        of(SCRATCH),
        format!("{waves} (≥ {declared})"),
        of("Code size"),
        of("Instructions"),
        of("VALU"),
        of("VOPD"),
        of("SALU"),
        of("VMEM"),
        of("SMEM"),
        matrices.map(|count| count.to_string()).unwrap_or_default(),
    ])
}

fn hot_loop(pipeline: &Pipeline) -> Option<String> {
    let hot_loop = pipeline.hot_loop?;
    let mut cells = vec![pipeline.name.clone(), pipeline.subgroup.to_string(), pipeline.constants()];
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
            "| sample.dot4 | 32 | 1 | 128 | 16 | 0 | 512 | 0 | 16 (≥ 8) | 444 | 82 | 27 | 4 | 15 | 3 | 3 | – |",
            "| sample.dot4 | 32 | SUBGROUP=32 | 37 | 16 | 1 | 3 | 2 | 0 | 2 | 2 | 0 | 6 | 22 | 16 | 1.38 of 6 |",
        ];
        assert_eq!(lines(&pipelines[..1], "| sample"), expected);
        assert_eq!(lines(&pipelines, "| sample.plain | 64 | 1 |").len(), 1);
        assert_eq!(lines(&pipelines, "| sample.nested").len(), 2);
        let hot_loop = pipelines[0].hot_loop.as_mut().expect("it decodes");
        hot_loop.weights = Some(3);
        assert!(lines(&pipelines[..1], "| sample")[1].ends_with("| 3 | 7.33 of 6, too many |"));
        assert_eq!(lines(&pipelines[2..3], "## Loops").len(), 0);
    }

    #[test]
    fn the_worst_of_the_variants() {
        let mut pipelines = Pipeline::parse_lines(SAMPLE).expect("what the driver said");
        pipelines.truncate(1);
        for (columns, weights) in [("1", 8), ("2", 1)] {
            let mut variant = pipelines[0].clone();
            variant.specialization.insert("COLUMNS".into(), columns.into());
            variant.statistics.insert(SCRATCH.into(), 16 * weights);
            variant.hot_loop.as_mut().expect("it decodes").weights = Some(weights);
            pipelines.push(variant);
        }
        let found = lines(&pipelines, "| sample");
        assert_eq!(found.len(), 2);
        assert!(found[0].starts_with("| sample.dot4 | 32 | 3 | 128 | 16 | 0 | 512 | 128 |"), "{}", found[0]);
        assert!(found[1].ends_with("| 8 | 2.75 of 6 |"), "{}", found[1]);
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
