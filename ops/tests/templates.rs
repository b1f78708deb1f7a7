//! Chat templates against transformers 5.23.0: fixtures/templates holds templates of our own with the constructs that
//! published ones use, `cases.json` what transformers made of them (`make.py` there), and its refusals.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its fixtures should stop")]

use actloom_ops::text::{Message, Text};
use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Map, Value, json};

fn fixtures() -> Utf8PathBuf {
    Utf8PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// A folder with the tokenizer of the parity model and these other files.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new(files: &[(&str, &str)]) -> Folder {
        let folder = Folder(tempfile::tempdir().unwrap());
        std::fs::copy(fixtures().join("parity/model/tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
        for (name, content) in files {
            std::fs::write(folder.path().join(name), content).unwrap();
        }
        folder
    }

    fn path(&self) -> &Utf8Path {
        Utf8Path::from_path(self.0.path()).unwrap()
    }

    fn load(&self) -> Text {
        Text::load(self.path(), &[]).unwrap()
    }

    fn error(&self) -> String {
        let error = Text::load(self.path(), &[]).err().map(|e| e.to_string());
        error.expect("the folder was loaded").replace(self.path().as_str(), "FOLDER")
    }
}

/// The settings that name the special tokens, in both spellings.
const SETTINGS: &str =
    r#"{ "bos_token": { "content": "<s>", "lstrip": false }, "eos_token": "</s>", "pad_token": null }"#;

fn of(template: &str) -> Folder {
    Folder::new(&[("chat_template.jinja", template), ("tokenizer_config.json", SETTINGS)])
}

fn one(template: &str) -> String {
    of(template).load().render(&[Message::user("hi")], true).unwrap()
}

fn refusal(template: &str) -> String {
    of(template).load().render(&[Message::user("hi")], true).unwrap_err().to_string()
}

#[test]
fn templates_render_as_in_transformers_and_refuse_what_it_refuses() {
    let folder = fixtures().join("templates");
    let cases: Vec<Value> = serde_json::from_slice(&std::fs::read(folder.join("cases.json")).unwrap()).unwrap();
    assert!(cases.len() >= 20);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let file = folder.join(format!("{}.jinja", case["template"].as_str().unwrap()));
        let text = of(&std::fs::read_to_string(file).unwrap()).load();
        let variables: &Map<String, Value> = case["variables"].as_object().unwrap();
        let got = text.render_with(&case["messages"], case["prompt"] == true, variables);
        match case["text"].as_str() {
            Some(want) => assert_eq!(got.unwrap(), want, "{name}"),
            None => {
                let (got, want) = (got.unwrap_err().to_string(), case["error"].as_str().unwrap());
                assert!(got.contains(want), "{name}: {got:?}, expected {want:?}");
            }
        }
    }
}

#[test]
fn a_conversation_renders_the_same_from_messages_and_from_json() {
    let text = of(&std::fs::read_to_string(fixtures().join("templates/reasoning.jinja")).unwrap()).load();
    let messages = [Message::user("a"), Message::assistant("<think>\nb\n</think>\n\nc")];
    let json = json!([
        { "role": "user", "content": "a" },
        { "role": "assistant", "content": "<think>\nb\n</think>\n\nc" },
    ]);
    assert_eq!(text.render(&messages, false).unwrap(), text.render_with(&json, false, &Map::new()).unwrap());
}

#[test]
fn the_day_of_a_template_is_the_same_every_day() {
    assert_eq!(one("{{ strftime_now('%d %b %Y') }}"), "26 Jul 2024");
    assert_eq!(one("{{ strftime_now('%Y-%m-%d, %A, %B %d %H:%M') }}"), "2024-07-26, Friday, July 26 00:00");
    let error = refusal("{{ strftime_now('%!') }}");
    assert!(error.contains("`strftime_now` of `%!`"), "{error}");
}

#[test]
fn what_a_template_raises_is_said_in_its_own_words() {
    let error = refusal("{{ raise_exception('no ' + messages[0].content + ' here') }}");
    assert!(error.starts_with("the chat template refused the conversation: "), "{error}");
    assert!(error.contains("no hi here"), "{error}");
}

#[test]
fn what_is_not_understood_is_named_at_load_or_when_it_is_reached() {
    let error = of("a\n{% paragraph %}b{% endparagraph %}").error();
    assert!(error.starts_with("the chat template of `FOLDER` cannot be used: "), "{error}");
    assert!(error.contains("unknown statement paragraph") && error.contains(":2"), "{error}");
    for (template, word) in [
        ("{{ messages | shuffled }}", "shuffled"),
        ("{{ messages[0].content is nonsense }}", "nonsense"),
        ("{{ tomorrow() }}", "tomorrow"),
        ("{{ messages[0].content.zfill(3) }}", "zfill"),
        ("{{ messages[7].content.strip() }}", "undefined"),
        ("{{ missing | tojson }}", "`tojson` of a value that is not defined"),
        ("{{ 1 | tojson(separators=[',']) }}", "1 separators, expected 2"),
        ("{{ 1 | tojson(indent=true, colour='red') }}", "colour"),
    ] {
        let folder = of(template);
        let error = match Text::load(folder.path(), &[]) {
            Ok(text) => text.render(&[Message::user("hi")], true).unwrap_err().to_string(),
            Err(error) => error.to_string(),
        };
        assert!(error.contains(word), "{template}: {error}");
    }
}

#[test]
fn marks_of_generation_leave_the_text_and_its_scope_as_they_were() {
    assert_eq!(one("{% generation %}a{% endgeneration %}b"), "ab");
    assert_eq!(one("x {%- generation -%} a {%+ endgeneration -%} b"), "xa b");
    assert_eq!(one("{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}"), "21");
    let error = of("{% generation %}a").error();
    assert!(error.contains("unexpected end of input"), "{error}");
}

#[test]
fn the_template_is_its_file_or_the_text_or_the_default_in_the_settings() {
    let file = ("chat_template.jinja", "file");
    let text = ("tokenizer_config.json", r#"{ "chat_template": "text" }"#);
    let named = r#"{ "chat_template": [{ "name": "tool_use", "template": "tools" }, { "name": "default", "template": "plain" }] }"#;
    let render = |files: &[(&str, &str)]| Folder::new(files).load().render(&[Message::user("x")], false).unwrap();
    assert_eq!(render(&[file, text]), "file");
    assert_eq!(render(&[file]), "file");
    assert_eq!(render(&[text]), "text");
    assert_eq!(render(&[("tokenizer_config.json", named)]), "plain");
    for settings in ["{}", r#"{ "chat_template": [] }"#] {
        assert_eq!(Folder::new(&[("tokenizer_config.json", settings)]).error(), "`FOLDER` has no chat template");
    }
    assert_eq!(Folder::new(&[]).error(), "`FOLDER` has no chat template");
    let error = Folder::new(&[("tokenizer_config.json", "{")]).error();
    assert!(error.starts_with("cannot read `FOLDER/tokenizer_config.json`: "), "{error}");
}

/// Ends a turn with a token of its own, as most templates do. 317 is `<|im_end|>`, 315 `<|endoftext|>`.
const CLOSED: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
/// Ends a turn with a line.
const OPEN: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
{% if add_generation_prompt %}assistant: {% endif %}";

#[test]
fn end_ids_are_those_of_the_generation_settings_else_of_the_config_and_the_one_the_template_writes() {
    let eos = |template: &str, generation: Option<&str>, config: &[u32]| {
        let mut files = vec![("chat_template.jinja", template)];
        files.extend(generation.map(|g| ("generation_config.json", g)));
        Text::load(Folder::new(&files).path(), config).unwrap().eos
    };
    assert_eq!(eos(OPEN, None, &[]), [] as [u32; 0]);
    assert_eq!(eos(OPEN, None, &[315]), [315]);
    assert_eq!(eos(OPEN, Some("{}"), &[315, 3]), [315, 3]);
    assert_eq!(eos(OPEN, Some(r#"{ "eos_token_id": null }"#), &[315]), [315]);
    assert_eq!(eos(OPEN, Some(r#"{ "eos_token_id": 317 }"#), &[315]), [317]);
    assert_eq!(eos(OPEN, Some(r#"{ "eos_token_id": [315, 317] }"#), &[9]), [315, 317]);
    // what the template writes comes first: it is what a learned answer ends with
    assert_eq!(eos(CLOSED, Some(r#"{ "eos_token_id": [315, 317] }"#), &[9]), [317, 315]);
    assert_eq!(eos(CLOSED, None, &[315]), [317, 315]);
    let folder =
        Folder::new(&[("chat_template.jinja", OPEN), ("generation_config.json", r#"{ "eos_token_id": "x" }"#)]);
    let error = folder.error();
    assert_eq!(error, "`eos_token_id` in `FOLDER/generation_config.json` is `\"x\"`, expected token ids");
}

#[test]
fn a_template_that_forgets_reasoning_is_refused_turn_by_turn_and_one_that_keeps_it_is_not() {
    let turns = [
        Message::user("a"),
        Message::assistant("<think>\nb\n</think>\n\nc"),
        Message::user("d"),
        Message::assistant("<think>\ne\n</think>\n\nf"),
    ];
    let forgets = "{% for m in messages %}<|{{ m.role }}|>{% if not loop.last %}\
        {{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}\
        {% if add_generation_prompt %}<|assistant|>{% endif %}";
    let text = of(forgets).load();
    let error = text.render_from(&turns[..3], 2, true).unwrap_err().to_string();
    assert!(error.contains("rewrites earlier turns"), "{error}");
    let text = of(CLOSED).load();
    for from in 0..4 {
        let mut whole = String::new();
        whole += &text.render_from(&turns[..from], 0, false).unwrap();
        whole += &text.render_from(&turns, from, true).unwrap();
        assert_eq!(whole, text.render(&turns, true).unwrap());
    }
}
