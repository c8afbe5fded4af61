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
  site=$("$PYTHON" -c 'import os, nvidia; print(os.path.dirname(list(nvidia.__path__)[0]))' 2> /dev/null) || site=
  export MT_CUDA_LIBRARY_PATH=${MT_CUDA_LIBRARY_PATH:-$site}
  export MT_BACKEND_PATH=$pack/bundle:$pack/bin
}
plugin() { ls "$pack"/{bundle,bin}/libmt_backend_"$MT_GPU_BACKEND".so 2> /dev/null | head -n 1; }
number() { sed -n "s/.*\"$1\": \\([-+.0-9e]*\\).*/\\1/p" "$2" 2> /dev/null | tail -n 1; }  # KEY JSON_FILE
calculate() { awk "BEGIN { printf \"%.${2:-3}g\", $1 }"; }
has_torch() { "$PYTHON" -c 'import torch' 2> /dev/null; }

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
    has_torch && "$PYTHON" -c 'import torch; print("torch", torch.__version__)'
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

# Attention at the sizes where tiles, groups and strides go wrong, by our own kernels and by cuDNN, repeated bit for bit.
step_attention() {
  local choice choices=("") failed=0
  if on_gpu; then
    choices=(flash cudnn)
    export MT_CONFORMANCE_SEED="${MT_CONFORMANCE_SEED:-random}"
  fi
  for choice in "${choices[@]}"; do
    # shellcheck disable=SC2086  # no choice is no argument
    "$bin/kernels_cuda_attention_test" "$pack/bundle/libmt_backend_reference.so" "$(plugin)" $choice > "$OUT/attention.$choice.txt" 2>&1 || failed=1
    grep -A6 ': Failure' "$OUT/attention.$choice.txt" | head -n 40
    echo "$choice: $(grep -E '^\[  (PASSED|SKIPPED|FAILED)  \] [0-9]' "$OUT/attention.$choice.txt" | tr -s ' \n' ' ')"
  done
  [ $failed = 0 ]
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
  "$sanitizer" --tool "$1" --error-exitcode 9 "$bin/kernels_conformance_test" "$pack/bundle/libmt_backend_reference.so" "$(plugin)" \
    --gtest_filter="$(small_cases 2 "${2:-^$}")" > "$OUT/$1.txt" 2>&1
  local code=$?
  [ $code = 0 ] || grep -v '^\[ *\(RUN\|OK\)' "$OUT/$1.txt" | tail -n 60
  echo "$(grep -c '^\[       OK' "$OUT/$1.txt") cases: $(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' "$OUT/$1.txt" || echo "no summary, exit $code")"
  return $code
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
# NAME PRECISION STEPS EVERY PARALLEL: a small Llama on the pack's text.
job_file() {
  cat > "$1.yaml" <<EOF
name: $1
model: {layers: 2, hidden: 128, heads: 4, kv_heads: 2, ffn: 256}
data: {train: $pack/data/text, tokenizer: byte, sequence_length: 64}
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
  local precision first figure summary= steps=4000 every precisions="fp32 bf16"
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
    summary+="$precision loss $loss, equal bits after kill -9; "
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
  local layout alone summary= steps=40
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
  "$bin/mt-kernel-bench" "$(plugin)" --shape "$1" --dtype "$2" --json "$OUT/$3.json" > "$WORK/$3" || fail "mt-kernel-bench: $(tail -n 1 "$WORK/$3")"
  awk 'NR > 2 && NF >= 8 && $4 ~ /^[0-9]+$/ { slow = $1 ~ /^grouped_matmul/ ? $6 < 50 : $1 !~ /^(matmul|attention)/ && $4 < 85;
      print (slow ? "< " : "  ") $0; next } { print "  " $0 }' "$WORK/$3" > "$OUT/$3.txt"
  cat "$OUT/$3.txt"
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
    { echo "Experts' kernels alone at shape $shape, $dtype"; sed -n '2,$p' "$OUT/experts_$shape.txt"; echo; } > "$TABLES/41-experts-$shape"
    summary+="$shape: $(grep -c '"operation"' "$OUT/experts_$shape.json") kernels, $(grep -c '^<' "$OUT/experts_$shape.txt") slow; "
  done
  echo "${summary%; }"
}

# LETTER SHAPE STEPS: ours in bf16 and fp8, with the time of a step by operation.
bench() {
  local letter=$1 shape=$2 steps=$3 precision failed= precisions="bf16 fp8"
  on_gpu || { shape=tiny steps=6; [ "$MT_GPU_BACKEND" = emulated ] || precisions=bf16; }
  for precision in $precisions; do
    "$bin/mt-bench" --backend "$MT_GPU_BACKEND" --shape "$shape" --precision "$precision" --steps "$steps" --warmup $((steps / 3)) \
      --tokens "$WORK/tokens_$letter" --write-tokens --profile 3 $(ceilings) --json "$OUT/bench_${letter}_$precision.json" 2> "$WORK/profile" || failed+="$precision: $(tail -n 1 "$WORK/profile"); "
    cat "$WORK/profile"
    cp "$WORK/profile" "$OUT/profile_${letter}_$precision.txt"
    { echo "Step of shape $letter ($shape) in $precision, by operation: the longest"; sed -n '2,14p' "$WORK/profile"; tail -n 2 "$WORK/profile"; echo; } > "$TABLES/5$letter-$precision"
  done
  for precision in $precisions; do
    echo -n "$precision $(number tokens_per_second "$OUT/bench_${letter}_$precision.json") tokens/s, MFU $(number mfu "$OUT/bench_${letter}_$precision.json"); "
  done
  echo "$failed"
  [ -z "$failed" ]
}
step_bench_a() { bench a 1.3b 100; }
step_bench_b() { bench b 0.4b 60; }

# LETTER LAYERS HIDDEN HEADS KV FFN VOCABULARY SEQUENCE MICRO_BATCH: PyTorch, compiled, under autocast and in pure bf16.
peer() {
  local letter=$1 kind flags failed= device=cuda compile=--compile kinds="autocast pure" steps=25 program=${MT_GPU_PEER:-$pack/tests/train_peer.py}
  has_torch || skip "no PyTorch"
  [ -s "$WORK/tokens_$letter" ] || skip "bench_$letter has not run"
  shift
  on_gpu || { device=cpu compile= kinds=fp32 steps=6; set -- 2 64 4 2 128 256 32 2; }
  local shape="--layers $1 --hidden $2 --heads $3 --kv-heads $4 --ffn $5 --vocab $6 --seq $7 --micro-batch $8 --steps $steps"
  for kind in $kinds; do
    case $kind in autocast) flags="--dtype bf16" ;; pure) flags="--dtype bf16 --pure-bf16" ;; *) flags= ;; esac
    "$PYTHON" "$program" $shape --warmup $((steps / 3)) --tokens "$WORK/tokens_$letter" --device $device $flags $compile \
      > "$OUT/peer_${letter}_$kind.json" || failed+="$kind failed; "
    echo -n "$kind $(number tokens_per_second "$OUT/peer_${letter}_$kind.json") tokens/s; "
  done
  echo "$failed"
  [ -z "$failed" ]
}
step_peer_a() { peer a 24 2048 16 8 6144 32768 4096 4; }
step_peer_b() { peer b 24 1024 16 8 3072 32768 2048 16; }

# Ratios of one run, and FP8 beside bf16.
step_tables() {
  local letter file ours best of
  {
    echo "Tokens per second"
    for letter in a b; do
      best=$(for file in "$OUT"/peer_${letter}_*.json; do number tokens_per_second "$file"; done | sort -g | tail -n 1)
      for file in "$OUT"/peer_${letter}_*.json "$OUT"/bench_${letter}_*.json; do
        ours=$(number tokens_per_second "$file")
        [ -n "$ours" ] || continue
        of=$(number mfu "$file")
        printf '  %-22s %12.0f tokens/s %9.2f ms %6.1f GiB' "$(basename "$file" .json)" "$ours" "$(calculate "1000 * $(number step_seconds "$file")" 6)" \
          "$(calculate "0$(number memory_bytes "$file") / 2^30")"
        [ -z "$of" ] || printf '  MFU %5.1f%%' "$(calculate "100 * $of")"
        [ -z "$best" ] || printf '  %s of PyTorch at its better' "$(calculate "$ours / $best")"
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
