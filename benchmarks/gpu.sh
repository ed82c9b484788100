#!/usr/bin/env bash
# benchmarks/gpu.sh FOLDER [RECIPE MODEL SEED]...: real runs on a GPU, by default all of them, in the order of what
# they are worth for their minutes. FOLDER/pieces holds the dataset in pieces; results go to FOLDER/results.
# Cut at any moment, it goes on when it is started again. OPTIONS, such as "--compile off", are given to every run.
set -uo pipefail
folder=$(realpath "${1:?name the folder that holds pieces/}")
shift
cd "$(dirname "$0")/.." || exit 2
if [ $# -eq 0 ]; then
    set -- seed-100 wrn-28-10 0 \
        seed-100 resnet-42 0 \
        seed-200 wrn-28-10 0 \
        seed-100 wrn-28-10 1 \
        seed-100 wrn-28-10 2
fi
failed=0
while [ $# -ge 3 ]; do
    echo "== $1 $2, seed $3"
    "${PYTHON:-python3}" -m benchmarks.real_runs train "$1" "$2" --seed "$3" \
        --pieces "$folder/pieces" --work "$folder/runs" --out "$folder/results/$1-$2/seed-$3" \
        ${OPTIONS:-} || failed=1
    shift 3
done
exit $failed
