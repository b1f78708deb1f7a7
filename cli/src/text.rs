//! Numbers as people read them, and back.
//!
//! Invariant: sizes are decimal (1 kB = 1000 bytes), as disks are sold and file managers show them.

use std::time::Duration;

use comfy_table::{Table, presets};
use jiff::Timestamp;

/// `85 ms`, `12.3 s`, `3m 05s`, `2h 07m`, `3d 02h`.
pub fn duration(d: Duration) -> String {
    let seconds = d.as_secs();
    match seconds {
        _ if d < Duration::from_millis(9995) / 10 => format!("{} ms", (d.as_secs_f64() * 1000.0).round()),
        0..60 => format!("{:.1} s", d.as_secs_f64()),
        60..3600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h {:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d {:02}h", seconds / 86400, seconds % 86400 / 3600),
    }
}

/// `0 B`, `999 B`, `1.2 kB`, `34 MB`.
pub fn bytes(n: u64) -> String {
    scaled(n as f64, &["B", "kB", "MB", "GB", "TB", "PB"], " ")
}

/// `12`, `1.2k`, `34M`; for speeds.
pub fn count(x: f64) -> String {
    if x < 10.0 { format!("{x:.1}") } else { scaled(x, &["", "k", "M", "G", "T", "P"], "") }
}

fn scaled(mut x: f64, units: &[&str], space: &str) -> String {
    let mut unit = 0;
    // What would print as `1000` belongs to the next unit.
    while x >= 999.5 && unit + 1 < units.len() {
        x /= 1000.0;
        unit += 1;
    }
    let digits = usize::from(unit > 0 && x < 9.95);
    format!("{x:.digits$}{space}{}", units[unit])
}

/// `1 step`, `3 steps`.
pub fn counted(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// A moment without parts of its second; other text as it is.
pub fn time(text: &str) -> String {
    match text.parse::<Timestamp>() {
        Ok(time) => format!("{time:.0}"),
        Err(_) => text.to_owned(),
    }
}

/// `20G`, `500 MB`, `1.5TiB`: decimal, unless an `i` says otherwise.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text).ok_or("expected a size like `20G` or `500MB`")?;
    let unit = unit.trim_end_matches(['b', 'B']);
    let (unit, base) = unit.strip_suffix('i').map_or((unit, 1000.0f64), |unit| (unit, 1024.0));
    let power = match unit {
        "" => 0,
        "k" | "K" => 1,
        "m" | "M" => 2,
        "g" | "G" => 3,
        "t" | "T" => 4,
        _ => return Err(format!("`{unit}` is no unit of size, expected `k`, `M`, `G` or `T`")),
    };
    Ok((number * base.powi(power)) as u64)
}

/// `30d`, `12h`, `90m`, `1w`.
pub fn parse_age(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text).ok_or("expected a time like `30d` or `12h`")?;
    let seconds = match unit {
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86400.0,
        "w" => 604_800.0,
        _ => return Err(format!("`{unit}` is no unit of time, expected `s`, `m`, `h`, `d` or `w`")),
    };
    Duration::try_from_secs_f64(number * seconds).map_err(|_| "that is longer than time is kept".to_owned())
}

fn split(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number = text[..end].parse().ok()?;
    Some((number, text[end..].trim()))
}

/// A table without lines, as tools print them.
pub fn columns(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.iter().copied());
    for row in rows {
        table.add_row(row);
    }
    let text = table.to_string();
    let lines: Vec<&str> = text.lines().map(|line| line.strip_prefix(' ').unwrap_or(line).trim_end()).collect();
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_read_well_at_every_scale() {
        let ms = |n| duration(Duration::from_millis(n));
        assert_eq!([ms(0), ms(85), ms(999), ms(1_000)], ["0 ms", "85 ms", "999 ms", "1.0 s"]);
        assert_eq!([ms(12_345), ms(185_000), ms(7_620_000)], ["12.3 s", "3m 05s", "2h 07m"]);
        assert_eq!(duration(Duration::from_secs(266_400)), "3d 02h");
        assert_eq!([0, 999, 1_000, 34_400_000, 999_600].map(bytes), ["0 B", "999 B", "1.0 kB", "34 MB", "1.0 MB"]);
        assert_eq!([0.25, 12.0, 1_234.0].map(count), ["0.2", "12", "1.2k"]);
    }

    #[test]
    fn times_end_with_their_second_and_counts_agree_with_their_word() {
        assert_eq!(time("2026-01-02T03:04:05.987654321Z"), "2026-01-02T03:04:05Z");
        assert_eq!(time("three days"), "three days");
        assert_eq!([0, 1, 2].map(|n| counted(n, "step")), ["0 steps", "1 step", "2 steps"]);
    }

    #[test]
    fn sizes_and_ages_parse() {
        assert_eq!(parse_bytes("20G"), Ok(20_000_000_000));
        assert_eq!(parse_bytes("1.5 kiB"), Ok(1536));
        assert_eq!(parse_bytes("7"), Ok(7));
        assert!(["", "G", "5X", "-1G"].iter().all(|text| parse_bytes(text).is_err()));
        assert_eq!(parse_age("1.5h"), Ok(Duration::from_secs(5400)));
        assert!(["", "3", "3y", "1e99w"].iter().all(|text| parse_age(text).is_err()));
    }
}
