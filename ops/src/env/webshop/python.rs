//! What the original's results owe to Python itself: its random numbers, its spaces, how it prints floats and texts.
//!
//! Invariants: [`Random`] gives what CPython's `random` module gives after `random.seed(n)`, so that goals come in the
//! original's order; Matsumoto and Nishimura, "Mersenne Twister", 1998.

const N: usize = 624;
const M: usize = 397;

/// CPython's generator: MT19937 with its ways of drawing.
#[derive(Clone)]
pub struct Random {
    state: [u32; N],
    used: usize,
}

impl Random {
    /// `random.seed(seed)`
    pub fn seeded(seed: u64) -> Random {
        let key = match (seed as u32, (seed >> 32) as u32) {
            (low, 0) => vec![low],
            (low, high) => vec![low, high],
        };
        let mut state = [0u32; N];
        state[0] = 19_650_218;
        for i in 1..N {
            state[i] = 1_812_433_253u32.wrapping_mul(state[i - 1] ^ (state[i - 1] >> 30)).wrapping_add(i as u32);
        }
        let (mut i, mut j) = (1, 0);
        for _ in 0..N.max(key.len()) {
            let mixed = (state[i - 1] ^ (state[i - 1] >> 30)).wrapping_mul(1_664_525);
            state[i] = (state[i] ^ mixed).wrapping_add(key[j]).wrapping_add(j as u32);
            i += 1;
            j = (j + 1) % key.len();
            if i == N {
                state[0] = state[N - 1];
                i = 1;
            }
        }
        for _ in 0..N - 1 {
            let mixed = (state[i - 1] ^ (state[i - 1] >> 30)).wrapping_mul(1_566_083_941);
            state[i] = (state[i] ^ mixed).wrapping_sub(i as u32);
            i += 1;
            if i == N {
                state[0] = state[N - 1];
                i = 1;
            }
        }
        state[0] = 0x8000_0000;
        Random { state, used: N }
    }

    fn next(&mut self) -> u32 {
        if self.used == N {
            for i in 0..N {
                let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7FFF_FFFF);
                let twist = if y & 1 == 1 { 0x9908_B0DF } else { 0 };
                self.state[i] = self.state[(i + M) % N] ^ (y >> 1) ^ twist;
            }
            self.used = 0;
        }
        let mut y = self.state[self.used];
        self.used += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9D2C_5680;
        y ^= (y << 15) & 0xEFC6_0000;
        y ^ (y >> 18)
    }

    /// `random.random()`
    pub fn random(&mut self) -> f64 {
        let (a, b) = (self.next() >> 5, self.next() >> 6);
        (f64::from(a) * 67_108_864.0 + f64::from(b)) / 9_007_199_254_740_992.0
    }

    /// `random.uniform(a, b)`
    pub fn uniform(&mut self, a: f64, b: f64) -> f64 {
        a + (b - a) * self.random()
    }

    /// `random.randrange(n)`, for `n` from 1 to 2^32 - 1.
    pub fn below(&mut self, n: u32) -> u32 {
        let bits = 32 - n.leading_zeros();
        loop {
            let drawn = self.next() >> (32 - bits);
            if drawn < n {
                return drawn;
            }
        }
    }

    /// `random.shuffle(list)`
    pub fn shuffle<T>(&mut self, list: &mut [T]) {
        for i in (1..list.len()).rev() {
            list.swap(i, self.below(i as u32 + 1) as usize);
        }
    }

    /// `random.sample(list, 2)` of a list of 2 to 21, in the order drawn.
    pub fn pair<T: Copy>(&mut self, list: &[T]) -> (T, T) {
        let first = self.below(list.len() as u32) as usize;
        let second = self.below(list.len() as u32 - 1) as usize;
        // what was drawn gives its place to the last one
        (list[first], if second == first { list[list.len() - 1] } else { list[second] })
    }
}

/// `str.isspace` of one character.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// `str.strip()`
pub fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// `repr` of a float that is finite.
pub fn float(x: f64) -> String {
    let size = x.abs();
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        let text = format!("{x:e}");
        return match text.split_once('e') {
            Some((digits, power)) => {
                let (sign, power) = power.strip_prefix('-').map_or(('+', power), |p| ('-', p));
                format!("{digits}e{sign}{power:0>2}")
            }
            None => text,
        };
    }
    let text = format!("{x}");
    if text.contains('.') { text } else { text + ".0" }
}

/// `repr` of a text.
pub fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ if c == quote => {
                out.push('\\');
                out.push(c);
            }
            _ if printable(c) => out.push(c),
            _ => match u32::from(c) {
                n @ 0..=0xFF => out.push_str(&format!("\\x{n:02x}")),
                n @ 0..=0xFFFF => out.push_str(&format!("\\u{n:04x}")),
                n => out.push_str(&format!("\\U{n:08x}")),
            },
        }
    }
    out.push(quote);
    out
}

/// `str.isprintable` of one character: neither a separator but the space, nor anything unassigned or of control.
fn printable(c: char) -> bool {
    // behind a letter, as marks that join what stands before them are printable but not by themselves
    let mut two = [0u8; 5];
    two[0] = b'a';
    let len = c.encode_utf8(&mut two[1..]).len();
    match std::str::from_utf8(&two[..=len]) {
        Ok(text) => c == '"' || c == '\'' || text.escape_debug().count() == 2,
        Err(_) => false,
    }
}

/// `json.dumps` of a text: ASCII only. `html` also hides what a page must not hold, as Flask does.
pub fn json(text: &str, html: bool) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '<' | '>' | '&' | '\'' if html => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            ' '..='\x7f' => out.push(c),
            _ => {
                for unit in c.encode_utf16(&mut [0u16; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_printed_as_python_prints_them() {
        for (x, text) in [
            (100.0, "100.0"),
            (5.99, "5.99"),
            (0.0, "0.0"),
            (2.0 / 3.0, "0.6666666666666666"),
            (1e16, "1e+16"),
            (1.5e22, "1.5e+22"),
            (1e15, "1000000000000000.0"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1e-100, "1e-100"),
        ] {
            assert_eq!(float(x), text);
        }
    }

    #[test]
    fn texts_are_quoted_as_python_quotes_them() {
        for (text, there) in [
            ("size", "'size'"),
            ("women's", "\"women's\""),
            ("5' 6\"", "'5\\' 6\"'"),
            ("a\\b\n", "'a\\\\b\\n'"),
            ("caf\u{e9} \u{a0}\u{200e}", "'caf\u{e9} \\xa0\\u200e'"),
            ("\u{7}\u{e0001}", "'\\x07\\U000e0001'"),
            ("e\u{301}", "'e\u{301}'"),
        ] {
            assert_eq!(quoted(text), there);
        }
    }

    #[test]
    fn json_is_ascii_and_a_page_of_it_holds_no_markup() {
        assert_eq!(json("b\u{e9}<'\u{1f600}", false), "\"b\\u00e9<'\\ud83d\\ude00\"");
        assert_eq!(json("<'", true), "\"\\u003c\\u0027\"");
        let hard = "\u{0}\u{7f}\u{2028}\"\\/";
        assert_eq!(serde_json::from_str::<String>(&json(hard, true)).unwrap(), hard);
    }
}
