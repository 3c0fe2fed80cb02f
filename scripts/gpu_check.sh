#!/bin/bash
# Everything that needs a GPU: measures the device, builds, tests, looks for memory errors, benchmarks.
#
#     scripts/gpu_check.sh [OUT] [PART ...]
#
# PARTs, in this order; all of them by default, but the last two only if they are named:
#     probe     scripts/gpu_probe.cu: limits and latencies of the device
#     build     the package with its CUDA module, into build/gpu, for this device alone
#     tests     pytest -m cuda
#     sanitize  compute-sanitizer's memcheck and racecheck over tests/test_cuda_small.py
#     cudnn     bench/cudnn.py: torch's layers, which are cuDNN's
#     bench     bench/run.py: fastrnn beside them, and beside the CPU
#     tune      bench/tune.py: every launch of the persistent kernels, 3 minutes
#     targets   bench/device_targets.py: each case that was aimed at, 4 minutes
#
# OUT (build/gpu_check) receives check.json, log.txt, and a JSON file of every measurement: eight files with all parts,
# as some machines hand no more back. A table comes last; bench/plot.py draws what bench measured.
# No network is needed: nvcc, and a Python ($PYTHON, or python3) with numpy, safetensors, cmake, ninja, pybind11,
# scikit-build-core, pytest, pytest-xdist, hypothesis and torch. A part that fails or is out of time leaves the others alone;
# all limits of the parts by default are together below 9 minutes. The exit status is 0 if no part failed.
# shellcheck disable=SC2329 # parts are functions that are called by name
set -uo pipefail

case "${1:-}" in -h | --help) sed -n '2,/below 9/s/^# \{0,1\}//p' "$0" && exit ;; esac
out=$(realpath -m "${1:-build/gpu_check}")
cd "$(dirname "$0")/.." || exit
export out PYTHON=${PYTHON:-python3} PYTHONUNBUFFERED=1
export PATH=$PATH:/usr/local/cuda/bin
export FASTRNN_EMULATED=$PWD/build/gpu/none # no emulated device in place of the real one
export PYTHONPATH=$PWD/build/gpu/site${PYTHONPATH:+:$PYTHONPATH}
UNAVAILABLE=77 # exit status of a part that this machine cannot run
export UNAVAILABLE

declare -A limit=([probe]=90 [build]=130 [tests]=90 [sanitize]=90 [cudnn]=50 [bench]=85 [tune]=200 [targets]=240) # seconds
all=(probe build tests sanitize cudnn bench tune targets)
parts=("${@:2}")
[ ${#parts[@]} -gt 0 ] || parts=("${all[@]:0:6}")
for part in "${parts[@]}"; do
    [ -n "${limit[$part]:-}" ] || { echo "unknown part '$part'; there are: ${all[*]}" >&2; exit 64; }
done

# The parts. The last line that one prints is its note in the table.

probe() {
    rm -f "$out/probe.json"
    nvcc -O3 -std=c++17 "-arch=sm_$architecture" -o build/gpu/gpu_probe scripts/gpu_probe.cu || return
    build/gpu/gpu_probe --out "$out/probe.json"
    local status=$?
    [ "$status" -ne 2 ] || { echo "compiles; no GPU"; return "$UNAVAILABLE"; }
    "$PYTHON" -c "
import json, sys
parts = json.load(open(sys.argv[1]))['parts']
print(', '.join(f\"{name} {len(part['rows'])} rows\" + f\", {part['error']}\" * bool(part['error'])
                for name, part in parts.items()))" "$out/probe.json"
    return "$status"
}

build() {
    rm -rf build/gpu/site
    "$PYTHON" -m pip --disable-pip-version-check install --no-index --no-deps --no-build-isolation \
        --target build/gpu/site -Cbuild-dir=build/gpu/cmake -Ccmake.define.FASTRNN_CUDA=ON \
        "-Ccmake.define.CMAKE_CUDA_ARCHITECTURES=$architecture-real" \
        "-Ccmake.define.pybind11_DIR=$("$PYTHON" -m pybind11 --cmakedir)" . || return
    "$PYTHON" -c "import fastrnn; print('CUDA', fastrnn.info()['cuda'])"
}

tests() {
    need_gpu
    export FASTRNN_NUM_THREADS=2 OPENBLAS_NUM_THREADS=1 # of the CPU's kernels and the references', in each process
    export FASTRNN_TEST_SECONDS=15 PYTHONPATH=$PWD/tests:$PYTHONPATH # for the plugin
    local files apart again status=0 own=0
    mapfile -t files < <(grep -l 'mark\.cuda' tests/test_*.py) # to read the others takes a quarter of a minute
    # A test that faults or hangs is one that failed, and the others run.
    apart=(-n 8 --dist worksteal --max-worker-restart 200 -p gpu_faults -o)
    rm -rf build/gpu/pytest* build/gpu/*.xml
    cuda_tests build/gpu/tests.xml 50 "${files[@]}" "${apart[@]}" cache_dir="$PWD/build/gpu/pytest" || status=1
    # The kernels' tests once more with our own products, which cuBLAS otherwise does.
    FASTRNN_CUBLAS=0 cuda_tests build/gpu/own.xml "$(until_second 68)" tests/test_cuda_kernels.py "${apart[@]}" \
        cache_dir="$PWD/build/gpu/pytest_own" || own=1
    # Where every kernel is waited for, an error names the call that made it.
    again=(--last-failed --last-failed-no-failures none)
    [ "$status" -eq 0 ] || FASTRNN_CUDA_SYNC=1 cuda_tests build/gpu/again.xml "$(until_second 75)" \
        "${files[@]}" "${apart[@]}" cache_dir="$PWD/build/gpu/pytest" "${again[@]}"
    [ "$own" -eq 0 ] || FASTRNN_CUDA_SYNC=1 FASTRNN_CUBLAS=0 cuda_tests build/gpu/again.xml "$(until_second 75)" \
        tests/test_cuda_kernels.py "${apart[@]}" cache_dir="$PWD/build/gpu/pytest_own" "${again[@]}"
    sed -En 's/.*<testsuite [^>]*errors="([0-9]+)" failures="([0-9]+)" skipped="([0-9]+)" tests="([0-9]+)".*/'`
        `'\4 tests, \2 failed, \1 errors, \3 skipped/p' build/gpu/tests.xml build/gpu/own.xml | paste -sd '+' |
        sed 's/+/; with our own products /'
    [ $((status + own)) -eq 0 ]
}

sanitize() {
    need_gpu
    command -v compute-sanitizer > build/gpu/canary.log || { echo "no compute-sanitizer"; return "$UNAVAILABLE"; }
    # A write beyond the end and a race: a sanitizer that reports neither cannot see anything here.
    cat > build/gpu/canary.cu << 'CANARY'
__global__ void canary(int* out) {
  __shared__ int values[64];
  values[threadIdx.x] = static_cast<int>(threadIdx.x);
  out[threadIdx.x] = values[63 - threadIdx.x];  // of the other warp, without a barrier
}
int main() {
  int* out = nullptr;
  cudaMalloc(&out, sizeof(int));
  canary<<<1, 64>>>(out);
  return cudaDeviceSynchronize() != cudaSuccess;
}
CANARY
    nvcc "-arch=sm_$architecture" -o build/gpu/canary build/gpu/canary.cu || return
    local tool under end failed=0 found=9 ran="" missing=""
    for tool in memcheck racecheck; do
        compute-sanitizer --tool "$tool" --error-exitcode "$found" build/gpu/canary > build/gpu/canary.log 2>&1
        if [ $? -ne "$found" ] || ! grep -q 'ERROR SUMMARY\|RACECHECK SUMMARY' build/gpu/canary.log; then
            missing+="; $tool does not work here: $(grep . build/gpu/canary.log | tail -n 1)"
            continue
        fi
        ran+=" $tool"
        # With our own products: cuBLAS is not ours to check, and slow under the tools.
        under=(compute-sanitizer --tool "$tool" --report-api-errors no --error-exitcode "$found")
        case $tool in memcheck) end=47 ;; *) end=85 ;; esac
        FASTRNN_CUBLAS=0 cuda_tests build/gpu/sanitize.xml "$(until_second "$end")" tests/test_cuda_small.py \
            -p no:cacheprovider || failed=1
    done
    [ "$failed" -eq 0 ] || return
    [ -n "$ran" ] || { echo "none works here$missing"; return "$UNAVAILABLE"; }
    echo "found nothing:$ran$missing"
}

cudnn() {
    need_gpu
    rm -f "$out/cudnn.json"
    "$PYTHON" bench/cudnn.py --seconds 40 --out "$out/cudnn.json"
}

bench() {
    need_gpu
    rm -f "$out"/bench_*
    # Beside --total there is time for the starts, and for the CPU's ceiling, which is measured twice.
    local gpu=(fastrnn-cuda cudnn cudnn-tf32 fastrnn-cuda-graph cudnn-graph cudnn-tf32-graph) status=0
    timeout --foreground 53 "$PYTHON" bench/run.py --peers "${gpu[@]}" --dtypes float32 bfloat16 --steps 512 \
        --batch 64 16 --hidden 2048 512 1024 --seconds 0.2 --total 42 --no-plots --out "$out/bench_gpu.json" || status=1
    timeout --foreground $((84 - SECONDS)) "$PYTHON" bench/run.py --peers fastrnn torch fastrnn-cuda cudnn cudnn-tf32 \
        --threads "$(nproc)" --steps 100 --batch 64 1 8 --hidden 256 64 1024 --seconds 0.2 --total 24 --no-plots \
        --out "$out/bench_cpu_gpu.json" && return "$status"
}

tune() {
    need_gpu
    rm -f "$out/tune.json"
    "$PYTHON" bench/tune.py --seconds 180 --out "$out/tune.json"
}

targets() {
    need_gpu
    rm -f "$out/targets.json"
    "$PYTHON" bench/device_targets.py --seconds 210 --out "$out/targets.json"
}

# Usage: cuda_tests XML SECONDS ARGUMENT-OF-PYTEST ...; the array `under` is the program that runs it, if any. When the
# seconds are over, pytest says what it has so far.
cuda_tests() {
    local ending=(--foreground --kill-after=10) # it gives its processes that long to end
    # A program that runs pytest may not pass signals on: the whole group is sent them.
    [ -z "${under[*]:-}" ] || ending=(--kill-after=4)
    # Versions of torch differ in what they warn of: here a warning is no error.
    timeout -s INT "${ending[@]}" "$2" "${under[@]}" "$PYTHON" -m pytest -q -rfEsx --tb=short -m cuda -W default \
        --junit-xml "$1" "${@:3}" || return
    if ! grep -q '<testcase[^>]*/>' "$1"; then # a test that was skipped has a child
        echo "every test was skipped"
        return 1
    fi
}

# Usage: until_second N; the seconds to the Nth of this part, one at the least.
until_second() {
    echo $(($1 > SECONDS ? $1 - SECONDS : 1))
}

need_gpu() {
    [ "$has_gpu" = yes ] || { echo "no GPU"; exit "$UNAVAILABLE"; }
}

export -f probe build tests sanitize cudnn bench tune targets cuda_tests until_second need_gpu

# What there is, told by the driver, which the kernels have to ask too: a container may have it without nvidia-smi, or
# that alone. Without a GPU the code is at least compiled, for the first with clusters.
driver=$("$PYTHON" - << 'DRIVER' 2> /dev/null
import ctypes

cuda = ctypes.CDLL("libcuda.so.1")
count, major, minor, version = (ctypes.c_int() for _ in range(4))
name = ctypes.create_string_buffer(100)
for status in (
    cuda.cuInit(0),
    cuda.cuDeviceGetCount(ctypes.byref(count)),
    cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, 0),  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, 0),
    cuda.cuDeviceGetName(name, len(name), 0),
    cuda.cuDriverGetVersion(ctypes.byref(version)),
):
    if status:
        raise SystemExit
print(f"{10 * major.value + minor.value} {name.value.decode()}", end=", ")
print(f"driver of CUDA {version.value // 1000}.{version.value % 1000 // 10}")
DRIVER
)
has_gpu=$([ -n "$driver" ] && echo yes || echo no)
architecture=$([ -n "$driver" ] && echo "${driver%% *}" || echo 90)
export has_gpu architecture

mkdir -p "$out" build/gpu || exit
log=$out/log.txt
: > "$log"
# From a cold disk this may take as long as a part has: it is read while the first parts compile.
timeout 60 "$PYTHON" -c "import torch" > /dev/null 2>&1 &
torch=$!
results=()
status=0
for part in "${parts[@]}"; do
    echo "== $part" | tee -a "$log"
    case $part in probe | build) ;; *) wait "$torch" ;; esac
    before=$(date +%s.%N)
    start=$(wc -l < "$log")
    timeout --kill-after=5 "${limit[$part]}" bash -c "set -uo pipefail; $part" >> "$log" 2>&1
    code=$?
    seconds=$("$PYTHON" -c "import sys; print(round(float(sys.argv[2]) - float(sys.argv[1]), 1))" "$before" "$(date +%s.%N)")
    case $code in
        0) result=passed ;;
        "$UNAVAILABLE") result=unavailable ;;
        124 | 137) result="out of time" ;;
        *) result=failed ;;
    esac
    output=$(tail -n +$((start + 1)) "$log")
    case $result in failed | "out of time")
        status=1
        tail -n 20 <<< "$output"
        ;;
    esac
    results+=("$part" "$result" "$seconds" "$(grep . <<< "$output" | tail -n 1)")
done

rm -f "$out"/*.part # of a part that was ended while it wrote
"$PYTHON" - "$out/check.json" "$(git describe --always --dirty --abbrev=12 2> /dev/null)" \
    "${driver#* }" "${results[@]}" << 'SUMMARY'
import json
import sys

file, commit, device, *results = sys.argv[1:]
parts = {}
print(f"\n{device or 'no GPU'}, commit {commit or 'unknown'}")
for name, result, seconds, note in zip(*(results[i::4] for i in range(4)), strict=True):
    parts[name] = {"result": result, "seconds": float(seconds), "note": note}
    print(f"{name:9} {result:11} {seconds:>6} s  {note[:160]}")
with open(file, "w") as out:
    json.dump({"device": device or None, "commit": commit or None, "parts": parts}, out, indent=1)
    out.write("\n")
SUMMARY
exit $status
