//! Channels to positions and back, against index arithmetic.

use crate::support::{assert_close, blocked, each_tier, plain, values};
use remote_vae_kernels::rearrange::{Cell, collect, expand};

const CELLS: [Cell; 4] = [
    Cell { time: 1, space: 2, by_columns: true },
    Cell { time: 1, space: 2, by_columns: false },
    Cell { time: 2, space: 2, by_columns: false },
    Cell { time: 2, space: 1, by_columns: false },
];

fn element(cell: Cell, frame: usize, row: usize, column: usize) -> usize {
    let (outer, inner) = if cell.by_columns { (column, row) } else { (row, column) };
    frame * cell.space * cell.space + outer * cell.space + inner
}

#[test]
fn channels_become_positions() {
    let (height, width) = (3, 5);
    for cell in CELLS {
        for (channels, repeats) in [(3, 1), (20, 2), (4, 4)] {
            let elements = cell.elements();
            if channels * elements % repeats > 0 {
                continue;
            }
            let inputs = channels * elements / repeats;
            let input = values(inputs * height * width, 1);
            let (tall, wide) = (height * cell.space, width * cell.space);
            for frame in 0..cell.time {
                let mut expected = Vec::new();
                for (c, y, x) in places(channels, tall, wide) {
                    let index = c * elements + element(cell, frame, y % cell.space, x % cell.space);
                    let at = (index / repeats * height + y / cell.space) * width + x / cell.space;
                    expected.push(f64::from(input[at]));
                }
                each_tier(|isa, pool| {
                    let from = blocked(&input, inputs, height * width);
                    let mut output = vec![f32::NAN; channels.next_multiple_of(16) * tall * wide];
                    let (from, to) = (from.as_slice().into(), output.as_mut_slice().into());
                    expand(isa, pool, cell, frame, repeats, from, channels, [height, width], to);
                    assert_close(
                        &plain(&output, channels, tall * wide),
                        &expected,
                        0.0,
                        &format!("{cell:?}"),
                    );
                });
            }
        }
    }
}

#[test]
fn positions_become_channels_and_their_means() {
    let (height, width) = (3, 5);
    for cell in CELLS {
        for (channels, mean, lacking) in [(3, 1, false), (20, 4, false), (20, 2, true)] {
            let elements = cell.elements();
            if channels * elements % mean > 0 {
                continue;
            }
            let (tall, wide) = (height * cell.space, width * cell.space);
            let frames: Vec<Vec<f32>> =
                (0..cell.time).map(|frame| values(channels * tall * wide, frame as u64)).collect();
            // The first frame is absent and counts as zeros.
            let absent = |frame: usize| lacking && frame == 0;
            let made = channels * elements / mean;
            let mut expected = Vec::new();
            for (k, y, x) in places(made, height, width) {
                let mut sum = 0.0;
                for index in k * mean..(k + 1) * mean {
                    let c = index / elements;
                    for (frame, dy, dx) in places(cell.time, cell.space, cell.space) {
                        if element(cell, frame, dy, dx) == index % elements && !absent(frame) {
                            let at = (c * tall + y * cell.space + dy) * wide + x * cell.space + dx;
                            sum += f64::from(frames[frame][at]);
                        }
                    }
                }
                expected.push(sum / mean as f64);
            }
            each_tier(|isa, pool| {
                let from: Vec<_> = frames.iter().map(|frame| blocked(frame, channels, tall * wide)).collect();
                let from: Vec<_> = from
                    .iter()
                    .enumerate()
                    .map(|(frame, values)| (!absent(frame)).then(|| values.as_slice().into()))
                    .collect();
                let mut output = vec![f32::NAN; made.next_multiple_of(16) * height * width];
                let to = output.as_mut_slice().into();
                collect(isa, pool, cell, mean, &from, channels, [height, width], to);
                assert_close(&plain(&output, made, height * width), &expected, 1e-6, &format!("{cell:?}"));
            });
        }
    }
}

fn places(a: usize, b: usize, c: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..a * b * c).map(move |at| (at / (b * c), at / c % b, at % c))
}
