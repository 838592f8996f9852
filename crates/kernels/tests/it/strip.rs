//! Strips against whole pictures: equal to the bit, wherever they begin and however few rows are kept.

use crate::support::{blocked, each_tier, norm_table, values};
use proptest::prelude::*;
use remote_vae_kernels::clip::{Clip, Edge};
use remote_vae_kernels::convolution::{
    Arithmetic, Convolution, Destination, Epilogue, Frames, Geometry, Prologue, Residual,
};
use remote_vae_kernels::elementwise::{Map, map};
use remote_vae_kernels::layout::blocks;
use remote_vae_kernels::norm::{Patches, Sums};
use remote_vae_kernels::strip::{Strip, copy_rows};
use remote_vae_kernels::{Activation, Isa, Pool, Storage, Tensor, TensorMut};
use std::ops::Range;

/// Rows of a tensor in a memory of their own.
struct Ring {
    storage: Storage,
    groups: usize,
    rows: usize,
    memory: Vec<f32>,
}

impl Ring {
    fn new(storage: Storage, blocks: usize, rows: usize, width: usize) -> Ring {
        let groups = blocks * rows * width;
        // In halves these bits are NaN with an exponent, so that nothing that was not written goes unnoticed.
        Ring { storage, groups, rows, memory: vec![f32::NAN; storage.len(groups)] }
    }

    fn read(&self) -> Tensor<'_> {
        let split = self.memory.split_at(self.storage.lens(self.groups)[0]);
        Tensor::from_parts(self.storage, self.groups, split)
    }

    fn write(&mut self) -> TensorMut<'_> {
        let split = self.memory.split_at_mut(self.storage.lens(self.groups)[0]);
        TensorMut::from_parts(self.storage, self.groups, split)
    }

    fn take(&mut self, pool: &Pool, from: &Ring, width: usize, rows: Range<usize>) {
        let kept = self.rows;
        copy_rows(pool, (from.read(), from.rows), (self.write(), kept), width, rows);
    }
}

#[derive(Clone, Debug)]
struct Case {
    geometry: Geometry,
    size: [usize; 2],
    upsample: usize,
    /// Whether norm and SiLU come first.
    norm: bool,
    residual: bool,
    edge: Edge,
    storage: Storage,
    /// Tiles of each strip, over and over.
    strips: Vec<usize>,
}

prop_compose! {
    fn case()(
        // Rarely so many that tiles are of 4×4 outputs.
        channels in prop_oneof![15 => (1usize..40, 1usize..70), 1 => Just((520, 260))],
        kernel in prop_oneof![1 => Just(1), 3 => Just(3)],
        stride in prop_oneof![3 => Just(1), 1 => Just(2)],
        padding in prop_oneof![Just([1; 4]), [0usize..2, 0usize..2, 0usize..2, 0usize..2]],
        size in (1usize..40, 1usize..14), upsample in 1usize..4,
        norm in any::<bool>(), residual in any::<bool>(), replicates in any::<bool>(), half in any::<bool>(),
        strips in prop::collection::vec(1usize..4, 1..4),
    ) -> Case {
        let geometry = Geometry {
            input_channels: channels.0, output_channels: channels.1, kernel: [kernel; 2], stride, padding,
        };
        let storage = if half { Storage::Half } else { Storage::Float32 };
        let near = padding[0].max(padding[1]) < kernel;
        let edge = if replicates && near { Edge::Replicate } else { Edge::Zero };
        Case { geometry, size: [size.0, size.1], upsample, norm, residual, edge, storage, strips }
    }
}

impl Case {
    /// The ends of the strips.
    fn ends(&self, isa: Isa, height: usize) -> Vec<usize> {
        let [step, skip] = self.geometry.strip_grid(isa, self.upsample);
        let mut ends = Vec::new();
        let mut tiles = 0;
        while ends.last() != Some(&height) {
            tiles += self.strips[ends.len() % self.strips.len()];
            let end = (tiles * step).saturating_sub(skip).min(height);
            ends.push(end);
        }
        ends
    }

    /// Strips hold the bytes of the whole on every tier.
    fn check(&self, arithmetics: &[Arithmetic]) {
        each_tier(|isa, pool| {
            for arithmetic in arithmetics {
                let (whole, joined) = self.run(isa, pool, *arithmetic);
                assert!(whole == joined, "{} {}: {self:?}", isa.name(), arithmetic.name());
            }
        });
    }

    fn run(&self, isa: Isa, pool: &Pool, arithmetic: Arithmetic) -> (Vec<u32>, Vec<u32>) {
        let Geometry { input_channels, output_channels, kernel, .. } = self.geometry;
        let [height, width] =
            self.geometry.output_size(self.size.map(|side| side * self.upsample)).expect("it fits");
        let (in_blocks, out_blocks) = (blocks(input_channels), blocks(output_channels));
        let weight = values(output_channels * input_channels * kernel[0] * kernel[1], 2);
        let convolution = Convolution::new(isa, pool, self.geometry, &weight, None);
        let table = blocked(&values(input_channels, 3), input_channels, 1);
        let prologue = Prologue {
            affine: self.norm.then_some((&table, &table)),
            activation: if self.norm { Activation::Silu } else { Activation::None },
            upsample: self.upsample,
        };
        let filled = |channels, pixels, rows, width, seed| {
            let mut plain = Ring::new(Storage::Float32, blocks(channels), rows, width);
            plain.memory = blocked(&values(channels * pixels, seed), channels, pixels);
            if self.storage == Storage::Float32 {
                return plain;
            }
            let mut halves = Ring::new(Storage::Half, blocks(channels), rows, width);
            map(
                isa,
                pool,
                Map::Activation(Activation::None),
                [channels, pixels],
                Some(plain.read()),
                halves.write(),
            );
            halves
        };
        let input = filled(input_channels, self.size[0] * self.size[1], self.size[0], self.size[1], 1);
        let residual = filled(output_channels, height * width, height, width, 4);
        let mut scratch =
            vec![f32::NAN; Convolution::scratch_len(isa, &self.geometry, self.upsample, arithmetic)];

        let mut whole = Ring::new(self.storage, out_blocks, height, width);
        let epilogue = Epilogue {
            residual: if self.residual { Residual::Tensor(residual.read()) } else { Residual::None },
            activation: Activation::Relu,
        };
        let clip = Clip { edge: self.edge, ..Clip::PICTURE };
        let (from, to) = (Frames { clip, input: input.read(), history: &[] }, whole.write());
        // Moments taken on the way, in whole and in strips, are those that the result has.
        let patches = self.geometry.patches(isa, self.upsample);
        let cut = patches.unwrap_or(Patches::PLAIN);
        let table = |rows| patches.map(|cut| vec![f32::NAN; cut.table_len(output_channels, rows, width)]);
        let mut moments = table(0..height);
        let to = Destination { output: to, moments: moments.as_deref_mut() };
        convolution.run_clip(pool, arithmetic, from, self.size, prologue, epilogue, &mut scratch, to);
        let mut sums = [(); 3].map(|()| Sums::new(output_channels, [height, width], cut));
        sums[0].add(isa, pool, whole.read(), 0..height);
        match &moments {
            Some(moments) => sums[1].add_table(isa, pool, moments, 0..height),
            None => sums[1].add(isa, pool, whole.read(), 0..height),
        }

        let mut joined = Ring::new(self.storage, out_blocks, height, width);
        scratch.fill(f32::NAN);
        let mut start = 0;
        for end in self.ends(isa, height) {
            let rows = start..end;
            let read = self.geometry.rows_read(&rows, self.upsample, self.size[0]);
            let mut window = Ring::new(self.storage, in_blocks, read.len().max(1), self.size[1]);
            window.take(pool, &input, self.size[1], read);
            let mut others = Ring::new(self.storage, out_blocks, rows.len() + 1, width);
            others.take(pool, &residual, width, rows.clone());
            let mut out = Ring::new(self.storage, out_blocks, rows.len(), width);
            let strip = Strip {
                rows: rows.clone(),
                input_rows: window.rows,
                output_rows: out.rows,
                residual_rows: others.rows,
                weights_ready: start > 0,
            };
            let epilogue = Epilogue {
                residual: if self.residual { Residual::Tensor(others.read()) } else { Residual::None },
                activation: Activation::Relu,
            };
            let mut moments = table(rows.clone());
            let from = Frames { clip, input: window.read(), history: &[] };
            let to = Destination { output: out.write(), moments: moments.as_deref_mut() };
            convolution.run_strip(
                pool,
                arithmetic,
                from,
                self.size,
                prologue,
                epilogue,
                &strip,
                &mut scratch,
                to,
            );
            match &moments {
                Some(moments) => sums[2].add_table(isa, pool, moments, rows.clone()),
                None => sums[2].add(isa, pool, out.read(), rows.clone()),
            }
            joined.take(pool, &out, width, rows);
            start = end;
        }
        // A group for each channel: one for several would hide which of them a record is of.
        let tables = sums.map(|sums| norm_table(&sums, output_channels, output_channels));
        assert!(tables[0] == tables[1] && tables[0] == tables[2], "{} {self:?}", isa.name());
        let bits = |ring: Ring| ring.memory.iter().map(|value| value.to_bits()).collect();
        (bits(whole), bits(joined))
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn strips_have_the_bytes_of_the_whole(case in case()) {
        prop_assume!(case.geometry.output_size(case.size.map(|side| side * case.upsample)).is_some());
        case.check(&[Arithmetic::Float32, Arithmetic::Integer16]);
    }
}

#[test]
fn strips_of_few_output_channels_have_the_bytes_of_the_whole() {
    for (channels, storage) in
        [([20, 3], Storage::Half), ([130, 4], Storage::Float32), ([5, 1], Storage::Half)]
    {
        let [input_channels, output_channels] = channels;
        let geometry =
            Geometry { input_channels, output_channels, kernel: [3, 3], stride: 1, padding: [1; 4] };
        let strips = vec![1, 9, 3];
        let edge = if input_channels == 20 { Edge::Replicate } else { Edge::Zero };
        let (size, upsample, norm, residual) = ([40, 150], 1, true, true);
        let case = Case { geometry, size, upsample, norm, residual, edge, storage, strips };
        case.check(&[Arithmetic::Float32]);
    }
}

#[test]
fn strips_of_strided_tiles_have_the_bytes_of_the_whole() {
    for (padding, edge, height) in [
        ([0, 1, 0, 1], Edge::Zero, 59),
        ([0, 1, 0, 1], Edge::Zero, 62),
        // A row that the stride leaves over, in a tile of its own and in another's.
        ([0, 0, 1, 1], Edge::Replicate, 4),
        ([0, 0, 1, 1], Edge::Replicate, 40),
        ([1; 4], Edge::Replicate, 61),
    ] {
        let geometry =
            Geometry { input_channels: 20, output_channels: 260, kernel: [3, 3], stride: 2, padding };
        for (storage, norm) in [(Storage::Float32, false), (Storage::Half, true)] {
            let (size, strips) = ([height, 30], vec![2, 1, 5]);
            let case = Case { geometry, size, upsample: 1, norm, residual: true, edge, storage, strips };
            case.check(&[Arithmetic::Float32, Arithmetic::Integer16]);
        }
    }
}

#[test]
fn windows_that_are_read_where_they_lie_have_the_bytes_of_the_whole() {
    let geometry =
        Geometry { input_channels: 20, output_channels: 17, kernel: [3, 3], stride: 1, padding: [1; 4] };
    for (upsample, residual, edge) in
        [(1, true, Edge::Zero), (2, false, Edge::Zero), (1, false, Edge::Replicate)]
    {
        let (size, norm, storage, strips) = ([60, 150], false, Storage::Float32, vec![2, 1, 5]);
        let case = Case { geometry, size, upsample, norm, residual, edge, storage, strips };
        case.check(&[Arithmetic::Float32]);
    }
}

fn each_tier_and_storage(mut test: impl FnMut(Isa, &Pool, Storage)) {
    each_tier(|isa, pool| {
        for storage in [Storage::Float32, Storage::Half] {
            test(isa, pool, storage);
        }
    });
}

#[test]
fn statistics_do_not_depend_on_strips() {
    let (channels, height, width) = (40, 211, 153);
    let shape = [channels, height * width];
    let plain = blocked(&values(channels * height * width, 1), channels, height * width);
    let geometry = |input_channels: usize, stride| Geometry {
        input_channels,
        output_channels: 512,
        kernel: [3, 3],
        stride,
        padding: [1; 4],
    };
    each_tier_and_storage(|isa, pool, storage| {
        let mut input = Ring::new(storage, 3, height, width);
        let same = Map::Activation(Activation::None);
        map(isa, pool, same, shape, Some(plain.as_slice().into()), input.write());
        let tiles = [(geometry(512, 1), 1), (geometry(8, 1), 1), (geometry(8, 1), 2), (geometry(8, 2), 1)];
        let tiles = tiles.map(|(geometry, upsample)| geometry.patches(isa, upsample).unwrap());
        for patches in [&[Patches::PLAIN], &tiles[..]].concat() {
            let mut whole = Sums::new(channels, [height, width], patches);
            whole.add(isa, pool, input.read(), 0..height);
            let whole = norm_table(&whole, channels, 8);
            for strip in [1, 5, 100, 211] {
                let mut sums = Sums::new(channels, [height, width], patches);
                let mut window = Ring::new(storage, 3, strip + 6, width);
                for start in (0..height).step_by(strip) {
                    let rows = start..(start + strip).min(height);
                    window.take(pool, &input, width, rows.clone());
                    let ([_, seen], end) = (sums.seen(), patches.whole_rows(rows.end, height));
                    sums.add(isa, pool, window.read(), seen..end);
                }
                assert_eq!(sums.seen(), [1, 0]);
                let found = norm_table(&sums, channels, 8);
                assert_eq!(found, whole, "{} {storage:?} {patches:?} in strips of {strip}", isa.name());
            }
        }
    });
}
