#!/usr/bin/env bash
# Ratios of speed and memory against PyTorch, from alternating runs on this machine; builds nothing.
#   benches/side_by_side.sh [JOB...]          default: sft score grpo gen decode1
# MODEL=A|B, PAIRS=5, RUNS=3, THREADS=2, LIMIT=2.5: pairs that began above this load average are not counted.
# BENCH: the built ops/examples/bench_model (cargo build --release -p actloom-ops --example bench_model).
# PYTHON: an interpreter with torch and transformers. Without one, our side alone is measured, and it says so.
set -euo pipefail
cd "$(dirname "$0")/.."
bench=${BENCH:-${CARGO_TARGET_DIR:-target}/release/examples/bench_model}
python=${PYTHON:-python3}
model=${MODEL:-A} pairs=${PAIRS:-5} runs=${RUNS:-3} threads=${THREADS:-2} limit=${LIMIT:-2.5}
if [ ! -x "$bench" ]; then
    echo "no program at \`$bench\`: cargo build --release -p actloom-ops --example bench_model" >&2
    exit 2
fi
other=yes
if ! "$python" -c "import torch, transformers" 2>/dev/null; then
    echo "\`$python\` has no torch and transformers: our side alone is measured (PYTHON names another interpreter)" >&2
    other=no
fi
results=$(mktemp)
trap 'rm -f "$results"' EXIT
for job in "${@:-sft score grpo gen decode1}"; do
    for one in $job; do
        for _ in $(seq "$pairs"); do
            RAYON_NUM_THREADS=$threads "$bench" "$one" --model "$model" --runs "$runs" >>"$results"
            if [ $other = yes ]; then
                "$python" benches/torch_side.py "$one" --model "$model" --runs "$runs" --threads "$threads" >>"$results"
            fi
        done
    done
done
if [ $other = no ]; then
    cat "$results"
    exit 0
fi
"$python" - "$results" "$limit" <<'PY'
import json, statistics, sys
rows = [json.loads(line) for line in open(sys.argv[1])]
limit = float(sys.argv[2])
pairs = list(zip(rows[::2], rows[1::2]))
print(f"{'job':8} {'model':5} {'pairs':>5}  {'tokens per processor second':>30} {'ratio':>6} {'wall best':>9} {'median':>7}  {'peak MiB':>12}")
for job in dict.fromkeys(r["job"] for r in rows):
    mine = [p for p in pairs if p[0]["job"] == job]
    calm = [p for p in mine if max(p[0]["load"], p[1]["load"]) <= limit]
    if not calm:
        least = min(max(a["load"], b["load"]) for a, b in mine)
        print(f"{job:8} {mine[0][0]['model']:5} {0:>5}  every pair ran above load {limit} (least {least}): LIMIT raises it")
        continue
    speed = [[r["tokens_per_processor_second"] for r in side] for side in zip(*calm)]
    ours, theirs = (statistics.median(s) for s in speed)
    ratio = statistics.median(a["tokens_per_processor_second"] / b["tokens_per_processor_second"] for a, b in calm)
    best = min(b["wall_best"] for _, b in calm) / min(a["wall_best"] for a, _ in calm)
    median = statistics.median(b["wall_median"] / a["wall_median"] for a, b in calm)
    peak = "/".join(f"{max(r['peak_mib'] for r in side):.0f}" for side in zip(*calm))
    print(f"{job:8} {calm[0][0]['model']:5} {len(calm):>5}  {ours:>14.0f} /{theirs:>14.0f} {ratio:>6.2f} {best:>9.2f} {median:>7.2f}  {peak:>12}")
PY
