//! Borrowed activations in either storage: `f32`, or halves with one exponent for each sixteen of them.
//!
//! A *group* is what lies together in the layout: one pixel of one channel block. Operations read and write groups as
//! `f32`; nothing else knows how they are stored.

use crate::half::{narrow_group, widen_group};
use crate::layout::BLOCK;
use crate::microkernel::Tile;
use crate::shared::{SharedOutput, prefetch};

/// How activations lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Storage {
    /// `f32`
    #[default]
    Float32,
    /// 16 bits: halves whose groups are scaled by a power of two where they would overflow or fade, 11 bits of
    /// precision over the whole range of `f32`.
    Half,
}

impl Storage {
    /// `f32` of memory that `groups` groups take.
    pub fn len(self, groups: usize) -> usize {
        let [values, exponents] = self.lens(groups);
        values + exponents
    }

    /// `f32` of memory that the values of `groups` groups and their exponents take, which need not lie together.
    pub fn lens(self, groups: usize) -> [usize; 2] {
        match self {
            Storage::Float32 => [groups * BLOCK, 0],
            Storage::Half => [groups * BLOCK / 2, groups.div_ceil(size_of::<f32>())],
        }
    }

    /// The groups that [`Storage::len`] gives this length.
    fn groups(self, len: usize) -> usize {
        match self {
            Storage::Float32 => len / BLOCK,
            // 4 · len lies between 33 and 33 + 3 / groups for each group.
            Storage::Half => 4 * len / 33,
        }
    }
}

/// A blocked tensor for reading.
#[derive(Clone, Copy)]
pub enum Tensor<'a> {
    /// Values.
    Float32(&'a [f32]),
    /// Halves and the exponents of their groups.
    Half(&'a [[u16; BLOCK]], &'a [i8]),
}

/// A blocked tensor for writing.
pub enum TensorMut<'a> {
    /// Values.
    Float32(&'a mut [f32]),
    /// Halves and the exponents of their groups.
    Half(&'a mut [[u16; BLOCK]], &'a mut [i8]),
}

impl<'a> From<&'a [f32]> for Tensor<'a> {
    fn from(values: &'a [f32]) -> Self {
        Tensor::Float32(values)
    }
}

impl<'a> From<&'a mut [f32]> for TensorMut<'a> {
    fn from(values: &'a mut [f32]) -> Self {
        TensorMut::Float32(values)
    }
}

impl<'a> Tensor<'a> {
    /// The tensor that fills `memory`.
    ///
    /// # Panics
    /// [`Storage::len`] never gives this length.
    pub fn new(storage: Storage, memory: &'a [f32]) -> Tensor<'a> {
        let groups = storage.groups(memory.len());
        assert_eq!(memory.len(), storage.len(groups));
        Tensor::from_parts(storage, groups, memory.split_at(storage.lens(groups)[0]))
    }

    /// The tensor of `groups` groups whose values and exponents fill these two pieces of memory.
    ///
    /// # Panics
    /// They are not as long as [`Storage::lens`] says.
    pub fn from_parts(
        storage: Storage,
        groups: usize,
        (values, exponents): (&'a [f32], &'a [f32]),
    ) -> Tensor<'a> {
        assert_eq!([values.len(), exponents.len()], storage.lens(groups));
        match storage {
            Storage::Float32 => Tensor::Float32(values),
            Storage::Half => {
                // SAFETY: all bits are numbers, alignment only falls, and the lengths in bytes are within the slices'.
                unsafe {
                    Tensor::Half(
                        std::slice::from_raw_parts(values.as_ptr().cast(), groups),
                        std::slice::from_raw_parts(exponents.as_ptr().cast(), groups),
                    )
                }
            }
        }
    }

    /// How many groups there are.
    pub fn groups(&self) -> usize {
        match self {
            Tensor::Float32(values) => values.len() / BLOCK,
            Tensor::Half(_, exponents) => exponents.len(),
        }
    }

    /// The groups `start..start + groups`.
    #[inline(always)]
    pub fn part(self, start: usize, groups: usize) -> Tensor<'a> {
        match self {
            Tensor::Float32(values) => Tensor::Float32(&values[start * BLOCK..][..groups * BLOCK]),
            Tensor::Half(values, exponents) => {
                Tensor::Half(&values[start..][..groups], &exponents[start..][..groups])
            }
        }
    }

    /// One group.
    ///
    /// # Safety
    /// The CPU has the tier.
    #[inline(always)]
    pub(crate) unsafe fn group<T: Tile>(self, index: usize) -> [f32; BLOCK] {
        match self {
            Tensor::Float32(values) => {
                *values[index * BLOCK..].first_chunk().expect("a group has sixteen values")
            }
            // SAFETY: the caller's contract.
            Tensor::Half(values, exponents) => unsafe {
                widen_group::<T::Vector>(&values[index], exponents[index])
            },
        }
    }

    /// All groups, into `out` of the same number of values.
    ///
    /// # Safety
    /// The CPU has the tier.
    #[inline(always)]
    pub(crate) unsafe fn read<T: Tile>(self, out: &mut [f32]) {
        match self {
            Tensor::Float32(values) => out.copy_from_slice(values),
            Tensor::Half(values, exponents) => {
                for (out, (values, exponent)) in
                    out.as_chunks_mut::<BLOCK>().0.iter_mut().zip(values.iter().zip(exponents))
                {
                    // SAFETY: the caller's contract.
                    *out = unsafe { widen_group::<T::Vector>(values, *exponent) };
                }
            }
        }
    }

    /// Asks for the cache lines of the groups `start..start + groups`, a hint that reads nothing.
    #[inline(always)]
    pub(crate) fn prefetch(self, start: usize, groups: usize) {
        match self.part(start, groups) {
            Tensor::Float32(values) => prefetch(values),
            Tensor::Half(values, exponents) => {
                prefetch(values);
                prefetch(exponents);
            }
        }
    }
}

impl<'a> TensorMut<'a> {
    /// The tensor that fills `memory`.
    ///
    /// # Panics
    /// [`Storage::len`] never gives this length.
    pub fn new(storage: Storage, memory: &'a mut [f32]) -> TensorMut<'a> {
        let groups = storage.groups(memory.len());
        assert_eq!(memory.len(), storage.len(groups));
        TensorMut::from_parts(storage, groups, memory.split_at_mut(storage.lens(groups)[0]))
    }

    /// As [`Tensor::from_parts`].
    ///
    /// # Panics
    /// As [`Tensor::from_parts`].
    pub fn from_parts(
        storage: Storage,
        groups: usize,
        (values, exponents): (&'a mut [f32], &'a mut [f32]),
    ) -> TensorMut<'a> {
        assert_eq!([values.len(), exponents.len()], storage.lens(groups));
        match storage {
            Storage::Float32 => TensorMut::Float32(values),
            Storage::Half => {
                // SAFETY: as for `Tensor::from_parts`; the two parts do not overlap, and any bits they are given are `f32`.
                unsafe {
                    TensorMut::Half(
                        std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), groups),
                        std::slice::from_raw_parts_mut(exponents.as_mut_ptr().cast(), groups),
                    )
                }
            }
        }
    }

    /// One tensor after the other, of `groups` groups each; what is left over at the end is left out.
    ///
    /// # Panics
    /// `groups` is 0.
    pub fn parts(self, groups: usize) -> Vec<TensorMut<'a>> {
        match self {
            TensorMut::Float32(values) => {
                values.chunks_exact_mut(groups * BLOCK).map(TensorMut::Float32).collect()
            }
            TensorMut::Half(values, exponents) => values
                .chunks_exact_mut(groups)
                .zip(exponents.chunks_exact_mut(groups))
                .map(|(values, exponents)| TensorMut::Half(values, exponents))
                .collect(),
        }
    }

    /// Takes the values of a tensor of the same storage and length.
    ///
    /// # Panics
    /// Storage or length differ.
    pub fn copy_from(&mut self, from: Tensor<'_>) {
        match (self, from) {
            (TensorMut::Float32(to), Tensor::Float32(from)) => to.copy_from_slice(from),
            (TensorMut::Half(to, to_exponents), Tensor::Half(from, exponents)) => {
                to.copy_from_slice(from);
                to_exponents.copy_from_slice(exponents);
            }
            _ => panic!("tensors are copied within one storage"),
        }
    }

    /// How many groups there are.
    pub fn groups(&self) -> usize {
        match self {
            TensorMut::Float32(values) => values.len() / BLOCK,
            TensorMut::Half(_, exponents) => exponents.len(),
        }
    }
}

/// A tensor whose disjoint groups are written by several threads at once.
pub(crate) enum SharedTensor<'a> {
    Float32(SharedOutput<'a, f32>),
    Half(SharedOutput<'a, [u16; BLOCK]>, SharedOutput<'a, i8>),
}

/// Groups that [`SharedTensor::edit`] converts at a time.
const PIECE: usize = 64;

/// What [`SharedTensor::edit`] does to groups: a trait and not a closure, because the compiler builds closures without the
/// tier's instructions wherever it does not inline them.
pub(crate) trait Edit {
    /// Changes the values of groups, of which the first has the index `first`.
    ///
    /// # Safety
    /// The CPU has the tier.
    unsafe fn edit<T: Tile>(&self, first: usize, values: &mut [f32]);
}

impl<'a> SharedTensor<'a> {
    pub(crate) fn new(tensor: TensorMut<'a>) -> SharedTensor<'a> {
        match tensor {
            TensorMut::Float32(values) => SharedTensor::Float32(SharedOutput::new(values)),
            TensorMut::Half(values, exponents) => {
                SharedTensor::Half(SharedOutput::new(values), SharedOutput::new(exponents))
            }
        }
    }

    /// Asks for the cache lines of the groups `start..start + groups`, a hint that reads nothing.
    #[inline(always)]
    pub(crate) fn prefetch(&self, start: usize, groups: usize) {
        match self {
            SharedTensor::Float32(values) => values.prefetch(start * BLOCK, groups * BLOCK),
            SharedTensor::Half(values, exponents) => {
                values.prefetch(start, groups);
                exponents.prefetch(start, groups);
            }
        }
    }

    /// One group.
    ///
    /// # Safety
    /// The CPU has the tier, and no other thread writes this group at the same time.
    #[inline(always)]
    pub(crate) unsafe fn get<T: Tile>(&self, index: usize) -> [f32; BLOCK] {
        // SAFETY: the caller's contract.
        unsafe {
            match self {
                SharedTensor::Float32(values) => {
                    *values.part(index * BLOCK, BLOCK).first_chunk().expect("a group has sixteen values")
                }
                SharedTensor::Half(values, exponents) => {
                    widen_group::<T::Vector>(&values.part(index, 1)[0], exponents.part(index, 1)[0])
                }
            }
        }
    }

    /// The groups `start..start + groups`.
    ///
    /// # Safety
    /// Nobody writes these groups as long as they are lent.
    #[inline(always)]
    pub(crate) unsafe fn read(&self, start: usize, groups: usize) -> Tensor<'_> {
        // SAFETY: the caller's contract.
        unsafe {
            match self {
                SharedTensor::Float32(values) => Tensor::Float32(values.part(start * BLOCK, groups * BLOCK)),
                SharedTensor::Half(values, exponents) => {
                    Tensor::Half(values.part(start, groups), exponents.part(start, groups))
                }
            }
        }
    }

    /// Writes one group.
    ///
    /// # Safety
    /// The CPU has the tier, and no other thread has this group at the same time.
    #[inline(always)]
    pub(crate) unsafe fn put<T: Tile>(&self, index: usize, group: [f32; BLOCK]) {
        // SAFETY: the caller's contract.
        unsafe {
            match self {
                SharedTensor::Float32(values) => {
                    values.part(index * BLOCK, BLOCK).copy_from_slice(&group);
                }
                SharedTensor::Half(values, exponents) => {
                    let slot = &mut values.part(index, 1)[0];
                    exponents.part(index, 1)[0] = narrow_group::<T::Vector>(&group, slot);
                }
            }
        }
    }

    /// Gives the groups `start..start + groups` to `edit` as `f32`, some at a time with the index of their first group,
    /// and keeps what it makes of them. With `from` they are that tensor's groups instead of what was there.
    ///
    /// # Safety
    /// As for [`SharedTensor::put`].
    #[inline(always)]
    pub(crate) unsafe fn edit<T: Tile>(
        &self,
        start: usize,
        groups: usize,
        from: Option<Tensor<'_>>,
        edit: &impl Edit,
    ) {
        // SAFETY: the caller's contract.
        unsafe {
            match self {
                SharedTensor::Float32(values) => {
                    let values = values.part(start * BLOCK, groups * BLOCK);
                    if let Some(from) = from {
                        from.part(start, groups).read::<T>(values);
                    }
                    edit.edit::<T>(start, values);
                }
                SharedTensor::Half(values, exponents) => {
                    let (values, exponents) = (values.part(start, groups), exponents.part(start, groups));
                    let mut room = [0.0; PIECE * BLOCK];
                    let pieces = values.chunks_mut(PIECE).zip(exponents.chunks_mut(PIECE));
                    for (piece, (values, exponents)) in pieces.enumerate() {
                        let (first, room) = (start + piece * PIECE, &mut room[..values.len() * BLOCK]);
                        from.map_or(Tensor::Half(values, exponents), |from| from.part(first, values.len()))
                            .read::<T>(room);
                        edit.edit::<T>(first, room);
                        let slots = values.iter_mut().zip(exponents);
                        for (room, (slot, exponent)) in room.as_chunks::<BLOCK>().0.iter().zip(slots) {
                            *exponent = narrow_group::<T::Vector>(room, slot);
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_say_how_many_groups_there_are() {
        for storage in [Storage::Float32, Storage::Half] {
            for groups in (0..5000).chain([1 << 24, (1 << 40) + 3]) {
                assert_eq!(storage.groups(storage.len(groups)), groups, "{storage:?}");
            }
        }
    }
}
