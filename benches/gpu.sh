#!/usr/bin/env bash
# Checks and measures a GPU in one call, within eight minutes. Builds nothing: needs the program (a build with `--features cuda`) and
# nvidia-smi; where Python has torch and transformers, the same jobs run there too.
#
#   benches/gpu.sh PROGRAM [OUT]        # PROGRAM: actloom, OUT: a folder for what is written, default `out/gpu`
#
# 1. What the machine is. 2. Every kernel and whole models against the processor, and the same work twice. 3. Ceilings, attention,
# training, scoring, decoding. 4. A recipe on the device twice, compared to the byte. 5. PyTorch, if it is there. 6. Other sizes.
#
# GPU_SECONDS in the environment is how long all of it may take, at least 60, default 450: what comes first matters most, and what there is
# no time for is left out with a line. The exit status is 0 unless something failed or did not end in its time, or the two runs of the
# recipe were not compared: then it is 1; 2 where GPU_SECONDS is no such number. CUDA_LAZY_PATH names folders of CUDA's libraries; without
# it those of pip's wheels are found.
set -u
program=${1:?"the program is missing: benches/gpu.sh PROGRAM [OUT]"}
out=${2:-out/gpu}
here=$(cd "$(dirname "$0")" && pwd)
deadline=${GPU_SECONDS:-450}
if ! [[ $deadline =~ ^[1-9][0-9]{1,5}$ ]] || [ "$deadline" -lt 60 ]; then
    echo "GPU_SECONDS is \`$deadline\`, expected a whole number of seconds, at least 60" >&2
    exit 2
fi
export RUST_BACKTRACE=0 RUST_LIB_BACKTRACE=0
mkdir -p "$out"
rm -f "$out"/{bench,check,torch,recipe-?,made-?}.txt
began=$SECONDS
failed=0
LEFT_OUT=75

section() { printf '\n== %s (%s s)\n' "$1" $((SECONDS - began)); }

# within SECONDS COMMAND: so long at most, and never beyond the deadline; five seconds after it was asked to end it is killed
within() {
    local most=$1 left=$((deadline - SECONDS + began - 6))
    shift
    [ "$left" -ge 5 ] || { echo "left out: no time" && return $LEFT_OUT; }
    timeout -k 5 $((most < left ? most : left)) "$@"
}

# judge STATUS WHAT: notes and says what did not come to a good end
judge() {
    case $1 in
        0 | "$LEFT_OUT") return 0 ;;
        124 | 137) echo "failed: $2 did not end in its time" ;;
        *) echo "failed: $2, exit status $1" ;;
    esac
    failed=1
    return 1
}

measure() {
    for model in "$@"; do
        within 120 "$program" device bench --device cuda --model "$model" --limit 100 2>&1 | tee -a "$out/bench.txt"
        judge "${PIPESTATUS[0]}" "device bench of $model"
    done
}

section "machine"
within 20 nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv 2>&1
judge $? "nvidia-smi"
within 20 "$program" --version
wheels=$(within 20 python3 - 2>/dev/null <<'P'
import glob, site, sys
roots = {p for p in sys.path + site.getsitepackages() if p.endswith("-packages")}
print(":".join(sorted(d for r in roots for d in glob.glob(r + "/nvidia/*/lib"))))
P
) || wheels=
export CUDA_LAZY_PATH=${CUDA_LAZY_PATH:-$wheels} PYTHONUNBUFFERED=1
CUDA_LAZY_DEBUG=1 within 30 "$program" device show --device cuda 2>&1
status=$?
judge $status "device show"
[ $status = 0 ] || { echo "no device: ending" && exit 1; }

section "checks"
fixtures=$here/../ops/tests/fixtures/parity
reference=()
[ -d "$fixtures" ] && reference=(--reference "$fixtures")
within 60 "$program" --json device check --device cuda "${reference[@]}" >"$out/check.txt" 2>&1
status=$?
echo "$(grep -c '"fine":true' "$out/check.txt") checks fine, $(grep -c '"fine":false' "$out/check.txt") wrong"
if ! judge $status "device check"; then
    grep -v '"fine":true' "$out/check.txt" | head -20
    echo "the last finding: $(grep '^{"what"' "$out/check.txt" | tail -n 1)"
    case $status in
        1 | 124 | 137) ;; # numbers were wrong, or it hung
        # the device ended it: where, is told by launches that are waited for
        *) CUDA_LAUNCH_BLOCKING=1 within 40 "$program" device check --device cuda 2>&1 | tail -n 5 ;;
    esac
fi

section "measurements"
measure 0.6B 8B

section "a recipe, twice"
store=$(mktemp -d)
trap 'rm -rf "$store"' EXIT
ran=0
compared=0
for run in 1 2; do
    within 60 "$program" --store "$store/$run" run "$here/../recipes/quickstart.toml" --profile smoke --device cuda --no-out \
        >"$out/recipe-$run.txt" 2>&1
    status=$?
    tail -n 3 "$out/recipe-$run.txt"
    judge $status "run $run of the recipe" && [ $status = 0 ] && ran=$((ran + 1))
done
if [ $ran = 2 ]; then
    for run in 1 2; do
        # a line for each step, with the content ids of what it made
        within 20 "$program" --store "$store/$run" --json cache ls | grep -oE '"(id|node)":"[^"]*"' |
            awk -F'"' '$2 == "id" { ids = ids " " $4; next } { print $4 ids; ids = "" }' | sort >"$out/made-$run.txt"
        judge "${PIPESTATUS[0]}" "cache ls of run $run"
    done
    steps=$(grep -c . "$out/made-1.txt")
    if ! [ -s "$out/made-1.txt" ] || ! [ -s "$out/made-2.txt" ]; then
        echo "nothing to compare"
    elif cmp -s "$out/made-1.txt" "$out/made-2.txt"; then
        compared=1
        echo "$steps steps made the same bytes twice"
    else
        compared=1
        echo "failed: of $steps steps these made other bytes the second time:"
        diff "$out/made-1.txt" "$out/made-2.txt" | sed -n 's/^[<>] \([^ ]*\).*/  \1/p' | sort -u | head -20
        failed=1
    fi
fi
if [ $compared = 0 ]; then
    echo "failed: two runs of the recipe were not compared"
    failed=1
fi

section "PyTorch"
if command -v python3 >/dev/null; then
    within 110 python3 "$here/gpu_torch.py" 2>&1 | tee "$out/torch.txt"
    judge "${PIPESTATUS[0]}" "gpu_torch.py"
else
    echo "left out: no python3 here"
fi

section "measurements of other sizes"
measure 1.7B 4B

section "done"
[ $failed = 0 ] && echo "all fine" || echo "something failed"
exit $failed
