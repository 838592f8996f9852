//! Single-head attention over the pixels of a picture, streamed: a tile of queries meets the keys block by block and
//! keeps a running maximum, a running sum and a running result (Milakov and Gimelshein, 2018; Dao et al., 2022), so
//! that the score matrix never exists.

mod operands;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::bytes;
use crate::convolution::Arithmetic;
use crate::form::Form;
use crate::integers::SPLIT;
use crate::isa::{Isa, dispatch};
use crate::layout::{BLOCK, blocks};
use crate::math::exp;
use crate::microkernel::Tile;
use crate::pool::{Pool, carve, whole_lines};
use crate::tensor::{SharedTensor, Tensor, TensorMut};
use operands::{Fill, Left, Panels};

/// Queries that one task treats, at most; a multiple of every tier's pixels. With tile registers keys and values pass by
/// so fast that more queries have to share them. So do they where there are many, as long as that leaves `MANY_TASKS`; with
/// pairs that was not faster.
const QUERIES: usize = 48;
const QUERIES_OF_TILES: usize = 96;
const MOST_QUERIES: usize = 2 * QUERIES_OF_TILES;
const MANY_TASKS: usize = 64;
/// Keys that meet a tile of queries at a time: whole splits.
const KEYS: usize = 2 * SPLIT * BLOCK;
/// Blocks that share scales as bytes: sums are so fast that putting them down takes nearly as long as they do, and with
/// more of them the panel would leave the first-level cache.
const SPLIT_OF_BYTES: usize = KEYS / BLOCK;
const _: () = assert!(SPLIT_OF_BYTES <= bytes::MOST_BLOCKS);

/// The tensors' shape, and what the products are computed in.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Of query, key and value.
    pub channels: usize,
    /// Frames of a clip: a token sees those of its own frame and of the frames before.
    pub frames: usize,
    /// Tokens of a frame.
    pub tokens: usize,
    /// Of the factors of both products; sums and softmax are `f32`.
    pub arithmetic: Arithmetic,
}

impl Shape {
    /// How many `f32` of scratch [`attention`] needs.
    pub fn scratch_len(&self, isa: Isa) -> usize {
        self.panels(isa).map(|panels| whole_lines(panels.len())).iter().sum()
    }

    /// Bytes of scratch that each worker takes beside that.
    pub fn worker_bytes(&self, isa: Isa) -> usize {
        let [Panels { split, .. }, _] = self.panels(isa);
        Scratch::floats(isa, self).max(split * BLOCK * isa.lanes()) * size_of::<f32>()
    }

    /// How keys (columns are tokens, rows channels) and values (columns are channels, rows tokens) lie. The tokens of a
    /// frame are padded to whole blocks of keys, lest a scale or a sum depend on a later frame.
    fn panels(&self, isa: Isa) -> [Panels; 2] {
        let (lanes, form, queries) =
            (isa.lanes(), Form::of_attention(isa, self.arithmetic), self.queries(isa));
        let tokens = self.frames * self.padded_tokens();
        let split = if form == Form::Bytes { SPLIT_OF_BYTES } else { SPLIT };
        let panels = |groups, blocks| Panels { groups, blocks, isa, form, queries, split };
        [panels(tokens / lanes, blocks(self.channels)), panels(self.channels.div_ceil(lanes), tokens / BLOCK)]
    }

    /// Queries that one task treats, at most.
    fn queries(&self, isa: Isa) -> usize {
        let queries = if isa.has_tiles() { QUERIES_OF_TILES } else { QUERIES };
        let is_pairs = Form::of_attention(isa, self.arithmetic) == Form::Pairs;
        if self.tokens >= 2 * queries * MANY_TASKS && !is_pairs { 2 * queries } else { queries }
    }

    fn padded_tokens(&self) -> usize {
        self.tokens.next_multiple_of(KEYS)
    }

    /// Frame and token of a place among the padded tokens.
    fn token(&self, place: usize) -> Option<[usize; 2]> {
        let [frame, token] = [place / self.padded_tokens(), place % self.padded_tokens()];
        (token < self.tokens).then_some([frame, token])
    }

    /// Groups of sixteen channels of one pixel in a frame.
    fn frame_groups(&self) -> usize {
        blocks(self.channels) * self.tokens
    }
}

/// `softmax(q · kᵀ / √channels) · v` over tokens; all tensors blocked `[frame][channels, tokens]`.
///
/// # Panics
/// The lengths do not fit, `scratch` is shorter than [`Shape::scratch_len`], or there are no tokens.
pub fn attention(
    isa: Isa,
    pool: &Pool,
    [query, key, value]: [Tensor<'_>; 3],
    shape: Shape,
    scratch: &mut [f32],
    output: TensorMut<'_>,
) {
    stoppable_attention(isa, pool, [query, key, value], shape, scratch, output, &AtomicBool::new(false));
}

/// As [`attention`], until `stop` is set: then it ends soon, and what is in `output` means nothing. Its time grows with the
/// square of the number of tokens, so of large pictures it can be most of the work.
///
/// # Panics
/// As [`attention`].
pub fn stoppable_attention(
    isa: Isa,
    pool: &Pool,
    [query, key, value]: [Tensor<'_>; 3],
    shape: Shape,
    scratch: &mut [f32],
    output: TensorMut<'_>,
    stop: &AtomicBool,
) {
    let groups = shape.frames * shape.frame_groups();
    assert!(shape.tokens > 0 && output.groups() == groups);
    assert!([query, key, value].iter().all(|tensor| tensor.groups() == groups));
    let panels = shape.panels(isa);
    let mut scratch = scratch;
    let [keys, values] = panels.map(|panels| carve(&mut scratch, panels.len()));
    panels[0].pack(pool, keys, &Keys { shape, key });
    panels[1].pack(pool, values, &Values { shape, value });
    let (packed, output) = ([&*keys, &*values], output.parts(shape.frame_groups()));
    let jobs: Vec<Job<'_>> = output
        .into_iter()
        .enumerate()
        .map(|(frame, output)| Job {
            shape,
            frame,
            query: query.part(frame * shape.frame_groups(), shape.frame_groups()),
            panels,
            packed,
            output: SharedTensor::new(output),
        })
        .collect();
    let tasks = shape.tokens.div_ceil(shape.queries(isa));
    pool.run_in_room(jobs.len() * tasks, Scratch::floats(isa, &shape), |room, index| {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let (job, index) = (&jobs[index / tasks], index % tasks);
        let scratch = &mut Scratch::new(isa, &shape, room);
        dispatch!(isa, query_tile(job: &Job<'_>, scratch: &mut Scratch<'_>, index: usize));
    });
}

/// The right operand of q · kᵀ.
struct Keys<'a> {
    shape: Shape,
    key: Tensor<'a>,
}

impl Fill for Keys<'_> {
    #[inline(always)]
    unsafe fn fill<T: Tile>(&self, group: usize, block: usize, rows: &mut [f32]) {
        for lane in 0..T::LANES {
            let Some([frame, token]) = self.shape.token(group * T::LANES + lane) else { break };
            let place = frame * self.shape.frame_groups() + block * self.shape.tokens + token;
            // SAFETY: the caller vouches for the CPU.
            let pixel = unsafe { self.key.group::<T>(place) };
            for (row, value) in rows.chunks_exact_mut(T::LANES).zip(pixel) {
                row[lane] = value;
            }
        }
    }
}

/// The right operand of p · v.
struct Values<'a> {
    shape: Shape,
    value: Tensor<'a>,
}

impl Fill for Values<'_> {
    #[inline(always)]
    unsafe fn fill<T: Tile>(&self, group: usize, block: usize, rows: &mut [f32]) {
        for (row, rows) in rows.chunks_exact_mut(T::LANES).enumerate() {
            let Some([frame, token]) = self.shape.token(block * BLOCK + row) else { break };
            for (part, out) in rows.chunks_exact_mut(BLOCK).enumerate() {
                let channels = group * (T::LANES / BLOCK) + part;
                if channels < blocks(self.shape.channels) {
                    let place = frame * self.shape.frame_groups() + channels * self.shape.tokens + token;
                    // SAFETY: the caller vouches for the CPU.
                    out.copy_from_slice(&unsafe { self.value.group::<T>(place) });
                }
            }
        }
    }
}

struct Job<'a> {
    shape: Shape,
    /// Of the queries.
    frame: usize,
    /// That frame's.
    query: Tensor<'a>,
    /// Of keys and values.
    panels: [Panels; 2],
    packed: [&'a [f32]; 2],
    output: SharedTensor<'a>,
}

struct Scratch<'a> {
    /// Rows are channels.
    queries: Left<'a>,
    /// `[group of keys][query][lanes]`
    scores: &'a mut [f32],
    /// Rows are keys.
    weights: Left<'a>,
    /// `[group of channels][query][lanes]`
    result: &'a mut [f32],
}

impl<'a> Scratch<'a> {
    fn new(isa: Isa, shape: &Shape, mut room: &'a mut [f32]) -> Scratch<'a> {
        let room = &mut room;
        let (queries, [keys, values]) = (shape.queries(isa), shape.panels(isa));
        Scratch {
            queries: Left::new(blocks(shape.channels), &keys, room),
            scores: carve(room, KEYS * queries),
            weights: Left::new(KEYS / BLOCK, &values, room),
            result: carve(room, shape.channels.next_multiple_of(isa.lanes()) * queries),
        }
    }

    fn floats(isa: Isa, shape: &Shape) -> usize {
        let (queries, [keys, values]) = (shape.queries(isa), shape.panels(isa));
        let result = shape.channels.next_multiple_of(isa.lanes()) * queries;
        Left::floats(blocks(shape.channels), &keys)
            + Left::floats(KEYS / BLOCK, &values)
            + whole_lines(KEYS * queries)
            + whole_lines(result)
    }
}

#[inline(always)]
unsafe fn query_tile<T: Tile>(job: &Job<'_>, scratch: &mut Scratch<'_>, index: usize) {
    let Shape { channels, tokens, .. } = job.shape;
    let queries = job.panels[0].queries;
    let first = index * queries;
    let count = queries.min(tokens - first);
    let temperature = 1.0 / (channels as f32).sqrt();
    for (block, plane) in scratch.queries.values.chunks_exact_mut(queries * BLOCK).enumerate() {
        let (used, rest) = plane.split_at_mut(count * BLOCK);
        // SAFETY: the caller vouches for the CPU.
        unsafe { job.query.part(block * tokens + first, count).read::<T>(used) };
        for value in used {
            *value *= temperature;
        }
        rest.fill(0.0);
    }
    // SAFETY: the caller vouches for the CPU.
    unsafe { scratch.queries.prepare::<T>(blocks(channels)) };
    scratch.result.fill(0.0);
    let mut maximum = [f32::NEG_INFINITY; MOST_QUERIES];
    let mut total = [0.0f32; MOST_QUERIES];
    for frame in 0..=job.frame {
        for start in (0..tokens).step_by(KEYS) {
            let place = frame * job.shape.padded_tokens() + start;
            let keys = place..place + KEYS.min(tokens - start);
            // SAFETY: the caller vouches for the CPU.
            unsafe { score::<T>(job, scratch, keys.clone()) };
            soften::<T>(scratch, keys.len(), &mut maximum, &mut total);
            // SAFETY: the caller vouches for the CPU.
            unsafe { mix::<T>(job, scratch, keys) };
        }
    }
    for block in 0..blocks(channels) {
        let (group, lane) = (block * BLOCK / T::LANES, block * BLOCK % T::LANES);
        let used = (channels - block * BLOCK).min(BLOCK);
        for (query, total) in total.iter().enumerate().take(count) {
            let from = &scratch.result[(group * queries + query) * T::LANES + lane..][..used];
            let mut pixel = [0.0; BLOCK];
            for (slot, value) in pixel.iter_mut().zip(from) {
                *slot = value / total;
            }
            // SAFETY: the caller vouches for the CPU; each task owns the tokens of its queries.
            unsafe { job.output.put::<T>(block * tokens + first + query, pixel) };
        }
    }
}

/// Scores of the tile's queries with `keys`, places among the padded tokens.
#[inline(always)]
unsafe fn score<T: Tile>(job: &Job<'_>, scratch: &mut Scratch<'_>, keys: Range<usize>) {
    let queries = job.panels[0].queries;
    for group in 0..keys.len().div_ceil(T::LANES) {
        let scores = &mut scratch.scores[group * queries * T::LANES..][..queries * T::LANES];
        scores.fill(0.0);
        let place = (keys.start / T::LANES + group, 0, blocks(job.shape.channels));
        // SAFETY: the caller vouches for the CPU.
        unsafe { job.panels[0].multiply::<T>(job.packed[0], place, &scratch.queries, scores) };
    }
}

/// Turns scores into weights `e^(score − maximum)` and brings what was summed before to the new maximum.
#[inline(always)]
fn soften<T: Tile>(
    scratch: &mut Scratch<'_>,
    keys: usize,
    maximum: &mut [f32; MOST_QUERIES],
    total: &mut [f32; MOST_QUERIES],
) {
    let queries = scratch.queries.queries;
    for query in 0..queries {
        let row = |group: usize| (group * queries + query) * T::LANES;
        let mut highest = [f32::NEG_INFINITY; BLOCK];
        for group in 0..keys.div_ceil(T::LANES) {
            let scores = &mut scratch.scores[row(group)..][..T::LANES];
            if keys - group * T::LANES < T::LANES {
                scores[keys - group * T::LANES..].fill(f32::NEG_INFINITY);
            }
            for block in scores.as_chunks::<BLOCK>().0 {
                for lane in 0..BLOCK {
                    highest[lane] = if block[lane] > highest[lane] { block[lane] } else { highest[lane] };
                }
            }
        }
        let new =
            highest.iter().fold(maximum[query], |high, value| if *value > high { *value } else { high });
        // Scores of −∞ alone (or NaN) leave no finite maximum; zero keeps the arithmetic defined.
        let reference = if new == f32::NEG_INFINITY { 0.0 } else { new };
        let correction = exp::<T>(maximum[query] - reference);
        let mut sums = [0.0f32; BLOCK];
        for block in 0..keys.div_ceil(BLOCK) {
            let (group, lane) = (block * BLOCK / T::LANES, block * BLOCK % T::LANES);
            let scores: &[f32; BLOCK] =
                scratch.scores[row(group) + lane..].first_chunk().expect("whole blocks of scores");
            let weights: &mut [f32; BLOCK] = scratch.weights.values[(block * queries + query) * BLOCK..]
                .first_chunk_mut()
                .expect("whole blocks of weights");
            for lane in 0..BLOCK {
                let distance = scores[lane] - reference;
                // `exp` stops at e^-87, softmax must not.
                weights[lane] = if distance < -87.0 { 0.0 } else { exp::<T>(distance) };
                sums[lane] += weights[lane];
            }
        }
        total[query] = total[query] * correction + sums.iter().sum::<f32>();
        if new != maximum[query] {
            for row in scratch.result.chunks_exact_mut(queries * T::LANES) {
                for value in &mut row[query * T::LANES..][..T::LANES] {
                    *value *= correction;
                }
            }
        }
        maximum[query] = new;
    }
}

/// Adds the weighted values of `keys`, places among the padded tokens, to the running result.
#[inline(always)]
unsafe fn mix<T: Tile>(job: &Job<'_>, scratch: &mut Scratch<'_>, keys: Range<usize>) {
    let count = keys.len().div_ceil(BLOCK);
    // SAFETY: the caller vouches for the CPU.
    unsafe { scratch.weights.prepare::<T>(count) };
    let queries = job.panels[0].queries;
    for (group, result) in scratch.result.chunks_exact_mut(queries * T::LANES).enumerate() {
        let place = (group, keys.start / BLOCK, count);
        // SAFETY: the caller vouches for the CPU.
        unsafe { job.panels[1].multiply::<T>(job.packed[1], place, &scratch.weights, result) };
    }
}
