//! The scheduler's state machine against a model that recomputes everything from scratch.

use actloom_engine::op::Resources;
use actloom_engine::schedule::{Schedule, State, ancestors, topological};
use proptest::prelude::*;

/// A random acyclic graph: node `i` depends on nodes before it.
fn dags() -> impl Strategy<Value = Vec<Vec<usize>>> {
    (1usize..14).prop_flat_map(|count| {
        let rows: Vec<_> = (0..count)
            .map(|node| {
                proptest::collection::vec(any::<prop::sample::Index>(), 0..=node.min(3)).prop_map(move |picks| {
                    let mut sources: Vec<usize> = picks.iter().map(|pick| pick.index(node)).collect();
                    sources.sort();
                    sources.dedup();
                    sources
                })
            })
            .collect();
        rows
    })
}

/// What the machine should say, worked out naively from the nodes' ends.
struct Model {
    dependencies: Vec<Vec<usize>>,
    wanted: Vec<bool>,
    needs: Vec<Resources>,
    capacity: Resources,
    /// What happened to each node itself, if anything.
    told: Vec<Option<State>>,
    stopped: Vec<bool>,
}

impl Model {
    fn state(&self, node: usize) -> State {
        if !self.wanted[node] {
            return State::Unwanted;
        }
        if let Some(state) = self.told[node] {
            return state;
        }
        let sources = || self.dependencies[node].iter().map(|&s| self.state(s));
        if self.stopped[node] || sources().any(|s| matches!(s, State::Failed | State::Skipped | State::Interrupted)) {
            State::Skipped
        } else if sources().all(State::has_result) {
            State::Ready
        } else {
            State::Want
        }
    }

    /// Nodes on the longest chain that begins here, counting wanted dependents only.
    fn chain(&self, node: usize) -> usize {
        let dependents = (0..self.wanted.len()).filter(|&d| self.wanted[d] && self.dependencies[d].contains(&node));
        1 + dependents.map(|d| self.chain(d)).max().unwrap_or(0)
    }

    fn need(&self, node: usize) -> Resources {
        Resources { cpu: self.needs[node].cpu.min(self.capacity.cpu), gpu: self.needs[node].gpu }
    }

    fn free(&self) -> (i64, i64) {
        let running = (0..self.wanted.len()).filter(|&n| self.state(n) == State::Running);
        running.fold((i64::from(self.capacity.cpu), i64::from(self.capacity.gpu)), |(cpu, gpu), n| {
            (cpu - i64::from(self.need(n).cpu), gpu - i64::from(self.need(n).gpu))
        })
    }

    /// The node to start: best first, where each that does not fit keeps its share.
    fn startable(&self) -> Option<usize> {
        let mut queue: Vec<usize> = (0..self.wanted.len()).filter(|&n| self.state(n) == State::Queued).collect();
        queue.sort_by_key(|&n| (usize::MAX - self.chain(n), n));
        let (mut cpu, mut gpu) = self.free();
        for node in queue {
            cpu -= i64::from(self.need(node).cpu);
            gpu -= i64::from(self.need(node).gpu);
            if cpu >= 0 && gpu >= 0 {
                return Some(node);
            }
            (cpu, gpu) = (cpu.max(0), gpu.max(0));
        }
        None
    }
}

fn check(schedule: &Schedule, model: &Model) -> Result<(), TestCaseError> {
    for node in 0..model.wanted.len() {
        prop_assert_eq!(schedule.state(node), model.state(node), "node {}", node);
    }
    let (cpu, gpu) = model.free();
    prop_assert!(cpu >= 0 && gpu >= 0, "more runs than the run has");
    prop_assert_eq!((i64::from(schedule.free().cpu), i64::from(schedule.free().gpu)), (cpu, gpu));
    let finished = (0..model.wanted.len()).all(|n| model.state(n).is_final());
    prop_assert_eq!(schedule.is_finished(), finished);
    let active = (0..model.wanted.len()).any(|n| matches!(model.state(n), State::Running | State::Waiting));
    prop_assert_eq!(schedule.is_active(), active);
    Ok(())
}

proptest! {
    #[test]
    fn the_machine_agrees_with_a_naive_model(
        dependencies in dags(),
        goals in proptest::collection::vec(any::<prop::sample::Index>(), 1..4),
        needs in proptest::collection::vec((1u32..5, 0u32..2), 14),
        cpu in 1u32..5,
        choices in proptest::collection::vec((0u8..20, any::<prop::sample::Index>()), 0..120),
    ) {
        let count = dependencies.len();
        let wanted = ancestors(&dependencies, goals.iter().map(|g| g.index(count)));
        let needs: Vec<Resources> = needs[..count].iter().map(|&(cpu, gpu)| Resources { cpu, gpu }).collect();
        let capacity = Resources { cpu, gpu: 1 };
        let mut schedule = Schedule::new(&dependencies, &needs, &wanted, capacity);
        let mut model = Model {
            dependencies, wanted, needs, capacity, told: vec![None; count], stopped: vec![false; count],
        };
        check(&schedule, &model)?;
        for (choice, pick) in choices {
            let inside = |state: State, model: &Model| -> Option<usize> {
                let nodes: Vec<usize> = (0..count).filter(|&n| model.state(n) == state).collect();
                (!nodes.is_empty()).then(|| nodes[pick.index(nodes.len())])
            };
            let before: Vec<State> = (0..count).map(|n| model.state(n)).collect();
            let mut reported = None;
            match choice {
                0..=7 => {
                    let Some(node) = schedule.ready() else { continue };
                    prop_assert_eq!(model.state(node), State::Ready);
                    match choice {
                        0 | 1 => { schedule.reuse(node); model.told[node] = Some(State::Reused); }
                        2 => { reported = Some(schedule.fail(node)); model.told[node] = Some(State::Failed); }
                        _ => { schedule.queue(node); model.told[node] = Some(State::Queued); }
                    }
                }
                8..=12 => {
                    let expected = model.startable();
                    prop_assert_eq!(schedule.start(), expected);
                    if let Some(node) = expected { model.told[node] = Some(State::Running); }
                }
                13 => {
                    let Some(node) = inside(State::Waiting, &model) else { continue };
                    schedule.wake(node);
                    model.told[node] = None;
                }
                19 if pick.index(5) == 0 => {
                    reported = Some(schedule.stop());
                    for (node, state) in before.iter().enumerate() {
                        if matches!(state, State::Want | State::Ready | State::Queued) {
                            model.stopped[node] = true;
                            model.told[node] = None;
                        }
                    }
                }
                _ => {
                    let Some(node) = inside(State::Running, &model) else { continue };
                    let state = match choice {
                        14 | 15 => { schedule.publish(node); State::Published }
                        16 => { reported = Some(schedule.fail(node)); State::Failed }
                        17 => { schedule.wait(node); State::Waiting }
                        18 => { reported = Some(schedule.interrupt(node)); State::Interrupted }
                        _ => { schedule.reuse(node); State::Reused }
                    };
                    model.told[node] = Some(state);
                }
            }
            check(&schedule, &model)?;
            let skipped: Vec<usize> =
                (0..count).filter(|&n| model.state(n) == State::Skipped && before[n] != State::Skipped).collect();
            prop_assert_eq!(reported.unwrap_or_default(), skipped);
        }
    }

    #[test]
    fn a_run_in_which_nothing_fails_runs_everything_wanted(
        dependencies in dags(),
        needs in proptest::collection::vec((1u32..9, 0u32..2), 14),
        cpu in 1u32..5,
    ) {
        let count = dependencies.len();
        let needs: Vec<Resources> = needs[..count].iter().map(|&(cpu, gpu)| Resources { cpu, gpu }).collect();
        let mut schedule = Schedule::new(&dependencies, &needs, &vec![true; count], Resources { cpu, gpu: 1 });
        let mut running = Vec::new();
        while !schedule.is_finished() {
            while let Some(node) = schedule.ready() { schedule.queue(node); }
            while let Some(node) = schedule.start() { running.push(node); }
            prop_assert!(!running.is_empty(), "nothing runs and nothing can");
            schedule.publish(running.remove(0));
        }
        prop_assert!((0..count).all(|n| schedule.state(n) == State::Published));
    }

    #[test]
    fn topological_order_is_the_first_in_graph_order_that_respects_dependencies(dependencies in dags()) {
        let order = topological(&dependencies);
        // Nodes of these graphs depend on earlier ones, so graph order itself is topological and the smallest.
        prop_assert_eq!(order, (0..dependencies.len()).collect::<Vec<_>>());
    }
}

#[test]
fn the_longest_chain_starts_first_and_a_wide_step_is_not_starved() {
    // 0 is alone; 1 -> 2 -> 3; 4 is wide.
    let dependencies = vec![vec![], vec![], vec![1], vec![2], vec![]];
    let needs: Vec<Resources> = [1, 1, 1, 1, 9].map(|cpu| Resources { cpu, gpu: 0 }).into();
    let mut schedule = Schedule::new(&dependencies, &needs, &[true; 5], Resources { cpu: 2, gpu: 0 });
    while let Some(node) = schedule.ready() {
        schedule.queue(node);
    }
    assert_eq!(schedule.start(), Some(1));
    assert_eq!(schedule.start(), Some(0));
    assert_eq!(schedule.start(), None);
    schedule.publish(1);
    schedule.queue(2);
    assert_eq!(schedule.start(), Some(2), "its chain is longer than that of the wide step");
    schedule.publish(0);
    schedule.publish(2);
    schedule.queue(schedule.ready().unwrap());
    // 3 and 4 have equal chains; 3 comes first in graph order, then the wide one takes the whole machine.
    assert_eq!(schedule.start(), Some(3));
    assert_eq!(schedule.start(), None);
    schedule.publish(3);
    assert_eq!(schedule.start(), Some(4));
    assert_eq!(schedule.free(), Resources { cpu: 0, gpu: 0 });
}

#[test]
#[should_panic(expected = "BUG: node 0 cannot go from Ready to Published")]
fn a_transition_that_is_not_drawn_panics() {
    Schedule::new(&[vec![]], &[Resources::default()], &[true], Resources::default()).publish(0);
}
