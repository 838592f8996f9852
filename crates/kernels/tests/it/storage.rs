//! 16-bit storage: each operation gives what it gives on the same values in `f32`, rounded to halves.

use crate::support::{blocked, each_tier, statistics, values};
use remote_vae_kernels::attention::{Shape, attention};
use remote_vae_kernels::convolution::{Arithmetic, Convolution, Epilogue, Geometry, Prologue, Residual};
use remote_vae_kernels::elementwise::{Map, add, map, upsample_nearest};
use remote_vae_kernels::norm::{GroupNorm, apply};
use remote_vae_kernels::{Activation, Isa, Pool, Storage, Tensor, TensorMut};

/// A blocked tensor in a storage of its own.
#[derive(Clone)]
struct Stored {
    storage: Storage,
    memory: Vec<f32>,
    groups: usize,
}

impl Stored {
    fn empty(storage: Storage, groups: usize) -> Stored {
        Stored { storage, memory: vec![f32::NAN; storage.len(groups)], groups }
    }

    fn read(&self) -> Tensor<'_> {
        Tensor::new(self.storage, &self.memory)
    }

    fn write(&mut self) -> TensorMut<'_> {
        TensorMut::new(self.storage, &mut self.memory)
    }

    /// The same values in another storage, rounded if it is the smaller one.
    fn to(&self, storage: Storage) -> Stored {
        let mut out = Stored::empty(storage, self.groups);
        let (isa, pool) = (Isa::by_name("generic").unwrap(), Pool::new(Some(1)).unwrap());
        let same = Map::Activation(Activation::None);
        map(isa, &pool, same, [16, self.groups], Some(self.read()), out.write());
        out
    }

    /// Stored halves and exponents as bytes; the memory may end within an `f32`.
    fn bits(&self) -> Vec<u32> {
        self.to(Storage::Float32).memory.iter().map(|value| value.to_bits()).collect()
    }
}

/// A tensor of values from far beyond halves to far below them, as it is after rounding.
fn tensor(channels: usize, pixels: usize, seed: u64) -> Stored {
    let spread = [1.0, 1e6, 1e-6, 0.0, 300.0];
    let plain: Vec<f32> = values(channels * pixels, seed)
        .iter()
        .enumerate()
        .map(|(index, value)| value * spread[index % pixels % spread.len()])
        .collect();
    let memory = blocked(&plain, channels, pixels);
    let groups = memory.len() / 16;
    Stored { storage: Storage::Float32, memory, groups }.to(Storage::Half)
}

/// Runs `operation` on both storages of its operands and result; `in_place` is what the result holds before.
fn check(
    operands: &[Stored],
    in_place: Option<&Stored>,
    groups: usize,
    what: &str,
    mut operation: impl FnMut(&[Tensor<'_>], TensorMut<'_>),
) {
    let mut run = |inputs: Storage, result: Storage| {
        let operands: Vec<Stored> = operands.iter().map(|operand| operand.to(inputs)).collect();
        let tensors: Vec<Tensor<'_>> = operands.iter().map(Stored::read).collect();
        let mut out = in_place.map_or_else(|| Stored::empty(result, groups), |before| before.to(result));
        operation(&tensors, out.write());
        out
    };
    let exact = run(Storage::Float32, Storage::Float32);
    assert!(exact.memory.iter().all(|value| value.is_finite()), "{what}");
    assert_eq!(run(Storage::Half, Storage::Float32).bits(), exact.bits(), "{what} read from halves");
    assert_eq!(run(Storage::Half, Storage::Half).bits(), exact.to(Storage::Half).bits(), "{what}");
    assert_eq!(
        run(Storage::Float32, Storage::Half).bits(),
        exact.to(Storage::Half).bits(),
        "{what} to halves"
    );
}

#[test]
fn convolutions_read_and_write_halves() {
    let size = [9, 14];
    for (kernel, padding, upsample, channels) in
        [(3, 1, 1, [20, 40]), (3, 1, 2, [20, 40]), (3, 0, 3, [4, 33]), (1, 0, 1, [33, 5])]
    {
        let [inputs, outputs] = channels;
        let geometry = Geometry {
            input_channels: inputs,
            output_channels: outputs,
            kernel: [kernel; 2],
            stride: 1,
            padding: [padding; 4],
        };
        let [height, width] = geometry.output_size(size.map(|side| side * upsample)).unwrap();
        let weight = values(outputs * inputs * kernel * kernel, 2);
        let (input, residual) = (tensor(inputs, size[0] * size[1], 1), tensor(outputs, height * width, 3));
        let table = blocked(&values(inputs, 4), inputs, 1);
        each_tier(|isa, pool| {
            let convolution = Convolution::new(isa, pool, geometry, &weight, Some(&weight[..outputs]));
            for (norm, activation, arithmetic) in [
                (false, Activation::None, Arithmetic::Float32),
                (true, Activation::Silu, Arithmetic::Float32),
                (true, Activation::None, Arithmetic::Float32),
                (true, Activation::Silu, Arithmetic::Integer16),
            ] {
                let affine = norm.then_some((table.as_slice(), table.as_slice()));
                let prologue = Prologue { affine, activation, upsample };
                let run = |input: Tensor<'_>, residual: Residual<'_>, out: TensorMut<'_>| {
                    let mut scratch =
                        vec![0.0; Convolution::scratch_len(isa, &geometry, upsample, arithmetic)];
                    let epilogue = Epilogue { residual, activation: Activation::Relu };
                    convolution.run(pool, arithmetic, input, size, prologue, epilogue, &mut scratch, out);
                };
                let what =
                    format!("{} {geometry:?} x{upsample} {activation:?} {}", isa.name(), arithmetic.name());
                let operands = [input.clone(), residual.clone()];
                check(&operands[..1], None, residual.groups, &what, |tensors, out| {
                    run(tensors[0], Residual::None, out);
                });
                check(&operands, None, residual.groups, &what, |tensors, out| {
                    run(tensors[0], Residual::Tensor(tensors[1]), out);
                });
                check(&operands[..1], Some(&residual), residual.groups, &what, |tensors, out| {
                    run(tensors[0], Residual::InPlace, out);
                });
            }
        });
    }
}

#[test]
fn norms_read_and_write_halves() {
    let (channels, pixels) = (40, 9001);
    let input = tensor(channels, pixels, 1);
    let (weight, bias) = (values(channels, 2), values(channels, 3));
    each_tier(|isa, pool| {
        check(std::slice::from_ref(&input), None, input.groups, isa.name(), |tensors, out| {
            let norm = GroupNorm { groups: 8, epsilon: 1e-6, weight: &weight, bias: &bias };
            let [scale, shift] = statistics(isa, pool, norm, tensors[0], pixels);
            apply(isa, pool, tensors[0], pixels, (&scale, &shift), Activation::Silu, out);
        });
    });
}

#[test]
fn attention_reads_and_writes_halves() {
    let (channels, tokens) = (40, 333);
    let operands = [1, 2, 3].map(|seed| tensor(channels, tokens, seed));
    each_tier(|isa, pool| {
        check(&operands, None, operands[0].groups, isa.name(), |tensors, out| {
            let shape = Shape { channels, frames: 1, tokens, arithmetic: Arithmetic::Float32 };
            let mut scratch = vec![0.0; shape.scratch_len(isa)];
            let tensors = [tensors[0], tensors[1], tensors[2]];
            attention(isa, pool, tensors, shape, &mut scratch, out);
        });
    });
}

#[test]
fn maps_sums_and_upsampling_read_and_write_halves() {
    let (channels, size) = (20, [71, 61]);
    let pixels = size[0] * size[1];
    let (a, b) = (tensor(channels, pixels, 1), tensor(channels, pixels, 2));
    let shifted = Map::Affine { scale: 0.5, shift: 3.0 };
    each_tier(|isa, pool| {
        let what = isa.name();
        for kind in [Map::SoftClamp { limit: 3.0 }, shifted, Map::Activation(Activation::Silu)] {
            check(std::slice::from_ref(&a), None, a.groups, what, |tensors, out| {
                map(isa, pool, kind, [channels, pixels], Some(tensors[0]), out);
            });
            check(&[], Some(&a), a.groups, what, |_, out| {
                map(isa, pool, kind, [channels, pixels], None, out);
            });
        }
        check(&[a.clone(), b.clone()], None, a.groups, what, |tensors, out| {
            add(isa, pool, Some(tensors[0]), tensors[1], out);
        });
        check(std::slice::from_ref(&b), Some(&a), a.groups, what, |tensors, out| {
            add(isa, pool, None, tensors[0], out);
        });
        check(std::slice::from_ref(&a), None, 9 * a.groups, what, |tensors, out| {
            upsample_nearest(isa, pool, tensors[0], size, 3, out);
        });
    });
}
