//! WebShop's search and its catalogue on disk: Lucene's scores, bytes that do not depend on threads, damage that is
//! noticed, made-up catalogues whose goals can be met.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::LazyLock;

use actloom_ops::env::webshop::shelf::{self, Builder, Shelf};
use actloom_ops::env::webshop::{Files, Goal, GoalSource, Product, Store, Wanted, product, synthesize};
use camino::{Utf8Path, Utf8PathBuf};
use flate2::Crc;
use proptest::prelude::*;
use serde_json::Value;

/// A folder that goes when the test ends.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    fn at(&self, name: &str) -> Utf8PathBuf {
        let path = Utf8Path::from_path(self.0.path()).unwrap().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }
}

fn contents(folder: &Utf8Path) -> BTreeMap<String, Vec<u8>> {
    let files = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    files.map(|f| (f.file_name().into_string().unwrap(), std::fs::read(f.path()).unwrap())).collect()
}

fn fixture(name: &str) -> String {
    std::fs::read_to_string(format!("{}/tests/fixtures/webshop/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// Products that are nothing but an asin and a text.
fn build(folder: &Folder, texts: &[(String, String)]) -> Shelf {
    let at = folder.at("catalogue");
    let mut builder = Builder::new(&at, &folder.at("scratch"), 2).unwrap();
    for (asin, text) in texts {
        let product = Product { asin: asin.clone(), title: text.clone(), ..Product::default() };
        builder.add(&product).unwrap();
    }
    builder.finish::<Goal>(&[], |_| true).unwrap();
    Shelf::open(&at).unwrap()
}

fn captured() -> Vec<(String, String)> {
    let row = |line: &str| {
        let row: Value = serde_json::from_str(line).unwrap();
        (row["id"].as_str().unwrap().to_owned(), row["contents"].as_str().unwrap().to_owned())
    };
    fixture("bm25_documents.jsonl").lines().map(row).collect()
}

/// A made-up catalogue that several tests read.
fn made(products: u64, goals: u64, threads: usize) -> (Folder, Utf8PathBuf) {
    let folder = Folder::new();
    let (raw, at) = (folder.at("raw"), folder.at("catalogue"));
    synthesize::write(&raw, products, goals, 3, |_| true).unwrap();
    let files = Files::of(&raw).unwrap();
    shelf::stock(&files, GoalSource::Human, &at, &folder.at("scratch"), threads, |_, _| true).unwrap();
    (folder, at)
}

static SMALL: LazyLock<BTreeMap<String, Vec<u8>>> = LazyLock::new(|| {
    let (_folder, at) = made(70, 20, 1);
    contents(&at)
});

#[test]
fn scores_and_order_are_those_of_lucene() {
    let folder = Folder::new();
    // the order of the file is not the order of equals
    let mut documents = captured();
    documents.reverse();
    let shelf = build(&folder, &documents);
    let topics = fixture("bm25_topics.tsv");
    let topics: HashMap<&str, &str> = topics.lines().map(|line| line.split_once('\t').unwrap()).collect();
    let mut want: BTreeMap<String, Vec<(String, f64)>> = BTreeMap::new();
    for line in fixture("bm25_run.txt").lines() {
        let [topic, _, asin, _, score, _] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
        want.entry(topic.to_owned()).or_default().push((asin.to_owned(), score.parse().unwrap()));
    }
    assert_eq!((topics.len(), want.len()), (6, 6));
    for (topic, hits) in want {
        let found = shelf.scored(topics[&*topic], 50).unwrap();
        assert_eq!(found.len(), hits.len());
        for ((product, score), (asin, lucene)) in found.into_iter().zip(hits) {
            assert_eq!(documents[product].0, asin, "topic {topic}");
            // four decimals, and nudges of a millionth between equals
            assert!((f64::from(score) - lucene).abs() < 1.2e-4, "topic {topic}: {asin} has {score}, not {lucene}");
        }
    }
}

#[test]
fn a_word_said_twice_counts_twice_and_words_that_nobody_has_count_nothing() {
    let folder = Folder::new();
    let shelf = build(&folder, &captured());
    let once = shelf.scored("lamp", 5).unwrap();
    let twice = shelf.scored("lamp the lamps", 5).unwrap();
    assert_eq!(once.len(), 5);
    for (once, twice) in once.iter().zip(&twice) {
        assert_eq!((once.0, once.1 * 2.0), (twice.0, twice.1));
    }
    assert_eq!(shelf.scored("zeppelin lamp", 5).unwrap(), once);
    for nothing in ["", "the of and", "zeppelin", "?!"] {
        assert_eq!(shelf.search(nothing, 50).unwrap(), Vec::<usize>::new(), "{nothing}");
    }
    assert_eq!(shelf.search("lamp", 0).unwrap(), Vec::<usize>::new());
    let long: String = (0..5000).map(|i| format!("w{i} lamp ")).collect();
    assert_eq!(shelf.search(&long, 5).unwrap().len(), 5);
}

#[test]
fn lengths_beyond_forty_are_coarse_and_equal_scores_go_by_asin() {
    let folder = Folder::new();
    // 56 and 57 words have one byte, 64 words another
    let text = |words: usize| format!("lamp{}", " filler".repeat(words - 1));
    let texts = [("C", 57), ("A", 64), ("B", 57), ("D", 56)].map(|(asin, words)| (asin.to_owned(), text(words)));
    let shelf = build(&folder, &texts);
    let found = shelf.scored("lamp", 10).unwrap();
    assert_eq!(found.iter().map(|f| &*texts[f.0].0).collect::<Vec<_>>(), ["B", "C", "D", "A"]);
    assert!(found[0].1 == found[2].1 && found[2].1 > found[3].1);
}

#[test]
fn bytes_do_not_depend_on_threads_and_products_come_back() {
    let (folder, one) = made(3000, 40, 1);
    let (_other, three) = made(3000, 40, 3);
    assert_eq!(contents(&one), contents(&three));
    let shelf = shelf::open(&one).unwrap();
    let mut number = 0;
    product::read(&Files::of(&folder.at("raw")).unwrap(), &mut |product| {
        assert_eq!(shelf.product(number)?, product);
        assert_eq!(shelf.find(&product.asin), Some(number));
        number += 1;
        Ok(())
    })
    .unwrap();
    assert_eq!((number, shelf.len()), (3000, 3000));
    for asin in ["", "B0", "B000000000", "ZZZZZZZZZZ", "\u{10ffff}"] {
        assert_eq!(shelf.find(asin), None);
    }
    assert!(shelf.product(3000).unwrap_err().to_string().contains("there is no product 3000"));
    assert!(shelf.product(usize::MAX).is_err());
}

#[test]
fn an_empty_catalogue_opens_and_an_asin_there_twice_is_refused() {
    let folder = Folder::new();
    let shelf = build(&folder, &[]);
    assert_eq!((shelf.len(), shelf.search("lamp", 5).unwrap().len(), shelf.goals().unwrap().len()), (0, 0, 0));
    let mut builder = Builder::new(&folder.at("twice"), &folder.at("scratch"), 1).unwrap();
    for _ in 0..2 {
        builder.add(&Product { asin: "B1".to_owned(), ..Product::default() }).unwrap();
    }
    let error = builder.finish::<Goal>(&[], |_| true).unwrap_err();
    assert_eq!(error.to_string(), "the asin `B1` is there twice, expected one product of each");
}

#[test]
fn goals_of_a_made_up_catalogue_can_be_met_and_its_products_found() {
    let (_folder, at) = made(4000, 300, 2);
    let shelf = shelf::open(&at).unwrap();
    let goals = shelf.goals().unwrap();
    assert_eq!(goals.len(), 300);
    let mut found = 0;
    for goal in &goals {
        let product = shelf.product(shelf.find(&goal.asin).unwrap()).unwrap();
        assert!(!goal.attributes.is_empty() && product.price <= goal.price_upper, "{goal:?}");
        let text = format!("{} {} {}", product.title, product.bullets.join(" "), product.description).to_lowercase();
        for attribute in &goal.attributes {
            assert!(product.attributes.contains(attribute) && text.contains(attribute), "{attribute} of {goal:?}");
        }
        let Wanted::Values(values) = &goal.goal_options else { panic!("{goal:?}") };
        for value in values {
            assert!(product.options.iter().any(|(_, all)| all.contains(value)), "{value} of {goal:?}");
            assert!(goal.instruction_text.contains(value), "{value} of {goal:?}");
        }
        let hits = shelf.search(&goal.instruction_text, 50).unwrap();
        found += usize::from(hits.iter().any(|hit| shelf.product(*hit).unwrap().asin == goal.asin));
    }
    // near-duplicates make it no matter of course
    assert!((100..300).contains(&found), "{found} of 300 goals are among the first 50 hits of their own words");
}

#[test]
fn made_up_catalogues_are_functions_of_their_seed_and_differ_in_what_shoppers_see() {
    let folder = Folder::new();
    let made = |name: &str, seed| {
        synthesize::write(&folder.at(name), 2000, 50, seed, |_| true).unwrap();
        contents(&folder.at(name))
    };
    let first = made("a", 1);
    assert_eq!(first, made("b", 1));
    assert_ne!(first, made("c", 2));
    let mut products: Vec<Product> = Vec::new();
    product::read(&Files::of(&folder.at("a")).unwrap(), &mut |product| {
        products.push(product);
        Ok(())
    })
    .unwrap();
    let count = |of: &dyn Fn(&Product) -> String| products.iter().map(of).collect::<HashSet<_>>().len();
    assert_eq!(products.len(), 2000, "an asin is there twice");
    assert_eq!(count(&|p| p.category.clone()), 5);
    assert!(count(&|p| p.query.clone()) > 60);
    assert!(count(&|p| p.title.clone()) > 1500);
    let prices = |n: usize| products.iter().filter(|p| p.pricing.len() == n).count();
    assert!(prices(1) > 1000 && prices(2) > 300, "{} {}", prices(1), prices(2));
    assert!(products.iter().filter(|p| p.price_text == "$100.0").count() > 100);
    assert!(products.iter().any(|p| p.options.iter().flat_map(|o| &o.1).any(|v| v.contains(" | "))));
}

#[test]
fn a_stop_ends_the_work() {
    let folder = Folder::new();
    let stopped = synthesize::write(&folder.at("raw"), 5000, 5, 1, |done| done < 2000).unwrap_err();
    assert!(matches!(stopped, actloom_ops::env::EnvError::Io(why) if why.kind() == std::io::ErrorKind::Interrupted));
    synthesize::write(&folder.at("raw"), 5000, 5, 1, |_| true).unwrap();
    let files = Files::of(&folder.at("raw")).unwrap();
    for until in [shelf::Doing::Products, shelf::Doing::Words] {
        let going = |doing, _| doing != until;
        let (at, scratch) = (folder.at("catalogue"), folder.at("scratch"));
        let stopped = shelf::stock(&files, GoalSource::Human, &at, &scratch, 2, going).unwrap_err();
        assert!(
            matches!(stopped, actloom_ops::env::EnvError::Io(why) if why.kind() == std::io::ErrorKind::Interrupted)
        );
        assert!(shelf::open(&at).is_err(), "a catalogue that is not finished opens");
    }
}

/// Does all that one can with a folder; damage must be an error, or nothing that matters.
fn use_all(at: &Utf8Path) -> Result<(), String> {
    let said = |e: actloom_ops::env::EnvError| e.to_string();
    let shelf = shelf::open(at).map_err(said)?;
    let mut wrong = None;
    for words in ["easy clean lamp", "women black size color", "free", "product b of long lasting made for the gym"] {
        match shelf.search(words, 50) {
            Ok(hits) => assert!(hits.iter().all(|hit| *hit < shelf.len())),
            Err(why) => wrong = Some(said(why)),
        }
    }
    for index in 0..shelf.len().min(100) {
        match shelf.product(index) {
            Ok(product) => drop(shelf.find(&product.asin)),
            Err(why) => wrong = Some(said(why)),
        }
    }
    shelf.goals().map_err(said)?;
    wrong.map_or(Ok(()), Err)
}

fn lay(folder: &Folder, files: &BTreeMap<String, Vec<u8>>) -> Utf8PathBuf {
    let at = folder.at("changed");
    for (name, bytes) in files {
        std::fs::write(at.join(name), bytes).unwrap();
    }
    at
}

fn crc(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// Makes the header say what the files are: what somebody would do who wants to deceive.
fn sign(files: &mut BTreeMap<String, Vec<u8>>) {
    let text = String::from_utf8(files["catalogue.json"].clone()).unwrap();
    let mut header: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    for (name, bytes) in files.iter().filter(|(name, _)| *name != "catalogue.json") {
        let part = &mut header["parts"][name];
        part["bytes"] = bytes.len().into();
        if part.get("crc32").is_some() {
            part["crc32"] = crc(bytes).into();
        }
    }
    let line = header.to_string();
    files.insert("catalogue.json".to_owned(), format!("{line}\n{:08x}\n", crc(line.as_bytes())).into_bytes());
}

#[test]
fn what_is_missing_cut_off_or_of_another_version_is_named() {
    let folder = Folder::new();
    assert_eq!(use_all(&lay(&folder, &SMALL)), Ok(()));
    let says = |files: &BTreeMap<String, Vec<u8>>, want: &str| {
        let folder = Folder::new();
        let why = use_all(&lay(&folder, files)).unwrap_err();
        assert!(why.contains(want), "{why}");
    };
    for name in SMALL.keys() {
        let mut files = SMALL.clone();
        let bytes = files.remove(name).unwrap();
        says(&files, name);
        files.insert(name.clone(), bytes[..bytes.len() - 1].to_vec());
        says(&files, if name == "catalogue.json" { "checksum" } else { name });
    }
    let mut files = SMALL.clone();
    let text = String::from_utf8(files["catalogue.json"].clone()).unwrap().replacen("\"v\":1", "\"v\":2", 1);
    files.insert("catalogue.json".to_owned(), text.into_bytes());
    says(&files, "has version 2, expected 1");
    files.insert("catalogue.json".to_owned(), vec![b'['; 1 << 20]);
    says(&files, "expected at most 65536");
}

fn damage() -> impl Strategy<Value = (usize, Vec<(prop::sample::Index, u8)>, Option<prop::sample::Index>)> {
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6);
    (0..SMALL.len(), changes, prop::option::weighted(0.2, any::<prop::sample::Index>()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_file_that_was_changed_is_an_error((which, changes, cut) in damage()) {
        let mut files = SMALL.clone();
        let (name, bytes) = files.iter_mut().nth(which).unwrap();
        let before = bytes.clone();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let (changed, name) = (*bytes != before, name.clone());
        let folder = Folder::new();
        let used = use_all(&lay(&folder, &files));
        // postings have no checksum of their own: the words that were searched may be other ones
        if changed && name != "postings" && !before.ends_with(b"\n") {
            prop_assert!(used.is_err(), "{name}");
        }
    }

    #[test]
    fn a_file_made_to_deceive_never_panics((which, changes, cut) in damage()) {
        let mut files = SMALL.clone();
        let (name, bytes) = files.iter_mut().nth(which).unwrap();
        if name != "catalogue.json" {
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if let Some(cut) = cut {
                let width = if name.ends_with(".index") { 8 } else { 1 };
                bytes.truncate(cut.index(bytes.len()) / width * width);
            }
            sign(&mut files);
        }
        let folder = Folder::new();
        let _ = use_all(&lay(&folder, &files));
    }

    #[test]
    fn numbers_of_a_header_made_to_deceive_never_panic(
        field in prop::sample::select(vec!["products", "goals", "texts", "words", "terms"]),
        value in prop_oneof![Just(0), Just(1), Just(u64::MAX), Just(1 << 32), any::<u64>(), 0u64..100],
    ) {
        let mut files = SMALL.clone();
        let text = String::from_utf8(files["catalogue.json"].clone()).unwrap();
        let mut header: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        header[field] = value.into();
        let line = header.to_string();
        files.insert("catalogue.json".to_owned(), format!("{line}\n{:08x}\n", crc(line.as_bytes())).into_bytes());
        let folder = Folder::new();
        let _ = use_all(&lay(&folder, &files));
    }
}
