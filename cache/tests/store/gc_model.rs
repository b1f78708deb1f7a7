//! Planning of gc against a model that recomputes everything at every step.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use actloom_cache::gc::{ActionEntry, GcPlan, Inventory, Policy, References, ScratchEntry, StageEntry, decide};
use actloom_cache::{ActionKey, ContentId};
use jiff::Timestamp;
use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;

const NOW: i64 = 1_700_000_000;

fn object() -> impl Strategy<Value = ContentId> {
    (0..8u8).prop_map(|n| ContentId::of_file(&[n]))
}

fn tree() -> impl Strategy<Value = ContentId> {
    (0..4u8).prop_map(|n| ContentId::of_tree(&[n]))
}

fn key() -> impl Strategy<Value = ActionKey> {
    (0..8u8).prop_map(|n| ActionKey::of(&[n]))
}

/// Few hours, so that ages often tie; one lies in the future, as clocks do.
fn time() -> impl Strategy<Value = Timestamp> {
    (-1..6i64).prop_map(|hours| Timestamp::from_second(NOW - 3600 * hours).unwrap())
}

fn references() -> impl Strategy<Value = References> {
    (btree_set(object(), 0..4), btree_set(tree(), 0..3)).prop_map(|(objects, trees)| References { objects, trees })
}

fn entry() -> impl Strategy<Value = ActionEntry> {
    (time(), 0..5u64, references()).prop_map(|(last_used, bytes, refers)| ActionEntry { last_used, bytes, refers })
}

prop_compose! {
    /// Some references point at nothing, some things are referred to by nothing.
    fn inventory()(
        actions in btree_map(key(), entry(), 0..8),
        objects in btree_map(object(), 0..100u64, 0..8),
        trees in btree_map(tree(), 0..10u64, 0..4),
        stages in vec(0..50u64, 0..3),
        scratch in btree_map(key(), (time(), 0..50u64), 0..4),
        pinned in references(),
        pinned_actions in btree_set(key(), 0..2),
    ) -> Inventory {
        Inventory {
            now: Timestamp::from_second(NOW).unwrap(),
            actions,
            objects,
            trees,
            stages: stages.into_iter().map(|bytes| StageEntry { name: format!("dead.{bytes}"), bytes }).collect(),
            scratch: scratch.into_iter().map(|(key, (modified, bytes))| ScratchEntry { key, modified, bytes }).collect(),
            pinned,
            pinned_actions,
        }
    }
}

prop_compose! {
    fn policy()(
        max_bytes in proptest::option::of(0..400u64),
        max_age in proptest::option::of((0..6u64).prop_map(|hours| Duration::from_secs(3600 * hours))),
        keep in btree_set(key(), 0..3),
    ) -> Policy {
        Policy { max_bytes, max_age, keep }
    }
}

/// The bytes of what some actions and the pins need, and what that is.
fn needs(all: &Inventory, actions: &BTreeSet<ActionKey>) -> (u64, References) {
    let mut refers = all.pinned.clone();
    for key in actions {
        refers.objects.extend(&all.actions[key].refers.objects);
        refers.trees.extend(&all.actions[key].refers.trees);
    }
    let sum = |sizes: &BTreeMap<ContentId, u64>, ids: &BTreeSet<ContentId>| -> u64 {
        sizes.iter().filter(|(id, _)| ids.contains(id)).map(|(_, bytes)| bytes).sum()
    };
    let records: u64 = actions.iter().map(|key| all.actions[key].bytes).sum();
    (records + sum(&all.objects, &refers.objects) + sum(&all.trees, &refers.trees), refers)
}

fn old(all: &Inventory, policy: &Policy, then: Timestamp) -> bool {
    policy.max_age.is_some_and(|max| all.now.as_second() - then.as_second() > max.as_secs() as i64)
}

/// Which actions stay, one removal after the other.
fn model(all: &Inventory, policy: &Policy) -> BTreeSet<ActionKey> {
    let safe = |key: &ActionKey| policy.keep.contains(key) || all.pinned_actions.contains(key);
    let mut stay: BTreeSet<ActionKey> = all.actions.keys().copied().collect();
    stay.retain(|key| safe(key) || !old(all, policy, all.actions[key].last_used));
    while policy.max_bytes.is_some_and(|max| needs(all, &stay).0 > max) {
        let oldest =
            stay.iter().filter(|key| !safe(key)).min_by_key(|key| (all.actions[key].last_used, **key)).copied();
        let Some(oldest) = oldest else { break };
        stay.remove(&oldest);
    }
    stay
}

fn ids(plan: &[ContentId]) -> BTreeSet<ContentId> {
    plan.iter().copied().collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_plan_is_what_the_model_says(all in inventory(), policy in policy()) {
        let plan = decide(&all, &policy);
        let stay = model(&all, &policy);
        let (bytes, needed) = needs(&all, &stay);

        let go: BTreeSet<ActionKey> = plan.actions.iter().map(|doomed| doomed.key).collect();
        prop_assert_eq!(&go, &all.actions.keys().filter(|key| !stay.contains(key)).copied().collect());
        prop_assert_eq!(ids(&plan.objects), all.objects.keys().filter(|id| !needed.objects.contains(id)).copied().collect());
        prop_assert_eq!(ids(&plan.trees), all.trees.keys().filter(|id| !needed.trees.contains(id)).copied().collect());
        prop_assert_eq!(&plan.stages, &all.stages);
        prop_assert_eq!(plan.keeps, bytes);
        prop_assert!(plan.actions.is_sorted_by_key(|doomed| (doomed.last_used, doomed.key)));
        for entry in &all.scratch {
            let published = all.actions.contains_key(&entry.key);
            let goes = published || (old(&all, &policy, entry.modified) && !policy.keep.contains(&entry.key));
            prop_assert_eq!(plan.scratch.contains(entry), goes);
        }

        // Everything is either freed or kept.
        let whole: u64 = all.actions.values().map(|entry| entry.bytes)
            .chain(all.objects.values().copied())
            .chain(all.trees.values().copied())
            .chain(all.stages.iter().map(|entry| entry.bytes))
            .chain(plan.scratch.iter().map(|entry| entry.bytes))
            .sum();
        prop_assert_eq!(plan.frees + plan.keeps, whole);
    }

    #[test]
    fn after_a_plan_there_is_nothing_left_to_plan(all in inventory(), policy in policy()) {
        let plan = decide(&all, &policy);
        let mut rest = all;
        rest.actions.retain(|key, _| !plan.actions.iter().any(|doomed| doomed.key == *key));
        rest.objects.retain(|id, _| !plan.objects.contains(id));
        rest.trees.retain(|id, _| !plan.trees.contains(id));
        rest.stages.clear();
        rest.scratch.retain(|entry| !plan.scratch.contains(entry));
        prop_assert_eq!(decide(&rest, &policy), GcPlan { keeps: plan.keeps, ..GcPlan::default() });
    }
}
