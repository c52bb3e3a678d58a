#!/usr/bin/env bash
# Makes the data, trains, evaluates and exports the demo model in a given time, on one machine.
#
#   training/gpu.sh --out build/training/gpu --minutes 30
#
# The simulator runs on all cores from the start, training joins in as soon as there are sweeps enough
# and takes in the rest as it comes. In --out afterwards: final.pt (weights), last.pt (to go on from),
# log.json (scores), train.log, model/ (what centerpoint_ptq loads). Run again after a kill, with the
# same --out and --data, it goes on where it was.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
out=build/training/gpu data= scratch= minutes=30 sweeps=40000 held_out=1000 wanted=4000 processes=$(nproc)
tool=${CENTERPOINT_PTQ:-target/release/centerpoint_ptq} python=${PYTHON:-python3} more=()
usage() {
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"
    echo "
--out DIR         results [$out]
--minutes M       from now to the end of everything [$minutes]
--sweeps N        to train on, at most [$sweeps]
--wanted N        sweeps that there must be before training starts [$wanted]
--held-out N      sweeps to judge on [$held_out]
--data DIR        sweeps, 0.45 MB each [OUT/data]
--scratch DIR     bags on their way, 100 MB for each process [DATA]
--processes N     simulators at once [$processes]
--tool FILE       centerpoint_ptq [$tool]
-- ...            the rest goes to train.py, which lists its options with --help"
}
while [ $# -gt 0 ]; do
    case $1 in
    -h | --help) usage; exit ;;
    --) shift; more=("$@"); break ;;
    --out | --minutes | --sweeps | --wanted | --held-out | --data | --scratch | --processes | --tool)
        [ $# -gt 1 ] || { echo "$1 needs a value" >&2; exit 2; }
        name=${1#--}; printf -v "${name//-/_}" %s "$2"; shift 2 ;;
    *) echo "unknown: $1" >&2; usage >&2; exit 2 ;;
    esac
done
data=${data:-$out/data} scratch=${scratch:-$data}
# The export takes some seconds, on a busy machine more.
end=$("$python" -c 'import sys, time; print(time.time() + 60 * float(sys.argv[1]) - 12)' "$minutes")
mkdir -p "$out" "$data" "$scratch"
exec > >(tee -a "$out/train.log") 2>&1
export PYTHONUNBUFFERED=1

"$python" "$here/generate.py" --out "$data" --scratch "$scratch" --sweeps "$sweeps" --held-out "$held_out" \
    --processes "$processes" --tool "$tool" &
maker=$!
trap 'kill $maker 2>/dev/null || true' EXIT
"$python" "$here/train.py" --data "$data" --out "$out" --end-at "$end" --wanted "$wanted" "${more[@]}"
kill $maker 2>/dev/null || true
wait $maker || true
"$python" "$here/export.py" --checkpoint "$out/final.pt" --out "$out/model"
