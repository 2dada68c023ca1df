//! What the driver says of one compute pipeline.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::assembly::{self, Mix};

/// A compiled pipeline.
#[derive(Clone, Debug)]
pub(super) struct Pipeline {
    /// Name of the shader.
    pub name: String,
    /// Specialization constants, by name.
    pub specialization: BTreeMap<String, String>,
    /// Invocations in a subgroup.
    pub subgroup: u64,
    /// Subgroups that a SIMD has to hold at once, so that they hide each other's waits for memory.
    pub declared_waves: u64,
    /// The driver's statistics, by the driver's names.
    pub statistics: BTreeMap<String, u64>,
    /// For shaders that decode weights or multiply matrices: their loop.
    pub hot_loop: Option<HotLoop>,
    /// For shaders that have to use matrix instructions (WMMA): how many are in their machine code.
    pub matrix_instructions: Option<usize>,
}

/// The loop of a shader that decodes weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HotLoop {
    /// Its instructions; nothing if the shader has no loop.
    pub mix: Option<Mix>,
    /// Weights that one lane decodes in one iteration, if known.
    pub weights: Option<u64>,
}

impl HotLoop {
    /// Slots of the vector ALU for each weight.
    pub(super) fn slots_per_weight(&self) -> Option<f64> {
        let weights = self.weights.filter(|weights| *weights > 0)?;
        Some(self.mix?.slots as f64 / weights as f64)
    }
}

impl Pipeline {
    /// Reads the lines that the example `pipelines` of `backend-vulkan` prints: one JSON object each.
    ///
    /// # Errors
    /// If a line is not of that form, or there is none.
    pub(super) fn parse_lines(text: &str) -> Result<Vec<Pipeline>> {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let parse = |(index, line)| Pipeline::parse(line).with_context(|| format!("pipeline in line {}", index + 1));
        let pipelines = lines.map(parse).collect::<Result<Vec<_>>>()?;
        ensure!(!pipelines.is_empty(), "expected one pipeline in each line, found no line");
        Ok(pipelines)
    }

    fn parse(line: &str) -> Result<Pipeline> {
        let value: Value = serde_json::from_str(line)?;
        let number = |key: &str| value[key].as_u64().with_context(|| format!("expected a number `{key}`"));
        let map = |key: &str| value[key].as_object().with_context(|| format!("expected an object `{key}`"));
        let constant = |(name, value): (&String, &Value)| (name.clone(), value.to_string());
        let statistic = |(name, value): (&String, &Value)| Some((name.clone(), value.as_u64()?));
        let mut pipeline = Pipeline {
            name: value["name"].as_str().context("expected a text `name`")?.into(),
            specialization: map("specialization")?.iter().map(constant).collect(),
            subgroup: number("subgroup")?,
            declared_waves: number("declared_waves")?,
            statistics: map("statistics")?.iter().filter_map(statistic).collect(),
            hot_loop: None,
            matrix_instructions: None,
        };
        for name in ["SGPRs", "VGPRs", SPILLED_SCALAR, SPILLED_VECTOR, SCRATCH, OCCUPANCY, "LDS size", "Code size"] {
            let known = || pipeline.statistics.keys().cloned().collect::<Vec<_>>().join("`, `");
            ensure!(pipeline.statistics.contains_key(name), "expected a statistic `{name}`, found `{}`", known());
        }
        if value["hot_loop"].as_bool().unwrap_or_default() {
            let text = value["assembly"].as_str().context("expected a text `assembly` beside `hot_loop`")?;
            let weights = value["weights_per_iteration"].as_u64();
            pipeline.hot_loop = Some(HotLoop { mix: assembly::hot_loop(text), weights });
        }
        if pipeline.name.contains("_matrix") {
            let text = value["assembly"].as_str().context("expected a text `assembly` of a shader with matrices")?;
            pipeline.matrix_instructions = Some(text.matches("v_wmma_").count());
        }
        Ok(pipeline)
    }

    /// A statistic by the driver's name; 0 if the driver has none of that name.
    pub(super) fn statistic(&self, name: &str) -> u64 {
        self.statistics.get(name).copied().unwrap_or_default()
    }

    /// Subgroups that a SIMD holds at once. On RDNA the driver counts them as if each had 32 invocations.
    pub(super) fn waves(&self) -> u64 {
        self.statistic(OCCUPANCY) * 32 / self.subgroup.max(1)
    }

    /// Name and specialization in one line.
    pub(super) fn title(&self) -> String {
        format!("{} {}", self.name, self.constants()).trim_end().into()
    }

    /// The specialization constants in one line.
    pub(super) fn constants(&self) -> String {
        self.specialization.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
    }

    /// Why the pipeline can't be as fast as it was meant to be; nothing if it can.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for (name, unit) in [(SPILLED_SCALAR, "registers"), (SPILLED_VECTOR, "registers"), (SCRATCH, "bytes")] {
            let found = self.statistic(name);
            if found > 0 {
                problems.push(format!("{}: `{name}`: expected none, found {found} {unit}", self.title()));
            }
        }
        let (waves, declared) = (self.waves(), self.declared_waves);
        if waves < declared {
            let title = self.title();
            problems.push(format!("{title}: `{OCCUPANCY}`: expected at least {declared}, found {waves}"));
        }
        if self.matrix_instructions == Some(0) {
            problems.push(format!("{}: expected matrix instructions, found none", self.title()));
        }
        problems
    }
}

/// Statistics of RADV.
pub(super) const SPILLED_SCALAR: &str = "Spilled SGPRs";
/// Vector registers that did not fit.
pub(super) const SPILLED_VECTOR: &str = "Spilled VGPRs";
/// Bytes of an invocation's memory outside registers.
pub(super) const SCRATCH: &str = "Scratch size";
/// Subgroups of 32 invocations that fit on a SIMD at once.
pub(super) const OCCUPANCY: &str = "Subgroups per SIMD";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::radv::SAMPLE;

    #[test]
    fn a_captured_sample() {
        let pipelines = Pipeline::parse_lines(SAMPLE).expect("what the driver said");
        let titles: Vec<String> = pipelines.iter().map(Pipeline::title).collect();
        let expected =
            ["sample.dot4 SUBGROUP=32", "sample.dot4 SUBGROUP=64", "sample.plain", "sample.nested SUBGROUP=32"];
        assert_eq!(titles, expected);
        assert_eq!(pipelines[0].statistic("Code size"), 444);
        let hot_loop = pipelines[0].hot_loop.expect("it decodes");
        let expected = Mix {
            instructions: 37,
            vector: 16,
            multiplies: 1,
            dot4: 3,
            pairs: 2,
            slots: 12 + 4 + 3 * 2,
            matrix: 0,
            vector_memory: 2,
            scalar_memory: 2,
            shared: 0,
            scalar: 6,
        };
        assert_eq!(hot_loop.mix, Some(expected));
        assert_eq!(hot_loop.slots_per_weight(), Some(22.0 / 16.0));
        assert_eq!((pipelines[1].statistic(OCCUPANCY), pipelines[1].waves()), (32, 16));
        assert_eq!(pipelines[2].hot_loop, None);
        let nested = pipelines[3].hot_loop.expect("it decodes");
        assert_eq!(nested.mix.expect("the inner loop").multiplies, 4);
        assert_eq!(nested.slots_per_weight(), None);
        assert!(pipelines.iter().all(|pipeline| pipeline.problems().is_empty()));
    }

    #[test]
    fn what_makes_a_pipeline_slow() {
        let mut pipeline = Pipeline::parse_lines(SAMPLE).expect("what the driver said").remove(0);
        for (name, value) in [(SPILLED_SCALAR, 1), (SPILLED_VECTOR, 2), (SCRATCH, 256), (OCCUPANCY, 7)] {
            let good = pipeline.statistics.insert(name.into(), value).expect("known");
            let problems = pipeline.problems();
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].contains(name) && problems[0].contains(&format!("found {value}")), "{problems:?}");
            pipeline.statistics.insert(name.into(), good);
        }
        pipeline.declared_waves = 16;
        assert!(pipeline.problems().is_empty());
        pipeline.subgroup = 64;
        assert!(pipeline.problems()[0].ends_with("expected at least 16, found 8"));
        (pipeline.subgroup, pipeline.matrix_instructions) = (32, Some(0));
        assert!(pipeline.problems()[0].ends_with("expected matrix instructions, found none"));
        pipeline.matrix_instructions = Some(1);
        assert!(pipeline.problems().is_empty());
    }

    #[test]
    fn lines_of_another_form() {
        let error = |text: &str| format!("{:#}", Pipeline::parse_lines(text).expect_err("not of that form"));
        assert!(error("\n").contains("no line"));
        assert!(error("{}").contains("`name`"));
        let first = SAMPLE.lines().next().expect("a line");
        assert!(error(&first.replace("\"Scratch size\"", "\"Private size\"")).contains("`Private size`"));
        let second = format!("{first}\n{}", first.replace("\"assembly\"", "\"code\""));
        let message = error(&second);
        assert!(message.contains("line 2") && message.contains("`assembly`"), "{message}");
    }
}
