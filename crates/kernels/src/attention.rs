//! Single-head attention over the pixels of a picture, streamed: a tile of queries meets the keys block by block and
//! keeps a running maximum, a running sum and a running result (Milakov and Gimelshein, 2018; Dao et al., 2022), so
//! that the score matrix never exists.

use crate::isa::{Isa, dispatch};
use crate::layout::{BLOCK, blocks};
use crate::math::exp;
use crate::microkernel::{Generic, Rows, Tile};
use crate::pool::{Pool, carve};
use crate::shared::SharedOutput;
use crate::tensor::{SharedTensor, Tensor, TensorMut};

/// Queries that one task treats, at most; a multiple of every tier's pixels.
const QUERIES: usize = 48;
/// Keys that meet a tile of queries at a time; a multiple of every tier's lanes.
const KEYS: usize = 256;

/// How many `f32` of `scratch` [`attention`] needs for `[channels, tokens]`.
pub fn scratch_len(isa: Isa, channels: usize, tokens: usize) -> usize {
    let [keys, values] = packed_lens(isa, channels, tokens);
    keys + values
}

/// Bytes of scratch that each worker takes beside that.
pub fn worker_bytes(isa: Isa, channels: usize) -> usize {
    Scratch::floats(isa, channels) * size_of::<f32>()
}

fn packed_lens(isa: Isa, channels: usize, tokens: usize) -> [usize; 2] {
    let lanes = isa.lanes();
    let padded = blocks(channels) * BLOCK;
    [
        tokens.div_ceil(lanes) * lanes * padded,
        channels.div_ceil(lanes) * lanes * tokens.div_ceil(BLOCK) * BLOCK,
    ]
}

/// `softmax(q · kᵀ / √channels) · v` over tokens; all tensors blocked `[channels, tokens]`.
///
/// # Panics
/// The lengths do not fit, `scratch` is shorter than [`scratch_len`], or there are no tokens.
#[allow(clippy::too_many_arguments)] // three operands, their shape and two buffers
pub fn attention(
    isa: Isa,
    pool: &Pool,
    [query, key, value]: [Tensor<'_>; 3],
    channels: usize,
    tokens: usize,
    scratch: &mut [f32],
    output: TensorMut<'_>,
) {
    clip_attention(isa, pool, [query, key, value], channels, [1, tokens], scratch, output);
}

/// As [`attention`], over the frames of a clip (`tokens` each): a token sees those of its own frame and of the frames
/// before. `scratch` is [`scratch_len`] of all tokens together.
///
/// # Panics
/// As [`attention`].
#[allow(clippy::too_many_arguments)] // three operands, their shape and two buffers
pub fn clip_attention(
    isa: Isa,
    pool: &Pool,
    [query, key, value]: [Tensor<'_>; 3],
    channels: usize,
    [frames, tokens]: [usize; 2],
    scratch: &mut [f32],
    output: TensorMut<'_>,
) {
    let frame_groups = blocks(channels) * tokens;
    let (groups, all) = (frames * frame_groups, frames * tokens);
    assert!(tokens > 0 && output.groups() == groups);
    assert!([query, key, value].iter().all(|tensor| tensor.groups() == groups));
    let [keys_len, values_len] = packed_lens(isa, channels, all);
    let (keys, rest) = scratch.split_at_mut(keys_len);
    let values = &mut rest[..values_len];
    pack_keys(pool, key, channels, [frames, tokens], isa.lanes(), keys);
    pack_values(pool, value, channels, [frames, tokens], isa.lanes(), values);
    let (keys, values) = (&*keys, &*values);
    let jobs: Vec<Job<'_>> = output
        .parts(frame_groups)
        .into_iter()
        .enumerate()
        .map(|(frame, output)| Job {
            query: query.part(frame * frame_groups, frame_groups),
            keys,
            values,
            channels,
            tokens,
            seen: (frame + 1) * tokens,
            all,
            output: SharedTensor::new(output),
        })
        .collect();
    let tasks = tokens.div_ceil(QUERIES);
    pool.run_in_room(jobs.len() * tasks, Scratch::floats(isa, channels), |room, index| {
        let (job, index) = (&jobs[index / tasks], index % tasks);
        let scratch = &mut Scratch::new(isa, channels, room);
        dispatch!(isa, query_tile(job: &Job<'_>, scratch: &mut Scratch<'_>, index: usize));
    });
}

/// `[group of lanes tokens][channel][lanes]`: the right operand of q · kᵀ.
fn pack_keys(
    pool: &Pool,
    key: Tensor<'_>,
    channels: usize,
    [frames, tokens]: [usize; 2],
    lanes: usize,
    packed: &mut [f32],
) {
    let padded = blocks(channels) * BLOCK;
    let shared = SharedOutput::new(packed);
    pool.run((frames * tokens).div_ceil(lanes), |group| {
        // SAFETY: each task owns one group of tokens.
        let out = unsafe { shared.part(group * padded * lanes, padded * lanes) };
        for (block, rows) in out.chunks_exact_mut(BLOCK * lanes).enumerate() {
            for lane in 0..lanes {
                let (frame, token) = ((group * lanes + lane) / tokens, (group * lanes + lane) % tokens);
                // SAFETY: the portable tier is always there.
                let pixel = unsafe {
                    if frame < frames {
                        key.group::<Generic>((frame * blocks(channels) + block) * tokens + token)
                    } else {
                        [0.0; BLOCK]
                    }
                };
                for (row, value) in rows.chunks_exact_mut(lanes).zip(pixel) {
                    row[lane] = value;
                }
            }
        }
    });
}

/// `[group of lanes channels][token][lanes]`, tokens padded to whole blocks: the right operand of p · v.
fn pack_values(
    pool: &Pool,
    value: Tensor<'_>,
    channels: usize,
    [frames, tokens]: [usize; 2],
    lanes: usize,
    packed: &mut [f32],
) {
    let rows = (frames * tokens).div_ceil(BLOCK) * BLOCK;
    let shared = SharedOutput::new(packed);
    pool.run(channels.div_ceil(lanes), |group| {
        // SAFETY: each task owns one group of channels.
        let out = unsafe { shared.part(group * rows * lanes, rows * lanes) };
        out.fill(0.0);
        for (part, block) in (group * lanes / BLOCK..blocks(channels)).take(lanes / BLOCK).enumerate() {
            for (frame, out) in out.chunks_mut(tokens * lanes).enumerate().take(frames) {
                let first = (frame * blocks(channels) + block) * tokens;
                for (token, row) in out.chunks_exact_mut(lanes).enumerate() {
                    // SAFETY: the portable tier is always there.
                    let pixel = unsafe { value.group::<Generic>(first + token) };
                    row[part * BLOCK..][..BLOCK].copy_from_slice(&pixel);
                }
            }
        }
    });
}

struct Job<'a> {
    query: Tensor<'a>,
    keys: &'a [f32],
    values: &'a [f32],
    channels: usize,
    /// Of the query's frame.
    tokens: usize,
    /// Tokens that the queries see, the first of all.
    seen: usize,
    all: usize,
    output: SharedTensor<'a>,
}

struct Scratch<'a> {
    /// `[channel block][query][16]`
    queries: &'a mut [f32],
    /// `[group of keys][query][lanes]`
    scores: &'a mut [f32],
    /// `[block of keys][query][16]`
    weights: &'a mut [f32],
    /// `[group of channels][query][lanes]`
    result: &'a mut [f32],
}

impl<'a> Scratch<'a> {
    fn new(isa: Isa, channels: usize, mut room: &'a mut [f32]) -> Scratch<'a> {
        Scratch {
            queries: carve(&mut room, blocks(channels) * BLOCK * QUERIES),
            scores: carve(&mut room, KEYS * QUERIES),
            weights: carve(&mut room, KEYS * QUERIES),
            result: carve(&mut room, channels.div_ceil(isa.lanes()) * isa.lanes() * QUERIES),
        }
    }

    fn floats(isa: Isa, channels: usize) -> usize {
        (blocks(channels) * BLOCK + 2 * KEYS + channels.div_ceil(isa.lanes()) * isa.lanes()) * QUERIES
    }
}

#[inline(always)]
unsafe fn query_tile<T: Tile>(job: &Job<'_>, scratch: &mut Scratch<'_>, index: usize) {
    let first = index * QUERIES;
    let count = QUERIES.min(job.tokens - first);
    let temperature = 1.0 / (job.channels as f32).sqrt();
    for (block, plane) in scratch.queries.chunks_exact_mut(QUERIES * BLOCK).enumerate() {
        let (used, rest) = plane.split_at_mut(count * BLOCK);
        // SAFETY: the caller vouches for the CPU.
        unsafe { job.query.part(block * job.tokens + first, count).read::<T>(used) };
        for value in used {
            *value *= temperature;
        }
        rest.fill(0.0);
    }
    scratch.result.fill(0.0);
    let mut maximum = [f32::NEG_INFINITY; QUERIES];
    let mut total = [0.0f32; QUERIES];
    for start in (0..job.seen).step_by(KEYS) {
        let keys = KEYS.min(job.seen - start);
        // SAFETY: the caller vouches for the CPU.
        unsafe { score::<T>(job, scratch, start, keys) };
        soften::<T>(scratch, keys, &mut maximum, &mut total);
        // SAFETY: the caller vouches for the CPU.
        unsafe { mix::<T>(job, scratch, start, keys) };
    }
    for block in 0..blocks(job.channels) {
        let (group, lane) = (block * BLOCK / T::LANES, block * BLOCK % T::LANES);
        let used = (job.channels - block * BLOCK).min(BLOCK);
        for (query, total) in total.iter().enumerate().take(count) {
            let from = &scratch.result[(group * QUERIES + query) * T::LANES + lane..][..used];
            let mut pixel = [0.0; BLOCK];
            for (slot, value) in pixel.iter_mut().zip(from) {
                *slot = value / total;
            }
            // SAFETY: the caller vouches for the CPU; each task owns the tokens of its queries.
            unsafe { job.output.put::<T>(block * job.tokens + first + query, pixel) };
        }
    }
}

/// Scores of the tile's queries with the `keys` tokens from `start`.
#[inline(always)]
unsafe fn score<T: Tile>(job: &Job<'_>, scratch: &mut Scratch<'_>, start: usize, keys: usize) {
    let panel = blocks(job.channels) * BLOCK * T::LANES;
    for group in 0..keys.div_ceil(T::LANES) {
        let panels = &job.keys[(start / T::LANES + group) * panel..][..panel];
        let scores = &mut scratch.scores[group * QUERIES * T::LANES..][..QUERIES * T::LANES];
        scores.fill(0.0);
        for query in (0..QUERIES).step_by(T::PIXELS) {
            let rows = Rows {
                patch: scratch.queries,
                start: query * BLOCK,
                row_stride: BLOCK,
                block_stride: QUERIES * BLOCK,
                taps: &[0],
            };
            // SAFETY: the caller vouches for the CPU.
            unsafe { T::accumulate(&rows, panels, &mut scores[query * T::LANES..]) };
        }
    }
}

/// Turns scores into weights `e^(score − maximum)` and brings what was summed before to the new maximum.
#[inline(always)]
fn soften<T: Tile>(
    scratch: &mut Scratch<'_>,
    keys: usize,
    maximum: &mut [f32; QUERIES],
    total: &mut [f32; QUERIES],
) {
    for query in 0..QUERIES {
        let row = |group: usize| (group * QUERIES + query) * T::LANES;
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
            let weights: &mut [f32; BLOCK] = scratch.weights[(block * QUERIES + query) * BLOCK..]
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
            for row in scratch.result.chunks_exact_mut(QUERIES * T::LANES) {
                for value in &mut row[query * T::LANES..][..T::LANES] {
                    *value *= correction;
                }
            }
        }
        maximum[query] = new;
    }
}

/// Adds the weighted values of the `keys` tokens from `start` to the running result.
#[inline(always)]
unsafe fn mix<T: Tile>(job: &Job<'_>, scratch: &mut Scratch<'_>, start: usize, keys: usize) {
    let rows_in_all = job.all.div_ceil(BLOCK) * BLOCK;
    let rows_here = keys.div_ceil(BLOCK) * BLOCK;
    for (group, result) in scratch.result.chunks_exact_mut(QUERIES * T::LANES).enumerate() {
        let panels = &job.values[(group * rows_in_all + start) * T::LANES..][..rows_here * T::LANES];
        for query in (0..QUERIES).step_by(T::PIXELS) {
            let rows = Rows {
                patch: scratch.weights,
                start: query * BLOCK,
                row_stride: BLOCK,
                block_stride: QUERIES * BLOCK,
                taps: &[0],
            };
            // SAFETY: the caller vouches for the CPU.
            unsafe { T::accumulate(&rows, panels, &mut result[query * T::LANES..]) };
        }
    }
}
