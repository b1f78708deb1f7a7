//! The expert that knows everything: a shortest plan, by A* over what matters for the goal.
//!
//! Invariants: plans are shortest (the estimate never exceeds the true cost, and only actions that no shortest plan
//! needs are left out); equal states give equal plans; a goal that cannot be reached ends the search.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use super::goal::{Aim, TaskKind};
use super::world::{Action, Set, State, World, has, members, only};

/// States that are looked at before the search gives up: the largest rooms need some thousands, and one that cannot be
/// solved would have millions, every set of open doors being another.
const MOST: usize = 50_000;

/// What tells states apart for the goal's sake.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    at: usize,
    held: Option<usize>,
    opened: Set,
    /// The goal's objects by receptacle, receptacles without any left out.
    inside: Vec<(usize, Set)>,
    /// Treated as the goal asks, or switched on.
    done: Set,
}

struct Node {
    state: State,
    /// Steps so far.
    cost: u32,
    /// The node before, and the action from there to here.
    from: Option<(usize, Action)>,
}

/// A shortest list of actions to the goal; `None` where there is none, or none within [`MOST`] states. Empty where the goal holds.
pub(super) fn shortest(world: &World, start: &State, aim: &Aim) -> Option<Vec<Action>> {
    let mut nodes = vec![Node { state: start.clone(), cost: 0, from: None }];
    let mut best: HashMap<Key, u32> = HashMap::from([(key(start, aim), 0)]);
    let mut open = BinaryHeap::from([(Reverse((estimate(world, start, aim), Reverse(0), 0)))]);
    while let Some(Reverse((_, _, index))) = open.pop() {
        let (state, cost) = (nodes[index].state.clone(), nodes[index].cost);
        if aim.holds(world, &state) {
            let mut plan = Vec::new();
            let mut at = index;
            while let Some((before, action)) = nodes[at].from {
                plan.push(action);
                at = before;
            }
            plan.reverse();
            return Some(plan);
        }
        if best[&key(&state, aim)] < cost {
            continue;
        }
        let matters = relevant(world, &state, aim);
        for action in world.actions(&state) {
            let helps = match action {
                Action::Go(r) | Action::Open(r) => has(matters, r),
                Action::Take { object, .. } => has(aim.objects, object),
                Action::Move { object, to } => !has(aim.objects, object) || has(aim.receptacles, to),
                Action::Treat { how, object, .. } => {
                    aim.kind.treatment() == Some(how) && has(aim.objects & !state.treated(how), object)
                }
                Action::Use(lamp) => has(aim.lamps & !state.toggled, lamp),
                _ => false,
            };
            if !helps {
                continue;
            }
            let mut next = state.clone();
            world.apply(&mut next, action);
            let cost = cost + 1;
            let known = best.entry(key(&next, aim)).or_insert(u32::MAX);
            if cost < *known {
                if nodes.len() == MOST {
                    return None;
                }
                *known = cost;
                let total = cost + estimate(world, &next, aim);
                open.push(Reverse((total, Reverse(cost), nodes.len())));
                nodes.push(Node { state: next, cost, from: Some((index, action)) });
            }
        }
    }
    None
}

fn key(state: &State, aim: &Aim) -> Key {
    let inside = state.inside.iter().enumerate().map(|(r, set)| (r, set & (aim.objects | aim.lamps)));
    let done = aim.kind.treatment().map_or(state.toggled & aim.lamps, |how| state.treated(how) & aim.objects);
    Key {
        at: state.at,
        held: state.held,
        opened: state.opened,
        inside: inside.filter(|(_, set)| *set != 0).collect(),
        done,
    }
}

/// Receptacles worth going to: they hold what the goal is about, or take it, or treat it, or take what is in the way.
fn relevant(world: &World, state: &State, aim: &Aim) -> Set {
    let about = aim.objects | aim.lamps;
    let holding = (0..state.inside.len()).filter(|&r| state.inside[r] & about != 0).fold(0, |set, r| set | only(r));
    let appliances = aim.kind.treatment().map_or(0, |how| world.appliances(how));
    let in_the_way = state.held.filter(|&o| !has(aim.objects, o));
    let takes = in_the_way
        .map_or(0, |o| (0..world.accepts.len()).filter(|&r| has(world.accepts[r], o)).fold(0, |set, r| set | only(r)));
    holding | aim.receptacles | appliances | takes
}

/// Steps that are surely still needed.
fn estimate(world: &World, state: &State, aim: &Aim) -> u32 {
    if aim.holds(world, state) {
        return 0;
    }
    let held = state.held.is_some_and(|o| has(aim.objects, o));
    let in_the_way = u32::from(state.held.is_some() && !held);
    let take = u32::from(!held);
    let elsewhere = |set: Set| u32::from(set & world.here[state.at] == 0);
    match aim.kind {
        TaskKind::LookAtObjInLight => {
            let switch = u32::from(state.toggled & aim.lamps == 0);
            in_the_way + take + switch.max(u32::from(held))
        }
        TaskKind::PickTwoObjAndPlace => {
            let most = members(aim.receptacles).map(|r| (state.inside[r] & aim.objects).count_ones()).max();
            let missing = 2 - most.unwrap_or(0).min(2);
            // Each missing one is moved, all but a held one are taken, and between two moves lie two ways.
            in_the_way + 2 * missing - u32::from(held) + if held { elsewhere(aim.receptacles) } else { 0 }
        }
        kind => {
            let untreated = kind.treatment().filter(|&how| state.treated(how) & aim.objects == 0);
            let treat = u32::from(untreated.is_some());
            let way = match (held, untreated) {
                (true, Some(how)) => elsewhere(world.appliances(how)),
                (true, None) => elsewhere(aim.receptacles),
                (false, _) => 0,
            };
            in_the_way + take + treat + way + 1
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashSet, VecDeque};

    use super::super::{Settings, Size, Split, tasks};
    use super::*;

    /// The length of a shortest plan, by trying everything.
    fn breadth_first(world: &World, start: &State, aim: &Aim) -> Option<usize> {
        let mut seen = HashSet::from([start.clone()]);
        let mut open = VecDeque::from([(start.clone(), 0)]);
        while let Some((state, cost)) = open.pop_front() {
            if aim.holds(world, &state) {
                return Some(cost);
            }
            for action in world.actions(&state) {
                let mut next = state.clone();
                world.apply(&mut next, action);
                next.left.fill(0);
                if seen.insert(next.clone()) {
                    open.push_back((next, cost + 1));
                }
            }
        }
        None
    }

    #[test]
    fn plans_are_as_short_as_those_found_by_trying_everything() {
        let mut checked = 0;
        for split in [Split::Train, Split::Ood] {
            for task in tasks(&Settings { size: Size::Tiny, ..Settings::default() }, split, 60, 21) {
                let aim = task.goal.aim(&task.world);
                // Also from a state in which the hands are full of something.
                let mut full = State::clone(&task.start);
                let hidden = (0..full.inside.len()).rev().find(|&r| full.inside[r] != 0).unwrap();
                let object = members(full.inside[hidden] & task.world.abilities.pickupable).next();
                full.at = task.world.receptacles[hidden].location;
                full.opened |= only(hidden);
                if let Some(object) = object {
                    task.world.apply(&mut full, Action::Take { object, from: hidden });
                }
                for start in [State::clone(&task.start), full] {
                    let plan = shortest(&task.world, &start, &aim).unwrap();
                    if plan.len() <= 5 {
                        assert_eq!(Some(plan.len()), breadth_first(&task.world, &start, &aim), "{:?}", task.task);
                        checked += 1;
                    }
                }
            }
        }
        assert!(checked >= 60, "only {checked} compared");
    }

    #[test]
    fn what_cannot_be_reached_has_no_plan() {
        let task = &tasks(&Settings::default(), Split::Train, 1, 0)[0];
        let mut aim = task.goal.aim(&task.world);
        aim.receptacles = 0;
        assert_eq!(shortest(&task.world, &task.start, &aim), None);
    }
}
