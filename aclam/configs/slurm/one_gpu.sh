#!/bin/bash
# One process on one GPU.
#   sbatch one_gpu.sh --preset ac_lam_paper --data DATA --out RUN --train.accumulate 8
# Another training: TRAIN=aclam.train.policy sbatch one_gpu.sh ...; another Python: PYTHON=/path/to/venv/bin/python
#SBATCH --job-name=aclam
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120

cancelled=no
trap 'kill -USR1 "$step"' USR1
trap 'cancelled=yes' TERM

srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=0 --wait=60 \
    "${PYTHON:-python}" -m "${TRAIN:-aclam.train.lam}" "$@" &
step=$!
while kill -0 "$step" 2>/dev/null; do wait "$step"; done
wait "$step"
status=$?

if [ "$status" = 75 ] && [ "$cancelled" = no ]; then
    exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
