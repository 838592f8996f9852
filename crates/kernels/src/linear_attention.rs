//! Multi-head linear attention with ReLU as its kernel (Katharopoulos et al., 2020; Cai et al., EfficientViT, 2023): what a
//! position gets costs the same however many positions there are.
//!
//! With q and k through ReLU, position i of a head gets Σⱼ (qᵢ·kⱼ) vⱼ / (Σⱼ qᵢ·kⱼ + 1e-15). The sums over j are made once: a
//! matrix Σⱼ kⱼ vⱼᵀ and a vector Σⱼ kⱼ, in pieces of 64 positions in their order, one task for each head.

use crate::isa::{Isa, dispatch};
use crate::layout::{BLOCK, blocks};
use crate::math::multiply_add;
use crate::microkernel::Tile;
use crate::pool::{Pool, carve, whole_lines};
use crate::tensor::{SharedTensor, Tensor, TensorMut};

/// Positions that are treated together.
const TOKENS: usize = 64;
/// Rows of the matrix, or positions, that are summed at the same time.
const ABREAST: usize = 4;
/// Added to the denominator.
const EPSILON: f32 = 1e-15;

/// Bytes of scratch that each worker takes for heads of `head` channels.
pub fn worker_bytes(head: usize) -> usize {
    Scratch::lens(head).map(whole_lines).iter().sum::<usize>() * size_of::<f32>()
}

/// Attends over `tokens` positions in heads of `head` channels.
///
/// `inputs` are blocked `[channels, tokens]` each. Their channels, one input after the other, are for each head in turn
/// `head` of its queries, `head` of its keys and `head` of its values. `output` is blocked `[heads · head, tokens]`.
///
/// # Panics
/// The channels do not make whole heads, a length does not fit, or the system refuses the workers' scratch.
#[allow(clippy::too_many_arguments)] // the operands and their shape
pub fn linear_attention(
    isa: Isa,
    pool: &Pool,
    inputs: &[Tensor<'_>],
    channels: usize,
    head: usize,
    tokens: usize,
    output: TensorMut<'_>,
) {
    let all = inputs.len() * channels;
    assert!(head > 0 && all.is_multiple_of(3 * head));
    let heads = all / (3 * head);
    assert!(inputs.iter().all(|input| input.groups() == blocks(channels) * tokens));
    assert_eq!(output.groups(), blocks(heads * head) * tokens);
    let heads_per_task = heads_per_task(head);
    let job = &Job { inputs, channels, head, heads, tokens, output: SharedTensor::new(output) };
    let floats = worker_bytes(head) / size_of::<f32>();
    pool.run_in_room(heads.div_ceil(heads_per_task), floats, |room, index| {
        dispatch!(isa, some_heads(job: &Job<'_>, room: &mut [f32], index: usize));
    });
}

/// As many heads as fill whole blocks of the output.
fn heads_per_task(head: usize) -> usize {
    (1..=BLOCK).find(|heads| (heads * head).is_multiple_of(BLOCK)).unwrap_or(BLOCK)
}

struct Job<'a> {
    inputs: &'a [Tensor<'a>],
    /// Of each input.
    channels: usize,
    head: usize,
    heads: usize,
    tokens: usize,
    output: SharedTensor<'a>,
}

struct Scratch<'a> {
    /// `[block of the head][position][16]`
    queries: &'a mut [f32],
    keys: &'a mut [f32],
    values: &'a mut [f32],
    /// For each head of the task Σ k vᵀ, `[block of values][key channel][16]`.
    products: &'a mut [f32],
    /// For each head of the task Σ k, `[channel]`.
    key_sums: &'a mut [f32],
    /// `[block of the task's output][position][16]`
    result: &'a mut [f32],
}

impl<'a> Scratch<'a> {
    fn lens(head: usize) -> [usize; 6] {
        let (operand, heads) = (blocks(head) * TOKENS * BLOCK, heads_per_task(head));
        let padded = blocks(head) * BLOCK;
        let result = blocks(heads * head) * TOKENS * BLOCK;
        [operand, operand, operand, heads * padded * padded, heads * padded, result]
    }

    fn new(head: usize, mut room: &'a mut [f32]) -> Scratch<'a> {
        let [queries, keys, values, products, key_sums, result] =
            Scratch::lens(head).map(|len| carve(&mut room, len));
        Scratch { queries, keys, values, products, key_sums, result }
    }
}

#[inline(always)]
unsafe fn some_heads<T: Tile>(job: &Job<'_>, room: &mut [f32], index: usize) {
    let Job { head, tokens, .. } = *job;
    let scratch = Scratch::new(head, room);
    let padded = blocks(head) * BLOCK;
    let per_task = heads_per_task(head);
    let heads = per_task.min(job.heads - index * per_task);
    scratch.products.fill(0.0);
    scratch.key_sums.fill(0.0);
    for own in 0..heads {
        let first = (index * per_task + own) * 3 * head;
        let products = &mut scratch.products[own * padded * padded..][..padded * padded];
        let key_sums = &mut scratch.key_sums[own * padded..][..padded];
        for start in (0..tokens).step_by(TOKENS) {
            let count = TOKENS.min(tokens - start);
            // SAFETY: the caller vouches for the CPU.
            unsafe {
                job.read::<T>(first + head, [start, count], true, scratch.keys);
                job.read::<T>(first + 2 * head, [start, count], false, scratch.values);
            }
            add_products::<T>(scratch.keys, scratch.values, count, products);
            add_keys(scratch.keys, count, key_sums);
        }
    }
    for start in (0..tokens).step_by(TOKENS) {
        let count = TOKENS.min(tokens - start);
        scratch.result.fill(0.0);
        for own in 0..heads {
            let first = (index * per_task + own) * 3 * head;
            // SAFETY: the caller vouches for the CPU.
            unsafe { job.read::<T>(first, [start, count], true, scratch.queries) };
            let products = &scratch.products[own * padded * padded..][..padded * padded];
            let key_sums = &scratch.key_sums[own * padded..][..padded];
            let denominators = denominators::<T>(scratch.queries, key_sums);
            for block in 0..blocks(head) {
                let products = &products[block * padded * BLOCK..][..padded * BLOCK];
                let used = BLOCK.min(head - block * BLOCK);
                let place = own * head + block * BLOCK;
                mix::<T>(scratch.queries, products, &denominators, scratch.result, [place, used]);
            }
        }
        let first_block = index * per_task * head / BLOCK;
        for (block, values) in scratch.result.chunks_exact(TOKENS * BLOCK).enumerate() {
            if (first_block + block) * BLOCK >= job.heads * head {
                break;
            }
            for (token, group) in values.as_chunks::<BLOCK>().0.iter().enumerate().take(count) {
                // SAFETY: the caller vouches for the CPU; the heads of a task fill whole blocks, which are its own.
                unsafe { job.output.put::<T>((first_block + block) * tokens + start + token, *group) };
            }
        }
    }
}

impl Job<'_> {
    /// The channels of a head from `first` of all inputs' channels at `count` positions, `[block][position][16]`, through
    /// ReLU if `positive`; what is beyond the channels or the positions is zero.
    ///
    /// # Safety
    /// The CPU has the tier.
    #[inline(always)]
    unsafe fn read<T: Tile>(
        &self,
        first: usize,
        [start, count]: [usize; 2],
        positive: bool,
        out: &mut [f32],
    ) {
        let Job { channels, head, tokens, .. } = *self;
        out.fill(0.0);
        let whole_blocks = [first, head, channels].iter().all(|number| number.is_multiple_of(BLOCK));
        for (block, out) in out.chunks_exact_mut(TOKENS * BLOCK).enumerate() {
            let channel = first + block * BLOCK;
            let out = &mut out[..count * BLOCK];
            if whole_blocks {
                let from = channel % channels / BLOCK * tokens + start;
                // SAFETY: the caller's contract.
                unsafe { self.inputs[channel / channels].part(from, count).read::<T>(out) };
            } else {
                for lane in 0..BLOCK.min(head - block * BLOCK) {
                    let (input, own) = ((channel + lane) / channels, (channel + lane) % channels);
                    for (token, pixel) in out.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
                        let place = own / BLOCK * tokens + start + token;
                        // SAFETY: the caller's contract.
                        pixel[lane] = unsafe { self.inputs[input].group::<T>(place) }[own % BLOCK];
                    }
                }
            }
            if positive {
                // Written so that what is not a number stays so.
                out.iter_mut().for_each(|value| *value = if *value < 0.0 { 0.0 } else { *value });
            }
        }
    }
}

/// Adds Σ k vᵀ of a piece of positions.
#[inline(always)]
fn add_products<T: Tile>(keys: &[f32], values: &[f32], count: usize, products: &mut [f32]) {
    let padded = keys.len() / TOKENS;
    for (values, products) in
        values.chunks_exact(TOKENS * BLOCK).zip(products.chunks_exact_mut(padded * BLOCK))
    {
        let values = &values.as_chunks::<BLOCK>().0[..count];
        for (step, products) in products.as_chunks_mut::<BLOCK>().0.chunks_exact_mut(ABREAST).enumerate() {
            let (block, lane) = (step * ABREAST / BLOCK, step * ABREAST % BLOCK);
            let keys = &keys[block * TOKENS * BLOCK..];
            let mut sums = [[0.0f32; BLOCK]; ABREAST];
            for (token, value) in values.iter().enumerate() {
                let keys = &keys[token * BLOCK + lane..][..ABREAST];
                for (sum, key) in sums.iter_mut().zip(keys) {
                    for lane in 0..BLOCK {
                        sum[lane] = multiply_add::<T>(*key, value[lane], sum[lane]);
                    }
                }
            }
            for (total, sum) in products.iter_mut().zip(&sums) {
                for lane in 0..BLOCK {
                    total[lane] += sum[lane];
                }
            }
        }
    }
}

/// Adds Σ k of a piece of positions.
#[inline(always)]
fn add_keys(keys: &[f32], count: usize, key_sums: &mut [f32]) {
    let totals = key_sums.as_chunks_mut::<BLOCK>().0;
    for (keys, total) in keys.chunks_exact(TOKENS * BLOCK).zip(totals) {
        let mut sum = [0.0f32; BLOCK];
        for key in &keys.as_chunks::<BLOCK>().0[..count] {
            for lane in 0..BLOCK {
                sum[lane] += key[lane];
            }
        }
        for lane in 0..BLOCK {
            total[lane] += sum[lane];
        }
    }
}

/// q · Σ k + ε of each position.
#[inline(always)]
fn denominators<T: Tile>(queries: &[f32], key_sums: &[f32]) -> [f32; TOKENS] {
    let mut denominators = [0.0f32; TOKENS];
    for (token, denominator) in denominators.iter_mut().enumerate() {
        let mut sum = [0.0f32; BLOCK];
        for (block, keys) in key_sums.as_chunks::<BLOCK>().0.iter().enumerate() {
            let query = &queries[(block * TOKENS + token) * BLOCK..][..BLOCK];
            for lane in 0..BLOCK {
                sum[lane] = multiply_add::<T>(query[lane], keys[lane], sum[lane]);
            }
        }
        for half in [8, 4, 2, 1] {
            for lane in 0..half {
                sum[lane] += sum[lane + half];
            }
        }
        *denominator = sum[0] + EPSILON;
    }
    denominators
}

/// Writes q · Σ k vᵀ over the denominator for one block of values to the channels from `place` of the result.
#[inline(always)]
fn mix<T: Tile>(
    queries: &[f32],
    products: &[f32],
    denominators: &[f32; TOKENS],
    result: &mut [f32],
    [place, used]: [usize; 2],
) {
    for token in (0..TOKENS).step_by(ABREAST) {
        let mut sums = [[0.0f32; BLOCK]; ABREAST];
        for (channel, product) in products.as_chunks::<BLOCK>().0.iter().enumerate() {
            let (block, lane) = (channel / BLOCK, channel % BLOCK);
            let queries = &queries[(block * TOKENS + token) * BLOCK..][..ABREAST * BLOCK];
            for (sum, query) in sums.iter_mut().zip(queries.as_chunks::<BLOCK>().0) {
                for index in 0..BLOCK {
                    sum[index] = multiply_add::<T>(query[lane], product[index], sum[index]);
                }
            }
        }
        for (own, sum) in sums.iter().enumerate() {
            for (index, value) in sum.iter().enumerate().take(used) {
                let channel = place + index;
                let slot = (channel / BLOCK * TOKENS + token + own) * BLOCK + channel % BLOCK;
                result[slot] = value / denominators[token + own];
            }
        }
    }
}
