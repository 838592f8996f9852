//! Whatever memory is saved by, the bytes stay.

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use remote_vae_kernels::Isa;
use remote_vae_model::{Graph, Model, Start, random};

use super::{Search, Shortage, plan};
use crate::groups::Means;
use crate::plan::{Plan, Task};
use crate::{Control, CpuEngine, Engine, EngineOptions, Precision, Program};

struct Half {
    graph: Graph,
    programs: Vec<Arc<dyn Program>>,
    threads: Vec<usize>,
}

impl Half {
    fn new(model: &Model, decoder: bool) -> Half {
        let graph = if decoder { model.decoder().unwrap() } else { model.encoder().unwrap() };
        let threads = vec![1, 2, 7];
        let program = |threads| -> Arc<dyn Program> {
            let options = EngineOptions { threads: Some(threads), ..EngineOptions::default() };
            CpuEngine::new(options).unwrap().load(graph, model.weights()).unwrap().into()
        };
        Half {
            graph: graph.clone(),
            programs: threads.iter().map(|count| program(*count)).collect(),
            threads,
        }
    }

    fn task(&self, [height, width]: [usize; 2], precision: Precision, threads: usize) -> Task<'_> {
        let input = [1, self.graph.input_channels(), 1, height, width];
        Task::new(&self.graph, input, Start::Clip, precision, Isa::detect(), self.threads[threads]).unwrap()
    }

    fn run(&self, plan: &Plan, threads: usize) -> Vec<u32> {
        let input = random::normal(3, plan.input.iter().product());
        let output = self.programs[threads].run(plan, &input, &Control::new()).unwrap();
        output.iter().map(|value| value.to_bits()).collect()
    }
}

/// Both halves of a model like Stable Diffusion's and of one like TAESD.
fn halves() -> Vec<(Half, usize)> {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny");
    let (kl, tiny) = (Model::embedded().unwrap(), Model::open(&tiny).unwrap());
    [&kl, &tiny]
        .into_iter()
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
        half in 0usize..4, sides in (2usize..9, 1usize..9), fast in any::<bool>(), threads in 0usize..3,
        streamed in any::<u64>(), rarely in any::<u64>(), overwritten in any::<u64>(),
        strip_pixels in prop_oneof![Just(1usize), 1usize..2000],
    )| {
        let (half, factor) = &halves[half];
        let precision = if fast { Precision::Fast } else { Precision::Exact };
        let task = half.task([sides.0 * factor, sides.1 * factor], precision, threads);
        let plain = Plan::new(&task, &Means::default());
        let search = Search::new(&task);
        let means = Means {
            streamed: chosen(search.streamable.iter().copied(), streamed & rarely).collect(),
            overwritten: chosen(0..half.graph.nodes.len(), overwritten).collect(),
            strip_pixels,
        };
        let saving = Plan::new(&task, &means);
        prop_assert!(half.run(&saving, threads) == half.run(&plain, threads), "{means:?}");
    });
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
            let mut flops = u64::MAX;
            for part in 0..5 {
                let budget = smallest + (need - smallest) * part / 4;
                let found = plan(&task, Some(budget)).ok().unwrap();
                let summary = found.summary();
                assert!(summary.peak_bytes <= budget, "{} of {budget}", summary.peak_bytes);
                assert!(summary.flops <= flops, "more memory, more work: {} after {flops}", summary.flops);
                flops = summary.flops;
                assert!(half.run(&found, 1) == expected, "{} in {budget} bytes", precision.name());
            }
            assert_eq!(flops, straight.summary().flops);
            assert!(plan(&task, Some(smallest - 1)).is_err());
        }
    }
}
