//! Convolution with every prologue and epilogue.

use crate::support::{blocked, each_tier, plain, silu, values};
use proptest::prelude::*;
use remote_vae_kernels::convolution::{
    Algorithm, Arithmetic, Convolution, Epilogue, Geometry, Prologue, Residual,
};
use remote_vae_kernels::{Activation, Isa, Pool};

/// Of the largest possible sum: sixteen roundings of `f32`, of which the longest transform has about ten in a row; the
/// sum over channels adds its own, of random sign.
const TOLERANCE: f64 = 16.0 * f32::EPSILON as f64;

/// The same for 16-bit integers: half a step of 1 ⁄ 16383 for an input, half of that and more for a weight (whose sums
/// are bounded), and what the transforms make of both; with few channels the worst of a hundred thousand outputs comes to
/// 5e-4. Where errors are of random sign they are far smaller: see `integers_err_by_less_than_a_thousandth`.
const INTEGER_TOLERANCE: f64 = 7e-4;

const ARITHMETICS: [Arithmetic; 2] = [Arithmetic::Float32, Arithmetic::Integer16];

#[derive(Clone, Debug)]
struct Case {
    geometry: Geometry,
    size: [usize; 2],
    upsample: usize,
    norm: bool,
    before: Activation,
    residual: bool,
    after: Activation,
    bias: bool,
}

fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::None => x,
        Activation::Silu => silu(x),
        Activation::Relu => x.max(0.0),
    }
}

struct Data {
    input: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    scale: Vec<f32>,
    shift: Vec<f32>,
    residual: Vec<f32>,
}

impl Case {
    fn output_size(&self) -> [usize; 2] {
        self.geometry.output_size(self.size.map(|side| side * self.upsample)).unwrap()
    }

    fn data(&self) -> Data {
        let Geometry { input_channels, output_channels, kernel, .. } = self.geometry;
        let [height, width] = self.output_size();
        Data {
            input: values(input_channels * self.size[0] * self.size[1], 1),
            weight: values(output_channels * input_channels * kernel[0] * kernel[1], 2),
            bias: values(output_channels, 3),
            scale: values(input_channels, 4),
            shift: values(input_channels, 5),
            residual: values(output_channels * height * width, 6),
        }
    }

    /// The definition, in `f64`.
    fn oracle(&self, data: &Data) -> Vec<f64> {
        let Geometry { input_channels, output_channels, kernel, stride, padding: [top, _, left, _] } =
            self.geometry;
        let [height, width] = self.output_size();
        let read = |channel: usize, y: isize, x: isize| {
            let [rows, columns] = self.size.map(|side| (side * self.upsample) as isize);
            if y < 0 || x < 0 || y >= rows || x >= columns {
                return 0.0;
            }
            let (y, x) = (y as usize / self.upsample, x as usize / self.upsample);
            let mut value = f64::from(data.input[(channel * self.size[0] + y) * self.size[1] + x]);
            if self.norm {
                value = value * f64::from(data.scale[channel]) + f64::from(data.shift[channel]);
            }
            activate(self.before, value)
        };
        let mut out = Vec::new();
        for o in 0..output_channels {
            for y in 0..height {
                for x in 0..width {
                    let mut sum = if self.bias { f64::from(data.bias[o]) } else { 0.0 };
                    for i in 0..input_channels {
                        for ky in 0..kernel[0] {
                            for kx in 0..kernel[1] {
                                let weight =
                                    data.weight[((o * input_channels + i) * kernel[0] + ky) * kernel[1] + kx];
                                let at = |out: usize, k: usize, before: usize| {
                                    (out * stride + k) as isize - before as isize
                                };
                                sum += f64::from(weight) * read(i, at(y, ky, top), at(x, kx, left));
                            }
                        }
                    }
                    if self.residual {
                        sum += f64::from(data.residual[out.len()]);
                    }
                    out.push(activate(self.after, sum));
                }
            }
        }
        out
    }

    /// What rounding errors are measured by, for each output: the largest sum that weights and inputs of these sizes
    /// can have. A transform mixes all inputs of a tile, so the inputs under the kernel alone would be too few.
    fn magnitudes(&self, data: &Data) -> Vec<f64> {
        let Geometry { output_channels, .. } = self.geometry;
        let largest =
            |values: &[f32]| values.iter().fold(0.0f64, |most, value| most.max(f64::from(value.abs())));
        let mut input = largest(&data.input);
        if self.norm {
            input = input * largest(&data.scale) + largest(&data.shift);
        }
        let len = self.output_size().iter().product();
        data.weight
            .chunks_exact(data.weight.len() / output_channels)
            .flat_map(|weights| {
                let sum: f64 = weights.iter().map(|weight| f64::from(weight.abs())).sum();
                std::iter::repeat_n(sum * input + largest(&data.bias) + largest(&data.residual), len)
            })
            .collect()
    }

    fn check(
        &self,
        isa: Isa,
        pool: &Pool,
        arithmetic: Arithmetic,
        data: &Data,
        expected: &[f64],
    ) -> Vec<f32> {
        let found = self.run(isa, pool, arithmetic, data, false);
        let tolerance = match arithmetic {
            Arithmetic::Float32 => TOLERANCE,
            Arithmetic::Integer16 => INTEGER_TOLERANCE,
        };
        assert_eq!(found.len(), expected.len());
        let magnitudes = self.magnitudes(data);
        for (index, value) in found.iter().enumerate() {
            let error = (f64::from(*value) - expected[index]).abs() / magnitudes[index];
            let name = arithmetic.name();
            let what = format!("{} {name} [{index}]: {value}, expected {}", isa.name(), expected[index]);
            assert!(error <= tolerance, "{what}, {error:e} of the magnitude");
        }
        found
    }

    fn run(&self, isa: Isa, pool: &Pool, arithmetic: Arithmetic, data: &Data, in_place: bool) -> Vec<f32> {
        let Geometry { input_channels, output_channels, .. } = self.geometry;
        let [height, width] = self.output_size();
        let pixels = self.size[0] * self.size[1];
        let bias = self.bias.then_some(data.bias.as_slice());
        let convolution = Convolution::new(isa, pool, self.geometry, &data.weight, bias);
        let input = blocked(&data.input, input_channels, pixels);
        let (scale, shift) =
            (blocked(&data.scale, input_channels, 1), blocked(&data.shift, input_channels, 1));
        let residual = blocked(&data.residual, output_channels, height * width);
        let mut output = if in_place { residual.clone() } else { vec![f32::NAN; residual.len()] };
        let prologue = Prologue {
            affine: self.norm.then_some((scale.as_slice(), shift.as_slice())),
            activation: self.before,
            upsample: self.upsample,
        };
        let residual = match (self.residual, in_place) {
            (false, _) => Residual::None,
            (true, false) => Residual::Tensor(residual.as_slice().into()),
            (true, true) => Residual::InPlace,
        };
        let epilogue = Epilogue { residual, activation: self.after };
        let mut scratch =
            vec![f32::NAN; Convolution::scratch_len(isa, &self.geometry, self.upsample, arithmetic)];
        let (from, to) = (input.as_slice().into(), output.as_mut_slice().into());
        convolution.run(pool, arithmetic, from, self.size, prologue, epilogue, &mut scratch, to);
        plain(&output, output_channels, height * width)
    }
}

fn each_tier_and_arithmetic(mut test: impl FnMut(Isa, &Pool, Arithmetic)) {
    each_tier(|isa, pool| {
        for arithmetic in ARITHMETICS {
            test(isa, pool, arithmetic);
        }
    });
}

fn activation() -> impl Strategy<Value = Activation> {
    prop_oneof![Just(Activation::None), Just(Activation::Silu), Just(Activation::Relu)]
}

fn kernel() -> impl Strategy<Value = [usize; 2]> {
    prop_oneof![1 => Just([1, 1]), 1 => Just([2, 3]), 3 => Just([3, 3])]
}

/// Few, or rarely so many that tiles are of 4×4 outputs.
fn channels() -> impl Strategy<Value = (usize, usize)> {
    prop_oneof![15 => (1usize..40, 1usize..70), 1 => Just((520, 260))]
}

prop_compose! {
    fn case()(
        channels in channels(), kernel in kernel(), stride in 1usize..3,
        padding in prop_oneof![Just([1; 4]), [0usize..2, 0usize..2, 0usize..2, 0usize..2]],
        size in (1usize..12, 1usize..40), upsample in 1usize..4,
        flags in any::<[bool; 3]>(), before in activation(), after in activation(),
    ) -> Case {
        Case {
            geometry: Geometry {
                input_channels: channels.0, output_channels: channels.1, kernel, stride, padding,
            },
            size: [size.0, size.1],
            upsample, norm: flags[0], before, residual: flags[1], after, bias: flags[2],
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_shape_agrees_with_the_definition(case in case()) {
        prop_assume!(case.geometry.output_size(case.size.map(|side| side * case.upsample)).is_some());
        let data = case.data();
        let expected = case.oracle(&data);
        each_tier(|isa, pool| {
            for arithmetic in ARITHMETICS {
                let found = case.check(isa, pool, arithmetic, &data, &expected);
                if case.residual {
                    let in_place = case.run(isa, pool, arithmetic, &data, true);
                    assert_eq!(in_place, found, "in place, {} {}", isa.name(), arithmetic.name());
                }
            }
        });
    }
}

fn plain_case(input_channels: usize, output_channels: usize, size: [usize; 2]) -> Case {
    Case {
        geometry: Geometry { input_channels, output_channels, kernel: [3, 3], stride: 1, padding: [1; 4] },
        size,
        upsample: 1,
        norm: false,
        before: Activation::None,
        residual: false,
        after: Activation::None,
        bias: true,
    }
}

#[test]
fn many_channels_take_several_passes_and_smaller_patches() {
    let upsampled = Case { upsample: 2, ..plain_case(150, 40, [20, 37]) };
    let strided = Geometry { stride: 2, ..plain_case(1100, 3, [19, 35]).geometry };
    let strided = Case { geometry: strided, ..plain_case(1100, 3, [19, 35]) };
    let few_tiles = plain_case(520, 260, [7, 10]);
    for case in [plain_case(150, 40, [20, 37]), plain_case(1100, 5, [9, 35]), few_tiles, upsampled, strided] {
        let data = case.data();
        let expected = case.oracle(&data);
        each_tier(|isa, pool| {
            for arithmetic in ARITHMETICS {
                case.check(isa, pool, arithmetic, &data, &expected);
            }
        });
    }
}

#[test]
fn what_is_read_where_it_lies_is_right_inside_large_pictures() {
    let upsampled = Case { upsample: 2, ..plain_case(20, 9, [75, 110]) };
    let summed = Case { residual: true, after: Activation::Relu, ..plain_case(17, 20, [110, 150]) };
    for case in [summed, upsampled] {
        let data = case.data();
        let expected = case.oracle(&data);
        each_tier(|isa, pool| {
            let found = case.check(isa, pool, Arithmetic::Float32, &data, &expected);
            // A norm that changes nothing has the input gathered.
            let ones = Data {
                scale: vec![1.0; data.scale.len()],
                shift: vec![0.0; data.shift.len()],
                ..case.data()
            };
            let gathered = Case { norm: true, ..case.clone() };
            assert!(gathered.run(isa, pool, Arithmetic::Float32, &ones, false) == found, "{}", isa.name());
        });
    }
}

#[test]
fn bytes_do_not_depend_on_the_number_of_threads() {
    let winograd = plain_case(33, 70, [37, 50]);
    let narrow = Geometry { stride: 2, output_channels: 40, ..winograd.geometry };
    let direct = Case { geometry: narrow, ..plain_case(33, 40, [37, 50]) };
    let strides = Case { geometry: strided(33, 260), ..plain_case(33, 260, [37, 50]) };
    let fold = Case { upsample: 2, ..winograd.clone() };
    // Tile registers multiply these by two groups of output channels at a time, in larger batches for fewer threads.
    let pairs = plain_case(270, 140, [48, 97]);
    let wide = plain_case(520, 260, [18, 35]);
    let generic = Isa::by_name("generic").unwrap();
    let algorithms = [
        Algorithm::Winograd6,
        Algorithm::Direct,
        Algorithm::WinogradStrided,
        Algorithm::UpsampleFold,
        Algorithm::Winograd6,
        Algorithm::Winograd4,
    ];
    for (case, algorithm) in [winograd, direct, strides, fold, pairs, wide].into_iter().zip(algorithms) {
        assert_eq!(case.geometry.algorithm(generic, case.upsample), algorithm);
        let data = case.data();
        for (isa, arithmetic) in Isa::available().into_iter().flat_map(|isa| ARITHMETICS.map(|a| (isa, a))) {
            let run = |threads| case.run(isa, &Pool::new(Some(threads)).unwrap(), arithmetic, &data, false);
            let one = run(1);
            assert!(one == run(2) && one == run(7), "{} {arithmetic:?} {:?}", isa.name(), case.geometry);
        }
    }
}

#[test]
fn not_a_number_reaches_what_the_kernel_reaches_and_at_most_the_tiles_around() {
    // The kernel's own reach, and that of the transforms' tiles of 4×4 or 6×6 outputs, with strides of 3×3.
    let three = Geometry { kernel: [3, 3], ..plain_case(4, 5, [9, 9]).geometry };
    let few = Geometry { output_channels: 4, ..three };
    let cases = [
        (Geometry { kernel: [2, 3], padding: [1, 0, 1, 1], ..three }, 1, 4..=5, 3..=5, 4..=5, 3..=5),
        (three, 1, 3..=5, 3..=5, 0..=7, 0..=7),
        (three, 2, 7..=10, 7..=10, 7..=10, 7..=10),
        (few, 1, 3..=5, 3..=5, 3..=5, 3..=5),
        (few, 2, 7..=10, 7..=10, 7..=10, 7..=10),
        (strided(4, 256), 1, 1..=2, 1..=2, 0..=2, 0..=2),
    ];
    for (geometry, upsample, rows, columns, tile_rows, tile_columns) in cases {
        let case = Case { geometry, upsample, ..plain_case(4, geometry.output_channels, [9, 9]) };
        let mut data = case.data();
        data.input[4 * 9 + 4] = f32::NAN;
        let [height, width] = case.output_size();
        each_tier_and_arithmetic(|isa, pool, arithmetic| {
            let found = case.run(isa, pool, arithmetic, &data, false);
            for (index, value) in found.iter().enumerate() {
                let (y, x) = (index % (height * width) / width, index % width);
                let what = format!("{} {geometry:?} at {y},{x}", isa.name());
                assert!(value.is_nan() || !(rows.contains(&y) && columns.contains(&x)), "{what}");
                assert!(!value.is_nan() || tile_rows.contains(&y) && tile_columns.contains(&x), "{what}");
            }
        });
    }
}

#[test]
fn infinities_do_not_leave_the_tiles_around() {
    for upsample in [1, 2] {
        let case = Case { upsample, ..plain_case(20, 20, [30, 30]) };
        let mut data = case.data();
        data.input[0] = f32::INFINITY;
        let expected = case.oracle(&case.data());
        let [height, width] = case.output_size();
        each_tier_and_arithmetic(|isa, pool, arithmetic| {
            let tolerance = if arithmetic == Arithmetic::Float32 { 1e-3 } else { 1e-1 };
            for (index, value) in case.run(isa, pool, arithmetic, &data, false).iter().enumerate() {
                let (y, x) = (index % (height * width) / width, index % width);
                // Tiles are at most six outputs wide.
                let far = y > 5 || x > 5;
                assert!(
                    !far || (f64::from(*value) - expected[index]).abs() < tolerance,
                    "{} at {y},{x}",
                    isa.name()
                );
            }
        });
    }
}

#[test]
fn huge_and_tiny_values_are_neither_clipped_nor_lost() {
    for (upsample, of_inputs, of_weights) in
        [(1, 1e30, 1.0), (2, 1e30, 1.0), (1, 1e-30, 1.0), (2, 1.0, 1e-30), (1, 1e30, 1e-30), (2, 1e-30, 1e30)]
    {
        let case = Case { upsample, bias: false, ..plain_case(16, 16, [8, 8]) };
        let mut data = case.data();
        data.input.iter_mut().for_each(|value| *value *= of_inputs);
        data.weight.iter_mut().for_each(|value| *value *= of_weights);
        data.bias.fill(0.0);
        data.residual.fill(0.0);
        let expected = case.oracle(&data);
        each_tier_and_arithmetic(|isa, pool, arithmetic| {
            case.check(isa, pool, arithmetic, &data, &expected);
        });
    }
}

/// Root mean square of `found − expected` over that of `expected`.
fn relative_error(found: &[f32], expected: &[f64]) -> f64 {
    let of = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    let errors = of(&mut found.iter().zip(expected).map(|(found, expected)| f64::from(*found) - expected));
    (errors / of(&mut expected.iter().copied())).sqrt()
}

/// About normal values: sums of four of [`values`].
fn bell(len: usize, seed: u64) -> Vec<f32> {
    values(4 * len, seed).chunks_exact(4).map(|four| four.iter().sum()).collect()
}

#[test]
fn sixteen_bits_err_by_thousandths_at_most_in_every_tier() {
    // White noise without a norm is the worst case of the larger tiles, which those of many channels do not use.
    for (channels, output_channels, upsample, is_pointwise, limit) in [
        (24, 20, 1, false, 2.5e-3),
        (300, 20, 1, false, 2.5e-3),
        (300, 440, 1, false, 1e-3),
        (300, 140, 1, false, 2.5e-3),
        (24, 20, 2, false, 1e-3),
        (300, 20, 2, false, 1e-3),
        (24, 20, 1, true, 1e-3),
        (300, 20, 1, true, 1e-3),
    ] {
        let plain = plain_case(channels, output_channels, [13, 22]);
        let geometry = if is_pointwise { pointwise(plain.geometry) } else { plain.geometry };
        let case = Case { upsample, bias: false, geometry, ..plain };
        let mut data = case.data();
        data.input = bell(data.input.len(), 7);
        data.weight = bell(data.weight.len(), 8);
        let expected = case.oracle(&data);
        let mut first: Option<Vec<f64>> = None;
        each_tier(|isa, pool| {
            let found = case.run(isa, pool, Arithmetic::Integer16, &data, false);
            let error = relative_error(&found, &expected);
            // Two bfloat16 numbers keep 17 bits of each number, integers sixteen of the largest.
            let in_parts = isa.name() == "amx" && is_pointwise;
            let [least, limit] = if in_parts { [1e-7, 5e-5] } else { [1e-5, limit] };
            let size = format!("{} {channels} channels: {error:e}", isa.name());
            assert!((least..limit).contains(&error), "{size}");
            let first = first.get_or_insert_with(|| found.iter().map(|value| f64::from(*value)).collect());
            let between = relative_error(&found, first);
            assert!(between < limit, "{} {channels} channels: {between:e} from the first tier", isa.name());
        });
    }
}

#[test]
fn vector_neural_network_instructions_change_no_byte() {
    let (Ok(with), Ok(without)) = (Isa::by_name("avx512vnni"), Isa::by_name("avx512")) else { return };
    let pool = Pool::new(Some(2)).unwrap();
    let winograd = Case { norm: true, before: Activation::Silu, ..plain_case(150, 40, [20, 37]) };
    let fold = Case { upsample: 2, ..winograd.clone() };
    let direct = Case { geometry: Geometry { stride: 2, ..winograd.geometry }, ..winograd.clone() };
    let one = Case { geometry: pointwise(winograd.geometry), ..winograd.clone() };
    for case in [winograd, fold, direct, one] {
        let data = case.data();
        for arithmetic in ARITHMETICS {
            let run = |isa| case.run(isa, &pool, arithmetic, &data, false);
            assert!(run(with) == run(without), "{arithmetic:?} {:?}", case.geometry);
        }
    }
}

/// As an encoder halves a picture.
fn strided(input_channels: usize, output_channels: usize) -> Geometry {
    Geometry { input_channels, output_channels, kernel: [3, 3], stride: 2, padding: [0, 1, 0, 1] }
}

#[test]
fn strides_are_right_in_tiles() {
    for (channels, size, upsample) in
        [([20, 66], [37, 75], 1), ([150, 256], [14, 25], 1), ([3, 300], [7, 5], 3)]
    {
        for padding in [[0, 1, 0, 1], [1; 4], [0; 4], [1, 0, 1, 0]] {
            let geometry = Geometry { padding, ..strided(channels[0], channels[1]) };
            let plain = plain_case(channels[0], channels[1], size);
            let case = Case { geometry, norm: channels[0] == 150, residual: true, upsample, ..plain };
            let data = case.data();
            let expected = case.oracle(&data);
            each_tier_and_arithmetic(|isa, pool, arithmetic| {
                let found = case.check(isa, pool, arithmetic, &data, &expected);
                assert_eq!(case.run(isa, pool, arithmetic, &data, true), found, "in place, {}", isa.name());
                let in_tile_registers = isa.name() == "amx" && channels[1] < 256;
                let algorithm = geometry.algorithm(isa, upsample);
                assert_eq!(algorithm == Algorithm::WinogradStrided, !in_tile_registers, "{}", isa.name());
            });
        }
    }
}

#[test]
fn other_kernels_and_strides_are_right_with_any_number_of_channels() {
    for (kernel, stride) in [([3, 3], 2), ([1, 1], 2), ([5, 3], 1), ([2, 2], 2)] {
        for (channels, size) in [(40, [9, 70]), (150, [21, 10]), (300, [5, 7])] {
            let plain = plain_case(channels, 50, size);
            let geometry = Geometry { kernel, stride, padding: [0, 1, 0, 1], ..plain.geometry };
            let case = Case { geometry, norm: true, before: Activation::Silu, ..plain };
            let data = case.data();
            let expected = case.oracle(&data);
            each_tier_and_arithmetic(|isa, pool, arithmetic| {
                case.check(isa, pool, arithmetic, &data, &expected);
            });
        }
    }
}

fn pointwise(geometry: Geometry) -> Geometry {
    Geometry { kernel: [1, 1], padding: [0; 4], ..geometry }
}

#[test]
fn pointwise_convolutions_are_right_in_stretches_of_any_length() {
    for (channels, size) in [(40, [9, 9]), (20, [1, 97]), (300, [13, 22]), (130, [3, 64])] {
        let case = Case {
            geometry: pointwise(plain_case(channels, 50, size).geometry),
            norm: true,
            before: Activation::Silu,
            ..plain_case(channels, 50, size)
        };
        let data = case.data();
        let expected = case.oracle(&data);
        each_tier_and_arithmetic(|isa, pool, arithmetic| {
            case.check(isa, pool, arithmetic, &data, &expected);
        });
    }
}

/// Weights and inputs that all pull in one direction make the largest sums that their magnitudes allow; with as many
/// bits as fit 16 they would leave 32 bits many times over.
#[test]
fn sums_of_one_sign_do_not_overflow() {
    for (channels, upsample, of_inputs, of_weights) in
        [(128, 1, 1.0, 1.0), (128, 2, -3e4, 1.0), (300, 1, -1.0, -1e20), (300, 2, 1.0, 1.0)]
    {
        let case = Case { upsample, bias: false, ..plain_case(channels, 20, [9, 14]) };
        let mut data = case.data();
        data.input.fill(of_inputs);
        data.weight.fill(of_weights);
        let expected = case.oracle(&data);
        each_tier(|isa, pool| {
            let found = case.run(isa, pool, Arithmetic::Integer16, &data, false);
            let error = relative_error(&found, &expected);
            assert!(error < 1e-3, "{} {channels} channels after {upsample}: {error:e}", isa.name());
        });
    }
}

#[test]
fn a_weight_that_is_not_finite_spoils_its_own_channel() {
    for upsample in [1, 2] {
        for wrong in [f32::NAN, f32::INFINITY] {
            let case = Case { upsample, ..plain_case(140, 20, [9, 9]) };
            let good = case.data();
            let mut bad = case.data();
            // The kernel's centre, which covers every pixel.
            bad.weight[3 * 140 * 9 + 130 * 9 + 4] = wrong;
            let pixels: usize = case.output_size().iter().product();
            each_tier_and_arithmetic(|isa, pool, arithmetic| {
                let expected = case.run(isa, pool, arithmetic, &good, false);
                let found = case.run(isa, pool, arithmetic, &bad, false);
                for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
                    let right = if index / pixels == 3 { !found.is_finite() } else { found == expected };
                    assert!(right, "{} {arithmetic:?} {wrong} [{index}]: {found}", isa.name());
                }
            });
        }
    }
}

/// Columns and rows of several bands, one pixel alone, taps that fill one group of lanes or several, several passes over
/// the input channels.
#[test]
fn few_output_channels_are_right_and_the_same_in_bands_of_any_size() {
    for (inputs, outputs, size, kernel, upsample) in [
        (40, 3, [21, 300], [3, 3], 1),
        (150, 4, [19, 10], [3, 3], 2),
        (20, 1, [5, 131], [5, 3], 1),
        (1100, 2, [7, 40], [2, 3], 1),
        (300, 3, [1, 1], [3, 3], 1),
    ] {
        let plain = plain_case(inputs, outputs, size);
        let geometry = Geometry { kernel, padding: [1, 1, 0, 2], ..plain.geometry };
        assert_eq!(geometry.algorithm(Isa::detect(), upsample), Algorithm::ShiftAdd);
        let case = Case { geometry, upsample, norm: true, before: Activation::Silu, residual: true, ..plain };
        let data = case.data();
        let expected = case.oracle(&data);
        let mut bytes = Vec::new();
        each_tier_and_arithmetic(|isa, pool, arithmetic| {
            // The products are of `f32` in either arithmetic.
            let found = case.check(isa, pool, Arithmetic::Float32, &data, &expected);
            for threads in [1, 2, 7] {
                let pool = Pool::new(Some(threads)).unwrap();
                let again = case.run(isa, &pool, arithmetic, &data, threads == 2);
                assert!(again == found, "{} {arithmetic:?} {threads} threads: {case:?}", isa.name());
            }
            bytes.push((isa.name(), found));
        });
        let of = |name| bytes.iter().find(|(tier, _)| *tier == name);
        if let (Some((_, with)), Some((_, without))) = (of("avx512vnni"), of("avx512")) {
            assert!(with == without, "{case:?}");
        }
    }
}
