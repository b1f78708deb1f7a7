//! Measures WebShop's catalogue: making, opening and searching it.
//!
//! `cargo run --release -p actloom-ops --example catalogue -- FOLDER PRODUCTS [SEARCHES]` makes up a catalogue of that
//! size in FOLDER, indexes it, opens it, and searches it with goals as people write them. What is in FOLDER already is
//! used again.
#![expect(clippy::print_stdout, reason = "a measurement is for reading")]

use std::time::Instant;

use actloom_ops::env::webshop::shelf::{self, Shelf};
use actloom_ops::env::webshop::{Files, GoalSource, Store, synthesize};
use camino::{Utf8Path, Utf8PathBuf};

/// Seconds that this thread computed: other programs of a busy machine do not count.
fn busy() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock is one that Linux has, and `time` is ours.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// Most memory that this process had at once, in MiB.
fn peak() -> f64 {
    let status = fs_err::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok()).unwrap_or(f64::NAN) / 1024.0
}

fn size(folder: &Utf8Path) -> std::io::Result<f64> {
    let mut bytes = 0;
    for entry in fs_err::read_dir(folder)? {
        bytes += entry?.metadata()?.len();
    }
    Ok(bytes as f64 / f64::from(1 << 20))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, products, rest @ ..] = arguments.as_slice() else {
        return Err("expected FOLDER PRODUCTS [SEARCHES]".into());
    };
    let products: u64 = products.parse()?;
    let searches: usize = rest.first().map_or(Ok(2000), |searches| searches.parse())?;
    let (raw, made, scratch) = ["raw", "catalogue", "scratch"].map(|name| Utf8PathBuf::from(folder).join(name)).into();
    for folder in [&raw, &made, &scratch] {
        fs_err::create_dir_all(folder)?;
    }
    if !raw.join("items_human_ins.json").exists() {
        let clock = Instant::now();
        synthesize::write(&raw, products, products.min(12_000), 7, |_| true)?;
        println!("written: {:.1} s, {:.0} MiB, peak {:.0} MiB", clock.elapsed().as_secs_f64(), size(&raw)?, peak());
    }
    if !made.join("catalogue.json").exists() {
        let threads = std::thread::available_parallelism()?.get();
        let clock = Instant::now();
        let mut read = 0.0;
        let built = shelf::stock(&Files::of(&raw)?, GoalSource::Human, &made, &scratch, threads, |doing, _| {
            if doing == shelf::Doing::Products {
                read = clock.elapsed().as_secs_f64();
            }
            true
        })?;
        let all = clock.elapsed().as_secs_f64();
        println!("indexed: {all:.1} s ({read:.1} s until all products are read), peak {:.0} MiB, {built:?}", peak());
    }
    println!("folder: {:.0} MiB", size(&made)?);
    let clock = Instant::now();
    let shelf = Shelf::open(&made)?;
    println!("opened: {:.1} ms", clock.elapsed().as_secs_f64() * 1e3);
    let goals = shelf.goals()?;
    let mut kinds: Vec<(&str, Vec<String>)> = vec![("goals", Vec::new()), ("some words", Vec::new())];
    for goal in goals.iter().cycle().take(searches) {
        kinds[0].1.push(goal.instruction_text.clone());
        let options = serde_json::to_string(&goal.goal_options)?;
        kinds[1].1.push(format!("{} {} {options}", goal.query, goal.attributes.join(" ")));
    }
    for (kind, texts) in kinds {
        let mut times = Vec::with_capacity(texts.len());
        let (mut words, mut found) = (0, 0);
        // the first round brings the file into memory
        for round in 0..2 {
            for text in &texts {
                let clock = busy();
                found += shelf.search(text, 50)?.len();
                if round == 1 {
                    times.push(((busy() - clock) * 1e3, text));
                    words += shelf::words(text).len();
                }
            }
        }
        times.sort_by(|a, b| a.0.total_cmp(&b.0));
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].0;
        println!(
            "{kind}: {} searches of {:.1} words, {:.1} hits: p50 {:.2} ms, p90 {:.2}, p99 {:.2}, most {:.2}",
            times.len(),
            words as f64 / times.len() as f64,
            found as f64 / 2.0 / times.len() as f64,
            at(0.5),
            at(0.9),
            at(0.99),
            at(1.0)
        );
        if let Some((_, text)) = times.last() {
            println!("  slowest: {text}");
        }
    }
    Ok(())
}
