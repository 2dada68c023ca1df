//! A program: buffers and the ops over them, as plain data that can be printed, hashed and compared.

use std::fmt;

use thiserror::Error;

use crate::{DType, Op, WeightFormat};

/// The number of a buffer in its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BufferId(pub u32);

impl BufferId {
    /// The number as an index into [`Program::buffers`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// What a scratch buffer has one row for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rows {
    /// Every token of the batch.
    Tokens,
    /// Every token of the batch whose output was asked for.
    Outputs,
}

/// What a buffer holds and how long it lives.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum BufferKind {
    /// A constant `[rows, columns]`, bound by name when the program is loaded. A vector is `[1, n]`.
    Weight {
        /// How it is stored.
        format: WeightFormat,
        /// Rows: a linear layer's outputs.
        rows: usize,
        /// Columns: a linear layer's inputs.
        columns: usize,
    },
    /// f32 activations `[rows, width]` that live for one pass.
    Scratch {
        /// What there is a row for.
        rows: Rows,
        /// Elements per row.
        width: usize,
    },
    /// The keys or the values of one layer, `[positions, width]` for each sequence; kept between passes.
    Cache {
        /// Elements per position: `kv_heads · head_dim`.
        width: usize,
        /// Positions that are ever looked at again, the newest included; `None` for all.
        window: Option<usize>,
    },
}

/// A buffer's name and kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Buffer {
    /// Unique within the program; a weight is looked up by it.
    pub name: String,
    /// What it holds.
    pub kind: BufferKind,
}

/// Buffers and the ops over them, checked for consistency when built.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Program {
    buffers: Vec<Buffer>,
    ops: Vec<Op>,
}

/// Why a program can't be built: always a mistake in the code that builds it or in a model's shapes.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ProgramError {
    /// An op's buffers don't fit each other.
    #[error("op {index} ({op}): {problem}")]
    Op {
        /// Position in the program.
        index: usize,
        /// Name of the op.
        op: &'static str,
        /// What was expected and found.
        problem: String,
    },
    /// Two buffers have the same name.
    #[error("two buffers are named `{0}`")]
    DuplicateName(String),
}

impl Program {
    /// The buffers; a [`BufferId`] is an index into this.
    pub fn buffers(&self) -> &[Buffer] {
        &self.buffers
    }

    /// The ops in the order of execution.
    pub fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// The buffer of that number.
    ///
    /// # Panics
    /// If the number is not of this program.
    pub fn buffer(&self, id: BufferId) -> &Buffer {
        &self.buffers[id.index()]
    }

    /// The buffer of that name.
    pub fn find(&self, name: &str) -> Option<BufferId> {
        self.buffers.iter().position(|buffer| buffer.name == name).map(|index| BufferId(index as u32))
    }
}

/// Collects buffers and ops; [`ProgramBuilder::build`] checks them.
#[derive(Debug, Default)]
pub struct ProgramBuilder {
    buffers: Vec<Buffer>,
    ops: Vec<Op>,
}

impl ProgramBuilder {
    /// An empty program.
    pub fn new() -> Self {
        Self::default()
    }

    /// Declares a weight `[rows, columns]`.
    pub fn weight(
        &mut self,
        name: impl Into<String>,
        format: impl Into<WeightFormat>,
        rows: usize,
        columns: usize,
    ) -> BufferId {
        self.buffer(name.into(), BufferKind::Weight { format: format.into(), rows, columns })
    }

    /// Declares activations `[rows, width]`.
    pub fn scratch(&mut self, name: impl Into<String>, rows: Rows, width: usize) -> BufferId {
        self.buffer(name.into(), BufferKind::Scratch { rows, width })
    }

    /// Declares a cache of keys or values.
    pub fn cache(&mut self, name: impl Into<String>, width: usize, window: Option<usize>) -> BufferId {
        self.buffer(name.into(), BufferKind::Cache { width, window })
    }

    /// Appends an op.
    pub fn push(&mut self, op: Op) {
        self.ops.push(op);
    }

    fn buffer(&mut self, name: String, kind: BufferKind) -> BufferId {
        self.buffers.push(Buffer { name, kind });
        BufferId((self.buffers.len() - 1) as u32)
    }

    /// Checks the shapes of every op and the uniqueness of names.
    ///
    /// # Errors
    /// The first op whose buffers don't fit, or a name that occurs twice.
    pub fn build(self) -> Result<Program, ProgramError> {
        let mut names = std::collections::HashSet::new();
        for buffer in &self.buffers {
            if !names.insert(buffer.name.as_str()) {
                return Err(ProgramError::DuplicateName(buffer.name.clone()));
            }
        }
        let program = Program { buffers: self.buffers, ops: self.ops };
        for (index, op) in program.ops.iter().enumerate() {
            check(&program, op).map_err(|problem| ProgramError::Op { index, op: op.name(), problem })?;
        }
        Ok(program)
    }
}

/// Width and row kind of a scratch buffer.
fn scratch(program: &Program, id: BufferId) -> Result<(Rows, usize), String> {
    match *program.buffers.get(id.index()).map(|buffer| &buffer.kind).ok_or("unknown buffer")? {
        BufferKind::Scratch { rows, width } => Ok((rows, width)),
        _ => Err(format!("`{}` is not a scratch buffer", program.buffer(id).name)),
    }
}

/// Rows, columns and format of a weight.
fn weight(program: &Program, id: BufferId) -> Result<(usize, usize, WeightFormat), String> {
    match program.buffers.get(id.index()).map(|buffer| &buffer.kind).ok_or("unknown buffer")? {
        &BufferKind::Weight { format, rows, columns } => Ok((rows, columns, format)),
        _ => Err(format!("`{}` is not a weight", program.buffer(id).name)),
    }
}

/// Width of a cache.
fn cache(program: &Program, id: BufferId) -> Result<usize, String> {
    match program.buffers.get(id.index()).map(|buffer| &buffer.kind).ok_or("unknown buffer")? {
        &BufferKind::Cache { width, .. } => Ok(width),
        _ => Err(format!("`{}` is not a cache", program.buffer(id).name)),
    }
}

fn expect<T: PartialEq + fmt::Debug>(what: &str, expected: T, found: T) -> Result<(), String> {
    if expected == found { Ok(()) } else { Err(format!("{what}: expected {expected:?}, found {found:?}")) }
}

fn expect_multiple(what: &str, of: usize, found: usize) -> Result<(), String> {
    if of > 0 && found.is_multiple_of(of) {
        Ok(())
    } else {
        Err(format!("{what}: expected a multiple of {of}, found {found}"))
    }
}

/// The shape rules of one op.
fn check(program: &Program, op: &Op) -> Result<(), String> {
    let tokens = |id| -> Result<usize, String> {
        let (rows, width) = scratch(program, id)?;
        expect("rows", Rows::Tokens, rows)?;
        Ok(width)
    };
    match *op {
        Op::Embed { table, output, .. } => expect("width", weight(program, table)?.1, tokens(output)?),
        Op::RmsNorm { input, weight: norm, output, .. } => {
            let (rows, columns, format) = weight(program, norm)?;
            expect("weight", (1, WeightFormat::Blocks(DType::F32)), (rows, format))?;
            expect_multiple("width", columns, scratch(program, input)?.1)?;
            expect("output", scratch(program, input)?, scratch(program, output)?)
        }
        Op::Linear { weight: matrix, input, output } => {
            let (out, columns, format) = weight(program, matrix)?;
            let (rows, width) = scratch(program, input)?;
            expect("input width", columns, width)?;
            expect_multiple("columns", format.block_len(), columns)?;
            expect("output", (rows, out), scratch(program, output)?)?;
            if input == output { Err("input and output are the same buffer".into()) } else { Ok(()) }
        }
        Op::Rope { values, head_dim, .. } => {
            expect_multiple("head_dim", 2, head_dim)?;
            expect_multiple("width", head_dim, tokens(values)?)
        }
        Op::CacheWrite { input, cache: id } => expect("width", cache(program, id)?, tokens(input)?),
        Op::Attention { query, keys, values, head_dim, output, .. } => {
            let width = tokens(query)?;
            expect("output width", width, tokens(output)?)?;
            expect("value width", cache(program, keys)?, cache(program, values)?)?;
            expect_multiple("key width", head_dim, cache(program, keys)?)?;
            expect_multiple("query width", cache(program, keys)?, width)
        }
        Op::GeluMul { gate, up, output } => {
            expect("up", scratch(program, gate)?, scratch(program, up)?)?;
            expect("output", scratch(program, gate)?, scratch(program, output)?)
        }
        Op::Add { input, output } => expect("output", scratch(program, input)?, scratch(program, output)?),
        Op::SelectOutputs { input, output } => {
            expect("output", (Rows::Outputs, tokens(input)?), scratch(program, output)?)
        }
    }
}

impl fmt::Display for Program {
    /// One line per op: `output = op(inputs)`, by the buffers' names.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for op in &self.ops {
            let inputs: Vec<&str> = op.reads().into_iter().map(|id| self.buffer(id).name.as_str()).collect();
            writeln!(f, "{} = {}({})", self.buffer(op.writes()).name, op.name(), inputs.join(", "))?;
        }
        Ok(())
    }
}
