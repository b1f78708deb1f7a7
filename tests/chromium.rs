//! The report in a browser. External: needs Chromium, and is passed over with a line where there is none, unless
//! `ACTLOOM_EXTERNAL=1` says that everything external is there.

use std::process::Command;

use crate::quickstart::ROWS;
use crate::support::{Place, Running, smoke};

/// Names under which systems install it.
const NAMES: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "chrome"];

/// Nothing but the page: no net, no profile of the user's, no first-run questions.
const FLAGS: [&str; 8] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
];

fn chromium() -> Option<&'static str> {
    let found = NAMES.into_iter().find(|name| Command::new(name).arg("--version").output().is_ok());
    let must = std::env::var("ACTLOOM_EXTERNAL").is_ok_and(|value| value == "1");
    assert!(found.is_some() || !must, "ACTLOOM_EXTERNAL=1 and there is no Chromium: looked for {NAMES:?}");
    if found.is_none() {
        eprintln!("skipped: there is no Chromium to draw the report");
    }
    found
}

fn open(name: &str, place: &Place, args: &[&str]) -> crate::support::Ran {
    let mut command = Command::new(name);
    command.args(FLAGS).arg(format!("--user-data-dir={}", place.path("profile").display())).args(args);
    command.arg(format!("file://{}", smoke().path("out/quickstart-smoke/report.html").display()));
    let ran = Running::start(command).finish();
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    ran
}

#[test]
fn a_browser_draws_the_report() {
    let Some(name) = chromium() else { return };
    let place = Place::new();
    let picture = place.path("report.png");
    let dom = open(name, &place, &["--dump-dom"]).stdout;
    for row in ROWS {
        let cell = format!(">{}<", row.replace('>', "&gt;"));
        assert!(dom.contains(&cell), "the page has no row `{row}`");
    }
    for part in ["<svg", "actloom quickstart", "</html>"] {
        assert!(dom.contains(part), "the page has no `{part}`");
    }
    open(name, &place, &["--window-size=1200,2400", &format!("--screenshot={}", picture.display())]);
    let png = std::fs::read(&picture).unwrap();
    assert!(png.starts_with(b"\x89PNG"));
    let side = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap());
    assert_eq!((side(16), side(20)), (1200, 2400));
    // An empty page of this size packs into a few kilobytes.
    assert!(png.len() > 40_000, "the picture has {} bytes: the page is empty", png.len());
}
