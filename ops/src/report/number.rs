//! Numbers and names of metrics as people read them.
//!
//! Invariants: the decimals depend on the metric alone, so a column lines up; zero has no sign.

use crate::eval::table::is_share;

/// What a metric is counted in, where it is not a share; empty for plain numbers.
pub fn unit(metric: &str) -> &'static str {
    match metric {
        "loss" | "entropy" | "entropy_sampled" | "kl" | "logp_gap" | "logp_gap_mean" => "nats",
        "length" => "tokens",
        _ => "",
    }
}

/// A number without `-0.0`.
fn fixed(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    match text.strip_prefix('-') {
        Some(rest) if rest.chars().all(|c| c == '0' || c == '.') => rest.to_owned(),
        _ => text,
    }
}

fn scaled(metric: &str, value: f64, percent: bool) -> (f64, usize) {
    if is_share(metric) && percent {
        (value * 100.0, 1)
    } else if metric.starts_with("steps") {
        (value, 1)
    } else {
        (value, 3)
    }
}

/// A metric's value: `23.5` for a share of 0.235 in percent.
pub fn metric(name: &str, value: f64, percent: bool) -> String {
    let (value, decimals) = scaled(name, value, percent);
    fixed(value, decimals)
}

/// A difference of a metric: `+1.2`, `-0.4`, `0.0`.
pub fn signed(name: &str, value: f64, percent: bool) -> String {
    let text = metric(name, value, percent);
    let zero = text.chars().all(|c| c == '0' || c == '.');
    if zero || text.starts_with('-') { text } else { format!("+{text}") }
}

/// `success (%)`.
pub fn titled(metric: &str, percent: bool) -> String {
    match unit(metric) {
        _ if is_share(metric) && percent => format!("{metric} (%)"),
        "" => metric.to_owned(),
        unit => format!("{metric} ({unit})"),
    }
}

/// `success (percentage points)`.
pub fn titled_difference(metric: &str, percent: bool) -> String {
    if is_share(metric) && percent { format!("{metric} (percentage points)") } else { titled(metric, percent) }
}

/// `1 episode`, `160 episodes`.
pub fn counted(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// A number of unknown size in at most `digits` significant digits: `0.000300`, `1.25`, `3.9e6`.
pub fn short(value: f64, digits: usize) -> String {
    if value == 0.0 || !value.is_finite() {
        return fixed(value, 0);
    }
    let magnitude = value.abs().log10().floor() as i32;
    if !(-4..6).contains(&magnitude) {
        let text = format!("{value:.*e}", digits.saturating_sub(1));
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        return format!("{}e{exponent}", trimmed(mantissa));
    }
    let decimals = (digits as i32 - 1 - magnitude).max(0) as usize;
    trimmed(&fixed(value, decimals)).to_owned()
}

/// Without zeros that say nothing.
fn trimmed(text: &str) -> &str {
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_percents_with_one_decimal_and_steps_are_steps() {
        assert_eq!(metric("success", 0.2349, true), "23.5");
        assert_eq!(metric("success", 0.2349, false), "0.235");
        assert_eq!(metric("critic_accuracy", 1.0, true), "100.0");
        assert_eq!(metric("steps", 6.55, true), "6.5");
        assert_eq!(metric("critic_margin", 1.25, true), "1.250");
    }

    #[test]
    fn differences_carry_a_sign_unless_they_are_zero() {
        assert_eq!(signed("success", 0.012, true), "+1.2");
        assert_eq!(signed("success", -0.012, true), "-1.2");
        assert_eq!(signed("success", -0.0001, true), "0.0");
    }

    #[test]
    fn titles_carry_units() {
        assert_eq!(titled("success", true), "success (%)");
        assert_eq!(titled("success", false), "success");
        assert_eq!(titled("loss", true), "loss (nats)");
        assert_eq!(titled_difference("success", true), "success (percentage points)");
    }

    #[test]
    fn short_numbers_keep_what_matters() {
        assert_eq!(short(0.0, 3), "0");
        assert_eq!(short(1.0, 3), "1");
        assert_eq!(short(0.000_3, 3), "0.0003");
        assert_eq!(short(-12.345, 3), "-12.3");
        assert_eq!(short(123_456.0, 3), "123456");
        assert_eq!(short(3_900_000.0, 3), "3.9e6");
        assert_eq!(short(0.000_012_5, 3), "1.25e-5");
    }
}
