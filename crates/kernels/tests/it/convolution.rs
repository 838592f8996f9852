//! Convolution with every prologue and epilogue.

use crate::support::{assert_close, blocked, each_tier, plain, silu, values};
use proptest::prelude::*;
use remote_vae_kernels::convolution::{Convolution, Epilogue, Geometry, Prologue, Residual};
use remote_vae_kernels::{Activation, Isa, Pool};

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

    fn run(&self, isa: Isa, pool: &Pool, data: &Data, in_place: bool) -> Vec<f32> {
        let Geometry { input_channels, output_channels, .. } = self.geometry;
        let [height, width] = self.output_size();
        let pixels = self.size[0] * self.size[1];
        let convolution =
            Convolution::new(isa, self.geometry, &data.weight, self.bias.then_some(data.bias.as_slice()));
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
            (true, false) => Residual::Tensor(&residual),
            (true, true) => Residual::InPlace,
        };
        let epilogue = Epilogue { residual, activation: self.after };
        convolution.run(pool, &input, self.size, prologue, epilogue, &mut output);
        plain(&output, output_channels, height * width)
    }
}

fn activation() -> impl Strategy<Value = Activation> {
    prop_oneof![Just(Activation::None), Just(Activation::Silu), Just(Activation::Relu)]
}

prop_compose! {
    fn case()(
        channels in (1usize..40, 1usize..70), kernel in prop_oneof![Just([1, 1]), Just([3, 3]), Just([2, 3])],
        stride in 1usize..3, padding in [0usize..2, 0usize..2, 0usize..2, 0usize..2],
        size in (1usize..12, 1usize..40), upsample in 1usize..3,
        flags in any::<[bool; 3]>(), before in activation(), after in activation(),
    ) -> Case {
        let grow = |side: usize, kernel: usize| side.max(kernel);
        Case {
            geometry: Geometry {
                input_channels: channels.0, output_channels: channels.1, kernel, stride, padding,
            },
            size: [grow(size.0, kernel[0]), grow(size.1, kernel[1])],
            upsample, norm: flags[0], before, residual: flags[1], after, bias: flags[2],
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_shape_agrees_with_the_definition(case in case()) {
        let data = case.data();
        let expected = case.oracle(&data);
        each_tier(|isa, pool| {
            let found = case.run(isa, pool, &data, false);
            assert_close(&found, &expected, 2e-5, isa.name());
            if case.residual {
                assert_eq!(case.run(isa, pool, &data, true), found, "in place, {}", isa.name());
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
    for case in [plain_case(150, 40, [20, 37]), plain_case(1100, 3, [9, 35])] {
        let data = case.data();
        let expected = case.oracle(&data);
        each_tier(|isa, pool| assert_close(&case.run(isa, pool, &data, false), &expected, 1e-4, isa.name()));
    }
}

#[test]
fn bytes_do_not_depend_on_the_number_of_threads() {
    let case = plain_case(33, 70, [37, 50]);
    let data = case.data();
    for isa in Isa::available() {
        let run = |threads| case.run(isa, &Pool::new(Some(threads)).unwrap(), &data, false);
        let one = run(1);
        assert!(one == run(2) && one == run(7), "{}", isa.name());
    }
}

#[test]
fn not_a_number_stays_where_the_kernel_reaches() {
    let case = plain_case(4, 4, [9, 9]);
    let mut data = case.data();
    data.input[4 * 9 + 4] = f32::NAN;
    each_tier(|isa, pool| {
        let found = case.run(isa, pool, &data, false);
        for (index, value) in found.iter().enumerate() {
            let (y, x) = (index % 81 / 9, index % 9);
            let reached = (3..=5).contains(&y) && (3..=5).contains(&x);
            assert_eq!(value.is_nan(), reached, "{} at {y},{x}", isa.name());
        }
    });
}

#[test]
fn huge_values_are_not_clipped() {
    let case = plain_case(16, 16, [8, 8]);
    let mut data = case.data();
    data.input.iter_mut().for_each(|value| *value *= 1e30);
    let small: Vec<f64> = case.oracle(&data).iter().map(|value| value / 1e30).collect();
    each_tier(|isa, pool| {
        let found: Vec<f32> = case.run(isa, pool, &data, false).iter().map(|value| value / 1e30).collect();
        assert_close(&found, &small, 1e-5, isa.name());
    });
}
