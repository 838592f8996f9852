//! Element types, bytes and headers.

use half::{bf16, f16};
use proptest::prelude::*;

use crate::{Dtype, TensorHeader, WireError, bytes_from_elements, elements_from_bytes};

#[test]
fn names_and_sizes() {
    for (dtype, name, size) in [
        (Dtype::Float16, "float16", 2),
        (Dtype::Float32, "float32", 4),
        (Dtype::BFloat16, "bfloat16", 2),
        (Dtype::Uint8, "uint8", 1),
    ] {
        assert_eq!(dtype.to_string(), name);
        assert_eq!(name.parse::<Dtype>(), Ok(dtype));
        assert_eq!(dtype.size(), size);
    }
    for wrong in ["x", "", "Float16", "torch.float16", "float64"] {
        let message = wrong.parse::<Dtype>().unwrap_err().to_string();
        assert_eq!(
            message,
            format!("Supported `dtype`: ['float16', 'float32', 'bfloat16', 'uint8']. Got `{wrong}`.")
        );
    }
}

#[test]
fn every_half_pattern_widens_and_returns() {
    let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    for (dtype, widen) in [
        (Dtype::Float16, (|bits| f16::from_bits(bits).to_f32()) as fn(u16) -> f32),
        (Dtype::BFloat16, |bits| bf16::from_bits(bits).to_f32()),
    ] {
        let elements = elements_from_bytes(dtype, &bytes);
        for (bits, &element) in (0..=u16::MAX).zip(&elements) {
            let expected = widen(bits);
            assert!(element == expected || (element.is_nan() && expected.is_nan()), "{dtype} {bits:#06x}");
        }
        let back = bytes_from_elements(dtype, &elements);
        for (index, element) in elements.iter().enumerate() {
            let pair = 2 * index..2 * index + 2;
            assert!(element.is_nan() || back[pair.clone()] == bytes[pair], "{dtype} {index:#06x}");
        }
    }
}

#[test]
fn bytes_are_little_endian() {
    assert_eq!(bytes_from_elements(Dtype::Float32, &[1.0]), [0, 0, 0x80, 0x3f]);
    assert_eq!(bytes_from_elements(Dtype::Float16, &[1.0]), [0, 0x3c]);
    assert_eq!(bytes_from_elements(Dtype::BFloat16, &[1.0]), [0x80, 0x3f]);
    assert_eq!(elements_from_bytes(Dtype::Float32, &[0, 0, 0x80, 0xbf]), [-1.0]);
    assert_eq!(elements_from_bytes(Dtype::Uint8, &[0, 128, 255]), [0.0, 128.0, 255.0]);
    // A trailing part of an element is ignored.
    assert_eq!(elements_from_bytes(Dtype::Float16, &[0, 0x3c, 9]), [1.0]);
    assert_eq!(elements_from_bytes(Dtype::Float32, &[1, 2, 3]), [] as [f32; 0]);
}

#[test]
fn narrowing_rounds_to_nearest_even() {
    let ties = [1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0, 65519.0, 65520.0, -65536.0];
    let expected = [1.0, 1.0 + 4.0 / 2048.0, 65504.0, f32::INFINITY, f32::NEG_INFINITY];
    assert_eq!(elements_from_bytes(Dtype::Float16, &bytes_from_elements(Dtype::Float16, &ties)), expected);
    let ties = [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0];
    let expected = [1.0, 1.0 + 4.0 / 256.0];
    assert_eq!(elements_from_bytes(Dtype::BFloat16, &bytes_from_elements(Dtype::BFloat16, &ties)), expected);
    let bytes =
        bytes_from_elements(Dtype::Uint8, &[0.5, 1.5, 2.5, -3.0, 255.4, 300.0, f32::NAN, f32::INFINITY]);
    assert_eq!(bytes, [0, 2, 2, 0, 255, 255, 0, 255]);
    for dtype in [Dtype::Float16, Dtype::BFloat16] {
        assert!(elements_from_bytes(dtype, &bytes_from_elements(dtype, &[f32::NAN]))[0].is_nan());
    }
}

#[test]
fn headers_have_no_spaces_and_read_back() {
    let header = TensorHeader { shape: vec![1, 3, 512, 512], dtype: Dtype::Float16 };
    assert_eq!(header.to_headers(), ("[1,3,512,512]".to_owned(), "float16"));
    assert_eq!(TensorHeader::parse("[1,3,512,512]", "float16"), Ok(header.clone()));
    assert_eq!(TensorHeader::parse(" [1, 3, 512, 512] ", "float16"), Ok(header));
    for wrong in
        ["", "[]", "[1,,2]", "[1,2", "1,2]", "[-1]", "[1.0]", "[1e3]", "[+1]", "[99999999999999999999]"]
    {
        assert!(TensorHeader::parse(wrong, "float16").is_err(), "{wrong}");
    }
    assert!(matches!(
        TensorHeader::parse("[1,1,1,1,1,1,1,1,1]", "uint8"),
        Err(WireError::TooManyDimensions { limit: 8 })
    ));
}

#[test]
fn lengths_are_checked() {
    let header = |shape: &[usize], dtype| TensorHeader { shape: shape.to_vec(), dtype };
    let latents = header(&[1, 4, 64, 64], Dtype::Float16);
    assert_eq!(latents.byte_len(), Ok(32768));
    assert_eq!(latents.element_count(), Ok(16384));
    assert_eq!(latents.check_body(32768), Ok(()));
    assert_eq!(
        latents.check_body(7).unwrap_err().to_string(),
        "Expected a body of 32768 bytes for `shape` [1, 4, 64, 64] and `dtype` float16. Got 7 bytes."
    );
    for empty in [&[][..], &[0], &[1, 0, 64, 64], &[usize::MAX, 0]] {
        assert!(
            matches!(header(empty, Dtype::Uint8).byte_len(), Err(WireError::EmptyShape { .. })),
            "{empty:?}"
        );
    }
    for large in [&[usize::MAX][..], &[usize::MAX, 2], &[1 << 32, 1 << 32], &[1 << 62, 2]] {
        assert!(
            matches!(header(large, Dtype::Uint8).byte_len(), Err(WireError::ShapeOverflow { .. })),
            "{large:?}"
        );
    }
    assert!(header(&[1; 9], Dtype::Uint8).byte_len().is_err());
}

proptest! {
    #[test]
    fn header_parsing_never_panics(shape in ".{0,80}", dtype in ".{0,20}") {
        let _ = TensorHeader::parse(&shape, &dtype);
    }

    #[test]
    fn byte_length_never_panics(shape in prop::collection::vec(any::<usize>(), 0..12), len in any::<usize>()) {
        let _ = TensorHeader { shape, dtype: Dtype::Float32 }.check_body(len);
    }

    #[test]
    fn headers_round_trip(shape in prop::collection::vec(any::<usize>(), 1..=8), index in 0..4usize) {
        let header = TensorHeader { shape, dtype: Dtype::ALL[index] };
        let (shape, dtype) = header.to_headers();
        prop_assert_eq!(TensorHeader::parse(&shape, dtype), Ok(header));
    }

    #[test]
    fn f32_round_trips(elements in prop::collection::vec(any::<f32>(), 0..64)) {
        let back = elements_from_bytes(Dtype::Float32, &bytes_from_elements(Dtype::Float32, &elements));
        prop_assert!(elements.iter().zip(&back).all(|(a, b)| a.to_bits() == b.to_bits()));
    }

    #[test]
    fn half_narrowing_agrees_with_one_at_a_time(elements in prop::collection::vec(any::<f32>(), 0..5000)) {
        let wide = elements_from_bytes(Dtype::Float16, &bytes_from_elements(Dtype::Float16, &elements));
        let brain = elements_from_bytes(Dtype::BFloat16, &bytes_from_elements(Dtype::BFloat16, &elements));
        for (index, &element) in elements.iter().enumerate() {
            prop_assert!(wide[index] == f16::from_f32(element).to_f32() || element.is_nan());
            prop_assert!(brain[index] == bf16::from_f32(element).to_f32() || element.is_nan());
        }
    }
}
