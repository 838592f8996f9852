//! One block of memory for all intermediates of a run: each gets a place by its size and lifetime.

use remote_vae_kernels::{Storage, Tensor, TensorMut};

/// A place in the arena, in `f32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Region {
    pub offset: usize,
    pub len: usize,
    /// How the values that lie there are stored.
    pub storage: Storage,
}

impl Region {
    fn end(self) -> usize {
        self.offset + self.len
    }
}

/// A tensor that needs a place from step `first` to step `last`, both included.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lifetime {
    pub len: usize,
    pub first: usize,
    pub last: usize,
}

/// Every region starts at a multiple of this many `f32` (one cache line).
const ALIGNMENT: usize = 16;

/// Gives each tensor the lowest place that no tensor alive at the same time has, the largest first (greedy by size).
/// Returns the places and the length of the arena.
pub(crate) fn place(tensors: &[Lifetime]) -> (Vec<Region>, usize) {
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&index| (std::cmp::Reverse(tensors[index].len), tensors[index].first));
    let mut regions = vec![Region::default(); tensors.len()];
    let mut placed: Vec<usize> = Vec::with_capacity(tensors.len());
    let mut total = 0;
    for index in order {
        let tensor = tensors[index];
        let mut neighbours: Vec<Region> = placed
            .iter()
            .filter(|&&other| tensors[other].first <= tensor.last && tensor.first <= tensors[other].last)
            .map(|&other| regions[other])
            .collect();
        neighbours.sort_by_key(|region| region.offset);
        let mut offset = 0;
        for region in neighbours {
            if offset + tensor.len <= region.offset {
                break;
            }
            offset = offset.max(region.end().next_multiple_of(ALIGNMENT));
        }
        regions[index] = Region { offset, len: tensor.len, storage: Storage::Float32 };
        total = total.max(offset + tensor.len);
        placed.push(index);
    }
    (regions, total)
}

/// Slices of an arena that are in use at once.
pub(crate) struct Views<'a> {
    parts: Vec<(Region, &'a mut [f32])>,
}

impl<'a> Views<'a> {
    /// Cuts `regions` (repeated ones count once) out of `arena`.
    ///
    /// # Panics
    /// Two different regions overlap, or one reaches beyond the arena: the plan is wrong.
    pub(crate) fn new(arena: &'a mut [f32], mut regions: Vec<Region>) -> Views<'a> {
        regions.sort_by_key(|region| (region.offset, region.len));
        regions.dedup();
        let mut parts = Vec::with_capacity(regions.len());
        let (mut rest, mut start) = (arena, 0);
        for region in regions {
            let (_, tail) = rest.split_at_mut(region.offset - start);
            let (part, tail) = tail.split_at_mut(region.len);
            parts.push((region, part));
            (rest, start) = (tail, region.end());
        }
        Views { parts }
    }

    /// Takes `region` out, for writing.
    pub(crate) fn take(&mut self, region: Region) -> &'a mut [f32] {
        let index = self.index(region);
        self.parts.swap_remove(index).1
    }

    /// Lends `region` for reading.
    pub(crate) fn read(&self, region: Region) -> &[f32] {
        self.parts[self.index(region)].1
    }

    /// As [`Views::take`], as the tensor that lies there.
    pub(crate) fn take_tensor(&mut self, region: Region) -> TensorMut<'a> {
        TensorMut::new(region.storage, self.take(region))
    }

    /// As [`Views::read`], as the tensor that lies there.
    pub(crate) fn tensor(&self, region: Region) -> Tensor<'_> {
        Tensor::new(region.storage, self.read(region))
    }

    fn index(&self, region: Region) -> usize {
        self.parts
            .iter()
            .position(|part| part.0 == region)
            .expect("the region was asked for and not taken yet")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn tensors_alive_together_never_share_a_place(
            tensors in prop::collection::vec((1usize..1000, 0usize..20, 0usize..10), 1..40)
        ) {
            let tensors: Vec<Lifetime> =
                tensors.iter().map(|&(len, first, more)| Lifetime { len, first, last: first + more }).collect();
            let (regions, total) = place(&tensors);
            for (a, x) in tensors.iter().enumerate() {
                prop_assert!(regions[a].end() <= total && regions[a].offset.is_multiple_of(ALIGNMENT));
                for (b, y) in tensors.iter().enumerate().skip(a + 1) {
                    let together = x.first <= y.last && y.first <= x.last;
                    let apart = regions[a].end() <= regions[b].offset || regions[b].end() <= regions[a].offset;
                    prop_assert!(!together || apart, "{a} and {b}");
                }
            }
        }
    }

    #[test]
    fn a_chain_needs_two_places() {
        let chain: Vec<Lifetime> =
            (0..10).map(|step| Lifetime { len: 64, first: step, last: step + 1 }).collect();
        assert_eq!(place(&chain).1, 128);
    }

    #[test]
    fn views_read_and_write_side_by_side() {
        let mut arena: Vec<f32> = (0..10).map(|i| i as f32).collect();
        let (a, b) = (
            Region { offset: 6, len: 2, ..Region::default() },
            Region { offset: 1, len: 3, ..Region::default() },
        );
        let mut views = Views::new(&mut arena, vec![a, b, a]);
        let out = views.take(b);
        out[0] = views.read(a)[1];
        assert_eq!(arena[1], 7.0);
    }
}
