//! Which steps run as a whole, and which run together in strips, so that what lies between them is never stored or is
//! written over what it is made of.
//!
//! A tensor that is *streamed* has no place of its own: each step that needs it, and is not streamed itself, makes it
//! anew, strip by strip. A tensor that is *overwritten* gives its place to the results of the convolutions that read it.
//! Both change where numbers lie, and how often they are computed, but not one bit of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;

use remote_vae_kernels::Storage;

use crate::fusion::{Fused, FusedStep, Value};
use crate::shapes::Shapes;
use crate::strips::{Head, Over, Schedule, grid, schedule};

/// How memory is saved; nothing by default.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Means {
    /// Nodes whose values are streamed.
    pub streamed: BTreeSet<usize>,
    /// Nodes whose values are overwritten.
    pub overwritten: BTreeSet<usize>,
    /// Rows from the top of streamed tensors, by node, that the first group that makes them keeps for those after it.
    pub heads: BTreeMap<usize, usize>,
    /// Pixels of a strip, about.
    pub strip_pixels: usize,
    /// The same for some of the groups, by their number.
    pub strip_pixels_of: BTreeMap<usize, usize>,
    /// Whether each step reads its weights anew.
    pub reads_weights: bool,
    /// Whether layers that run together in strips share the memory of their transformed weights, and transform them for each
    /// strip.
    pub shares_scratch: bool,
}

/// The least rows of a strip that is asked for, those of a row of the smaller tiles. Larger tiles make it larger.
const LEAST_ROWS: usize = 4;

impl Default for Means {
    fn default() -> Means {
        Means {
            streamed: BTreeSet::new(),
            overwritten: BTreeSet::new(),
            heads: BTreeMap::new(),
            strip_pixels: crate::budget::STRIP_PIXELS[0],
            strip_pixels_of: BTreeMap::new(),
            reads_weights: false,
            shares_scratch: false,
        }
    }
}

/// Steps that run together.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    /// In the order in which each strip passes through them.
    pub members: Vec<FusedStep>,
    /// Those whose output is stored.
    pub sinks: Vec<usize>,
    pub overs: Vec<Over>,
    pub heads: Vec<Head>,
    /// `None` where the only member runs as a whole.
    pub strips: Option<Arc<Schedule>>,
}

/// What tells groups of one task apart before they are cut: outputs of the members, sinks, what is written over, rows that
/// are kept, and rows of a strip.
type Uncut = (Vec<Value>, Vec<usize>, Vec<Over>, Vec<Head>, usize);

/// Bytes of a worker's scratch, by a convolution's node and the rows that it makes.
pub(crate) type WorkerBytes = HashMap<(usize, Range<usize>), usize>;

/// What was found out before about one task: the plans that a search tries differ in few groups.
#[derive(Default)]
pub(crate) struct Schedules {
    known: HashMap<Uncut, Group>,
    /// Those of the latest plan that keep rows. Numbers of kept rows are many: all remembered, they would take more memory than
    /// what they save.
    with_heads: (BTreeMap<usize, usize>, HashMap<Uncut, Group>),
    pub worker_bytes: WorkerBytes,
}

/// What may be streamed and overwritten at all.
pub(crate) struct Choices {
    pub streamable: BTreeSet<usize>,
}

impl Choices {
    pub(crate) fn new(shapes: &Shapes<'_>, steps: &[FusedStep]) -> Choices {
        let streamable = steps.iter().filter_map(|step| match (&step.operation, step.output) {
            (Fused::Convolution { node, .. }, Value::Node(value))
                if shapes.is_flat(*node) && value != shapes.graph.output.0 =>
            {
                Some(value)
            }
            _ => None,
        });
        let reads_rows = |value: usize, step: &FusedStep| match &step.operation {
            Fused::Convolution { node, .. } => shapes.is_flat(*node),
            Fused::NormStatistics { .. } => true,
            operation => !operation.reads().contains(&Value::Node(value)),
        };
        let streamable = streamable.filter(|value| {
            steps.iter().all(|step| {
                !step.operation.reads().contains(&Value::Node(*value)) || reads_rows(*value, step)
            })
        });
        Choices { streamable: streamable.collect() }
    }
}

/// The groups in which `steps` run, in order.
pub(crate) fn groups(
    shapes: &Shapes<'_>,
    steps: &[FusedStep],
    means: &Means,
    schedules: &mut Schedules,
) -> Vec<Group> {
    let grouping = Grouping { shapes, steps, means };
    if schedules.with_heads.0 != means.heads {
        schedules.with_heads = (means.heads.clone(), HashMap::new());
    }
    let makers: HashMap<Value, usize> =
        steps.iter().enumerate().map(|(index, step)| (step.output, index)).collect();
    // The steps that write over a tensor run together when the last of them would.
    let merged: Vec<(usize, Vec<usize>)> =
        means.overwritten.iter().filter_map(|value| Some((*value, grouping.writers_over(*value)?))).collect();
    let mut groups: Vec<Group> = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        if matches!(step.output, Value::Node(node) if means.streamed.contains(&node)) {
            continue;
        }
        let own = merged.iter().find(|(_, sinks)| sinks.contains(&index));
        let sinks = match own {
            Some((_, sinks)) if sinks.last() != Some(&index) => continue,
            Some((_, sinks)) => sinks.clone(),
            None => vec![index],
        };
        let mut members: BTreeSet<usize> = BTreeSet::new();
        let mut open = sinks.clone();
        while let Some(member) = open.pop() {
            if members.insert(member) {
                let streamed =
                    |value: &Value| matches!(value, Value::Node(node) if means.streamed.contains(node));
                open.extend(
                    steps[member]
                        .operation
                        .reads()
                        .iter()
                        .filter(|value| streamed(value))
                        .map(|value| makers[value]),
                );
            }
        }
        let position = |sink: &usize| members.iter().position(|member| member == sink).unwrap_or(0);
        let sinks: Vec<usize> = sinks.iter().map(position).collect();
        let overs = own.map_or_else(Vec::new, |(value, _)| grouping.places_over(*value, &sinks, &members));
        let members = members.iter().map(|member| steps[*member].clone()).collect();
        groups.push(Group { members, sinks, overs, heads: Vec::new(), strips: None });
    }
    grouping.keep_heads(&mut groups);
    let last_reads = last_reads(shapes, &groups);
    for (index, group) in groups.iter_mut().enumerate() {
        let leaves = group.sinks.iter().any(|sink| shapes.leaves_by_rows(&group.members[*sink]));
        if group.members.len() > 1 || !group.overs.is_empty() || leaves {
            let pixels = means.strip_pixels_of.get(&index).unwrap_or(&means.strip_pixels);
            grouping.cut(group, *pixels, |value| last_reads.get(&value) == Some(&index), schedules);
        }
    }
    groups
}

/// The last group that reads each stored tensor; the result is read after all groups.
pub(crate) fn last_reads(shapes: &Shapes<'_>, groups: &[Group]) -> HashMap<Value, usize> {
    let mut last = HashMap::new();
    for (index, group) in groups.iter().enumerate() {
        for member in &group.members {
            for value in member.operation.reads() {
                last.insert(value, index);
            }
        }
    }
    last.insert(Value::Node(shapes.graph.output.0), groups.len());
    last
}

/// Rows of a strip of about `rows` where some member's tiles have `step`: whole tiles, unless it is to be smaller.
fn strip_rows(rows: usize, step: usize) -> usize {
    let whole = (rows + step / 2) / step * step;
    if whole > 0 { whole } else { rows / LEAST_ROWS * LEAST_ROWS }.max(LEAST_ROWS)
}

struct Grouping<'a> {
    shapes: &'a Shapes<'a>,
    steps: &'a [FusedStep],
    means: &'a Means,
}

impl Grouping<'_> {
    /// The steps whose results can be written over the value of node `over`, all together: the convolutions that read it,
    /// if nothing else does but statistics before them.
    fn writers_over(&self, over: usize) -> Option<Vec<usize>> {
        let (shapes, value) = (self.shapes, Value::Node(over));
        let outside = over == 0 || over == shapes.graph.output.0;
        if outside || self.means.streamed.contains(&over) || shapes.sizes[over][0] != 1 {
            return None;
        }
        let mut writers = Vec::new();
        let mut last_statistics = 0;
        for (index, step) in self.steps.iter().enumerate() {
            if !step.operation.reads().contains(&value) {
                continue;
            }
            match (&step.operation, step.output) {
                (Fused::NormStatistics { .. }, _) => last_statistics = index,
                (Fused::Convolution { node, source, .. }, Value::Node(output))
                    if source.base == over
                        && !shapes.leaves_by_rows(step)
                        && step.operation.residual() != Some(value)
                        && shapes.is_flat(*node)
                        && !self.means.streamed.contains(&output)
                        && shapes.sizes[output] == shapes.sizes[over]
                        && shapes.storage(step.output) == shapes.storage(value) =>
                {
                    writers.push(index);
                }
                _ => return None,
            }
        }
        let last = *writers.last()?;
        let outputs = || writers.iter().map(|writer| self.steps[*writer].output);
        let needed_before = outputs()
            .any(|output| self.steps[..last].iter().any(|step| step.operation.reads().contains(&output)));
        (last_statistics < last && !needed_before).then_some(writers)
    }

    /// Lets the first of `groups` that streams a value with a head keep its first rows, less what is no whole tile, and those
    /// after it recall them.
    fn keep_heads(&self, groups: &mut [Group]) {
        let mut kept = BTreeSet::new();
        for group in groups {
            let head = |(node, rows): (&usize, &usize)| {
                let made = |member: &FusedStep| member.output == Value::Node(*node);
                let member = group.members.iter().position(made)?;
                let [step, skip] = grid(self.shapes, &group.members[member]);
                let rows = ((rows + skip) / step * step).saturating_sub(skip);
                let is_some = 0 < rows && rows < self.shapes.height(*node) && !group.sinks.contains(&member);
                is_some.then_some(Head { member, rows, recalled: kept.contains(node) })
            };
            let heads: Vec<Head> = self.means.heads.iter().filter_map(head).collect();
            // Where rows of a later member are recalled, nobody asks for as many of an earlier one, nor makes them from the top.
            let is_needed = |head: &&Head| {
                let is_after = |later: &Head| later.recalled && later.member > head.member;
                heads.iter().all(|later| !is_after(later) || (head.recalled && later.rows < head.rows))
            };
            group.heads = heads.iter().filter(is_needed).copied().collect();
            kept.extend(group.heads.iter().map(|head| group.members[head.member].output.node()));
        }
    }

    /// Channel blocks of a step's output.
    fn blocks(&self, step: usize) -> usize {
        self.shapes.blocks(self.steps[step].output.node())
    }

    /// One after the other in the value of node `over`, as many as there is room for.
    fn places_over(&self, node: usize, sinks: &[usize], members: &BTreeSet<usize>) -> Vec<Over> {
        let steps: Vec<usize> = members.iter().copied().collect();
        let mut first_block = 0;
        let mut overs = Vec::new();
        for member in sinks {
            let end = first_block + self.blocks(steps[*member]);
            // The exponents of four groups lie in one `f32`.
            let divisible = self.shapes.storage(Value::Node(node)) == Storage::Float32
                || (first_block * self.shapes.pixels(node)).is_multiple_of(size_of::<f32>());
            if end <= self.shapes.blocks(node) && divisible {
                overs.push(Over { member: *member, node, first_block });
                first_block = end;
            }
        }
        overs
    }

    /// Gives the group its schedule, in strips of about `pixels`; sums take the place of a summand that `ends` here, and what
    /// would be written over too early is copied.
    fn cut(&self, group: &mut Group, pixels: usize, ends: impl Fn(Value) -> bool, schedules: &mut Schedules) {
        let shapes = self.shapes;
        for sink in group.sinks.clone() {
            let member = &group.members[sink];
            let Some(value @ Value::Node(node)) = member.operation.residual() else { continue };
            let stored = !self.means.streamed.contains(&node) && node != 0;
            let alike = shapes.groups(value) == shapes.groups(member.output)
                && shapes.storage(value) == shapes.storage(member.output);
            let reads_itself = matches!(&member.operation,
                Fused::Convolution { source, .. } if source.base == node);
            let taken = reads_itself
                || shapes.leaves_by_rows(member)
                || group.overs.iter().any(|over| over.member == sink || over.node == node);
            if stored && alike && !taken && ends(value) {
                group.overs.push(Over { member: sink, node, first_block: 0 });
            }
        }
        let last = group.sinks.last().map_or(0, |sink| *sink);
        let width = match &group.members[last].operation {
            Fused::NormStatistics { input, .. } => shapes.width(*input),
            _ => shapes.width(group.members[last].output.node()),
        };
        let steps = group.members.iter().map(|member| grid(shapes, member)[0]);
        let rows = strip_rows(pixels / width, steps.max().unwrap_or(1));
        let outputs = group.members.iter().map(|member| member.output).collect();
        let uncut = (outputs, group.sinks.clone(), group.overs.clone(), group.heads.clone(), rows);
        let known = if group.heads.is_empty() { &mut schedules.known } else { &mut schedules.with_heads.1 };
        let cut = known.entry(uncut).or_insert_with(|| self.scheduled(group.clone(), rows));
        *group = cut.clone();
    }

    /// The group with a schedule in which its sinks make `rows` rows at a time.
    fn scheduled(&self, mut group: Group, rows: usize) -> Group {
        let shapes = self.shapes;
        loop {
            match schedule(shapes, &group.members, &group.sinks, &group.overs, &group.heads, rows) {
                Ok(schedule) => {
                    group.strips = Some(Arc::new(schedule));
                    return group;
                }
                Err(node) => {
                    let copy =
                        FusedStep { operation: Fused::Copy { input: node }, output: Value::Copy(node) };
                    if group.members.contains(&copy) {
                        // A step that adds what it also reads around looks at the original.
                        group.overs.retain(|over| over.node != node);
                        continue;
                    }
                    group.members.insert(0, copy);
                    group.sinks.iter_mut().for_each(|sink| *sink += 1);
                    group.overs.iter_mut().for_each(|over| over.member += 1);
                    group.heads.iter_mut().for_each(|head| head.member += 1);
                }
            }
        }
    }
}
