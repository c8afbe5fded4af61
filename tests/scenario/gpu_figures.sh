#!/usr/bin/env bash
# A daemon that finds a libnvidia-ml.so.1 (a fake one with two devices) shows their figures in /metrics and in mtctl.
#   tests/scenario/in_sandbox.sh tests/scenario/gpu_figures.sh BIN_FOLDER FAKE_FOLDER
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bin=$(cd "$1" && pwd)
fake=$(cd "$2" && pwd)
. "$here/hosts.sh"
. "$here/jobs.sh"
LD_LIBRARY_PATH=$fake mtctl -q dev up --nodes 1 --slots 1 --state "$work/state" > /dev/null
address=$(mtctl cluster status -o json | field metrics_address)
shows() { curl -sf "http://$address/metrics" > metrics.txt && grep -qxF "$1" metrics.txt; }
until_true 30 "temperature in /metrics" shows 'mt_gpu_temperature_celsius{node="dev-1",device="1"} 61'
shows 'mt_gpu_power_watts{node="dev-1",device="0"} 431.5' || fail "no power"
shows 'mt_gpu_info{node="dev-1",device="0",name="Fake GPU-0",uuid="GPU-0"} 1' || fail "no name"
mtctl nodes -o wide | tee nodes.txt
grep -q '1: 2.00 GiB of 80.0 GiB, 75%, 61 °C, 432 W' nodes.txt || fail "mtctl nodes -o wide does not show the devices"
mtctl -q dev down --state "$work/state" --now
echo "OK"
