//! In which order the steps of a group make their rows, and how many rows of each tensor must lie in memory meanwhile.
//!
//! The group's last steps make some rows more at a time; every step before them makes what that needs, and nothing is
//! made twice. Rows of a tensor that is not stored are dropped when the last step that reads them has done so.

use std::ops::Range;
use std::sync::Arc;

use remote_vae_kernels::convolution::Geometry;

use crate::fusion::{Fused, FusedStep, Value};
use crate::shapes::Shapes;

/// Some rows of one member's output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slice {
    /// Index in the group's members.
    pub member: usize,
    /// Rows of its output; of a norm's statistics, rows of what it reads.
    pub rows: Range<usize>,
    /// Whether they are copied from those that an earlier group kept.
    pub recalled: bool,
}

/// The first rows of a member's output, which the first group that makes them keeps for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Head {
    pub member: usize,
    pub rows: usize,
    /// Whether an earlier group has kept them.
    pub recalled: bool,
}

/// A member whose output is written over a tensor that the group reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Over {
    pub member: usize,
    /// Whose value is written over.
    pub node: usize,
    /// The first channel block of it that is.
    pub first_block: usize,
}

/// How a group runs in strips.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Schedule {
    pub slices: Arc<[Slice]>,
    /// One slice of each kind that is computed: those of one member that begin at the top or do not, and have equally many
    /// rows.
    pub kinds: Vec<Slice>,
    /// Rows of each member's output that must be in memory at the same time.
    pub kept: Vec<usize>,
    /// Rows of each member's output that are computed.
    pub computed: Vec<usize>,
}

/// The schedule of `members`, those of `sinks` making about `rows` rows of the last one's output at a time. An error is
/// the node of a tensor that would be written over before it was read.
///
/// Each sink asks for the rows that it reads, and so does every member before it, no more than the share of `rows` at a time:
/// so also at the top, where all have to get ahead of their readers, nobody runs further ahead than later.
pub(crate) fn schedule(
    shapes: &Shapes<'_>,
    members: &[FusedStep],
    sinks: &[usize],
    overs: &[Over],
    heads: &[Head],
    rows: usize,
) -> Result<Schedule, usize> {
    let heights: Vec<usize> = members.iter().map(|member| height(shapes, member)).collect();
    let total = sinks.last().map_or(0, |sink| heights[*sink]);
    let of_member = heights.clone();
    let share = |end: usize, member: usize| (end * of_member[member]).div_ceil(total);
    let mut state = State {
        shapes,
        members,
        overs,
        heads,
        sources: members.iter().enumerate().map(|(at, member)| sources(members, at, member)).collect(),
        grids: members.iter().map(|member| grid(shapes, member)).collect(),
        geometries: members.iter().map(|member| geometry(shapes, member)).collect(),
        strips: (0..members.len()).map(|member| share(rows, member)).collect(),
        made: vec![0; members.len()],
        kept: vec![0; members.len()],
        slices: Vec::new(),
        heights,
    };
    state.skip(sinks);
    let mut target = 0;
    while target < total {
        target = (target + rows).min(total);
        for sink in sinks {
            state.make(*sink, share(target, *sink))?;
        }
    }
    let State { slices, kept, .. } = state;
    debug_assert!(heads.iter().all(|head| {
        let mut own = slices.iter().filter(|slice| slice.member == head.member);
        head.recalled || own.next().is_some_and(|first| first.rows.start == 0)
    }));
    let mut computed = vec![0; members.len()];
    for slice in slices.iter().filter(|slice| !slice.recalled) {
        computed[slice.member] += slice.rows.len();
    }
    // A member has few kinds: looking through them takes less time than a set.
    let mut seen = vec![Vec::new(); members.len()];
    let is_new = |slice: &&Slice| {
        let (seen, kind) = (&mut seen[slice.member], (slice.rows.len(), slice.rows.start == 0));
        let is_new = !seen.contains(&kind);
        if is_new {
            seen.push(kind);
        }
        is_new
    };
    let kinds = slices.iter().filter(|slice| !slice.recalled).filter(is_new).cloned().collect();
    Ok(Schedule { slices: slices.into(), kinds, kept, computed })
}

/// The tensors that `member` reads, each with the earlier member that makes it, if one does; tables are left out.
fn sources(members: &[FusedStep], at: usize, member: &FusedStep) -> Vec<(Value, Option<usize>)> {
    let maker = |value: Value| {
        let copied = |earlier: &FusedStep| match (earlier.output, value) {
            (Value::Copy(of), Value::Node(node)) => of == node,
            _ => false,
        };
        let is_residual = member.operation.residual() == Some(value);
        members[..at].iter().position(|earlier| earlier.output == value || (copied(earlier) && !is_residual))
    };
    let reads = member.operation.reads().into_iter();
    reads.filter(|value| matches!(value, Value::Node(_))).map(|value| (value, maker(value))).collect()
}

struct State<'a> {
    shapes: &'a Shapes<'a>,
    members: &'a [FusedStep],
    overs: &'a [Over],
    heads: &'a [Head],
    /// What each member reads, and who makes it.
    sources: Vec<Vec<(Value, Option<usize>)>>,
    /// Where each member's slices may end, how many rows it has, and its geometry if it is a convolution, as [`grid`],
    /// [`height`] and [`geometry`] tell.
    grids: Vec<[usize; 2]>,
    heights: Vec<usize>,
    geometries: Vec<Option<Geometry>>,
    /// Rows that each member makes at a time, about.
    strips: Vec<usize>,
    /// Rows that each member has made, with those before that nobody needs.
    made: Vec<usize>,
    /// As in [`Schedule`], so far.
    kept: Vec<usize>,
    slices: Vec<Slice>,
}

impl State<'_> {
    /// Rows of `member` that an earlier group has kept.
    fn recalled(&self, member: usize) -> usize {
        let head = self.heads.iter().find(|head| head.member == member && head.recalled);
        head.map_or(0, |head| head.rows)
    }

    /// Passes over the first rows of each member but `sinks` that nobody reads, because what they would be read for is recalled.
    fn skip(&mut self, sinks: &[usize]) {
        for member in (0..self.members.len()).rev().filter(|member| !sinks.contains(member)) {
            let mut needed = self.heights[member];
            for reader in member + 1..self.members.len() {
                let computed = self.made[reader].max(self.recalled(reader));
                for (value, maker) in &self.sources[reader] {
                    if *maker == Some(member) {
                        needed = needed.min(self.unread_from(reader, *value, computed));
                    }
                }
            }
            let [step, skip] = self.grids[member];
            self.made[member] = ((needed + skip) / step * step).saturating_sub(skip);
        }
    }

    /// Lets `member` have made `end` rows at least, and those before it what that needs.
    fn make(&mut self, member: usize, end: usize) -> Result<(), usize> {
        let ([step, skip], height) = (self.grids[member], self.heights[member]);
        let between_tiles = |row: usize| ((row + skip).next_multiple_of(step) - skip).min(height);
        while self.made[member] < end {
            let start = self.made[member];
            let end = end.min(start + self.strips[member]);
            let recalled = start < self.recalled(member);
            let end = if recalled { end.min(self.recalled(member)) } else { between_tiles(end) };
            for source in 0..self.sources[member].len() {
                let (value, maker) = self.sources[member][source];
                if let Some(maker) = maker.filter(|_| !recalled) {
                    self.make(maker, self.needs(member, value, end))?;
                }
            }
            for over in self.overs.iter().filter(|over| over.member == member) {
                if self.is_unread(over, end) {
                    return Err(over.node);
                }
            }
            // The first rows may lie before those that are read: up to where a tile or a strip begins.
            self.kept[member] = self.kept[member].max(end - self.oldest(member).min(start));
            self.slices.push(Slice { member, rows: start..end, recalled });
            self.made[member] = end;
        }
        Ok(())
    }

    /// Rows of `value` that `member` needs before it can have made `rows`.
    fn needs(&self, member: usize, value: Value, rows: usize) -> usize {
        self.rows_read(member, value, 0..rows).end
    }

    /// The first row of `value` that `member` has not finished with.
    fn unread(&self, member: usize, value: Value) -> usize {
        self.unread_from(member, value, self.made[member].max(self.recalled(member)))
    }

    /// The first row of `value` that `member` reads for its rows from `made` on.
    fn unread_from(&self, member: usize, value: Value, made: usize) -> usize {
        match (&self.members[member].operation, value) {
            (_, Value::Node(node)) if made >= self.heights[member] => self.shapes.height(node),
            (Fused::NormStatistics { input, .. }, _) => {
                self.shapes.patches[*input].whole_rows(made, self.shapes.height(*input))
            }
            _ => self.rows_read(member, value, made..made + 1).start,
        }
    }

    fn rows_read(&self, member: usize, value: Value, rows: Range<usize>) -> Range<usize> {
        match (&self.members[member].operation, value) {
            (Fused::Convolution { source, .. }, Value::Node(read))
                if read == source.base
                    && !rows.is_empty()
                    && let Some(geometry) = &self.geometries[member] =>
            {
                let height = self.shapes.height(read);
                let range = geometry.rows_read(&rows, source.upsample, height);
                // A tensor may be source and residual at once.
                if self.members[member].operation.residual() == Some(value) {
                    range.start.min(rows.start)..range.end.max(rows.end)
                } else {
                    range
                }
            }
            _ => rows,
        }
    }

    /// The oldest row of `member`'s output that somebody still reads.
    fn oldest(&self, member: usize) -> usize {
        let readers = self.sources.iter().enumerate().flat_map(|(reader, sources)| {
            sources
                .iter()
                .filter(move |(_, maker)| *maker == Some(member))
                .map(move |(value, _)| (reader, *value))
        });
        readers.map(|(reader, value)| self.unread(reader, value)).min().unwrap_or(self.made[member])
    }

    /// Whether somebody still has to read rows before `end` of what `over` is about to write over up to there.
    fn is_unread(&self, over: &Over, end: usize) -> bool {
        self.sources.iter().enumerate().any(|(reader, sources)| {
            let value = Value::Node(over.node);
            let directly = sources.contains(&(value, None));
            let only_adds = self.members[reader].operation.residual() == Some(value)
                && !matches!(&self.members[reader].operation,
                    Fused::Convolution { source, .. } if source.base == over.node);
            // Who adds to a tensor in place reads a row as it writes it.
            let in_place = reader == over.member && only_adds;
            directly && !in_place && (reader == over.member || self.unread(reader, value) < end)
        })
    }
}

/// Rows of a member's output; of statistics, of what they are taken of.
fn height(shapes: &Shapes<'_>, member: &FusedStep) -> usize {
    match &member.operation {
        Fused::NormStatistics { input, .. } | Fused::Copy { input } => shapes.height(*input),
        _ => shapes.height(member.output.node()),
    }
}

fn geometry(shapes: &Shapes<'_>, member: &FusedStep) -> Option<Geometry> {
    match &member.operation {
        Fused::Convolution { node, .. } => Some(shapes.geometry(*node)),
        _ => None,
    }
}

/// Where a member's slices may end: `[step, skip]`, as
/// [`remote_vae_kernels::convolution::Geometry::strip_grid`].
pub(crate) fn grid(shapes: &Shapes<'_>, member: &FusedStep) -> [usize; 2] {
    match &member.operation {
        Fused::Convolution { node, source, .. } => {
            shapes.geometry(*node).strip_grid(shapes.isa, source.upsample)
        }
        _ => [1, 0],
    }
}
