//! Places in one arena for all tensors of the groups, by size and lifetime.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use remote_vae_kernels::convolution::{Arithmetic, Convolution, Geometry};
use remote_vae_kernels::layout::BLOCK;
use remote_vae_kernels::{Isa, Storage};

use crate::Precision;
use crate::arena::{Block, Piece, Region, Span, place};
use crate::fusion::{Fused, FusedStep, Value};
use crate::groups::{Group, last_reads};
use crate::shapes::Shapes;

/// Where a step's operands lie.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    pub output: Region,
    /// Rows of the output that lie in memory.
    pub output_rows: usize,
    /// Where the output's first rows are kept for other groups, and how many.
    pub head: Option<(Region, usize)>,
    /// Whether the output is the graph's result, whose rows are handed on as they are finished.
    pub leaves: bool,
    /// What the step needs beside its tensors, and at its end the moments that it takes.
    pub scratch: Region,
    /// `f32` of `scratch` that are not moments: a convolution's transformed weights.
    pub transformed: usize,
    /// Whether nobody else uses the scratch while the group runs.
    pub own_scratch: bool,
    /// The node whose norm statistics come next, before its value is made anew, where the step takes its moments.
    pub moments: Option<usize>,
    /// Places of [`Fused::reads`], in that order, and rows of each that lie in memory.
    pub reads: Vec<(Region, usize)>,
}

/// Places of all tensors.
pub(crate) struct Layout {
    /// For each group, of its members.
    pub places: Vec<Vec<Places>>,
    pub arena_len: usize,
    pub input: Region,
    /// `None` where rows of the result are handed on as they are finished.
    pub output: Option<Region>,
    /// The nodes whose values are stored during the group in which most memory is in use.
    pub stored: Vec<usize>,
}

/// `f32` of transformed weights that the members of a group may keep from strip to strip, all together; beyond, they
/// are transformed anew for each.
const KEPT_WEIGHTS: usize = 8 << 20;

/// What a member needs beside its tensors.
struct Scratch {
    held: Option<Held>,
    /// As in [`Places`].
    transformed: usize,
    is_own: bool,
}

/// A tensor in the making: values and exponents, each the piece of a block.
#[derive(Clone, Copy)]
struct Held {
    pieces: [(usize, usize); 2],
    storage: Storage,
    groups: usize,
}

struct Builder<'a> {
    shapes: Shapes<'a>,
    blocks: Vec<Block>,
    stored: HashMap<Value, Held>,
}

impl Builder<'_> {
    /// A place of its own from group `first` to group `last`.
    fn hold(&mut self, storage: Storage, groups: usize, [first, last]: [usize; 2]) -> Held {
        let pieces = storage.lens(groups).map(|len| {
            self.blocks.push(vec![Piece { offset: 0, len, first, last }]);
            (self.blocks.len() - 1, 0)
        });
        Held { pieces, storage, groups }
    }

    /// A place `before` groups behind the beginning of `whole`.
    fn hold_within(&mut self, whole: Held, before: usize, groups: usize, [first, last]: [usize; 2]) -> Held {
        let (lens, offsets) = (whole.storage.lens(groups), whole.storage.lens(before));
        let pieces = [0, 1].map(|part| {
            let (block, piece) = whole.pieces[part];
            let offset = self.blocks[block][piece].offset + offsets[part];
            self.blocks[block].push(Piece { offset, len: lens[part], first, last });
            (block, self.blocks[block].len() - 1)
        });
        Held { pieces, storage: whole.storage, groups }
    }

    fn plain(&mut self, len: usize, group: usize) -> Held {
        self.hold(Storage::Float32, len.div_ceil(BLOCK), [group, group])
    }
}

impl Layout {
    pub(crate) fn new(shapes: Shapes<'_>, groups: &[Group], shares_scratch: bool, isa: Isa) -> Layout {
        let last_reads = last_reads(&shapes, groups);
        let mut builder = Builder { shapes, blocks: Vec::new(), stored: HashMap::new() };
        let input = Value::Node(0);
        let until = |value: Value, made: usize| last_reads.get(&value).map_or(made, |last| made.max(*last));
        let held = builder.hold(Storage::Float32, shapes.groups(input), [0, until(input, 0)]);
        builder.stored.insert(input, held);
        let heads = hold_heads(&mut builder, groups);
        let mut rings: Vec<Vec<Option<(Held, usize)>>> = Vec::new();
        let mut scratches: Vec<Vec<Scratch>> = Vec::new();
        let mut wanted: Vec<Vec<Option<usize>>> = Vec::new();
        for (index, group) in groups.iter().enumerate() {
            let moments: Vec<_> =
                (0..group.members.len()).map(|at| wanted_moments(&shapes, groups, index, at)).collect();
            scratches.push(scratch(&mut builder, group, &moments, shares_scratch, index, isa));
            wanted.push(moments);
            let mut own = Vec::new();
            for (at, member) in group.members.iter().enumerate() {
                let value = member.output;
                let life = [index, until(value, index)];
                own.push(None);
                if let (Value::Node(node) | Value::Copy(node), false) = (value, is_stored(&shapes, group, at))
                {
                    let rows = group.strips.as_ref().map_or(0, |strips| strips.kept[at]);
                    let groups = shapes.blocks(node) * rows * shapes.width(node);
                    own[at] = Some((builder.hold(shapes.storage(value), groups, [index, index]), rows));
                    continue;
                }
                let over = group.overs.iter().find(|over| over.member == at);
                let held = match over {
                    Some(over) => {
                        let before = over.first_block * shapes.pixels(over.node);
                        let whole = builder.stored[&Value::Node(over.node)];
                        builder.hold_within(whole, before, shapes.groups(value), life)
                    }
                    None => match overwritten(&shapes, group, member, |value| {
                        last_reads.get(&value) == Some(&index)
                    }) {
                        Some(summand) => {
                            let whole = builder.stored[&summand];
                            builder.hold_within(whole, 0, shapes.groups(value), life)
                        }
                        None => builder.hold(shapes.storage(value), shapes.groups(value), life),
                    },
                };
                builder.stored.insert(value, held);
            }
            rings.push(own);
        }
        let (starts, arena_len) = place(&builder.blocks);
        let stored = stored_when_fullest(&builder, groups.len());
        let region = |held: &Held| {
            let [values, exponents] = held.pieces.map(|(block, piece)| {
                let Piece { offset, len, .. } = builder.blocks[block][piece];
                Span { offset: starts[block] + offset, len }
            });
            Region { values, exponents, storage: held.storage, groups: held.groups }
        };
        let each = groups.iter().zip(&wanted).zip(rings.iter().zip(&scratches));
        let places = each.map(|((group, wanted), (rings, scratches))| {
            let head_of = |at: usize| {
                let head = group.heads.iter().find(|head| head.member == at)?;
                Some((region(heads.get(&group.members[at].output)?), head.rows))
            };
            let of = |at: usize| {
                let member = &group.members[at];
                let (output, output_rows) = match &rings[at] {
                    Some((held, rows)) => (region(held), *rows),
                    None => (region(&builder.stored[&member.output]), shapes.value_height(member.output)),
                };
                let read = |value: Value| {
                    let ring = group.members[..at].iter().position(|earlier| {
                        let copied =
                            earlier.output == copy_of(value) && member.operation.residual() != Some(value);
                        earlier.output == value || copied
                    });
                    match ring.and_then(|maker| rings[maker].as_ref()) {
                        Some((held, rows)) => (region(held), *rows),
                        None => (region(&builder.stored[&value]), shapes.value_height(value)),
                    }
                };
                let Scratch { held, transformed, is_own } = &scratches[at];
                Places {
                    output,
                    output_rows,
                    head: head_of(at),
                    leaves: shapes.leaves_by_rows(member),
                    scratch: held.as_ref().map(&region).unwrap_or_default(),
                    transformed: *transformed,
                    own_scratch: *is_own,
                    moments: wanted[at],
                    reads: member.operation.reads().into_iter().map(read).collect(),
                }
            };
            (0..group.members.len()).map(of).collect()
        });
        Layout {
            places: places.collect(),
            arena_len,
            input: region(&builder.stored[&input]),
            output: builder.stored.get(&Value::Node(shapes.graph.output.0)).map(region),
            stored,
        }
    }
}

/// Places for the rows that groups keep for each other. Rows that a group makes of others which it is the last to recall
/// take their place, where they lie in the same order.
fn hold_heads(builder: &mut Builder<'_>, groups: &[Group]) -> HashMap<Value, Held> {
    let mut lives: BTreeMap<Value, (usize, [usize; 2])> = BTreeMap::new();
    for (index, group) in groups.iter().enumerate() {
        for head in &group.heads {
            let life = lives.entry(group.members[head.member].output).or_insert((head.rows, [index, index]));
            life.1[1] = index;
        }
    }
    let mut lives: Vec<(Value, (usize, [usize; 2]))> = lives.into_iter().collect();
    lives.sort_by_key(|(_, (_, life))| *life);
    let shapes = builder.shapes;
    // Equal where rows lie in the same order.
    let order = |value: Value, rows: usize| {
        (rows, shapes.blocks(value.node()), shapes.width(value.node()), shapes.storage(value))
    };
    let mut held: HashMap<Value, Held> = HashMap::new();
    // Those whose places have new owners.
    let mut gone: BTreeSet<Value> = BTreeSet::new();
    for (at, &(value, (rows, life))) in lives.iter().enumerate() {
        let own @ (_, blocks, width, storage) = order(value, rows);
        let before = lives[..at].iter().find(|&&(before, (before_rows, [_, last]))| {
            last == life[0]
                && !gone.contains(&before)
                && order(before, before_rows) == own
                && is_recalled_before(&groups[last], before, value)
        });
        let place = match before {
            Some(&(before, ..)) => {
                gone.insert(before);
                builder.hold_within(held[&before], 0, blocks * rows * width, life)
            }
            None => builder.hold(storage, blocks * rows * width, life),
        };
        held.insert(value, place);
    }
    held
}

/// Whether `group` has recalled each row of `before`'s head before it makes that of `value`, which it keeps.
fn is_recalled_before(group: &Group, before: Value, value: Value) -> bool {
    let head = |value: Value| group.heads.iter().find(|head| group.members[head.member].output == value);
    let (Some(from), Some(to), Some(strips)) = (head(before), head(value), &group.strips) else {
        return false;
    };
    let mut recalled = 0;
    from.recalled
        && strips.slices.iter().all(|slice| {
            if slice.member == from.member {
                recalled = slice.rows.end;
            }
            slice.member != to.member
                || slice.rows.start >= to.rows
                || slice.rows.end.min(to.rows) <= recalled
        })
}

/// Whether the output of a group's member number `at` has a place for all its rows.
fn is_stored(shapes: &Shapes<'_>, group: &Group, at: usize) -> bool {
    group.sinks.contains(&at) && !shapes.leaves_by_rows(&group.members[at])
}

fn copy_of(value: Value) -> Value {
    match value {
        Value::Node(node) => Value::Copy(node),
        other => other,
    }
}

/// The operand over which a step that runs as a whole writes its result.
fn overwritten(
    shapes: &Shapes<'_>,
    group: &Group,
    member: &FusedStep,
    ends: impl Fn(Value) -> bool,
) -> Option<Value> {
    if group.strips.is_some() {
        return None;
    }
    let alike = |value: Value| {
        shapes.groups(value) == shapes.groups(member.output)
            && shapes.storage(value) == shapes.storage(member.output)
    };
    member.operation.may_overwrite().into_iter().find(|value| ends(*value) && alike(*value))
}

/// Whose norm statistics the member number `at` of the group number `index` takes moments for: its result's, if they come
/// before it is made anew.
fn wanted_moments(shapes: &Shapes<'_>, groups: &[Group], index: usize, at: usize) -> Option<usize> {
    let member = &groups[index].members[at];
    let Value::Node(node) = member.output else { return None };
    if !shapes.takes_moments(member) {
        return None;
    }
    let is_of = |member: &FusedStep| matches!(&member.operation, Fused::NormStatistics { input, .. } if *input == node);
    for (later, group) in groups.iter().enumerate().skip(index) {
        if later > index && group.members.iter().any(|other| other.output == member.output) {
            return None;
        }
        if group.members.iter().any(is_of) {
            return Some(node);
        }
    }
    None
}

/// `f32` of the moments that the member number `at` of `group` takes of its result, the value of `node`, at a time.
fn moments_len(shapes: &Shapes<'_>, group: &Group, at: usize, node: usize) -> usize {
    let (channels, [frames, height, width]) = (shapes.graph.nodes[node].channels, shapes.sizes[node]);
    let len = |rows| shapes.patches[node].table_len(channels, rows, width);
    match &group.strips {
        None => frames * len(0..height),
        Some(strips) => {
            let own = strips.kinds.iter().filter(|kind| kind.member == at);
            own.map(|kind| len(kind.rows.clone())).max().unwrap_or(0)
        }
    }
}

/// Scratch of each member. Those of `moments` take them behind it.
fn scratch(
    builder: &mut Builder<'_>,
    group: &Group,
    moments: &[Option<usize>],
    is_shared: bool,
    index: usize,
    isa: Isa,
) -> Vec<Scratch> {
    let shapes = builder.shapes;
    let lens = |(at, member): (usize, &FusedStep)| {
        let moments = moments[at].map_or(0, |node| moments_len(&shapes, group, at, node));
        [scratch_len(&shapes, &member.operation, isa), moments]
    };
    let lens: Vec<[usize; 2]> = group.members.iter().enumerate().map(lens).collect();
    let all = || lens.iter().map(|[transformed, moments]| transformed + moments);
    let is_own = group.members.len() == 1 || (!is_shared && all().sum::<usize>() <= KEPT_WEIGHTS);
    let shared = (!is_own).then(|| builder.plain(all().max().unwrap_or(0), index));
    let of = |[transformed, moments]: &[usize; 2]| {
        let len = transformed + moments;
        let held = (len > 0).then(|| shared.unwrap_or_else(|| builder.plain(len, index)));
        Scratch { held, transformed: *transformed, is_own }
    };
    lens.iter().map(of).collect()
}

/// The nodes whose values are stored during the group in which most memory is in use.
fn stored_when_fullest(builder: &Builder<'_>, groups: usize) -> Vec<usize> {
    let mut used = vec![0; groups];
    for block in &builder.blocks {
        let first = block.iter().map(|piece| piece.first).min().unwrap_or(0);
        let last = block.iter().map(|piece| piece.last + 1).max().unwrap_or(0).min(groups);
        for (group, used) in used.iter_mut().enumerate().take(last).skip(first) {
            let alive = || block.iter().filter(|piece| piece.first <= group && group <= piece.last);
            let ends = alive().map(|piece| piece.offset + piece.len).max().unwrap_or(0);
            *used += ends - alive().map(|piece| piece.offset).min().unwrap_or(ends);
        }
    }
    let fullest = (0..groups).max_by_key(|group| used[*group]).unwrap_or(0);
    let mut stored: Vec<usize> = builder
        .stored
        .iter()
        .filter_map(|(value, held)| {
            let Value::Node(node) = value else { return None };
            let (block, piece) = held.pieces[0];
            let Piece { first, last, .. } = builder.blocks[block][piece];
            (first <= fullest && fullest <= last).then_some(*node)
        })
        .collect();
    stored.sort_unstable();
    stored
}

/// The largest `need` that a convolution can have in `precision`; which arithmetic it gets is known when its weights are.
pub(crate) fn most(
    precision: Precision,
    geometries: &[Geometry],
    need: impl Fn(&Geometry, Arithmetic) -> usize,
) -> usize {
    let of = |geometry: &Geometry| {
        precision.arithmetics().iter().map(|arithmetic| need(geometry, *arithmetic)).max().unwrap_or(0)
    };
    geometries.iter().map(of).max().unwrap_or(0)
}

/// `f32` that a step needs beside its tensors while it runs.
fn scratch_len(shapes: &Shapes<'_>, operation: &Fused, isa: Isa) -> usize {
    match operation {
        Fused::Convolution { node, source, .. } => {
            most(shapes.precision, &shapes.geometries(*node), |geometry, arithmetic| {
                Convolution::scratch_len(isa, geometry, source.upsample, arithmetic)
            })
        }
        Fused::Attention { reach, inputs, .. } => {
            shapes.attentions(*reach, inputs[0]).map(|shape| shape.scratch_len(isa)).max().unwrap_or(0)
        }
        _ => 0,
    }
}
