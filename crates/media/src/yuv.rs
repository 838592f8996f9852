//! 8-bit RGB to the limited-range 4:2:0 planes of a video, and back. No files.
//!
//! Fixed-point arithmetic with 16 fractional bits, so that the bytes are the same on every machine. The chroma of four
//! pixels is that of their mean; going back, the four share it.

/// Fractional bits of a coefficient.
const FRACTION_BITS: u32 = 16;
const HALF: i32 = 1 << (FRACTION_BITS - 1);

const fn fixed(value: f64) -> i32 {
    let scaled = value * (1 << FRACTION_BITS) as f64;
    (if scaled < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
}

/// The weights of red and blue in the luma; that of green is what is left to 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Matrix {
    /// ITU-R BT.601: 0.299 and 0.114.
    Bt601,
    /// ITU-R BT.709: 0.2126 and 0.0722.
    Bt709,
}

impl Matrix {
    const fn weights(self) -> (f64, f64) {
        match self {
            Self::Bt601 => (0.299, 0.114),
            Self::Bt709 => (0.2126, 0.0722),
        }
    }
}

/// Three planes: luma of `width` by `height`, two chroma planes of half of both. Both sides are even.
#[derive(Debug)]
pub(crate) struct Planes {
    pub(crate) width: usize,
    pub(crate) height: usize,
    /// `height * width` bytes.
    pub(crate) luma: Vec<u8>,
    /// Blue then red difference, each `height / 2 * width / 2` bytes.
    pub(crate) chroma: [Vec<u8>; 2],
}

impl Planes {
    /// Black planes; both sides must be even.
    pub(crate) fn new(width: usize, height: usize) -> Self {
        let quarter = width / 2 * (height / 2);
        Self {
            width,
            height,
            luma: vec![16; width * height],
            chroma: [vec![128; quarter], vec![128; quarter]],
        }
    }

    /// Fills the planes with a picture of `width` by `height` RGB pixels as BT.709 says. What the planes have more than
    /// the picture repeats its last column and row.
    pub(crate) fn fill(&mut self, rgb: &[u8], width: usize, height: usize) {
        const RED: f64 = Matrix::Bt709.weights().0;
        const BLUE: f64 = Matrix::Bt709.weights().1;
        const LUMA: f64 = 219.0 / 255.0;
        const CHROMA: f64 = 112.0 / 255.0;
        const TO_LUMA: [i32; 3] = [fixed(RED * LUMA), fixed((1.0 - RED - BLUE) * LUMA), fixed(BLUE * LUMA)];
        const TO_CHROMA: [[i32; 3]; 2] = [
            [
                fixed(-RED / (1.0 - BLUE) * CHROMA),
                fixed(-(1.0 - RED - BLUE) / (1.0 - BLUE) * CHROMA),
                fixed(CHROMA),
            ],
            [
                fixed(CHROMA),
                fixed(-(1.0 - RED - BLUE) / (1.0 - RED) * CHROMA),
                fixed(-BLUE / (1.0 - RED) * CHROMA),
            ],
        ];
        let weigh = |weights: [i32; 3], colour: [i32; 3]| -> i32 {
            weights.iter().zip(colour).map(|(weight, value)| weight * value).sum()
        };
        let pixels = rgb.as_chunks::<3>().0;
        let half_width = self.width / 2;
        for block_row in 0..self.height / 2 {
            for block_column in 0..half_width {
                let mut sum = [0i32; 3];
                for (down, across) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                    let (row, column) = (2 * block_row + down, 2 * block_column + across);
                    let pixel = pixels[row.min(height - 1) * width + column.min(width - 1)].map(i32::from);
                    let luma = (weigh(TO_LUMA, pixel) + HALF) >> FRACTION_BITS;
                    self.luma[row * self.width + column] = (16 + luma) as u8;
                    sum.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += value);
                }
                for (plane, weights) in self.chroma.iter_mut().zip(TO_CHROMA) {
                    let chroma = (weigh(weights, sum) + 2 * (2 * HALF)) >> (FRACTION_BITS + 2);
                    plane[block_row * half_width + block_column] = (128 + chroma) as u8;
                }
            }
        }
    }
}

/// A part of three planes that somebody else holds.
pub(crate) struct PlaneView<'a> {
    pub(crate) luma: &'a [u8],
    pub(crate) chroma: [&'a [u8]; 2],
    /// Bytes from row to row of luma and of chroma.
    pub(crate) strides: (usize, usize),
}

/// The picture of `width` by `height` whose top left corner lies `left` and `top` pixels into the planes; `None` where
/// the planes are too small for it.
pub(crate) fn to_rgb(
    view: &PlaneView<'_>,
    (left, top, width, height): (usize, usize, usize, usize),
    matrix: Matrix,
    is_full_range: bool,
) -> Option<Vec<u8>> {
    let (red, blue) = matrix.weights();
    let green = 1.0 - red - blue;
    let (luma_scale, chroma_scale, black) =
        if is_full_range { (1.0, 1.0, 0) } else { (255.0 / 219.0, 255.0 / 224.0, 16) };
    let luma_factor = fixed(luma_scale);
    let from_blue = [0.0, -2.0 * (1.0 - blue) * blue / green, 2.0 * (1.0 - blue)];
    let from_red = [2.0 * (1.0 - red), -2.0 * (1.0 - red) * red / green, 0.0];
    let from_blue = from_blue.map(|factor| fixed(factor * chroma_scale));
    let from_red = from_red.map(|factor| fixed(factor * chroma_scale));
    let mut rgb = Vec::with_capacity(width * height * 3);
    for row in top..top + height {
        let luma = view.luma.get(row * view.strides.0..)?.get(left..left + width)?;
        let chroma_row = row / 2 * view.strides.1;
        let [blues, reds] = view.chroma.map(|plane| plane.get(chroma_row..).unwrap_or_default());
        for (column, &luma) in (left..).zip(luma) {
            let luma = (i32::from(luma) - black) * luma_factor + HALF;
            let blue = i32::from(*blues.get(column / 2)?) - 128;
            let red = i32::from(*reds.get(column / 2)?) - 128;
            rgb.extend(std::array::from_fn::<u8, 3, _>(|channel| {
                let value = luma + from_blue[channel] * blue + from_red[channel] * red;
                (value >> FRACTION_BITS).clamp(0, 255) as u8
            }));
        }
    }
    Some(rgb)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn primaries_are_those_of_the_standard() {
        // BT.709 in limited range: white, black, red, green, blue.
        for (rgb, expected) in [
            ([255, 255, 255], [235, 128, 128]),
            ([0, 0, 0], [16, 128, 128]),
            ([255, 0, 0], [63, 102, 240]),
            ([0, 255, 0], [173, 42, 26]),
            ([0, 0, 255], [32, 240, 118]),
        ] {
            let mut planes = Planes::new(2, 2);
            planes.fill(&rgb, 1, 1);
            assert_eq!(planes.luma, [expected[0]; 4], "{rgb:?}");
            assert_eq!([planes.chroma[0][0], planes.chroma[1][0]], expected[1..], "{rgb:?}");
        }
    }

    #[test]
    fn flat_colours_return() {
        for colour in [[255u8, 255, 255], [0, 0, 0], [200, 30, 90], [12, 240, 128], [0, 0, 255]] {
            let mut planes = Planes::new(4, 4);
            planes.fill(&colour.repeat(9), 3, 3);
            let view = PlaneView {
                luma: &planes.luma,
                chroma: [&planes.chroma[0], &planes.chroma[1]],
                strides: (4, 2),
            };
            let rgb = to_rgb(&view, (0, 0, 3, 3), Matrix::Bt709, false).unwrap_or_default();
            assert_eq!(rgb.len(), 27);
            for pixel in rgb.as_chunks::<3>().0 {
                assert!(pixel.iter().zip(colour).all(|(&a, b)| a.abs_diff(b) <= 2), "{pixel:?} {colour:?}");
            }
            assert!(to_rgb(&view, (2, 2, 3, 3), Matrix::Bt601, true).is_none());
        }
    }
}
