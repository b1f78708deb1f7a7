#!/usr/bin/env bash
# Checks and measures a GPU in one call, under eight minutes. Builds nothing: needs the program (a build with `--features cuda`) and
# nvidia-smi; where Python has torch and transformers, the same jobs run there too.
#
#   benches/gpu.sh PROGRAM [OUT]        # PROGRAM: actloom, OUT: a folder for what is written, default `out/gpu`
#
# 1. What the machine is. 2. Every kernel and whole models against the processor, and the same work twice. 3. Ceilings, attention,
# training, scoring, decoding. 4. A recipe on the device beside the processor. 5. PyTorch, if it is there.
set -u
program=${1:?"the program is missing: benches/gpu.sh PROGRAM [OUT]"}
out=${2:-out/gpu}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$out"
began=$SECONDS
failed=0

section() { printf '\n== %s (%s s)\n' "$1" $((SECONDS - began)); }

section "machine"
nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv || failed=1
"$program" --version
"$program" device show --device cuda || failed=1

section "checks"
reference=$here/../ops/tests/fixtures/parity
[ -d "$reference" ] && reference="--reference $reference" || reference=
# shellcheck disable=SC2086 # no argument where there is no folder
timeout 120 "$program" device check --device cuda $reference | tee "$out/check.txt"
[ "${PIPESTATUS[0]}" = 0 ] || failed=1

section "measurements"
timeout 260 "$program" device bench --device cuda --model 0.6B,8B --limit 200 | tee "$out/bench.txt"
[ "${PIPESTATUS[0]}" = 0 ] || failed=1

section "a recipe, twice"
store=$(mktemp -d)
for run in 1 2; do
    timeout 100 "$program" --store "$store/$run" run "$here/../recipes/quickstart.toml" --profile smoke --device cuda --no-out \
        >"$out/recipe-$run.txt" 2>&1 || { failed=1; tail -5 "$out/recipe-$run.txt"; }
done
rm -rf "$store"

section "PyTorch"
if python3 -c 'import torch, transformers; assert torch.cuda.is_available()' 2>/dev/null; then
    timeout 120 python3 "$here/gpu_torch.py" | tee "$out/torch.txt"
else
    echo "left out: no torch with CUDA and transformers here"
fi

section "done"
[ $failed = 0 ] && echo "all fine" || echo "something failed"
exit $failed
