//! Every recipe shown in the book parses and resolves with this program's ops.
//!
//! A `toml` block is a whole recipe (fragments are marked `text`); a first line `# NAME.toml` names its file, so that
//! one block of a page may extend another.

#![expect(clippy::unwrap_used, reason = "a test that cannot read the docs should stop")]

use std::path::{Path, PathBuf};

use actloom_engine::recipe::{Overrides, parse};
use actloom_engine::resolve::resolve;
use camino::Utf8PathBuf;

fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let book = std::fs::read_dir(root.join("docs/src")).unwrap().map(|entry| entry.unwrap().path());
    let mut pages: Vec<PathBuf> = book.filter(|p| p.extension().is_some_and(|e| e == "md")).collect();
    pages.sort();
    pages
}

#[test]
fn every_recipe_in_the_docs_resolves() {
    let registry = actloom_ops::registry::registry();
    let mut count = 0;
    for page in pages() {
        let folder = tempfile::tempdir().unwrap();
        let text = std::fs::read_to_string(&page).unwrap();
        let mut files = Vec::new();
        for (index, rest) in text.split("```toml\n").skip(1).enumerate() {
            let block = rest.split("```").next().unwrap();
            let named = block.lines().next().and_then(|line| line.strip_prefix("# "));
            let name = match named.filter(|name| name.ends_with(".toml") && !name.contains(' ')) {
                Some(name) => name.to_owned(),
                None => format!("block-{index}.toml"),
            };
            let path = Utf8PathBuf::from_path_buf(folder.path().join(name)).unwrap();
            std::fs::write(&path, block).unwrap();
            files.push(path);
        }
        for path in files {
            let recipe = parse(&path, &Overrides::default());
            let graph = recipe.and_then(|recipe| resolve(&recipe, &registry));
            // a reader's own files are not here
            let wrong = graph.err().filter(|wrong| wrong.located().iter().any(|d| d.code != "missing-file"));
            if let Some(wrong) = wrong {
                panic!("{}, {}: {:#?}", page.display(), path.file_name().unwrap(), wrong.located());
            }
            count += 1;
        }
    }
    assert!(count >= 10, "only {count} recipes were found in the docs");
}
