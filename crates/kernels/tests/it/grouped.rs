//! Grouped convolution against its definition.

use crate::support::{assert_close, blocked, each_tier, plain, silu, values};
use remote_vae_kernels::grouped::GroupedConvolution;
use remote_vae_kernels::{Activation, Isa, Pool, Storage, Tensor, TensorMut};

/// `[channels, height, width]` through `[channels, group, kernel, kernel]`.
fn oracle(
    input: &[f32],
    [height, width]: [usize; 2],
    weight: &[f32],
    bias: Option<&[f32]>,
    [channels, group, kernel]: [usize; 3],
) -> Vec<f64> {
    let mut out = Vec::new();
    for channel in 0..channels {
        for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
            let mut sum = bias.map_or(0.0, |bias| f64::from(bias[channel]));
            for inner in 0..group {
                for (ky, kx) in (0..kernel).flat_map(|ky| (0..kernel).map(move |kx| (ky, kx))) {
                    let (from_y, from_x) = (y + ky, x + kx);
                    let (top, left) = (kernel / 2, kernel / 2);
                    if !(top..top + height).contains(&from_y) || !(left..left + width).contains(&from_x) {
                        continue;
                    }
                    let from = channel / group * group + inner;
                    let value = input[(from * height + from_y - top) * width + from_x - left];
                    let weight = weight[((channel * group + inner) * kernel + ky) * kernel + kx];
                    sum += f64::from(value) * f64::from(weight);
                }
            }
            out.push(sum);
        }
    }
    out
}

/// Channels, channels of a group and the kernel's side; height and width.
const CASES: [([usize; 3], [usize; 2]); 8] = [
    ([1, 1, 3], [1, 1]),
    ([20, 1, 5], [3, 37]),
    ([48, 1, 3], [17, 33]),
    ([12, 4, 1], [5, 9]),
    ([24, 8, 3], [9, 2]),
    ([40, 5, 1], [3, 3]),
    ([64, 32, 1], [11, 34]),
    ([96, 48, 3], [4, 5]),
];

#[test]
fn channels_read_their_own_group() {
    for ([channels, group, kernel], size) in CASES {
        let pixels = size[0] * size[1];
        let input = values(channels * pixels, 1);
        let weight = values(channels * group * kernel * kernel, 2);
        let bias = values(channels, 3);
        for bias in [None, Some(bias.as_slice())] {
            let expected = oracle(&input, size, &weight, bias, [channels, group, kernel]);
            let rounded: Vec<f64> = expected.iter().map(|value| silu(*value)).collect();
            let layer = GroupedConvolution::new(channels, group, kernel, &weight, bias);
            each_tier(|isa, pool| {
                let what = format!("{channels} channels by {group}, {kernel}x{kernel}, {}", isa.name());
                let tensor = blocked(&input, channels, pixels);
                let mut output = vec![f32::NAN; tensor.len()];
                let from = Tensor::from(tensor.as_slice());
                layer.run(isa, pool, from, size, Activation::None, output.as_mut_slice().into());
                assert_close(&plain(&output, channels, pixels), &expected, 1e-5, &what);
                layer.run(isa, pool, from, size, Activation::Silu, output.as_mut_slice().into());
                assert_close(&plain(&output, channels, pixels), &rounded, 1e-5, &what);
                // Stored in halves.
                let mut memory = vec![0.0; Storage::Half.len(from.groups())];
                let to = TensorMut::new(Storage::Half, &mut memory);
                layer.run(isa, pool, from, size, Activation::None, to);
                let mut again = vec![f32::NAN; tensor.len()];
                let one = GroupedConvolution::new(channels, 1, 1, &vec![1.0; channels], None);
                let narrow = Tensor::new(Storage::Half, &memory);
                one.run(isa, pool, narrow, size, Activation::None, again.as_mut_slice().into());
                assert_close(&plain(&again, channels, pixels), &expected, 1e-3, &what);
            });
        }
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let size = [35, 70];
    let input = blocked(&values(48 * 35 * 70, 5), 48, 35 * 70);
    let weight = values(48 * 16 * 9, 6);
    let layer = GroupedConvolution::new(48, 16, 3, &weight, None);
    let run = |threads| {
        let mut output = vec![f32::NAN; input.len()];
        let (pool, to) = (Pool::new(Some(threads)).unwrap(), output.as_mut_slice().into());
        layer.run(Isa::detect(), &pool, input.as_slice().into(), size, Activation::None, to);
        output
    };
    let one = run(1);
    assert!(run(2) == one && run(5) == one);
}
