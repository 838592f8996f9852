//! Whatever memory is saved by, the bytes stay.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use remote_vae_kernels::Isa;
use remote_vae_kernels::norm::Patches;
use remote_vae_model::{Graph, Model, WeightSource, random};

use super::{Search, Shortage, computing, plan, work};
use crate::arena::Region;
use crate::cpu::ROWS_READ;
use crate::fusion::Fused;
use crate::groups::Means;
use crate::plan::{Plan, Step, Task};
use crate::still::{self, SummedTaps};
use crate::{
    Beside, Control, CpuEngine, Delivery, Engine, EngineOptions, PlanRequest, Precision, Program, Rows,
};

struct Half {
    graph: Graph,
    /// For each number of threads one that holds its weights and one that does not.
    programs: Vec<[Box<dyn Program>; 2]>,
    threads: Vec<usize>,
}

impl Half {
    fn new(model: &Model, decoder: bool) -> Half {
        let clip = if decoder { model.decoder().unwrap() } else { model.encoder().unwrap() };
        let weights = Arc::clone(model.checkpoint());
        match still::graph(clip) {
            None => Half::of(clip.clone(), weights),
            Some(graph) => Half::of(graph, Arc::new(SummedTaps { weights, clip: clip.clone() })),
        }
    }

    fn of(graph: Graph, weights: Arc<dyn WeightSource>) -> Half {
        let threads = vec![1, 2, 7];
        let programs = |threads| {
            let options = EngineOptions { threads: Some(threads), ..EngineOptions::default() };
            let engine = CpuEngine::new(options).unwrap();
            engine.keep_spare();
            let by_steps = engine.load_by_steps(&graph, Arc::clone(&weights));
            assert_eq!(by_steps.weight_bytes(), 0);
            [engine.load(&graph, &*weights).unwrap(), by_steps]
        };
        let programs = threads.iter().map(|count| programs(*count)).collect();
        Half { graph, programs, threads }
    }

    fn task(&self, [height, width]: [usize; 2], precision: Precision, threads: usize) -> Task<'_> {
        self.batch_task(1, [height, width], precision, threads)
    }

    fn batch_task(
        &self,
        batch: usize,
        [height, width]: [usize; 2],
        precision: Precision,
        threads: usize,
    ) -> Task<'_> {
        self.task_for((precision, Delivery::Whole), [batch, height, width], threads)
    }

    fn task_for(
        &self,
        (precision, delivery): (Precision, Delivery),
        [batch, height, width]: [usize; 3],
        threads: usize,
    ) -> Task<'_> {
        let input = [batch, self.graph.input_channels(), 1, height, width];
        let request = PlanRequest { delivery, ..PlanRequest::whole(&self.graph, input, precision) };
        Task::new(request, Isa::detect(), self.threads[threads]).unwrap()
    }

    fn run(&self, plan: &Plan, threads: usize) -> Vec<u32> {
        self.run_of(plan, threads, &random::normal(3, plan.input.iter().product()))
    }

    fn run_of(&self, plan: &Plan, threads: usize, input: &[f32]) -> Vec<u32> {
        let output = self.programs[threads][usize::from(plan.reads_weights)]
            .run(plan, input, &Control::new())
            .unwrap();
        output.iter().map(|value| value.to_bits()).collect()
    }

    /// As [`Half::run`], put together from the rows.
    fn run_rows(&self, plan: &Plan, threads: usize) -> Vec<u32> {
        let input = random::normal(3, plan.input.iter().product());
        let [_, channels, height, width] = plan.output;
        let mut output = vec![0; plan.output.iter().product()];
        let mut next = (0, 0);
        let mut sink = |Rows { sample, first, values, shape }: Rows<'_>| {
            assert_eq!(((sample, first), shape), (next, [channels, shape[1], width]));
            assert!(0 < shape[1] && shape[1] <= plan.strip_rows());
            next = if first + shape[1] == height { (sample + 1, 0) } else { (sample, first + shape[1]) };
            for (channel, rows) in values.chunks_exact(shape[1] * width).enumerate() {
                let start = ((sample * channels + channel) * height + first) * width;
                let places = output[start..].iter_mut().zip(rows);
                places.for_each(|(place, value)| *place = value.to_bits());
            }
            Ok(())
        };
        let program = &self.programs[threads][usize::from(plan.reads_weights)];
        program.run_rows(plan, &input, &Control::new(), &mut sink).unwrap();
        assert_eq!(next, (plan.input[0], 0));
        output
    }
}

/// Both halves of a model like Stable Diffusion's, of one like TAESD, and of HunyuanVideo's for single pictures.
fn halves() -> Vec<(Half, usize)> {
    let golden = |path| Model::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(path)).unwrap();
    // The last has as many channel blocks times columns at one level as at another.
    let models = ["golden/tiny", "golden_video/hunyuan", "golden/odd-widths-f32"].map(golden);
    [&[Model::embedded().unwrap()], &models[..]]
        .concat()
        .iter()
        .flat_map(|model| [(Half::new(model, true), 1), (Half::new(model, false), model.spatial_factor())])
        .collect()
}

/// Chooses among `nodes` by the bits of `choice`.
fn chosen(nodes: impl Iterator<Item = usize>, choice: u64) -> impl Iterator<Item = usize> {
    nodes.enumerate().filter(move |(index, _)| choice >> (index % 64) & 1 == 1).map(|(_, node)| node)
}

#[test]
fn any_means_give_the_same_bytes() {
    let halves = halves();
    let config = ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(
        half in 0usize..8, sides in (2usize..9, 1usize..9), fast in any::<bool>(), threads in 0usize..3,
        streamed in any::<u64>(), rarely in any::<u64>(), overwritten in any::<u64>(),
        strip_pixels in prop_oneof![Just(1usize), 1usize..2000], reads_weights in any::<bool>(),
        strip_pixels_of in prop::collection::btree_map(0usize..20, 1usize..2000, 0..4),
        shares_scratch in any::<bool>(), heads in any::<u64>(), head_rows in 1usize..80,
    )| {
        let (half, factor) = &halves[half];
        let precision = if fast { Precision::Fast } else { Precision::Exact };
        let task = half.task([sides.0 * factor, sides.1 * factor], precision, threads);
        let plain = Plan::new(&task, &Means::default());
        let search = Search::new(&task);
        let means = Means {
            streamed: chosen(search.streamable.iter().copied(), streamed & rarely).collect(),
            overwritten: chosen(0..half.graph.nodes.len(), overwritten).collect(),
            heads: chosen(0..half.graph.nodes.len(), heads).map(|node| (node, head_rows)).collect(),
            strip_pixels,
            strip_pixels_of,
            reads_weights,
            shares_scratch,
        };
        let saving = Plan::new(&task, &means);
        let expected = half.run(&plain, threads);
        // In memory that is kept from a run of nothing but NaN.
        half.run_of(&saving, threads, &vec![f32::NAN; saving.input.iter().product()]);
        prop_assert!(half.run(&saving, threads) == expected, "{means:?}");
        prop_assert!(half.run_rows(&saving, threads) == expected, "rows, {means:?}");
    });
}

/// Statistics of what a convolution makes in tiles are read from memory nowhere but behind rows that were kept.
#[test]
fn moments_are_taken_where_statistics_come_next() {
    let mut taken = 0;
    for (half, factor) in halves() {
        let task = half.task([9 * factor, 7 * factor], Precision::Fast, 1);
        let straight = Search::new(&task).straight().means;
        let streamed = Means { streamed: Search::new(&task).streamable, ..Means::default() };
        for means in [straight, streamed] {
            let plan = Plan::new(&task, &means);
            let operations = || plan.steps.iter().flat_map(|step| &step.operations);
            let mut read = 0;
            for operation in operations() {
                let Fused::NormStatistics { input, .. } = operation.fused else { continue };
                if plan.patches[input] != Patches::PLAIN {
                    let makers = operations().filter(|maker| maker.places.moments == Some(input));
                    assert_eq!(makers.count(), 1, "node {input}");
                    taken += 1;
                } else {
                    read += plan.sizes[input][1];
                }
            }
            // Twice, because the first run also compares `fast` with `exact`.
            let [_, found] = [(); 2].map(|()| {
                ROWS_READ.set(0);
                half.run(&plan, 1);
                ROWS_READ.get()
            });
            assert_eq!(found, read);
        }
    }
    assert!(taken > 20, "{taken}");
}

#[test]
fn strips_are_as_tall_as_there_is_room_for() {
    let (mut plans, mut taller) = (0, 0);
    for (half, factor) in halves() {
        let task = half.task([40 * factor, 13 * factor], Precision::Fast, 1);
        let search = Search::new(&task);
        let straight = search.straight();
        let Err(smallest) = search.within(&straight, 0) else { panic!("nothing fits in nothing") };
        let [least, most] = [&smallest, &straight].map(|found| found.cost.peak);
        for part in 0..5 {
            let budget = least + (most - least) * part / 5;
            let Ok(found) = search.within(&straight, budget) else { panic!("the smallest plan fits") };
            let slices = |means: &Means| -> usize {
                let plan = Plan::new(&task, means);
                plan.steps.iter().filter_map(|step| step.slices.as_ref()).map(|slices| slices.len()).sum()
            };
            let shorter = Means { strip_pixels_of: BTreeMap::new(), ..found.means.clone() };
            plans += 1;
            let [tall, short] = [slices(&found.means), slices(&shorter)];
            assert!(tall <= short && found.cost.work <= search.found(shorter).cost.work);
            taller += usize::from(tall < short);
        }
    }
    assert!(taller > 4, "{taller} of {plans}");
}

#[test]
fn rows_that_are_kept_are_not_computed_again() {
    let (half, factor) = &halves()[0];
    for precision in Precision::ALL {
        let task = half.task([24 * factor, 9 * factor], precision, 1);
        let streamed = Search::new(&task).streamable;
        let expected = half.run(&Plan::new(&task, &Means::default()), 1);
        let without = Means { streamed, strip_pixels: 1, ..Means::default() };
        let all = Plan::new(&task, &without).summary().flops;
        let mut saving = 0;
        for node in without.streamed.clone() {
            let with = |rows| Plan::new(&task, &Means { heads: [(node, rows)].into(), ..without.clone() });
            let [less, more] = [24, 72].map(with);
            // A tensor that one step makes, or that has fewer rows, has none to keep.
            if recalls(&more) {
                let [some, most] = [&less, &more].map(|plan| all - plan.summary().flops);
                assert!(some <= most, "node {node}: {some} saved by fewer rows, {most} by more");
                saving += usize::from(0 < some && some < most);
                assert!(half.run(&more, 1) == expected, "node {node}");
            }
        }
        assert!(saving > 4, "{saving}");
    }
}

#[test]
fn kept_rows_give_their_place_to_those_that_are_made_of_them() {
    let halves = halves();
    let mut passed_on = 0;
    let cases = [(0, [24, 9], 24, Precision::Exact), (7, [64, 3], 96, Precision::Fast)];
    for (half, [height, width], rows, precision) in cases {
        let (half, factor) = &halves[half];
        let task = half.task([height * factor, width * factor], precision, 1);
        let streamed = Search::new(&task).streamable;
        let expected = half.run(&Plan::new(&task, &Means::default()), 1);
        let without = Means { streamed, strip_pixels: 1, ..Means::default() };
        for (first, second) in without
            .streamed
            .iter()
            .flat_map(|first| without.streamed.range(first + 1..).map(move |second| (*first, *second)))
        {
            let with = |nodes: &[usize]| {
                let heads = nodes.iter().map(|node| (*node, rows)).collect();
                Plan::new(&task, &Means { heads, ..without.clone() })
            };
            let [one, both] = [with(&[first]), with(&[first, second])];
            let heads = |step: &Step| -> Vec<Region> {
                step.operations.iter().filter_map(|operation| Some(operation.places.head?.0)).collect()
            };
            let overlap = |step: &Step| {
                let [from, to] = heads(step)[..] else { return false };
                from.values.offset == to.values.offset
            };
            if both.steps.iter().any(overlap) {
                assert!(half.run(&both, 1) == expected, "{rows} rows of nodes {first} and {second}");
                passed_on += usize::from(both.summary().flops < one.summary().flops);
            }
        }
    }
    assert!(passed_on > 4, "{passed_on}");
}

#[test]
fn nobody_runs_further_ahead_at_the_top_than_later() {
    let (half, factor) = &halves()[0];
    for precision in Precision::ALL {
        let task = half.task([40 * factor, 9 * factor], precision, 1);
        let streamed = Search::new(&task).streamable;
        let plan = Plan::new(&task, &Means { streamed, strip_pixels: 1, ..Means::default() });
        let strips: Vec<_> =
            plan.steps.iter().filter_map(|step| Some((step, step.slices.as_ref()?))).collect();
        assert!(strips.iter().any(|(step, _)| step.operations.len() > 4));
        for (step, slices) in strips {
            for member in 0..step.operations.len() {
                let mut rows =
                    slices.iter().filter(|slice| slice.member == member).map(|slice| slice.rows.len());
                let first = rows.next().unwrap();
                // The fold's grid begins before the picture, so that a first strip may hold less than one tile more.
                let most = rows.max().map_or(first, |later| later + 3);
                assert!(first <= most, "{}: {first} rows before at most {most}", step.name);
            }
        }
    }
}

/// A part's weights are held or not as its neighbours have room for theirs.
#[test]
fn a_part_has_room_for_weights_that_are_held_and_for_reading_them_by_steps() {
    let beside = Beside { always: 3000, running: 2000, between: 1000, continues: false };
    let mut by_steps_takes_more = [0; 2];
    for (half, factor) in halves() {
        let input = [1, half.graph.input_channels(), 1, 4 * factor, 4 * factor];
        let whole = PlanRequest::whole(&half.graph, input, Precision::Exact);
        let request = PlanRequest { beside: Some(beside), ..whole };
        let task = Task::new(request, Isa::detect(), 1).unwrap();
        // One step of strips works with most weights.
        let streamed = Search::new(&task).streamable;
        for means in [Means::default(), Means { streamed, ..Means::default() }] {
            let held = Plan::new(&task, &means);
            let by_steps = Plan::new(&task, &Means { reads_weights: true, ..means });
            let peaks = [false, true].map(|reads_weights| held.peak_beside(beside, reads_weights));
            assert_eq!(task.peak_bytes(&held), peaks[0].max(peaks[1]));
            assert_eq!(task.peak_bytes(&by_steps), peaks[1]);
            by_steps_takes_more[usize::from(peaks[1] > peaks[0])] += 1;
        }
    }
    assert!(by_steps_takes_more.iter().all(|count| *count > 0), "{by_steps_takes_more:?}");
}

#[test]
fn any_budget_is_kept_and_gives_the_same_bytes() {
    for (half, factor) in halves() {
        for precision in Precision::ALL {
            let task = half.task([40 * factor, 13 * factor], precision, 1);
            let straight = plan(&task, None).ok().unwrap();
            let Err(Shortage { need, smallest, .. }) = plan(&task, Some(0)) else {
                panic!("nothing fits in nothing")
            };
            assert_eq!(need, straight.summary().peak_bytes);
            assert!(smallest < need, "{need} bytes straight, {smallest} at least");
            let expected = half.run(&straight, 1);
            let mut least = u64::MAX;
            for part in 0..5 {
                let budget = smallest + (need - smallest) * part / 4;
                let found = plan(&task, Some(budget)).ok().unwrap();
                let summary = found.summary();
                assert!(summary.peak_bytes <= budget, "{} of {budget}", summary.peak_bytes);
                // What helps most next is not always the beginning of what helps most.
                let most = least.saturating_add(least / 20);
                assert!(work(&found) <= most, "more memory, more work: {} after {least}", work(&found));
                least = work(&found);
                assert!(half.run(&found, 1) == expected, "{} in {budget} bytes", precision.name());
            }
            assert_eq!(least, work(&straight));
            assert!(plan(&task, Some(smallest - 1)).is_err());
        }
    }
}

/// What the cases of a property test were, so that none of the kinds is left out by chance.
#[derive(Default)]
struct Seen {
    by_steps: usize,
    in_strips: usize,
    smallest: usize,
    panoramas: usize,
    batches: usize,
    recalling: usize,
}

/// Whether a step of `plan` takes rows that an earlier one kept.
fn recalls(plan: &Plan) -> bool {
    plan.steps
        .iter()
        .any(|step| step.slices.iter().flat_map(|slices| slices.iter()).any(|slice| slice.recalled))
}

#[test]
fn rows_that_are_handed_on_are_not_counted_and_have_the_same_bytes() {
    for (half, factor) in halves() {
        for precision in Precision::ALL {
            let of = |delivery| half.task_for((precision, delivery), [2, 24 * factor, 13 * factor], 1);
            let (whole, rows) = (of(Delivery::Whole), of(Delivery::Rows { kept_per_pixel: 0 }));
            let [straight, by_rows] = [&whole, &rows].map(|task| plan(task, None).ok().unwrap());
            let bytes = |rows: usize| straight.output[1] * rows * straight.output[3] * size_of::<f32>();
            let saved = bytes(2 * straight.output[2]) - bytes(by_rows.strip_rows());
            let need = by_rows.summary().peak_bytes;
            assert_eq!(straight.summary().peak_bytes - need, saved);
            let [.., height, width] = straight.output;
            let (keeping, kept) = (of(Delivery::Rows { kept_per_pixel: 12 }), 12 * height * width);
            let beside = plan(&keeping, Some(need + kept)).ok().unwrap();
            assert_eq!(beside.summary().peak_bytes, need);
            match plan(&keeping, Some(need + kept - 1)) {
                Ok(smaller) => assert!(smaller.summary().peak_bytes < need),
                Err(shortage) => assert_eq!(shortage.need, need + kept),
            }
            let expected = half.run(&straight, 1);
            assert!(half.run_rows(&by_rows, 1) == expected);
            let Err(Shortage { smallest, .. }) = plan(&rows, Some(0)) else {
                panic!("nothing fits in nothing")
            };
            for budget in [smallest, usize::midpoint(smallest, need)] {
                let found = plan(&rows, Some(budget)).ok().unwrap();
                assert!(found.summary().peak_bytes <= budget);
                assert!(half.run_rows(&found, 1) == expected, "{} in {budget} bytes", precision.name());
            }
        }
    }
}

#[test]
fn a_batch_of_odd_sides_or_a_panorama_has_the_same_bytes_within_any_budget() {
    let halves = halves();
    let seen = RefCell::new(Seen::default());
    let config = ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() };
    let sides = prop_oneof![
        2 => (1usize..24, 1usize..24),
        1 => (1usize..3, 48usize..96),
        1 => (48usize..96, 1usize..3),
    ];
    proptest!(config, |(
        half in 0usize..8, sides in sides, batch in 1usize..4, fast in any::<bool>(),
        threads in 0usize..3, share in prop_oneof![1 => Just(0usize), 3 => 0usize..=100],
    )| {
        let (half, factor) = &halves[half];
        let precision = if fast { Precision::Fast } else { Precision::Exact };
        let task = half.batch_task(batch, [sides.0 * factor, sides.1 * factor], precision, threads);
        let straight = plan(&task, None).ok().unwrap();
        let smallest = plan(&task, Some(0)).map_or_else(|shortage| shortage.smallest, |_| 0);
        let need = straight.summary().peak_bytes;
        prop_assert!(0 < smallest && smallest <= need);
        let budget = smallest + (need - smallest) * share / 100;
        let found = plan(&task, Some(budget)).ok().unwrap();
        let summary = found.summary();
        prop_assert!(summary.peak_bytes <= budget && computing(&found) <= 3 * computing(&straight));
        prop_assert!(half.run(&found, threads) == half.run(&straight, threads));
        let mut seen = seen.borrow_mut();
        seen.by_steps += usize::from(found.reads_weights);
        seen.in_strips += usize::from(summary.flops > straight.summary().flops);
        seen.smallest += usize::from(share == 0);
        seen.panoramas += usize::from(sides.0.max(sides.1) >= 48);
        seen.batches += usize::from(batch > 1);
        seen.recalling += usize::from(recalls(&found));
    });
    let Seen { by_steps, in_strips, smallest, panoramas, batches, recalling } = seen.into_inner();
    assert!([by_steps, in_strips, smallest, panoramas, batches, recalling].iter().all(|cases| *cases > 0));
}
