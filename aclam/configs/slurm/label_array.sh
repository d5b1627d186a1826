#!/bin/bash
# Labels by a job array: submits the shards that are not there yet, and after them a job that looks again.
#   SHARDS=64 bash label_array.sh --model RUN/model --data DATA --offsets 1 3 6
# What a shard gets: SHARD_OPTIONS="--gpus-per-node=1 --cpus-per-task=8 --time=04:00:00"; how often missing shards are
# submitted: ROUNDS=3; another Python: PYTHON=/path/to/venv/bin/python
# Exit status: 0, all labels are there, or a round was submitted; 3, shards are missing and no round is left; else what
# aclam-label or sbatch ended with, which has said why.
#SBATCH --job-name=aclam-label
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --requeue
#SBATCH --open-mode=append

export SHARDS="${SHARDS:-64}"
export ROUNDS="${ROUNDS:-3}"
export SHARD_OPTIONS="${SHARD_OPTIONS:---gpus-per-node=1 --cpus-per-task=8 --time=04:00:00}"
export LABEL_ARRAY="${LABEL_ARRAY:-$(realpath "$0")}" # Slurm runs a copy of the script that lies elsewhere

label=("${PYTHON:-python}" -m aclam.train.label "$@")

if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    exec srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" "${label[@]}" --shard "$SLURM_ARRAY_TASK_ID/$SHARDS"
fi

missing=$("${label[@]}" --missing "$SHARDS")
status=$?
if [ "$status" != 3 ]; then
    exit "$status"
fi
if [ "$ROUNDS" -le 0 ]; then
    echo "label_array.sh: shards $missing of $SHARDS are missing, and no round is left" >&2
    exit 3
fi

# SHARD_OPTIONS is several words
array=$(sbatch --parsable --array="$missing" $SHARD_OPTIONS "$LABEL_ARRAY" "$@") || exit
export ROUNDS=$((ROUNDS - 1))
exec sbatch --parsable --dependency="afterany:${array%%;*}" --time=01:00:00 "$LABEL_ARRAY" "$@"
