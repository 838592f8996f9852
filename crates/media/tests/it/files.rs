//! Golden files: resampling, pixel formats, JPEG and PNG writing, the processor's two tables.

use half::f16;
use remote_vae_media::{
    MediaError, RgbImage, encode_jpeg, encode_png, psnr, resize_lanczos, resize_to_multiple, to_model_range,
    to_uint8_channel_last, write_jpeg, write_png,
};

use crate::{LIMITS, golden, picture};

#[test]
fn lanczos_equals_pillow_bit_for_bit() {
    let source = picture("source.png");
    assert_eq!((source.width, source.height), (61, 43));
    for (width, height) in [(56, 40), (61, 16), (16, 43), (8, 8), (16, 40), (30, 64), (200, 3), (1, 1)] {
        let resized = resize_lanczos(&source, width, height);
        assert_eq!(resized, Ok(picture(&format!("resize_{width}x{height}.png"))), "{width}x{height}");
    }
    assert_eq!(resize_lanczos(&source, 61, 43), Ok(source.clone()));
    assert_eq!(resize_to_multiple(source, 8), Ok(picture("resize_56x40.png")));
}

#[test]
fn pixel_formats_equal_pillow() {
    for name in [
        "rgba.png",
        "l.png",
        "la.png",
        "p.png",
        "p_transparent.png",
        "p_two_bits.png",
        "one_bit.png",
        "rgb_transparent.png",
        "sixteen_rgb.png",
        "sixteen_grey.png",
        "lossless.webp",
        "lossless_alpha.webp",
    ] {
        assert_eq!(picture(&format!("mode_{name}")), picture(&format!("mode_{name}.rgb.png")), "{name}");
    }
    // Lossy formats leave the inverse transform and the chroma upsampling to the reader.
    for (name, at_least) in
        [("grey.jpg", 50.0), ("progressive.jpg", 50.0), ("subsampled.jpg", 40.0), ("lossy.webp", 40.0)]
    {
        let ours = picture(&format!("mode_{name}"));
        let pillow = picture(&format!("mode_{name}.rgb.png"));
        assert_eq!((ours.width, ours.height), (pillow.width, pillow.height), "{name}");
        let similarity = psnr(&ours.pixels, &pillow.pixels);
        assert!(similarity >= at_least, "{name}: {similarity} dB");
    }
}

/// The contents of the segments of one kind before a JPEG file's scan.
fn segments(file: &[u8], wanted: u8) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let (mut at, mut marker) = (2, 0);
    while marker != 0xda && at + 4 <= file.len() {
        marker = file[at + 1];
        let next = at + 2 + usize::from(u16::from_be_bytes([file[at + 2], file[at + 3]]));
        if marker == wanted {
            found.push(file[at + 4..next].to_vec());
        }
        at = next;
    }
    found
}

/// Quantisation tables in the order of their numbers, however they are spread over segments.
fn tables(file: &[u8]) -> Vec<Vec<u8>> {
    let mut tables: Vec<Vec<u8>> =
        segments(file, 0xdb).iter().flat_map(|segment| segment.chunks(65).map(<[u8]>::to_vec)).collect();
    tables.sort();
    tables
}

#[test]
fn jpeg_has_pillows_tables_sampling_and_look() {
    let source = picture("source.png");
    for (width, height) in [(61, 43), (48, 32), (40, 24), (17, 9), (7, 33), (1, 1)] {
        let rows = source.pixels.chunks(61 * 3).take(height);
        let pixels: Vec<u8> = rows.flat_map(|row| &row[..width * 3]).copied().collect();
        let pillow = golden(&format!("jpeg_{width}x{height}.jpg"));
        let ours = encode_jpeg(&pixels, width, height).unwrap();
        // Start of image, then JFIF 1.01 without a unit of density, one to one, no thumbnail.
        assert_eq!(ours[..20], pillow[..20], "{width}x{height}: start of file");
        assert_eq!(tables(&ours), tables(&pillow), "{width}x{height}");
        assert!(tables(&ours)[0].starts_with(&[0, 8, 6, 6, 7, 6, 5, 8]));
        // Baseline: eight bits, size, and for each channel its number, sampling and table.
        assert_eq!(segments(&ours, 0xc0), segments(&pillow, 0xc0), "{width}x{height}: frame");
        assert!(segments(&ours, 0xc0)[0].ends_with(&[3, 1, 0x22, 0, 2, 0x11, 1, 3, 0x11, 1]));
        assert_eq!(segments(&ours, 0xda), segments(&pillow, 0xda), "{width}x{height}: scan");
        let [ours, pillow] =
            [&ours, &pillow].map(|file| remote_vae_media::decode_image(file, &LIMITS).unwrap());
        let similarity = psnr(&ours.pixels, &pillow.pixels);
        assert!(similarity >= 38.0, "{width}x{height}: {similarity} dB");
    }
}

#[test]
fn png_reads_back_and_has_the_usual_header() {
    let source = picture("source.png");
    let file = encode_png(&source.pixels, 61, 43).unwrap_or_default();
    assert!(file.starts_with(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x3d\0\0\0\x2b\x08\x02\0\0\0"));
    let data = file.windows(4).position(|name| name == b"IDAT").unwrap_or_default();
    assert_eq!(file[data + 4..data + 6], [0x78, 0x9c]);
    assert_eq!(remote_vae_media::decode_image(&file, &LIMITS), Ok(source));
}

type Writing<'a> = dyn Fn(&mut Vec<u8>, &[&[u8]]) -> Result<(), MediaError> + 'a;

#[test]
fn rows_that_come_in_parts_make_the_file_of_the_whole() {
    let source = picture("source.png");
    for (width, height, parts) in
        [(61, 43, &[43][..]), (61, 43, &[1, 16, 9, 17]), (30, 86, &[43, 43]), (61, 1, &[1])]
    {
        let mut begin = 0;
        let parts: Vec<&[u8]> = parts
            .iter()
            .map(|rows| {
                begin += rows;
                &source.pixels[(begin - rows) * width * 3..begin * width * 3]
            })
            .collect();
        let whole = parts.concat();
        let written = |write: &Writing<'_>| {
            let mut file = Vec::new();
            write(&mut file, &parts).unwrap();
            let error = |parts: &[&[u8]]| write(&mut Vec::new(), parts).is_err();
            assert!(error(&parts[..parts.len() - 1]) && error(&[&parts[..], &parts[..1]].concat()));
            file
        };
        let png = written(&|file, parts| write_png(file, width, height, parts.iter()));
        assert!(png == encode_png(&whole, width, height).unwrap(), "{width}x{height}");
        let jpeg = written(&|file, parts| write_jpeg(file, width, height, parts.iter()));
        assert!(jpeg == encode_jpeg(&whole, width, height).unwrap(), "{width}x{height}");
    }
    struct Full;
    impl std::io::Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let rows = || std::iter::once(&source.pixels);
    assert!(matches!(write_png(Full, 61, 43, rows()), Err(MediaError::Unwritable { format: "PNG", .. })));
    assert!(matches!(write_jpeg(Full, 61, 43, rows()), Err(MediaError::Unwritable { format: "JPEG", .. })));
}

#[test]
fn small_and_impossible_sizes() {
    for (width, height) in [(1, 1), (1, 17), (17, 1), (8, 8), (9, 7)] {
        let pixels = [10, 200, 90].repeat(width * height);
        let png = encode_png(&pixels, width, height).unwrap_or_default();
        let image = RgbImage { width, height, pixels };
        assert_eq!(remote_vae_media::decode_image(&png, &LIMITS), Ok(image.clone()));
        let jpeg = encode_jpeg(&image.pixels, width, height).unwrap_or_default();
        let back = remote_vae_media::decode_image(&jpeg, &LIMITS).map(|image| (image.width, image.height));
        assert_eq!(back, Ok((width, height)));
    }
    for encode in [encode_png, encode_jpeg] {
        assert!(matches!(encode(&[], 0, 8), Err(MediaError::UnsupportedSize { .. })));
        assert!(matches!(encode(&[0; 5], 2, 1), Err(MediaError::BufferLength { expected: 6, found: 5, .. })));
        assert!(encode(&[], usize::MAX, usize::MAX).is_err());
    }
    assert!(matches!(encode_jpeg(&[], 65536, 1), Err(MediaError::UnsupportedSize { limit: 65535, .. })));
    assert!(encode_jpeg(&[7; 65535 * 3], 65535, 1).is_ok());
}

#[test]
fn uint8_equals_torch_for_every_float16() {
    let expected = picture("uint8_of_float16.png");
    for (bits, pixel) in (0..=u16::MAX).zip(expected.pixels.chunks(3)) {
        let value = f16::from_bits(bits);
        let byte = to_uint8_channel_last(&[value.to_f32()], [1, 1, 1, 1]);
        assert_eq!(byte, pixel[..1], "{value} {bits:#06x}");
    }
}

#[test]
fn model_range_equals_the_image_processor() {
    let expected: Vec<f32> =
        golden("model_range.f32").as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    let ramp: Vec<u8> = (0..=255).flat_map(|byte| [byte; 3]).collect();
    let values = to_model_range(&RgbImage { width: 16, height: 16, pixels: ramp });
    for channel in values.chunks(256) {
        assert_eq!(channel, expected);
    }
    assert_eq!(values.len(), 768);
}
