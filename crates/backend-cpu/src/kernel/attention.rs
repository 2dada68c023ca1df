//! Causal attention over the caches, without the score matrix (Dao et al. 2022, arXiv 2205.14135).
//!
//! A task is a few tokens of one sequence and one KV head with the query heads that share it. It walks over the cached
//! positions a tile at a time: decodes the keys, computes the scores, keeps for each query a running maximum and sum
//! of exponentials, and adds the decoded values weighted by them. Where there are fewer tasks than threads (a single
//! token of a model with few KV heads), the positions are split among several tasks whose sums are merged.

use std::ops::Range;
use std::sync::Mutex;

use tensor::Segment;

use crate::cache::Cache;
use crate::isa::Output;
use crate::kernel::math::{dot, dots, exp};
use crate::level::{Level, Vectorized, multiply_add};
use crate::pool::Pool;

/// Positions of a tile.
const TILE: usize = 64;
/// Tokens of a task: a tile is decoded once for all of them.
const TOKENS: usize = 16;

/// The op's constants and inputs.
pub(crate) struct Attention<'a> {
    /// `[tokens, heads · head_dim]`.
    pub(crate) query: &'a [f32],
    pub(crate) keys: &'a Cache,
    pub(crate) values: &'a Cache,
    pub(crate) heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) window: Option<usize>,
    pub(crate) scale: f32,
    pub(crate) segments: &'a [Segment],
}

/// Some tokens of one sequence, one KV head, and a range of positions.
struct Task {
    sequence: usize,
    /// Row of the first token in the batch.
    row: usize,
    /// Position of the first token.
    position: usize,
    tokens: usize,
    kv_head: usize,
    keys: Range<usize>,
    /// Which part of the positions this is; parts of one task are neighbours.
    split: usize,
    splits: usize,
}

/// The running softmax of each query of a task.
#[derive(Clone, Default)]
struct State {
    /// `[query][head_dim]`: values weighted by `e^(score − maximum)`.
    sums: Vec<f32>,
    /// Per query.
    maxima: Vec<f32>,
    /// Per query: sum of `e^(score − maximum)`.
    weights: Vec<f32>,
    /// `[position][head_dim]` of the current tile.
    tile: Vec<f32>,
    /// `[query][position]` of the current tile.
    scores: Vec<f32>,
}

impl Attention<'_> {
    fn group(&self) -> usize {
        self.heads * self.head_dim / self.keys.width()
    }

    fn tasks(&self, threads: usize) -> Vec<Task> {
        let kv_heads = self.keys.width() / self.head_dim;
        let tiles: usize = self.segments.iter().map(|segment| segment.tokens.div_ceil(TOKENS)).sum();
        let wanted = (2 * threads).div_ceil(tiles * kv_heads);
        let mut tasks = Vec::new();
        let mut row = 0;
        for segment in self.segments {
            for start in (0..segment.tokens).step_by(TOKENS) {
                let position = segment.position + start;
                let tokens = TOKENS.min(segment.tokens - start);
                let first = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
                let length = position + tokens - first;
                let splits = wanted.min(length / (2 * TILE)).max(1);
                for kv_head in 0..kv_heads {
                    for split in 0..splits {
                        let keys = first + length * split / splits..first + length * (split + 1) / splits;
                        let (row, sequence) = (row + start, segment.sequence);
                        tasks.push(Task { sequence, row, position, tokens, kv_head, keys, split, splits });
                    }
                }
            }
            row += segment.tokens;
        }
        tasks
    }
}

/// Computes the op; `output` is `[tokens, heads · head_dim]`.
pub(crate) fn attention(level: Level, pool: &Pool, op: &Attention<'_>, output: Output) {
    let tasks = op.tasks(pool.threads());
    let partial: Vec<Mutex<Option<State>>> = tasks.iter().map(|_| Mutex::new(None)).collect();
    pool.for_ranges(tasks.len(), 1, &|range| {
        for index in range {
            let task = &tasks[index];
            let mut state = level.run(Run { op, task });
            if task.splits == 1 {
                finish(op, task, &mut state, output);
            } else {
                *partial[index].lock().expect("no code panics while it holds this lock") = Some(state);
            }
        }
    });
    for (index, task) in tasks.iter().enumerate().filter(|(_, task)| task.splits > 1 && task.split == 0) {
        let take = |index: usize| partial[index].lock().expect("all tasks are done").take().expect("a part's state");
        let mut state = take(index);
        for other in 1..task.splits {
            merge(&mut state, &take(index + other), op.head_dim);
        }
        finish(op, task, &mut state, output);
    }
}

/// Adds another part's sums.
fn merge(state: &mut State, other: &State, head_dim: usize) {
    for query in 0..state.maxima.len() {
        let maximum = state.maxima[query].max(other.maxima[query]);
        let (scale, other_scale) = ((state.maxima[query] - maximum).exp(), (other.maxima[query] - maximum).exp());
        state.maxima[query] = maximum;
        state.weights[query] = state.weights[query] * scale + other.weights[query] * other_scale;
        for d in query * head_dim..(query + 1) * head_dim {
            state.sums[d] = state.sums[d] * scale + other.sums[d] * other_scale;
        }
    }
}

/// Divides by the sum of the exponentials and writes the outputs.
fn finish(op: &Attention<'_>, task: &Task, state: &mut State, output: Output) {
    let group = op.group();
    for (query, sums) in state.sums.chunks_exact_mut(op.head_dim).enumerate() {
        let inverse = 1.0 / state.weights[query];
        sums.iter_mut().for_each(|sum| *sum *= inverse);
        let head = task.kv_head * group + query % group;
        // SAFETY: each token and head belongs to one task (or to the merge of its parts).
        unsafe { output.write(task.row + query / group, head * op.head_dim, sums) };
    }
}

struct Run<'a> {
    op: &'a Attention<'a>,
    task: &'a Task,
}

impl Vectorized for Run<'_> {
    type Output = State;

    #[inline(always)]
    fn run<const FMA: bool>(self) -> State {
        let (op, task) = (self.op, self.task);
        let queries = task.tokens * op.group();
        let mut state = State {
            sums: vec![0.0; queries * op.head_dim],
            maxima: vec![f32::NEG_INFINITY; queries],
            weights: vec![0.0; queries],
            tile: vec![0.0; TILE * op.head_dim],
            scores: vec![0.0; queries * TILE],
        };
        let mut start = task.keys.start;
        while start < task.keys.end {
            let end = (start + TILE).min(task.keys.end);
            decode_tile(op.keys, task, op.head_dim, start..end, &mut state.tile);
            for query in 0..queries {
                scores::<FMA>(op, task, query, seen(op, task, query, &(start..end)), &mut state);
            }
            decode_tile(op.values, task, op.head_dim, start..end, &mut state.tile);
            for query in 0..queries {
                add_values::<FMA>(op.head_dim, query, seen(op, task, query, &(start..end)), &mut state);
            }
            start = end;
        }
        state
    }
}

#[inline(always)]
fn decode_tile(cache: &Cache, task: &Task, head_dim: usize, positions: Range<usize>, tile: &mut [f32]) {
    for (position, values) in positions.zip(tile.chunks_exact_mut(head_dim)) {
        cache.read(task.sequence, position, task.kv_head * head_dim, values);
    }
}

/// Which positions of a tile a query sees, counted from the tile's first.
#[inline(always)]
fn seen(op: &Attention<'_>, task: &Task, query: usize, keys: &Range<usize>) -> Range<usize> {
    let position = task.position + query / op.group();
    let oldest = op.window.map_or(0, |window| (position + 1).saturating_sub(window));
    let place = |position: usize| position.clamp(keys.start, keys.end) - keys.start;
    place(oldest)..place(position + 1)
}

/// One query's scores for the positions of a tile that it sees, turned into `e^(score − maximum)`, and its sums scaled
/// to the new maximum.
#[inline(always)]
fn scores<const FMA: bool>(op: &Attention<'_>, task: &Task, query: usize, seen: Range<usize>, state: &mut State) {
    let (group, head_dim) = (op.group(), op.head_dim);
    let (token, head) = (query / group, task.kv_head * group + query % group);
    let at = (task.row + token) * op.heads * head_dim + head * head_dim;
    let vector = &op.query[at..at + head_dim];
    let keys = &state.tile[seen.start * head_dim..seen.end * head_dim];
    let scores = &mut state.scores[query * TILE..][seen];
    products::<FMA>(vector, keys, scores);
    let mut maximum = state.maxima[query];
    for score in &mut *scores {
        *score *= op.scale;
        maximum = if *score > maximum { *score } else { maximum };
    }
    if maximum == f32::NEG_INFINITY {
        // Nothing of this tile counts, nor did anything before.
        scores.fill(0.0);
        return;
    }
    let mut sum = 0.0;
    for score in scores {
        *score = exp::<FMA>(*score - maximum);
        sum += *score;
    }
    if maximum > state.maxima[query] {
        let scale = exp::<FMA>(state.maxima[query] - maximum);
        state.weights[query] *= scale;
        state.sums[query * head_dim..(query + 1) * head_dim].iter_mut().for_each(|value| *value *= scale);
        state.maxima[query] = maximum;
    }
    state.weights[query] += sum;
}

/// Products of a query with each key, four at a time, so that a load of the query serves them all and their sums are
/// added up side by side.
#[inline(always)]
fn products<const FMA: bool>(query: &[f32], keys: &[f32], results: &mut [f32]) {
    let width = query.len();
    let mut fours = keys.chunks_exact(4 * width);
    let mut results = results.chunks_exact_mut(4);
    for (keys, results) in fours.by_ref().zip(results.by_ref()) {
        results.copy_from_slice(&dots::<FMA>(query, keys));
    }
    for (key, result) in fours.remainder().chunks_exact(width).zip(results.into_remainder()) {
        *result = dot::<FMA>(query, key);
    }
}

/// Adds the values that a query sees of a tile, weighted by its exponentials.
#[inline(always)]
fn add_values<const FMA: bool>(head_dim: usize, query: usize, seen: Range<usize>, state: &mut State) {
    let weights = &state.scores[query * TILE..][seen.clone()];
    let values = &state.tile[seen.start * head_dim..seen.end * head_dim];
    let sums = &mut state.sums[query * head_dim..(query + 1) * head_dim];
    // Four positions at a time, so that the sums are loaded and stored once for all four.
    let (tile, rest) = values.split_at(weights.len() / 4 * 4 * head_dim);
    for (weights, values) in weights.chunks_exact(4).zip(tile.chunks_exact(4 * head_dim)) {
        let (first, values) = values.split_at(head_dim);
        let (second, values) = values.split_at(head_dim);
        let (third, fourth) = values.split_at(head_dim);
        for d in 0..head_dim {
            let sum = multiply_add::<FMA>(weights[0], first[d], sums[d]);
            let sum = multiply_add::<FMA>(weights[1], second[d], sum);
            let sum = multiply_add::<FMA>(weights[2], third[d], sum);
            sums[d] = multiply_add::<FMA>(weights[3], fourth[d], sum);
        }
    }
    for (&weight, values) in weights[weights.len() / 4 * 4..].iter().zip(rest.chunks_exact(head_dim)) {
        for d in 0..head_dim {
            sums[d] = multiply_add::<FMA>(weight, values[d], sums[d]);
        }
    }
}
