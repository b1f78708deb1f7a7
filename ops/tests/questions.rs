//! The evaluations on questions: files by every reader, both ops end to end. `equality.rs` has equal answers.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its fixtures should stop")]

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actloom_engine::event::OpEvent;
use actloom_engine::op::{DeviceRequest, InputArtifact, OpContext, OpError, OpSink};
use actloom_engine::stop::Stop;
use actloom_ops::eval::questions::math::equal;
use actloom_ops::eval::questions::table::{Column, Table, read};
use actloom_ops::eval::scores::Scores;
use actloom_ops::op::exam::{Answered, Ended};
use actloom_ops::registry::registry;
use camino::{Utf8Path, Utf8PathBuf};
use flate2::Compression as Level;
use flate2::write::GzEncoder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use proptest::prelude::*;
use serde_json::{Value, json};

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Files {
        Files(tempfile::tempdir().unwrap())
    }

    fn write(&self, bytes: &[u8]) -> Utf8PathBuf {
        // a name without an extension: content decides
        let path = Utf8PathBuf::from_path_buf(self.0.path().join("file")).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn read(&self, bytes: &[u8]) -> Result<Table, String> {
        let wanted = [["problem", "question"], ["answer", "result"]].map(|names| Column { names: names.to_vec() });
        read(&self.write(bytes), &wanted).map_err(|e| e.to_string())
    }
}

fn fixture(name: &str) -> Utf8PathBuf {
    Utf8PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/questions").join(name)
}

fn arithmetic() -> Utf8PathBuf {
    Utf8PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../recipes/data/arithmetic.jsonl")
}

/// A Parquet file of texts; `None` is null.
fn parquet(columns: &[(&str, &[Option<&str>])], codec: Compression) -> Vec<u8> {
    let fields: String = columns.iter().map(|(name, _)| format!("OPTIONAL BYTE_ARRAY {name} (UTF8); ")).collect();
    let schema = Arc::new(parse_message_type(&format!("message questions {{ {fields} }}")).unwrap());
    let properties = Arc::new(WriterProperties::builder().set_compression(codec).build());
    let mut bytes = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, properties).unwrap();
    let mut group = writer.next_row_group().unwrap();
    for (_, cells) in columns {
        let mut column = group.next_column().unwrap().unwrap();
        let values: Vec<ByteArray> = cells.iter().flatten().map(|s| ByteArray::from(*s)).collect();
        let levels: Vec<i16> = cells.iter().map(|c| i16::from(c.is_some())).collect();
        column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
    bytes
}

fn sample_parquet(codec: Compression) -> Vec<u8> {
    let long = "what is two and two? ".repeat(50);
    let problems = [Some(long.as_str()), Some("b"), Some("c")];
    parquet(&[("problem", &problems), ("answer", &[Some("4"), None, Some("5")]), ("other", &[Some("x"); 3])], codec)
}

#[test]
fn the_same_rows_are_read_from_every_format() {
    let files = Files::new();
    let lines = "\n{\"problem\": \"a, \\\"b\\\"\", \"answer\": 4, \"other\": {\"deep\": [1]}}\r\n\n{\"answer\": null, \"problem\": \"c\"}\n";
    let array = "\u{feff} [{\"problem\": \"a, \\\"b\\\"\", \"answer\": 4}, {\"other\": [[]], \"problem\": \"c\"}]";
    let csv = "\u{feff}problem,other,answer\r\n\"a, \"\"b\"\"\",x,4\r\nc,,\r\n";
    let tabs = "other\tproblem\tresult\nx\t\"a, \"\"b\"\"\"\t4\n\tc\t\n";
    let expected = vec![vec![Some("a, \"b\"".to_owned()), Some("4".to_owned())], vec![Some("c".to_owned()), None]];
    for text in [lines, array, csv, tabs] {
        assert_eq!(files.read(text.as_bytes()).unwrap().rows, expected, "{text}");
    }
    for codec in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(Default::default()),
        Compression::ZSTD(ZstdLevel::default()),
    ] {
        let bytes = parquet(
            &[("other", &[None, None]), ("problem", &[Some("a, \"b\""), Some("c")]), ("answer", &[Some("4"), None])],
            codec,
        );
        assert_eq!(files.read(&bytes).unwrap().rows, expected, "{codec:?}");
    }
}

#[test]
fn errors_name_file_row_and_column_and_what_is_wrong() {
    let files = Files::new();
    let mut zipped = GzEncoder::new(Vec::new(), Level::fast());
    zipped.write_all(b"{\"problem\": 1}").unwrap();
    let mut brotli = sample_parquet(Compression::UNCOMPRESSED);
    let name = b"\x07problem\x15\x00";
    let place = brotli.windows(name.len()).rposition(|w| w == name).unwrap();
    brotli[place + name.len() - 1] = 8;
    let whole = sample_parquet(Compression::SNAPPY);
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (b"".to_vec(), "it is empty"),
        (b" \n ".to_vec(), "it is empty"),
        (b"[]".to_vec(), "it holds no row"),
        (b"problem,answer\n".to_vec(), "it holds no row, and as columns `problem`, `answer`"),
        (
            b"{\"problem\": \"a\"}\n{\"problem\": [1]}\n".to_vec(),
            "line 2: invalid type: sequence, expected a text or a number in the column `problem`",
        ),
        (b"{\"problem\": \"a\"}\n{\"problem\": \"a\"".to_vec(), "line 2: EOF"),
        (b"{\"problem\": \"a\"} {}\n".to_vec(), "line 1: trailing characters"),
        (b"{\"problem\": \"a\", \"problem\": \"b\"}\n".to_vec(), "line 1: the column `problem` is there twice"),
        (
            b"{\"answer\": 123456789012345678901234567890}\n".to_vec(),
            "line 1: a number of the column `answer` is too large",
        ),
        (b"[{\"problem\": \"a\"}, 5]".to_vec(), "item 2: invalid type: integer `5`, expected an object"),
        (b"[{\"problem\": \"a\"}] x".to_vec(), "trailing characters"),
        (b"problem,answer\na,1\nb\n".to_vec(), "the record at line 3 has 1 cells, expected 2"),
        (b"problem,problem\na,1\n".to_vec(), "the column `problem` is there twice"),
        (b"problem,answer\na,\xFF\xFE\n".to_vec(), "row 1, column `answer`: the text is no UTF-8"),
        (b"\x00\x01\x02\x03 binary".to_vec(), "it is no text"),
        (b"PAR1".to_vec(), "it is cut off"),
        (whole[..whole.len() - 3].to_vec(), "it does not end as Parquet does"),
        (brotli, "the column `problem` is compressed with BROTLI"),
        (zipped.finish().unwrap(), "it is compressed"),
    ];
    for (bytes, expected) in cases {
        let error = files.read(&bytes).unwrap_err();
        assert!(
            error.starts_with("cannot read questions from `") && error.contains(expected),
            "{error}\nexpected {expected}"
        );
    }
    let folder = Utf8PathBuf::from_path_buf(files.0.path().to_owned()).unwrap();
    assert!(read(&folder, &[]).unwrap_err().to_string().ends_with("it is a folder"));
}

#[test]
fn deep_and_long_json_is_refused_and_not_kept() {
    let files = Files::new();
    let deep = format!("{{\"problem\": {}", "[".repeat(200_000));
    let unwanted = format!("{{\"other\": {}", "[".repeat(200_000));
    let array = "[".repeat(200_000);
    for text in [deep, unwanted, array] {
        assert!(files.read(text.as_bytes()).is_err());
    }
    let long = format!("{{\"problem\": \"{}\"}}", "a".repeat(5 << 20));
    assert!(files.read(long.as_bytes()).unwrap_err().contains("is longer than 4 MiB"));
}

#[test]
fn a_page_that_declares_gigabytes_is_refused_before_it_is_unpacked() {
    let files = Files::new();
    let bytes = sample_parquet(Compression::SNAPPY);
    // the first page header begins after the magic: type, then the unpacked size as a zigzag varint of two bytes
    assert_eq!(&bytes[4..5], &[0x15]);
    let place = 4 + 3;
    let mut hostile = bytes[..place].to_vec();
    hostile.extend([0xFE, 0xFF, 0xFF, 0xFF, 0x0F]);
    hostile.extend(&bytes[place + 2..]);
    let error = files.read(&hostile).unwrap_err();
    assert!(error.contains("malformed"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn mutated_files_of_every_format_are_read_or_refused(
        format in 0usize..7,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..4), 1..8),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let files = Files::new();
        let mut bytes = match format {
            0 => std::fs::read(arithmetic()).unwrap(),
            1 => std::fs::read(fixture("worked.json")).unwrap(),
            2 => std::fs::read(fixture("options.csv")).unwrap(),
            3 => sample_parquet(Compression::UNCOMPRESSED),
            4 => sample_parquet(Compression::SNAPPY),
            5 => sample_parquet(Compression::GZIP(Default::default())),
            _ => sample_parquet(Compression::ZSTD(ZstdLevel::default())),
        };
        for (place, byte, how) in edits {
            let at = place.index(bytes.len());
            match how {
                0 => bytes[at] = byte,
                1 => bytes[at] ^= 1 << (byte % 8),
                2 => bytes.insert(at, byte),
                _ => drop(bytes.remove(at)),
            }
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()) + 1);
        }
        let clock = Instant::now();
        match files.read(&bytes) {
            Ok(table) => prop_assert!(!table.rows.is_empty()),
            Err(error) => prop_assert!(error.starts_with("cannot read questions from `"), "{}", error),
        }
        prop_assert!(clock.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn random_bytes_with_and_without_a_known_beginning_are_read_or_refused(
        start in prop::sample::select(vec!["", "PAR1", "[", "{", "[{\"problem\":", "{\"answer\":", "a,b\n", "\u{feff}"]),
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        end in prop::sample::select(vec!["", "PAR1", "]", "}"]),
    ) {
        let files = Files::new();
        let all = [start.as_bytes(), &bytes, end.as_bytes()].concat();
        if let Err(error) = files.read(&all) {
            prop_assert!(error.starts_with("cannot read questions from `"), "{}", error);
        }
    }
}

// --- the ops

struct Silent;

impl OpSink for Silent {
    fn event(&self, _: OpEvent) {}

    fn resume_metrics(&self, _: u64) -> std::io::Result<()> {
        Ok(())
    }
}

struct Bench(tempfile::TempDir);

impl Bench {
    fn new() -> Bench {
        Bench(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> Utf8PathBuf {
        Utf8PathBuf::from_path_buf(self.0.path().join(name)).unwrap()
    }

    fn run(&self, op: &str, params: Value, inputs: &[(&str, &Utf8Path)], name: &str) -> Result<(), OpError> {
        let registry = registry();
        let op = registry.get(op).unwrap();
        let params = op.canonical(&params).unwrap();
        let (out, scratch) = (self.path(name), self.path(&format!("{name}-scratch")));
        std::fs::create_dir_all(&out).unwrap();
        std::fs::create_dir_all(&scratch).unwrap();
        let artifact =
            |path: &Utf8Path| InputArtifact { path: path.to_owned(), step: String::new(), labels: BTreeMap::new() };
        let inputs = inputs.iter().map(|(port, path)| ((*port).to_owned(), vec![artifact(path)])).collect();
        let outputs = op.ports(&params).outputs.iter().map(|o| (o.name.to_owned(), out.join(o.name))).collect();
        let stop = Stop::new();
        let mut ctx = OpContext::new(inputs, outputs, scratch, 7, DeviceRequest::Cpu, Vec::new(), &Silent, &stop);
        op.run(&params, &mut ctx)
    }

    /// A tiny model that has learned to answer the same to everything.
    fn model(&self, said: &str) -> Utf8PathBuf {
        let small = json!({ "hidden_size": 32, "intermediate_size": 64, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 16, "texts": 40, "vocab_size": 400 });
        self.run("model", small, &[], "model").unwrap();
        let chat: String = std::fs::read_to_string(arithmetic())
            .unwrap()
            .lines()
            .map(|line| {
                let row: Value = serde_json::from_str(line).unwrap();
                let messages =
                    json!([{ "role": "user", "content": row["problem"] }, { "role": "assistant", "content": said }]);
                json!({ "messages": messages }).to_string() + "\n"
            })
            .collect();
        std::fs::write(self.path("chat.jsonl"), chat).unwrap();
        let params = json!({ "epochs": 40, "batch": 8, "learning_rate": 0.01 });
        self.run("sft", params, &[("model", &self.path("model/model")), ("data", &self.path("chat.jsonl"))], "taught")
            .unwrap();
        self.path("taught/model")
    }

    fn answers(&self, name: &str) -> Vec<Answered> {
        let text = std::fs::read_to_string(self.path(&format!("{name}/answers"))).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn scores(&self, name: &str) -> Scores {
        Scores::read(&self.path(&format!("{name}/scores"))).unwrap()
    }
}

#[test]
fn a_model_that_always_says_forty_two_is_right_where_that_is_the_answer() {
    let bench = Bench::new();
    let model = bench.model("so \\boxed{42}.");
    let data = arithmetic();
    let inputs: [(&str, &Utf8Path); 2] = [("policy", &model), ("data", &data)];
    let greedy = json!({ "temperature": 0.0, "max_tokens": 24, "instruction": "{question}" });
    bench.run("math", greedy, &inputs, "greedy").unwrap();
    let (answers, scores) = (bench.answers("greedy"), bench.scores("greedy"));
    assert_eq!((answers.len(), scores.episodes, scores.per_task.len()), (16, 16, 16));
    for a in &answers {
        assert_eq!(a.replies.len(), 1);
        let reply = &a.replies[0];
        assert_eq!(reply.extracted.as_deref(), Some("42"), "{}", reply.text);
        assert_eq!(reply.correct, a.id == "add/1");
        assert_eq!(reply.finish, Ended::End);
    }
    assert_eq!(scores.metrics["accuracy"], Some(1.0 / 16.0));
    assert_eq!(scores.metrics["success"], scores.metrics["accuracy"]);
    assert_eq!(scores.metrics["pass@1"], scores.metrics["accuracy"]);
    assert_eq!((scores.metrics["truncated"], scores.metrics["malformed"]), (Some(0.0), Some(0.0)));
    assert_eq!(scores.by_kind["addition"].success, 0.25);
    assert_eq!((scores.by_kind["level 1"].episodes, scores.by_kind["level 1"].success), (5, 0.2));
    let task = &scores.per_task[0];
    assert_eq!((task.env.as_str(), task.id.as_str(), task.value("success")), ("math", "add/1", Some(1.0)));
    // what is cut off is wrong, whatever was in it
    let cut = json!({ "temperature": 0.0, "max_tokens": 2, "instruction": "{question}" });
    bench.run("math", cut, &inputs, "cut").unwrap();
    let scores = bench.scores("cut");
    assert_eq!((scores.metrics["accuracy"], scores.metrics["truncated"]), (Some(0.0), Some(1.0)));
    assert!(bench.answers("cut").iter().all(|a| a.replies[0].extracted.is_none()));

    // hot samples: every number follows from the answers file, the same step twice gives the same bytes, and a reply
    // does not depend on what is asked beside it
    let hot = |limit: usize| json!({ "samples": 7, "k": [1, 3, 7], "temperature": 1.3, "max_tokens": 12, "limit": limit, "instruction": "{question}" });
    for name in ["one", "two"] {
        bench.run("math", hot(0), &inputs, name).unwrap();
    }
    bench.run("math", hot(3), &inputs, "few").unwrap();
    for file in ["scores", "answers"] {
        let read = |name: &str| std::fs::read(bench.path(&format!("{name}/{file}"))).unwrap();
        assert_eq!(read("one"), read("two"), "{file}");
    }
    let (all, few, scores) = (bench.answers("one"), bench.answers("few"), bench.scores("one"));
    assert_eq!(all[..3], few[..]);
    let replies: Vec<_> = all.iter().flat_map(|a| a.replies.iter().map(move |r| (a, r))).collect();
    assert_eq!(replies.len(), 16 * 7);
    let texts: std::collections::BTreeSet<&str> = replies.iter().map(|(_, r)| r.text.as_str()).collect();
    assert!(texts.len() > 3, "the samples do not differ: {texts:?}");
    let share = |f: &dyn Fn(&(&Answered, &actloom_ops::op::exam::Reply)) -> bool| {
        Some(replies.iter().filter(|r| f(r)).count() as f64 / replies.len() as f64)
    };
    assert!((scores.metrics["accuracy"].unwrap() - share(&|(_, r)| r.correct).unwrap()).abs() < 1e-12);
    assert_eq!(scores.metrics["truncated"], share(&|(_, r)| r.finish != Ended::End));
    assert_eq!(scores.metrics["malformed"], share(&|(_, r)| r.malformed.is_some()));
    let any = all.iter().filter(|a| a.replies.iter().any(|r| r.correct)).count() as f64 / 16.0;
    assert!((scores.metrics["pass@7"].unwrap() - any).abs() < 1e-12);
    assert!(scores.metrics.contains_key("maj@7") && scores.intervals.contains_key("pass@3"));
    for (a, r) in &replies {
        assert_eq!(r.correct, r.extracted.as_deref().is_some_and(|e| equal(&a.reference, e)));
        assert!(r.finish == Ended::End || !r.correct);
    }
}

#[test]
fn options_are_shown_in_an_order_of_their_own_and_the_letter_is_the_right_options() {
    let bench = Bench::new();
    let model = bench.model("Answer: B");
    let data = fixture("options.csv");
    let inputs: [(&str, &Utf8Path); 2] = [("policy", &model), ("data", &data)];
    let params = |order: u64| json!({ "temperature": 0.0, "max_tokens": 12, "order": order, "instruction": "{question}\n{options}" });
    bench.run("gpqa", params(0), &inputs, "gpqa").unwrap();
    let (answers, scores) = (bench.answers("gpqa"), bench.scores("gpqa"));
    assert_eq!(answers.len(), 4);
    let right = ["3 m/s²", "Helium", "Carbon dioxide", "20 m"];
    for (a, right) in answers.iter().zip(right) {
        let place = a.options.iter().position(|o| o == right).unwrap();
        assert_eq!(a.reference, ["A", "B", "C", "D"][place], "{}", a.question);
        assert_eq!(a.replies[0].extracted.as_deref(), Some("B"), "{}", a.replies[0].text);
        assert_eq!(a.replies[0].correct, place == 1);
    }
    let won = answers.iter().filter(|a| a.reference == "B").count() as f64;
    assert_eq!(scores.metrics["accuracy"], Some(won / 4.0));
    assert_eq!(scores.by_kind["Physics"].episodes, 2);
    assert_eq!(scores.by_kind["Botany"].episodes, 1);
    // the order is the question's own: not the row's, and another seed gives another
    let text = std::fs::read_to_string(&data).unwrap();
    let moved = bench.path("moved.csv");
    let (head, rest) = text.split_once('\n').unwrap();
    let last = rest.trim_end().rsplit_once('\n').unwrap().1;
    std::fs::write(&moved, format!("{head}\n{last}\n")).unwrap();
    bench.run("gpqa", params(0), &[("policy", &model), ("data", &moved)], "moved").unwrap();
    assert_eq!(bench.answers("moved")[0].options, answers[3].options);
    let orders: Vec<Vec<String>> = (1..6)
        .map(|seed| {
            let name = format!("order-{seed}");
            bench.run("gpqa", params(seed), &inputs, &name).unwrap();
            bench.answers(&name)[0].options.clone()
        })
        .collect();
    assert!(orders.iter().any(|o| *o != answers[0].options));
}

#[test]
fn columns_may_have_other_names_and_what_is_missing_is_told_with_what_is_there() {
    let bench = Bench::new();
    let model = bench.model("\\boxed{25}");
    let run = |op: &str, text: &str, params: Value| {
        let path = bench.path("own");
        std::fs::write(&path, text).unwrap();
        bench.run(op, params, &[("policy", &model), ("data", &path)], "own-out").map_err(|e| e.to_string())
    };
    let short = |columns: Value| json!({ "temperature": 0.0, "max_tokens": 12, "columns": columns });
    let own =
        "{\"frage\": \"f\", \"antwort\": 25, \"nr\": \"a\"}\n{\"frage\": \"g\", \"antwort\": \"26\", \"nr\": \"b\"}\n";
    run("math", own, short(json!({ "question": "frage", "answer": "antwort", "id": "nr" }))).unwrap();
    assert_eq!(bench.answers("own-out").iter().map(|a| a.id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    std::fs::remove_dir_all(bench.path("own-out-scratch")).unwrap();
    // without an answer, the solution's last box
    run("math", &std::fs::read_to_string(fixture("worked.json")).unwrap(), short(json!({}))).unwrap();
    let answers = bench.answers("own-out");
    assert_eq!(answers.iter().map(|a| a.reference.as_str()).collect::<Vec<_>>(), ["25", "\\frac{7}{2}"]);
    assert_eq!(answers[1].kind, "Prealgebra");
    for (op, text, columns, expected) in [
        ("math", own, json!({}), "row 1 has no `problem`; the columns are `frage`, `antwort`, `nr`"),
        ("math", own, json!({ "question": "frage" }), "row 1 has no `answer`"),
        ("math", own, json!({ "question": "frage", "answer": "antwort", "id": "id" }), "no row has the column `id`"),
        ("math", "{\"problem\": \"a\", \"solution\": \"5\"}", json!({}), "and its `solution` no \\boxed{..}"),
        ("math", "{\"problem\": \"a\", \"answer\": \"\"}", json!({}), "row 1 has no `answer`"),
        ("math", "id,problem,answer\n1,a,2\n1,b,3\n", json!({}), "two questions have the id `1`"),
        ("gpqa", own, json!({}), "row 1 has no `Question`"),
        (
            "gpqa",
            "Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2,Incorrect Answer 3\nq,a,b,c,\n",
            json!({}),
            "row 1 has no `Incorrect Answer 3`",
        ),
        (
            "gpqa",
            "Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2,Incorrect Answer 3\nq,a,b,c,a\n",
            json!({}),
            "two equal options",
        ),
    ] {
        let error = run(op, text, short(columns)).unwrap_err();
        assert!(
            error.starts_with("cannot use questions of `") && error.contains(expected),
            "{error}\nexpected {expected}"
        );
    }
    std::fs::remove_dir_all(bench.path("own-out-scratch")).unwrap();
    let long = json!({ "max_tokens": 100_000 });
    let error = run("math", "{\"problem\": \"a\", \"answer\": \"1\", \"id\": \"x\"}", long).unwrap_err();
    assert!(error.starts_with("the question `x` cannot be put"), "{error}");
}
