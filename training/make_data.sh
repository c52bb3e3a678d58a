#!/usr/bin/env bash
# Simulates the bags that the demo model is trained and judged on: every sensor, 10 sweeps a scene.
# Run from the repository's root after `make build`. Bags that exist are kept.
set -euo pipefail
tool=${CENTERPOINT_PTQ:-target/release/centerpoint_ptq}
out=${1:-build/training}
mkdir -p "$out"
for seed in 1 2 3 4 5 6 7 8; do
    [ -e "$out/train-$seed" ] || "$tool" simulate --sensor mixed --frames 1000 --scenes 100 --seed "$seed" --out "$out/train-$seed"
done
# Seeds that training never saw.
[ -e "$out/test-1" ] || "$tool" simulate --sensor mixed --frames 1000 --scenes 100 --seed 1001 --out "$out/test-1"
