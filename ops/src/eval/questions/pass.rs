//! Statistics of several replies to one question: pass@k, and the answer of the majority.
//!
//! Invariant: both are functions of the replies of one question alone.

/// The chance that at least one of `k` replies drawn without replacement from `n`, of which `right` are right, is right:
/// 1 - C(n - right, k) / C(n, k), which is unbiased for k <= n (Chen et al. 2021, arXiv 2107.03374, equation 1).
/// `None` for more replies than there are, or none.
pub fn pass_at(n: usize, right: usize, k: usize) -> Option<f64> {
    if k == 0 || k > n || right > n {
        return None;
    }
    if n - right < k {
        return Some(1.0);
    }
    if right == 0 {
        return Some(0.0);
    }
    // C(n - c, k) / C(n, k) as a product of factors below 1, so that nothing overflows
    let all_wrong: f64 = (n - right + 1..=n).map(|i| 1.0 - k as f64 / i as f64).product();
    Some(1.0 - all_wrong)
}

/// Which of the answers most replies give: its first place. Answers are grouped with the first one that they equal; of
/// groups of one size the earlier wins. `None` where no reply has an answer.
pub fn majority<'a>(answers: &[Option<&'a str>], mut equal: impl FnMut(&'a str, &'a str) -> bool) -> Option<usize> {
    let mut groups: Vec<(usize, &str, usize)> = Vec::new();
    // equal texts need no second comparison: replies repeat one another
    let mut known: std::collections::HashMap<&str, usize> = std::collections::HashMap::new();
    for (place, answer) in answers.iter().enumerate() {
        let Some(answer) = *answer else { continue };
        let group = match known.get(answer) {
            Some(group) => *group,
            None => {
                let found = groups.iter().position(|(_, first, _)| equal(first, answer));
                let group = found.unwrap_or(groups.len());
                if group == groups.len() {
                    groups.push((place, answer, 0));
                }
                known.insert(answer, group);
                group
            }
        };
        groups[group].2 += 1;
    }
    // max_by_key keeps the last of equals
    groups.iter().rev().max_by_key(|group| group.2).map(|group| group.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Share of the subsets of size k that hold one of the first `right` of n.
    fn by_counting(n: usize, right: usize, k: usize) -> f64 {
        let subsets: Vec<u32> = (0..1u32 << n).filter(|s| s.count_ones() as usize == k).collect();
        let hits = subsets.iter().filter(|s| **s & ((1 << right) - 1) != 0).count();
        hits as f64 / subsets.len() as f64
    }

    #[test]
    fn pass_at_k_is_the_share_of_subsets_that_hold_a_right_reply() {
        for n in 1..=9 {
            for right in 0..=n {
                for k in 1..=n {
                    let (found, counted) = (pass_at(n, right, k).unwrap(), by_counting(n, right, k));
                    assert!((found - counted).abs() < 1e-12, "n {n} right {right} k {k}: {found} is not {counted}");
                }
            }
        }
        assert_eq!((pass_at(4, 1, 5), pass_at(4, 1, 0), pass_at(0, 0, 1)), (None, None, None));
        let many = pass_at(10_000, 3, 5_000).unwrap();
        assert!((many - 0.875).abs() < 1e-3, "{many}");
    }

    #[test]
    fn the_majority_groups_equal_answers_and_the_earlier_group_wins_a_tie() {
        let same = |a: &str, b: &str| a.trim_start_matches('0') == b.trim_start_matches('0');
        let of = |answers: &[&str]| {
            let answers: Vec<Option<&str>> = answers.iter().map(|a| (*a != "-").then_some(*a)).collect();
            majority(&answers, same)
        };
        assert_eq!(of(&["1", "2", "02", "1", "2"]), Some(1));
        assert_eq!(of(&["3", "4", "04", "3"]), Some(0));
        assert_eq!(of(&["-", "-", "5", "-"]), Some(2));
        assert_eq!(of(&["-", "-"]), None);
    }
}
