# The steps of run.sh, which sources this file and says in its head what the environment means. A step_NAME runs alone in a
# shell with its output in a log, ends with 0 (passed), 77 (skipped) or anything else (failed), and its last line is its summary.
# What it measures goes to $OUT as JSON, what people should see to $TABLES.
pack=$WORK/pack
bin=$pack/bin
here=$ROOT/tests/gpu
on_gpu() { [ "$MT_GPU_BACKEND" = cuda ]; }
skip() { echo "skipped: $*"; exit 77; }
fail() { echo "$*"; exit 1; }

unpack() {
  local from=${MT_GPU_PACK:-$ROOT/build/gpu-pack/pack.tar.gz}
  [ -f "$from" ] && mkdir -p "$pack" && tar -C "$pack" -xzf "$from"
}
has_gpu() { compgen -G '/dev/nvidia[0-9]*' > /dev/null || grep -q '^GPU' <<< "$(nvidia-smi -L 2> /dev/null)"; }
count_gpus() {
  local count
  count=$(grep -c '^GPU' <<< "$(nvidia-smi -L 2> /dev/null)")
  [ "$count" -gt 0 ] || count=$(compgen -G '/dev/nvidia[0-9]*' | wc -l)
  echo "$count"
}
# Python's packages of NVIDIA's libraries lie in <site-packages>/nvidia/*/lib; the plug-in looks there itself.
find_libraries() {
  local site
  site=$("$PYTHON" -c 'import os, nvidia; print(":".join(os.path.dirname(path) for path in nvidia.__path__))' 2> /dev/null) || site=
  export MT_CUDA_LIBRARY_PATH=${MT_CUDA_LIBRARY_PATH:-$site}
  export MT_BACKEND_PATH=$pack/bundle:$pack/bin
}
plugin() { ls "$pack"/{bundle,bin}/libmt_backend_"$MT_GPU_BACKEND".so 2> /dev/null | head -n 1; }
number() { sed -n "s/.*\"$1\": \\([-+.0-9e]*\\).*/\\1/p" "$2" 2> /dev/null | tail -n 1; }  # KEY JSON_FILE
calculate() { awk "BEGIN { printf \"%.${2:-3}g\", $1 }"; }
has_torch() { "$PYTHON" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)' 2> /dev/null; }

# Every program of the pack runs here, and the plug-in says whether it can work.
step_start() {
  local program said code=0
  "$pack/bundle/mt-worker" version && "$bin/mtctl" version && "$bin/mt-coordinator" --version || fail "a program does not start"
  for program in kernels_conformance_test golden_test; do
    "$bin/$program" "$pack/bundle/libmt_backend_reference.so" --gtest_list_tests > /dev/null || fail "$program does not start"
  done
  "$bin/mt-bench" --shape tiny --backend reference --steps 2 --warmup 1 || fail "mt-bench does not run"
  [ -n "$(plugin)" ] || fail "the pack has no libmt_backend_$MT_GPU_BACKEND.so"
  said=$("$bin/mt-worker" kernels --backend="$MT_GPU_BACKEND" 2>&1) || code=$?
  echo "$said"
  if [ "$code" != 0 ] && ! has_gpu; then
    grep -q 'no CUDA device' <<< "$said" || fail "the plug-in does not say that there is no CUDA device"
    echo "the pack starts; the plug-in declines: no CUDA device"
  elif [ "$code" != 0 ]; then
    fail "there is a GPU, but the plug-in declines: $(tail -n 1 <<< "$said")"
  else
    echo "the pack starts; backend $MT_GPU_BACKEND is usable"
  fi
}

step_machine() {
  {
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv,noheader 2> /dev/null || echo "no nvidia-smi"
    sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1
    echo "$(nproc) cores, glibc $(ldd --version | sed -n '1s/.* //p')"
    nvcc --version 2> /dev/null | grep release
    has_torch && "$PYTHON" -c 'import importlib.metadata; print("torch", importlib.metadata.version("torch"))'
  } | tee "$OUT/machine.txt" "$TABLES/10-machine"
  head -n 1 "$OUT/machine.txt"
}

# The table of cases on the backend in all its types against float64, split over processes.
step_conformance() {
  local shards=6 shard failed=0
  on_gpu && export MT_CONFORMANCE_SEED="${MT_CONFORMANCE_SEED:-random}"  # each run of a device sees other data
  for shard in $(seq 0 $((shards - 1))); do
    GTEST_TOTAL_SHARDS=$shards GTEST_SHARD_INDEX=$shard "$bin/kernels_conformance_test" "$pack/bundle/libmt_backend_reference.so" \
      "$(plugin)" --gtest_filter="${MT_GPU_CASES:-$MT_GPU_BACKEND*}" --gtest_brief=0 > "$OUT/conformance.$shard.txt" 2>&1 &
  done
  for shard in $(jobs -p); do wait "$shard" || failed=1; done
  # A case that was skipped is one that the backend does not support.
  cat "$OUT"/conformance.?.txt | awk '/^\[ +(OK|FAILED|SKIPPED) .*ms\)/ { split($0, part, /\] /); split(part[2], name, ".");
      what = $2 == "OK" ? "passed" : tolower($2); if ($2 == "]") what = tolower(substr($1, 2)); count[name[1], what]++; suites[name[1]] }
    END { for (s in suites) printf "  %-24s %5d passed %4d failed %4d not supported\n", s, count[s, "passed"], count[s, "failed"], count[s, "skipped"] }' |
    sort > "$WORK/conformance"
  { echo "Conformance against float64"; cat "$WORK/conformance"; } | tee "$TABLES/20-conformance"
  grep -h -A6 ': Failure' "$OUT"/conformance.?.txt | head -n 40
  [ -s "$WORK/conformance" ] || fail "no case ran"
  echo "$(awk '{ p += $2; f += $4; n += $6 } END { printf "%d passed, %d failed, %d not supported", p, f, n }' "$WORK/conformance")"
  [ $failed = 0 ]
}

# Attention at the sizes where tiles, groups and strides go wrong, by our own kernels or by cuDNN, repeated bit for bit.
attention() {  # [CHOICE]
  local shards=4 shard failed=0 log=$OUT/attention.${1:-own}
  on_gpu && export MT_CONFORMANCE_SEED="${MT_CONFORMANCE_SEED:-random}"
  for shard in $(seq 0 $((shards - 1))); do
    GTEST_TOTAL_SHARDS=$shards GTEST_SHARD_INDEX=$shard \
      "$bin/kernels_cuda_attention_test" "$pack/bundle/libmt_backend_reference.so" "$(plugin)" "$@" > "$log.$shard.txt" 2>&1 &
  done
  for shard in $(jobs -p); do wait "$shard" || failed=1; done
  grep -h -A6 ': Failure' "$log".?.txt | head -n 40
  # Cases of a type or shape that the choice does not have are skipped; if all are, nothing was seen.
  local passed
  passed=$(cat "$log".?.txt | grep -c '^\[       OK')
  echo "${1:-own}: $passed passed, $(cat "$log".?.txt | grep -c '^\[  FAILED  \].*ms)') failed, $(cat "$log".?.txt | grep -c '^\[  SKIPPED \].*ms)') not supported"
  [ $failed = 0 ] && [ "$passed" -gt 0 ]
}
step_attention_flash() { if on_gpu; then attention flash; else attention; fi; }
step_attention_cudnn() {
  on_gpu || skip "cuDNN wants a GPU"
  attention cudnn
}

# The first cases of every operation and type, and the first with positions, documents or a scale on the device: memory errors do not
# depend on the size.
small_cases() {
  "$bin/kernels_conformance_test" "$pack/bundle/libmt_backend_reference.so" "$(plugin)" --gtest_list_tests |
    awk -v backend="$MT_GPU_BACKEND" -v most="${1:-2}" -v without="${2:-^$}" '/^[^ ]/ { suite = $1; next }
      index(suite, backend) == 1 && suite !~ /nan\./ { split($1, part, "/"); if (part[1] !~ without && seen[suite, part[1], part[2] ~ /positions|documents|by_pointer/]++ < most) printf "%s%s:", suite, $1 }'
}
sanitize() {  # TOOL [OPERATIONS LEFT OUT]
  local sanitizer
  sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2> /dev/null) || skip "no compute-sanitizer"
  # What a library tries and recovers from is not an error; our own calls are checked by ourselves.
  "$sanitizer" --tool "$1" --error-exitcode 9 --report-api-errors no "$bin/kernels_conformance_test" "$pack/bundle/libmt_backend_reference.so" \
    "$(plugin)" --gtest_filter="$(small_cases 2 "${2:-^$}")" > "$OUT/$1.txt" 2>&1
  local code=$? cases
  cases=$(grep -c '^\[       OK' "$OUT/$1.txt")
  [ $code = 0 ] || ! grep -q 'Device not supported' "$OUT/$1.txt" || skip "compute-sanitizer does not support the device here"
  [ $code = 0 ] || grep -v '^\[ *\(RUN\|OK\)' "$OUT/$1.txt" | tail -n 60
  echo "$cases cases: $(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' "$OUT/$1.txt" || echo "no summary, exit $code")"
  [ "$cases" -gt 0 ] && return $code
}
step_memcheck() { sanitize memcheck; }
# Products are the library's own kernels, which are not ours to judge.
step_racecheck() { sanitize racecheck '^matmul$'; }

step_golden() {
  MT_TEST_BACKEND=$MT_GPU_BACKEND MT_GOLDEN_FOLDER=$pack/tests/golden "$bin/golden_test" --gtest_filter="*${MT_GPU_BACKEND}*" > "$OUT/golden.txt" 2>&1 || { cat "$OUT/golden.txt"; fail "golden_test failed"; }
  ! grep '^skipped: no' "$OUT/golden.txt" || fail "golden_test found no device"
  grep -E '^\[  PASSED' "$OUT/golden.txt"
}

use_cluster() {  # NAME: settings of its own, and jobs.sh's functions
  export MT_SCENARIO_FOLDER=$WORK/$1
  mkdir -p "$MT_SCENARIO_FOLDER"
  . "$ROOT/tests/scenario/hosts.sh"
  . "$ROOT/tests/scenario/jobs.sh"
  state=$work/state
  trap 'mtctl -q dev down --state "$state" --now > /dev/null 2>&1' EXIT
}
# NAME PRECISION STEPS EVERY PARALLEL: a small Llama on the pack's text. On a GPU its samples are as long as cuDNN's attention
# asks for.
job_file() {
  local length=64
  on_gpu && length=256
  cat > "$1.yaml" <<EOF
name: $1
model: {layers: 2, hidden: 128, heads: 4, kv_heads: 2, ffn: 256}
data: {train: $pack/data/text, tokenizer: byte, sequence_length: $length}
training: {steps: $3, global_batch: 4, micro_batch: 2, precision: $2}
parallel: {$5}
checkpoint: {every_steps: $4}
$(on_gpu || echo "runtime: {backend: $MT_GPU_BACKEND}")
EOF
}
has_checkpoint() { [ -n "$(find "$state" -path "*/checkpoints/$job/step-*/manifest.json" -print -quit)" ]; }
rank_pid() { pid=$(status ranks.0.pid) && [ -n "$pid" ]; }
run_job() {  # FILE [kill]: rank 0 is killed once there is a checkpoint; sets job, digest, loss
  job=$(submit "$1")
  if [ $# -gt 1 ]; then
    # Steps take milliseconds: a look at the disk is quicker than a call of mtctl.
    until_true 60 "$job has a rank" rank_pid && until_true 60 "$job has a checkpoint" has_checkpoint && kill -9 "$pid" || return 1
  fi
  mtctl wait "$job" --timeout 100s || { mtctl describe "$job"; mtctl logs "$job" | tail -n 20; return 1; }
  digest=$(mtctl checkpoint show --digest "$job")
  loss=$(status progress.loss)
}

# Through coordinator and daemon from the bundle: one slot per GPU, equal bits after kill -9 and in a second run, figures of NVML.
step_cluster() {
  local precision first figure summary= steps=1600 every precisions="fp32 bf16 fp8"
  use_cluster cluster
  if on_gpu; then
    mtctl dev up --state "$state" || fail "mtctl dev up failed"
    [ "$(mtctl cluster status -o json | field slots)" = "$(count_gpus)" ] || fail "not one slot per GPU"
  else
    steps=${MT_GPU_STEPS:-600} precisions=fp32
    mtctl dev up --nodes 1 --slots 1 --state "$state" || fail "mtctl dev up failed"
  fi
  every=$((steps / 8))
  for precision in $precisions; do
    job_file "$precision" "$precision" $steps $every "data: 1"
    run_job "$precision.yaml" || fail "the undisturbed job failed"
    first=$digest
    grep -m1 "backend $MT_GPU_BACKEND" <<< "$(mtctl logs "$job")" || fail "the job did not run on backend $MT_GPU_BACKEND"
    run_job "$precision.yaml" kill || fail "the job that was killed did not end well"
    [ "$(status restarts)" = 1 ] || fail "the job that was killed has not been restarted once"
    [ -n "$first" ] && [ "$digest" = "$first" ] || fail "$precision: $digest after kill -9, $first undisturbed"
    summary+="$precision loss $loss, equal bits after kill -9, attention $(mtctl describe "$job" | awk '$1 == "attention_backward" { print $3 }'); "
  done
  "$PYTHON" -c 'import sys, urllib.request; sys.stdout.buffer.write(urllib.request.urlopen(sys.argv[1]).read())' \
    "http://$(mtctl cluster status -o json | field metrics_address)/metrics" > "$OUT/metrics.txt" || fail "no /metrics"
  if on_gpu || grep -q '^mt_gpu_info' "$OUT/metrics.txt"; then
    for figure in memory_used_bytes utilization_ratio temperature_celsius power_watts; do
      grep "^mt_gpu_$figure{" "$OUT/metrics.txt" >> "$WORK/figures" || fail "/metrics has no mt_gpu_$figure"
    done
    { echo "/metrics during the cluster step"; cat "$WORK/figures"; echo; } | tee "$TABLES/30-metrics"
  fi
  mtctl nodes -o wide
  echo "${summary%; }"
}

# Two ranks on the one GPU, each its own host for NCCL (NCCL_HOSTID), over sockets; the losses are those of one rank.
step_ranks() {
  local layout alone summary= steps=10
  use_cluster ranks
  on_gpu || steps=${MT_GPU_STEPS:-12}
  export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-lo} NCCL_DEBUG=${NCCL_DEBUG:-WARN}
  mtctl dev up --nodes 2 --slots 1 --state "$state" || fail "mtctl dev up failed"
  for layout in "data: 1" "tensor: 2" "data: 2" "pipeline: 2"; do
    job_file ranks fp32 $steps 1000000 "$layout"
    run_job ranks.yaml || fail "$layout failed"
    [ -n "${alone:-}" ] || alone=$loss
    summary+="$layout loss $loss; "
    awk "BEGIN { d = $loss - $alone; exit !(d < 1e-4 && d > -1e-4) }" || fail "$layout: loss $loss, one rank $alone"
  done
  echo "${summary%; }"
}

# What memory and matrix units give PyTorch here: our own ceilings are not below them.
step_ceilings() {
  on_gpu || skip "no GPU"
  has_torch || skip "no PyTorch"
  "$PYTHON" "$pack/tests/train_peer.py" --ceilings | tee "$OUT/ceilings.json"
  [ "${PIPESTATUS[0]}" = 0 ]
}
ceilings() {
  local copy flops
  copy=$(number copy_gbytes "$OUT/ceilings.json") flops=$(number bf16_tflops "$OUT/ceilings.json")
  echo "--copy-gbytes ${copy:-0} --bf16-tflops ${flops:-0}"
}

# SHAPE DTYPE NAME: every operation of a step alone; what is slow is marked in $OUT/NAME.txt. Of what computes no product the share
# of the rate of a copy counts: under 85% is marked. Of experts' products the share of the peak counts: under 50% is.
kernels_alone() {
  local code=0
  # shellcheck disable=SC2046  # two flags
  "$bin/mt-kernel-bench" "$(plugin)" --shape "$1" --dtype "$2" --json "$WORK/$3.json" --gemm-cache "$WORK/gemm" $(ceilings | cut -d' ' -f1,2) \
    > "$OUT/$3.raw" || code=$?
  awk 'NR > 2 && NF >= 8 && $4 ~ /^[0-9]+$/ { slow = $1 ~ /^grouped_matmul/ ? $6 < 50 : $1 !~ /^(matmul|attention)/ && $4 < 85;
      print (slow ? "< " : "  ") $0; next } { print "  " $0 }' "$OUT/$3.raw" > "$OUT/$3.txt"
  cat "$OUT/$3.txt"
  [ $code = 0 ] || fail "mt-kernel-bench at shape $1: exit $code: $(grep -v ' [0-9.]* *[0-9]* ' "$OUT/$3.raw" | tail -n 1)"
  mv "$WORK/$3.json" "$OUT/$3.json"  # whole
}
step_kernels() {
  local shape=1.3b dtype=bf16
  on_gpu || shape=tiny dtype=float32
  kernels_alone $shape $dtype kernels
  { echo "Kernels alone at shape $shape, $dtype: those under 85% of a copy's rate"; sed -n 2p "$OUT/kernels.txt"; grep '^<' "$OUT/kernels.txt"; echo; } > "$TABLES/40-kernels"
  echo "$(grep -c '"operation"' "$OUT/kernels.json") kernels, $(grep -c '^<' "$OUT/kernels.txt") of them under 85% of a copy's rate"
}
# Mixtures of experts and latent attention at the shapes of published models.
step_experts() {
  local shape shapes="mixtral-8x7b qwen3-30b-a3b deepseek-v3" dtype=bf16 summary=
  on_gpu || shapes=tiny-experts dtype=float32
  for shape in $shapes; do
    kernels_alone "$shape" $dtype "experts_$shape"
    { echo "Experts' kernels alone at shape $shape, $dtype: the slow ones"; sed -n 2p "$OUT/experts_$shape.txt"; grep '^<' "$OUT/experts_$shape.txt"; echo; } > "$TABLES/41-experts-$shape"
    summary+="$shape: $(grep -c '"operation"' "$OUT/experts_$shape.json") kernels, $(grep -c '^<' "$OUT/experts_$shape.txt") slow; "
  done
  echo "${summary%; }"
}

# LETTER SHAPE STEPS PRECISION: ours, with the time of a step by operation.
bench() {
  local letter=$1 shape=$2 steps=$3 precision=$4 code=0
  local name=bench_${letter}_$precision profile=$OUT/profile_${letter}_$precision.txt
  on_gpu || [ "$precision" != fp8 ] || [ "$MT_GPU_BACKEND" = emulated ] || skip "backend $MT_GPU_BACKEND has no fp8"
  on_gpu || { shape=tiny steps=6; }
  # shellcheck disable=SC2046  # four flags
  "$bin/mt-bench" --backend "$MT_GPU_BACKEND" --shape "$shape" --precision "$precision" --steps "$steps" --warmup $((steps / 3)) \
    --tokens "$WORK/tokens_$letter" --write-tokens --gemm-cache "$WORK/gemm" --profile 2 $(ceilings) --json "$OUT/$name.json" 2> "$profile" || code=$?
  cat "$profile"
  { echo "Step of shape $letter ($shape) in $precision, by operation: the longest"; sed -n '/^ceilings:/,$p' "$profile" | sed -n '2,14p'; tail -n 2 "$profile"; echo; } > "$TABLES/5$letter-$precision"
  # What makes a run slower than a job is.
  grep -h 'graphs are off\|not declared' "$profile"
  [ $code = 0 ] || fail "exit $code: $(tail -n 1 "$profile")"
  echo "$precision $(number tokens_per_second "$OUT/$name.json") tokens/s, MFU $(number mfu "$OUT/$name.json")$(sed -n 's/.*graphs are off.*/, WITHOUT GRAPHS/p' "$profile" | head -n 1)"
}
step_bench_a_bf16() { bench a 1.3b 100 bf16; }
step_bench_a_fp8() { bench a 1.3b 100 fp8; }
step_bench_b_bf16() { bench b 0.4b 40 bf16; }
step_bench_b_fp8() { bench b 0.4b 40 fp8; }

peer_shape() {  # LETTER
  on_gpu || { echo "--layers 2 --hidden 64 --heads 4 --kv-heads 2 --ffn 128 --vocab 256 --seq 32 --micro-batch 2"; return; }
  case $1 in
    a) echo "--layers 24 --hidden 2048 --heads 16 --kv-heads 8 --ffn 6144 --vocab 32768 --seq 4096 --micro-batch 4" ;;
    b) echo "--layers 24 --hidden 1024 --heads 16 --kv-heads 8 --ffn 3072 --vocab 32768 --seq 2048 --micro-batch 16" ;;
  esac
}
# LETTER autocast|pure STEPS WARMUP TOKENS: PyTorch, compiled, under autocast or in pure bf16; on the processor in float32.
run_peer() {
  local flags="--device cuda --compile --dtype bf16" program=${MT_GPU_PEER:-$pack/tests/train_peer.py}
  [ "$2" = autocast ] || flags+=" --pure-bf16"
  on_gpu || flags="--device cpu"
  # shellcheck disable=SC2046,SC2086  # flags
  "$PYTHON" "$program" $(peer_shape "$1") --steps "$3" --warmup "$4" --tokens "$5" $flags
}
# What PyTorch compiles is compiled while others verify, into a cache for the steps that time it. Which of several kernels is
# the fastest is found out again there, without neighbours.
step_compile() {
  local letter kind letters=b done=
  on_gpu || skip "no GPU"
  has_torch || skip "no PyTorch"
  # Beside the others there is room for the larger shape only on large devices.
  [ "$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits 2> /dev/null | head -n 1)" -gt 100000 ] && letters="a b"
  head -c 1000000 /dev/zero > "$WORK/zeros"
  for letter in $letters; do
    for kind in autocast pure; do
      run_peer $letter $kind 1 0 "$WORK/zeros" && done+="$letter $kind; "
    done
  done
  find "$TORCHINDUCTOR_CACHE_DIR" -name '*.best_config' -delete
  [ -n "$done" ] || skip "nothing could be compiled ahead"
  echo "compiled ahead: ${done%; }"
}
peer() {  # LETTER autocast|pure
  has_torch || skip "no PyTorch"
  on_gpu || [ "$2" = autocast ] || skip "no GPU"
  [ -s "$WORK/tokens_$1" ] || skip "bench_$1_bf16 has not run"
  local steps=20
  on_gpu || steps=6
  run_peer "$1" "$2" $steps $((steps / 3)) "$WORK/tokens_$1" > "$WORK/peer_$1_$2.json" || fail "PyTorch failed"
  mv "$WORK/peer_$1_$2.json" "$OUT/"  # whole
  echo "$2 $(number tokens_per_second "$OUT/peer_$1_$2.json") tokens/s"
}
step_peer_a_autocast() { peer a autocast; }
step_peer_a_pure() { peer a pure; }
step_peer_b_autocast() { peer b autocast; }
step_peer_b_pure() { peer b pure; }

# Ratios of one run, and FP8 beside bf16.
step_tables() {
  local letter file ours best of whose
  {
    echo "Tokens per second"
    for letter in a b; do
      best=$(for file in "$OUT"/peer_${letter}_*.json; do number tokens_per_second "$file"; done | sort -g | tail -n 1)
      whose="PyTorch at its better"
      [ -s "$OUT/peer_${letter}_autocast.json" ] && [ -s "$OUT/peer_${letter}_pure.json" ] || whose="PyTorch, one setting of two"
      for file in "$OUT"/peer_${letter}_*.json "$OUT"/bench_${letter}_*.json; do
        ours=$(number tokens_per_second "$file")
        [ -n "$ours" ] || continue
        of=$(number mfu "$file")
        printf '  %-22s %12.0f tokens/s %9.2f ms %6.1f GiB' "$(basename "$file" .json)" "$ours" "$(calculate "1000 * $(number step_seconds "$file")" 6)" \
          "$(calculate "0$(number memory_bytes "$file") / 2^30")"
        [ -z "$of" ] || printf '  MFU %5.1f%%' "$(calculate "100 * $of")"
        [ -z "$best" ] || printf '  %s of %s' "$(calculate "$ours / $best")" "$whose"
        echo
      done
      compare_losses "$OUT/bench_${letter}_bf16.json" "$OUT/bench_${letter}_fp8.json"
    done
  } | tee "$TABLES/70-tokens"
  echo "$(ls "$OUT"/{bench,peer}_*.json 2> /dev/null | wc -l) runs"
}
compare_losses() {  # BF16 FP8: the largest relative difference
  [ -s "$1" ] && [ -s "$2" ] || return 0
  paste <(sed 's/.*"losses": \[\([^]]*\)\].*/\1/; s/, /\n/g' "$1") <(sed 's/.*"losses": \[\([^]]*\)\].*/\1/; s/, /\n/g' "$2") |
    awk '{ d = ($1 - $2) / $1; if (d < 0) d = -d; if (d > most) most = d } END { printf "  fp8 losses are within %.2f%% of bf16 over %d steps\n", 100 * most, NR }'
}
