//! Exponential and logarithm in float64 from additions and multiplications alone.
//!
//! Invariant: a result depends on its argument and on nothing else; no mathematics library decides its last bit.

/// ln 2 in two parts; the first has 21 trailing zero bits, so that its product with an exponent is exact.
const LN_2_HIGH: f64 = 6.931_471_803_691_238e-1;
const LN_2_LOW: f64 = 1.908_214_929_270_587_7e-10;

/// 1 / n!, n = 13 down to 0.
const FACTORIALS: [f64; 14] = {
    let mut out = [1.0; 14];
    let (mut i, mut factorial) = (1, 1.0);
    while i < 14 {
        factorial *= i as f64;
        out[13 - i] = 1.0 / factorial;
        i += 1;
    }
    out
};

/// 2^k for -1022 <= k <= 1023.
fn power_of_two(k: i32) -> f64 {
    f64::from_bits(((k + 1023) as u64) << 52)
}

/// e^x, to about one unit in the last place; 1 exactly at 0, infinity where it overflows.
pub fn exp(x: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    if x > 709.8 {
        return f64::INFINITY;
    }
    if x < -745.2 {
        return 0.0;
    }
    // x = k ln 2 + r with |r| <= ln 2 / 2; the series' first term left out is below 1e-17
    let k = (x * std::f64::consts::LOG2_E).round();
    let r = (x - k * LN_2_HIGH) - k * LN_2_LOW;
    let series = FACTORIALS.iter().fold(0.0, |sum, f| sum * r + f);
    // two steps, for 2^k itself may be out of range where the result is not
    let (k, half) = (k as i32, k as i32 / 2);
    series * power_of_two(half) * power_of_two(k - half)
}

/// ln(1 + e^x) without overflow, and without losing what is left of it for very negative x.
pub fn softplus(x: f64) -> f64 {
    let t = exp(-x.abs()); // 0 < t <= 1
    // ln(1 + t) = 2 artanh(z), z = t / (2 + t) <= 1/3
    let z = t / (2.0 + t);
    let sum = (0..20).rev().fold(0.0, |sum, i| sum * z * z + 1.0 / f64::from(2 * i + 1));
    x.max(0.0) + 2.0 * z * sum
}

/// 1 / (1 + e^-x).
pub fn sigmoid(x: f64) -> f64 {
    let t = exp(-x.abs());
    if x >= 0.0 { 1.0 / (1.0 + t) } else { t / (1.0 + t) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() <= 4e-16 * b.abs().max(f64::MIN_POSITIVE)
    }

    #[test]
    fn the_exponential_is_that_of_the_library_to_two_units_in_the_last_place() {
        for i in -70_000..=70_900 {
            let x = f64::from(i) * 0.01 + 1e-5;
            assert!(close(exp(x), x.exp()), "{x}: {} and {}", exp(x), x.exp());
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!([exp(710.0), exp(f64::INFINITY)], [f64::INFINITY; 2]);
        assert_eq!([exp(-746.0), exp(f64::NEG_INFINITY)], [0.0; 2]);
        assert!(exp(-740.0) > 0.0, "a subnormal");
        assert!(exp(f64::NAN).is_nan());
    }

    #[test]
    fn softplus_and_sigmoid_hold_at_both_ends() {
        for i in -3000..=3000 {
            let x = f64::from(i) * 0.01;
            let want = x.max(0.0) + (-x.abs()).exp().ln_1p();
            assert!((softplus(x) - want).abs() <= 1e-15 * want, "{x}");
            assert!((sigmoid(x) + sigmoid(-x) - 1.0).abs() < 1e-15, "{x}");
        }
        assert_eq!((softplus(9000.0), softplus(-9000.0)), (9000.0, 0.0));
        assert!(softplus(-700.0) > 0.0);
        assert_eq!((sigmoid(9000.0), sigmoid(-9000.0)), (1.0, 0.0));
    }
}
