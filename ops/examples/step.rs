//! scratch
#![allow(clippy::all, clippy::pedantic, clippy::print_stderr, clippy::unwrap_used, clippy::allow_attributes)]
use actloom_engine::event::OpEvent;
use actloom_engine::op::*;
use std::collections::BTreeMap;
#[global_allocator]
static A: mimalloc::MiMalloc = mimalloc::MiMalloc;
struct S(std::sync::Mutex<std::collections::BTreeMap<String, (u64, f64)>>, bool, std::sync::Mutex<std::time::Instant>);
impl OpSink for S {
    fn event(&self, e: OpEvent) {
        match e {
            OpEvent::Metric { step, name, value } => {
                self.0.lock().unwrap().insert(name, (step, value));
            }
            OpEvent::Progress(p) => {
                let mut l = self.2.lock().unwrap();
                if l.elapsed().as_secs() >= 10 || p.done == p.total {
                    *l = std::time::Instant::now();
                    eprintln!("   {}/{} {} {}", p.done, p.total, p.unit, p.note);
                }
            }
            OpEvent::Message { text, .. } => eprintln!("   {text}"),
            OpEvent::Note { name, value } => eprintln!("   {name} {value}"),
        }
    }
}
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let reg = actloom_ops::registry::registry();
    let op = reg.get(&a[1]).unwrap();
    let params = op.canonical(&serde_json::from_str(&a[2]).unwrap()).unwrap();
    let seed: u64 = a[3].parse().unwrap();
    let out = &a[4];
    std::fs::remove_dir_all(out).ok();
    std::fs::create_dir_all(out).unwrap();
    let mut inputs: BTreeMap<String, Vec<InputArtifact>> = BTreeMap::new();
    for kv in &a[5..] {
        let (k, v) = kv.split_once('=').unwrap();
        inputs.entry(k.into()).or_default().push(InputArtifact {
            path: v.into(),
            step: String::new(),
            labels: Default::default(),
        });
    }
    let ports = op.ports(&params);
    let outputs = ports.outputs.iter().map(|o| (o.name.to_string(), format!("{out}/{}", o.name).into())).collect();
    let scratch = format!("{out}/scratch");
    std::fs::create_dir_all(&scratch).unwrap();
    let s = S(Default::default(), true, std::sync::Mutex::new(std::time::Instant::now()));
    let stop = Default::default();
    let mut ctx = OpContext::new(inputs, outputs, scratch.into(), seed, DeviceRequest::Cpu, vec![], &s, &stop);
    let t = std::time::Instant::now();
    op.run(&params, &mut ctx).unwrap();
    eprintln!(
        "== {} {:.1}s {}",
        a[1],
        t.elapsed().as_secs_f64(),
        s.0.lock().unwrap().iter().map(|(k, v)| format!("{k}={:.3}", v.1)).collect::<Vec<_>>().join(" ")
    );
}
