//! Maps, sums and upsampling.

use crate::support::{assert_close, blocked, each_tier, plain, silu, values};
use remote_vae_kernels::elementwise::{Map, add, map, multiply, upsample_nearest};
use remote_vae_kernels::{Activation, Isa, Pool};

#[test]
fn maps_agree_with_their_definitions_and_keep_the_padding_zero() {
    type Definition = fn(f64) -> f64;
    let maps: [(Map, Definition); 5] = [
        (Map::Activation(Activation::Silu), silu),
        (Map::Activation(Activation::Relu), |x| x.max(0.0)),
        (Map::Activation(Activation::None), |x| x),
        (Map::Affine { scale: 2.0, shift: -1.0 }, |x| x * 2.0 - 1.0),
        (Map::SoftClamp { limit: 3.0 }, |x| (x / 3.0).tanh() * 3.0),
    ];
    for (channels, pixels) in [(3, 7), (16, 40_000), (20, 33)] {
        let input: Vec<f32> = values(channels * pixels, 1).iter().map(|value| value * 9.0 + 0.001).collect();
        for (kind, definition) in maps {
            let expected: Vec<f64> = input.iter().map(|value| definition(f64::from(*value))).collect();
            each_tier(|isa, pool| {
                let mut tensor = blocked(&input, channels, pixels);
                map(isa, pool, kind, [channels, pixels], None, tensor.as_mut_slice().into());
                assert_close(&plain(&tensor, channels, pixels), &expected, 1e-6, &format!("{kind:?}"));
            });
        }
    }
}

#[test]
fn sums_are_sums() {
    let pool = Pool::new(Some(2)).unwrap();
    let (a, mut b) = (values(200_000, 1), values(200_000, 2));
    let expected: Vec<f32> = a.iter().zip(&b).map(|(a, b)| b + a).collect();
    add(Isa::detect(), &pool, None, a.as_slice().into(), b.as_mut_slice().into());
    assert_eq!(b, expected);
}

#[test]
fn products_are_products() {
    let pool = Pool::new(Some(2)).unwrap();
    let (a, mut b) = (values(200_000, 1), values(200_000, 2));
    let expected: Vec<f32> = a.iter().zip(&b).map(|(a, b)| b * a).collect();
    let mut c = vec![f32::NAN; b.len()];
    multiply(Isa::detect(), &pool, Some(b.as_slice().into()), a.as_slice().into(), c.as_mut_slice().into());
    multiply(Isa::detect(), &pool, None, a.as_slice().into(), b.as_mut_slice().into());
    assert!(b == expected && c == expected);
}

#[test]
fn each_pixel_is_repeated() {
    let pool = Pool::new(Some(2)).unwrap();
    for factor in [1, 2, 3] {
        let (channels, height, width) = (18, 5, 7);
        let input = values(channels * height * width, 1);
        let mut output = vec![f32::NAN; blocked(&input, channels, height * width).len() * factor * factor];
        let tensor = blocked(&input, channels, height * width);
        let (from, to) = (tensor.as_slice().into(), output.as_mut_slice().into());
        upsample_nearest(Isa::detect(), &pool, from, [height, width], factor, to);
        let found = plain(&output, channels, height * width * factor * factor);
        for (index, value) in found.iter().enumerate() {
            let (row, column) = (index / (width * factor), index % (width * factor));
            let (channel, y) = (row / (height * factor), row % (height * factor));
            assert_eq!(*value, input[(channel * height + y / factor) * width + column / factor]);
        }
    }
}
