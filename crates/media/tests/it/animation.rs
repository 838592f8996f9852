//! Animated WebP: every frame returns bit for bit, through a reader that is not ours.

use image::AnimationDecoder;
use image::codecs::webp::WebPDecoder;
use proptest::prelude::*;
use remote_vae_media::{MediaError, WebpAnimation, decode_image};

use crate::LIMITS;
use crate::video::frame;

proptest! {
    #[test]
    fn frames_return_bit_for_bit(width in 1usize..70, height in 1usize..70, count in 1usize..5, fps in 1.0f64..60.0) {
        let mut animation = WebpAnimation::new(width, height, fps)?;
        for time in 0..count {
            animation.push_rgb(&frame(width, height, time))?;
        }
        let file = animation.finish()?;
        prop_assert!(file == in_pieces(width, height, count, fps)?);
        let decoder = WebPDecoder::new(std::io::Cursor::new(&file))?;
        prop_assert!(decoder.has_animation());
        let frames = decoder.into_frames().collect_frames()?;
        prop_assert_eq!(frames.len(), count);
        let mut milliseconds = 0.0;
        for (time, read) in frames.iter().enumerate() {
            let (over, under) = read.delay().numer_denom_ms();
            milliseconds += f64::from(over) / f64::from(under);
            let rgb: Vec<u8> = read.buffer().pixels().flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect();
            prop_assert_eq!(rgb, frame(width, height, time));
        }
        prop_assert!((milliseconds - count as f64 * 1000.0 / fps).abs() <= 0.5);
        prop_assert_eq!(decode_image(&file, &LIMITS)?.pixels, frame(width, height, 0));
    }
}

/// The file whose frames were taken as they were made.
fn in_pieces(width: usize, height: usize, count: usize, fps: f64) -> Result<Vec<u8>, MediaError> {
    let (mut animation, mut taken) = (WebpAnimation::new(width, height, fps)?, Vec::new());
    for time in 0..count {
        animation.push_rgb(&frame(width, height, time))?;
        taken.extend(animation.take_frames());
    }
    Ok([animation.finish()?, taken].concat())
}

#[test]
fn impossible_animations_are_refused() {
    for (width, height) in [(0, 1), (1, 0), (16385, 1)] {
        let refused = WebpAnimation::new(width, height, 10.0);
        assert!(matches!(refused, Err(MediaError::UnsupportedSize { limit: 16384, .. })));
    }
    for fps in [0.0, f64::NAN, 241.0] {
        assert!(matches!(WebpAnimation::new(1, 1, fps), Err(MediaError::OutOfRange { name: "fps", .. })));
    }
    let mut animation = WebpAnimation::new(2, 2, 10.0).unwrap();
    assert!(matches!(animation.push_rgb(&[0; 11]), Err(MediaError::BufferLength { expected: 12, .. })));
    assert!(matches!(animation.finish(), Err(MediaError::Unwritable { .. })));
}
