#!/usr/bin/env bash
# Test and measure w2skd on one GPU, in ten minutes. Needs torch >= 2.11, torchvision, timm, pytest, pytest-xdist and
# hypothesis. On a machine without network, WHEELS installs the other packages from a folder of wheels (see
# benchmarks/gpu/wheels.txt).
#
#   OUT=results [WHEELS=.whl] [DATA=cifar10-jpeg.tar.xz] benchmarks/gpu.sh [--parts correctness,overhead,...]
#   benchmarks/gpu.sh --tiny        # rehearse on the CPU
#
# DATA is a folder with train/<class>/*.jpg and test/<class>/*.jpg, or an archive of it; without it the experiment
# fails. Every part updates $OUT/<part>.json as it goes, so an interrupted run keeps its measurements.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
out=${OUT:?set OUT to a folder for the results}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1 TMPDIR="$scratch"
if [ -n "${WHEELS:-}" ]; then
    wheels=$(cd "$WHEELS" && pwd)
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$scratch/site" "$wheels"/*.whl
    export PYTHONPATH="$PYTHONPATH:$scratch/site"
    # benchmarks/peers.py installs from the same folder into a separate environment
    export PIP_NO_INDEX=1 PIP_FIND_LINKS="$wheels"
fi
"$python" -c 'import diffusers, pycocotools, pydantic, pytest, torch, torch_fidelity, torchvision'

data=${DATA:-}
if [ -f "$data" ]; then
    mkdir "$scratch/data"
    tar -xf "$data" -C "$scratch/data"
    data=$(echo "$scratch"/data/*)
fi
"$python" "$root/benchmarks/gpu/run.py" --out "$out" ${data:+--data "$data"} "$@"
