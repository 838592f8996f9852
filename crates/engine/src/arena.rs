//! One block of memory for all intermediates of a run: each gets a place by its size and lifetime.

use remote_vae_kernels::{Storage, Tensor, TensorMut};

/// A piece of the arena, in `f32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, PartialOrd, Ord)]
pub(crate) struct Span {
    pub offset: usize,
    pub len: usize,
}

impl Span {
    fn end(self) -> usize {
        self.offset + self.len
    }
}

/// Where a tensor lies: its values and, if it is stored in halves, their exponents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Region {
    pub values: Span,
    pub exponents: Span,
    /// How the values that lie there are stored.
    pub storage: Storage,
    pub groups: usize,
}

impl Region {
    /// `f32` that it takes.
    pub(crate) fn len(&self) -> usize {
        self.values.len + self.exponents.len
    }
}

/// Memory that is needed from step `first` to step `last`, both included, `offset` after its block's beginning.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub offset: usize,
    pub len: usize,
    pub first: usize,
    pub last: usize,
}

impl Piece {
    fn meets(&self, other: &Piece) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// Pieces whose places follow from each other's: a tensor, and what is written over it.
pub(crate) type Block = Vec<Piece>;

/// `f32` from the beginning of a block to the end of its last piece.
fn extent(block: &Block) -> usize {
    block.iter().map(|piece| piece.offset + piece.len).max().unwrap_or(0)
}

/// Every block starts at a multiple of this many `f32` (one cache line).
const ALIGNMENT: usize = 16;

/// Gives each block the lowest place at which no piece of another that is alive at the same time lies, the largest
/// first (greedy by size). Returns where the blocks begin and the length of the arena.
pub(crate) fn place(blocks: &[Block]) -> (Vec<usize>, usize) {
    let mut order: Vec<usize> = (0..blocks.len()).collect();
    order.sort_by_key(|&index| {
        (std::cmp::Reverse(extent(&blocks[index])), blocks[index].first().map(|piece| piece.first))
    });
    let mut starts = vec![0; blocks.len()];
    let mut placed: Vec<Piece> = Vec::new();
    let mut total = 0;
    for index in order {
        let block = &blocks[index];
        // Where another piece begins and ends, and which of ours must not be there.
        let mut forbidden: Vec<[usize; 2]> = Vec::new();
        for own in block.iter().filter(|own| own.len > 0) {
            for other in placed.iter().filter(|other| other.meets(own)) {
                let end = (other.offset + other.len).saturating_sub(own.offset);
                let start = (other.offset + 1).saturating_sub(own.offset + own.len);
                if end > 0 {
                    forbidden.push([start, end]);
                }
            }
        }
        forbidden.sort_unstable();
        let mut start = 0;
        for [from, end] in forbidden {
            if start < from {
                break;
            }
            start = start.max(end.next_multiple_of(ALIGNMENT));
        }
        starts[index] = start;
        total = total.max(start + extent(block));
        placed.extend(block.iter().map(|piece| Piece { offset: start + piece.offset, ..*piece }));
    }
    (starts, total)
}

/// Slices of an arena that are in use at once.
pub(crate) struct Views<'a> {
    parts: Vec<(Span, &'a mut [f32])>,
}

impl<'a> Views<'a> {
    /// Cuts `regions` (repeated ones count once) out of `arena`.
    ///
    /// # Panics
    /// Two different regions overlap, or one reaches beyond the arena: the plan is wrong.
    pub(crate) fn new(arena: &'a mut [f32], regions: &[Region]) -> Views<'a> {
        let mut spans: Vec<Span> = regions
            .iter()
            .flat_map(|region| [region.values, region.exponents])
            .filter(|span| span.len > 0)
            .collect();
        spans.sort_unstable();
        spans.dedup();
        let mut parts = Vec::with_capacity(spans.len());
        let (mut rest, mut start) = (arena, 0);
        for span in spans {
            let (_, tail) = rest.split_at_mut(span.offset - start);
            let (part, tail) = tail.split_at_mut(span.len);
            parts.push((span, part));
            (rest, start) = (tail, span.end());
        }
        Views { parts }
    }

    fn take_span(&mut self, span: Span) -> &'a mut [f32] {
        if span.len == 0 {
            return &mut [];
        }
        let index = self.index(span);
        self.parts.swap_remove(index).1
    }

    fn read_span(&self, span: Span) -> &[f32] {
        if span.len == 0 { &[] } else { self.parts[self.index(span)].1 }
    }

    /// Takes `region`, which is plain, out for writing.
    pub(crate) fn take(&mut self, region: Region) -> &'a mut [f32] {
        self.take_span(region.values)
    }

    /// Lends `region`, which is plain, for reading.
    pub(crate) fn read(&self, region: Region) -> &[f32] {
        self.read_span(region.values)
    }

    /// Takes the tensor that lies in `region` out for writing.
    pub(crate) fn take_tensor(&mut self, region: Region) -> TensorMut<'a> {
        let memory = (self.take_span(region.values), self.take_span(region.exponents));
        TensorMut::from_parts(region.storage, region.groups, memory)
    }

    /// Lends the tensor that lies in `region` for reading.
    pub(crate) fn tensor(&self, region: Region) -> Tensor<'_> {
        let memory = (self.read_span(region.values), self.read_span(region.exponents));
        Tensor::from_parts(region.storage, region.groups, memory)
    }

    fn index(&self, span: Span) -> usize {
        self.parts.iter().position(|part| part.0 == span).expect("the region was asked for and not taken yet")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    prop_compose! {
        fn piece()(offset in 0usize..60, len in 1usize..1000, first in 0usize..20, more in 0usize..10) -> Piece {
            Piece { offset: offset * 16, len, first, last: first + more }
        }
    }

    proptest! {
        #[test]
        fn pieces_alive_together_never_share_a_place(
            blocks in prop::collection::vec(prop::collection::vec(piece(), 1..4), 1..30)
        ) {
            let (starts, total) = place(&blocks);
            let pieces: Vec<(usize, Piece)> = blocks.iter().enumerate().flat_map(|(index, block)| {
                let start = starts[index];
                block.iter().map(move |piece| (index, Piece { offset: start + piece.offset, ..*piece }))
            }).collect();
            for (a, x) in &pieces {
                prop_assert!(x.offset + x.len <= total && starts[*a].is_multiple_of(ALIGNMENT));
                for (b, y) in &pieces {
                    let apart = x.offset + x.len <= y.offset || y.offset + y.len <= x.offset;
                    prop_assert!(a == b || !x.meets(y) || apart, "{x:?} and {y:?}");
                }
            }
        }
    }

    #[test]
    fn a_chain_needs_two_places() {
        let chain: Vec<Block> =
            (0..10).map(|step| vec![Piece { offset: 0, len: 64, first: step, last: step + 1 }]).collect();
        assert_eq!(place(&chain).1, 128);
    }

    #[test]
    fn what_is_written_over_something_frees_the_rest() {
        // A tensor of 128, of which 64 live on; then 192 beside them.
        let whole = Piece { offset: 0, len: 128, first: 0, last: 1 };
        let kept = Piece { offset: 64, len: 64, first: 1, last: 5 };
        let later = Piece { offset: 0, len: 192, first: 5, last: 6 };
        let (starts, total) = place(&[vec![whole, kept], vec![later]]);
        assert_eq!((starts[1], total), (0, 256));
        assert_eq!(starts[0], 128);
    }

    #[test]
    fn views_read_and_write_side_by_side() {
        let mut arena: Vec<f32> = (0..100).map(|i| i as f32).collect();
        let plain = |offset, groups| Region {
            values: Span { offset, len: 16 * groups },
            groups,
            ..Region::default()
        };
        let (a, b) = (plain(60, 1), plain(16, 2));
        let mut views = Views::new(&mut arena, &[a, b, a]);
        let out = views.take(b);
        out[0] = views.read(a)[1];
        assert_eq!(arena[16], 61.0);
    }
}
