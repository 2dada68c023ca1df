//! The reference passes the suite, and mistakes do not.

use std::sync::Arc;

use conformance::compare::sharpness;
use conformance::{Effort, Subject, assert_cases};
use tensor::format::trellis::Scales;
use tensor::reference::ReferenceBackend;
use tensor::{
    Backend, BackendError, Batch, BufferId, BufferKind, Capabilities, DType, LoadOptions, Loaded, MemoryUse, Op,
    Precision, Program, ProgramBuilder, WeightBytes, WeightError, WeightFormat, WeightSource,
};

#[test]
fn the_reference_conforms() {
    conformance::assert_conforms("the reference", &ReferenceBackend);
}

/// A bound as large as the results themselves would let everything pass.
#[test]
fn bounds_are_sharp() {
    for case in conformance::cases() {
        case.experiments(|experiment| {
            for (mode, found) in experiment.modes.iter().zip(sharpness(experiment)) {
                let attends = experiment.label.starts_with("attention ");
                let most = match (mode.precision, mode.cache_dtype) {
                    (Precision::F32, DType::F32) => 0.02,
                    (_, DType::F16) if attends => 0.02,
                    (_, DType::Q8_0) => 0.6,
                    (Precision::F32, _) => 0.2,
                    // Three products, each of activations that were rounded in blocks of 128.
                    (Precision::Fast, _) if experiment.label.starts_with("feed-forward, gate") => 2.0,
                    (Precision::Fast, _) => 1.2,
                };
                let label = &experiment.label;
                assert!(found < most, "{label}: {mode:?}: half of the bounds are above {found:.1e} deviations");
            }
        });
    }
}

/// A mistake that a backend could make.
#[derive(Clone, Copy)]
enum Fault {
    /// Other constants in the ops.
    Op(fn(&mut Op)),
    /// Other bytes in weights of a format.
    Weight(DType, fn(&mut [u8])),
    /// Other tiles or scales of trellises.
    Tiles(fn(&mut Vec<u8>, &mut Scales)),
    /// Other results, of rows of a width.
    Result(fn(&mut [f32])),
    /// Caches of another format than asked for.
    Cache(DType),
    /// Other output rows.
    Outputs,
}

/// The reference with a mistake, in one precision only if it is given.
struct Faulty {
    fault: Fault,
    precision: Option<Precision>,
}

struct FaultyLoaded {
    inner: Box<dyn Loaded>,
    fault: Option<Fault>,
}

struct FaultyWeights<'a> {
    inner: &'a dyn WeightSource,
    fault: Fault,
}

struct Tiles {
    bytes: Vec<u8>,
    scales: Scales,
}

impl WeightBytes for Tiles {
    fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn scales(&self) -> Option<&Scales> {
        Some(&self.scales)
    }
}

impl WeightSource for FaultyWeights<'_> {
    fn open(&self, name: &str, format: WeightFormat) -> Result<Arc<dyn WeightBytes>, WeightError> {
        let data = self.inner.open(name, format)?;
        match self.fault {
            Fault::Weight(of, change) if format == WeightFormat::Blocks(of) => {
                let mut bytes = data.bytes().to_vec();
                change(&mut bytes);
                Ok(Arc::new(bytes))
            }
            Fault::Tiles(change) => match data.scales() {
                Some(scales) => {
                    let mut tiles = Tiles { bytes: data.bytes().to_vec(), scales: scales.clone() };
                    change(&mut tiles.bytes, &mut tiles.scales);
                    Ok(Arc::new(tiles))
                }
                None => Ok(data),
            },
            _ => Ok(data),
        }
    }
}

impl Backend for Faulty {
    fn capabilities(&self) -> Capabilities {
        Capabilities { decodes: false, ..ReferenceBackend.capabilities() }
    }

    fn load(
        &self,
        program: &Program,
        weights: &dyn WeightSource,
        options: &LoadOptions,
    ) -> Result<Box<dyn Loaded>, BackendError> {
        if self.precision.is_some_and(|precision| precision != options.precision) {
            let inner = ReferenceBackend.load(program, weights, options)?;
            return Ok(Box::new(FaultyLoaded { inner, fault: None }));
        }
        let cache_dtype = if let Fault::Cache(dtype) = self.fault { dtype } else { options.cache_dtype };
        let options = LoadOptions { cache_dtype, ..options.clone() };
        let changed = change_ops(program, self.fault);
        let weights = FaultyWeights { inner: weights, fault: self.fault };
        let inner = ReferenceBackend.load(&changed, &weights, &options)?;
        Ok(Box::new(FaultyLoaded { inner, fault: Some(self.fault) }))
    }
}

fn change_ops(program: &Program, fault: Fault) -> Program {
    let mut builder = ProgramBuilder::new();
    for buffer in program.buffers() {
        match buffer.kind {
            BufferKind::Weight { format, rows, columns } => builder.weight(&buffer.name, format, rows, columns),
            BufferKind::Scratch { rows, width } => builder.scratch(&buffer.name, rows, width),
            // The windows of the caches stay out of the way of changed ops.
            BufferKind::Cache { width, .. } => builder.cache(&buffer.name, width, None),
        };
    }
    for op in program.ops() {
        let mut op = op.clone();
        if let Fault::Op(change) = fault {
            change(&mut op);
        }
        builder.push(op);
    }
    builder.build().expect("still a good program")
}

impl Loaded for FaultyLoaded {
    fn run(&mut self, batch: &Batch<'_>) -> Result<(), BackendError> {
        let mut outputs = batch.outputs.to_vec();
        if matches!(self.fault, Some(Fault::Outputs))
            && let Some(last) = outputs.last_mut()
        {
            *last = last.saturating_sub(1);
        }
        outputs.sort_unstable();
        self.inner.run(&Batch { outputs: &outputs, ..batch.clone() })
    }

    fn read(&mut self, buffer: BufferId, into: &mut [f32]) -> Result<(), BackendError> {
        self.inner.read(buffer, into)?;
        if let Some(Fault::Result(change)) = self.fault {
            change(into);
        }
        Ok(())
    }

    fn memory(&self) -> MemoryUse {
        self.inner.memory()
    }
}

/// The suite has to refuse the mistake in the cases of that prefix.
fn refused(prefix: &str, what: &str, precision: Option<Precision>, fault: Fault) {
    let faulty = Faulty { fault, precision };
    let subject = [Subject { name: what, backend: &faulty, effort: Effort::Full }];
    let mut failures = 0;
    for case in conformance::cases().into_iter().filter(|case| case.name.starts_with(prefix)) {
        failures += usize::from(case.run(&subject).is_err());
    }
    assert!(failures > 0, "{what}: nothing of `{prefix}` noticed it");
}

const FAST: Option<Precision> = Some(Precision::Fast);

#[test]
fn wrong_attention_is_refused() {
    refused(
        "attention",
        "a window too long",
        None,
        Fault::Op(|op| {
            if let Op::Attention { window: Some(window), .. } = op {
                *window += 1;
            }
        }),
    );
    refused(
        "attention",
        "a window too short",
        None,
        Fault::Op(|op| {
            if let Op::Attention { window: Some(window), .. } = op {
                *window = (*window - 1).max(1);
            }
        }),
    );
    refused(
        "attention",
        "another scale",
        FAST,
        Fault::Op(|op| {
            if let Op::Attention { scale, .. } = op {
                scale.0 *= 1.003;
            }
        }),
    );
    refused("attention", "a coarser cache", FAST, Fault::Cache(DType::Q8_0));
    refused("cache_write", "a coarser cache", FAST, Fault::Cache(DType::F16));
}

#[test]
fn wrong_constants_are_refused() {
    refused(
        "rope",
        "another base",
        None,
        Fault::Op(|op| {
            if let Op::Rope { base, .. } = op {
                base.0 *= 1.000_01;
            }
        }),
    );
    refused(
        "rope",
        "positions that are not divided",
        None,
        Fault::Op(|op| {
            if let Op::Rope { position_divisor, .. } = op {
                position_divisor.0 = 1.0;
            }
        }),
    );
    refused(
        "rms_norm",
        "another epsilon",
        None,
        Fault::Op(|op| {
            if let Op::RmsNorm { epsilon, .. } = op {
                epsilon.0 *= 1.0001;
            }
        }),
    );
    refused(
        "embed",
        "another scale",
        None,
        Fault::Op(|op| {
            if let Op::Embed { scale, .. } = op {
                scale.0 *= 1.000_001;
            }
        }),
    );
    refused("select_outputs", "another row", None, Fault::Outputs);
}

#[test]
fn wrong_weights_are_refused() {
    for dtype in DType::ALL {
        let of = |name: &str| format!("{name}/{dtype}");
        // The inputs come through f32 tables, which would change too.
        if dtype != DType::F32 {
            refused(
                &of("linear"),
                "the lowest bit of a quant",
                None,
                Fault::Weight(dtype, |bytes| {
                    let middle = bytes.len() / 2;
                    bytes[middle] ^= 1;
                }),
            );
            refused(
                &of("linear"),
                "a block that is left out",
                FAST,
                Fault::Weight(dtype, |bytes| {
                    let end = bytes.len();
                    bytes[end.saturating_sub(16)..].fill(0);
                }),
            );
        }
    }
}

/// Also where the bounds are those of roundings to 8 bits.
#[test]
fn wrong_layers_of_single_tokens_are_refused() {
    refused(
        "single_tokens/layers",
        "gate and up in each other's place",
        FAST,
        Fault::Op(|op| {
            if let Op::GeluMul { gate, up, .. } = op {
                std::mem::swap(gate, up);
            }
        }),
    );
    refused(
        "single_tokens/layers",
        "blocks of zeros",
        FAST,
        Fault::Weight(DType::Q4_0, |bytes| {
            let half = bytes.len() / 2;
            bytes[half..].fill(0);
        }),
    );
    refused(
        "single_tokens/attention",
        "a window too long",
        FAST,
        Fault::Op(|op| {
            if let Op::Attention { window: Some(window), .. } = op {
                *window += 1;
            }
        }),
    );
}

#[test]
fn wrong_trellises_are_refused() {
    let bit = Fault::Tiles(|tiles, _| {
        let middle = tiles.len() / 2;
        tiles[middle] ^= 1;
    });
    for prefix in ["trellis/linear/3inst", "trellis/linear/mcg", "trellis/linear/mul1", "trellis/embed"] {
        refused(prefix, "a bit of a tile", None, bit);
        refused(prefix, "one sign of the inputs", None, Fault::Tiles(|_, scales| scales.suh[3] = -scales.suh[3]));
        refused(prefix, "one sign of the outputs", FAST, Fault::Tiles(|_, scales| scales.svh[3] = -scales.svh[3]));
    }
    let rotated = |_: &mut Vec<u8>, scales: &mut Scales| scales.suh.rotate_left(1);
    for prefix in ["trellis/large", "trellis/shared", "trellis/feed_forward"] {
        refused(prefix, "scales of the inputs in other places", FAST, Fault::Tiles(rotated));
    }
    refused(
        "trellis/large",
        "tiles of zeros at the end",
        FAST,
        Fault::Tiles(|tiles, _| {
            let end = tiles.len();
            tiles[end - end / 16..].fill(0);
        }),
    );
}

#[test]
fn wrong_results_are_refused() {
    for prefix in ["embed", "rms_norm", "linear/f32", "rope", "attention", "gelu_mul", "add", "layer/model"] {
        refused(
            prefix,
            "a factor",
            None,
            Fault::Result(|values| {
                for value in values {
                    *value *= 1.001;
                }
            }),
        );
        refused(
            prefix,
            "not a number",
            None,
            Fault::Result(|values| {
                if let Some(last) = values.last_mut() {
                    *last = f32::NAN;
                }
            }),
        );
    }
    for dtype in DType::ALL {
        refused(
            &format!("linear/{dtype}"),
            "a factor",
            FAST,
            Fault::Result(|values| {
                for value in values {
                    *value *= 1.05;
                }
            }),
        );
        refused(
            &format!("linear/{dtype}"),
            "one element",
            FAST,
            Fault::Result(|values| {
                if values.len() > 100 {
                    values.swap(99, 100);
                }
            }),
        );
    }
}

#[test]
fn failures_say_where_and_by_how_much() {
    let faulty = Faulty { fault: Fault::Result(|values| values[0] += 1.0), precision: None };
    let case = conformance::cases().into_iter().find(|case| case.name == "linear/q4_0").expect("a case");
    let failure = case
        .run(&[Subject { name: "a device", backend: &faulty, effort: Effort::Full }])
        .expect_err("a failure")
        .to_string();
    for part in ["linear q4_0 [[1, 3, 16, 17, 63, 130], 32]", "F32 precision", "a device", "the worst [0, 0]", "bound"]
    {
        assert!(failure.contains(part), "`{part}` is not in: {failure}");
    }
}

#[test]
#[should_panic(expected = "no case is named `lineal…`")]
fn a_misspelt_prefix_is_no_success() {
    assert_cases("lineal", &[]);
}
