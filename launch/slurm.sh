#!/bin/bash
# A sweep on nodes of SLURM, which goes on by itself after its time is over. Call it in a folder that all nodes share:
#   sbatch --job-name=big --nodes=4 --gpus-per-node=8 launch/slurm.sh experiment=which_losses train.num_workers=8 train.use_gpu=true
#   scancel --batch --signal=INT <job>       stops it at a saved step; SIGTERM in its place: and puts it in the queue again
# The sweep has the job's name; what stands on the line of sbatch comes before what stands here.
#SBATCH --job-name=sweep --nodes=1 --ntasks-per-node=1 --cpus-per-task=8 --time=8:00:00
#SBATCH --signal=B:TERM@150 --requeue --open-mode=append
grace=100                     # seconds; less than what --signal leaves
folder=outputs/sweeps/$SLURM_JOB_NAME
said=ray-$SLURM_JOB_ID.log             # what Ray says of its start
export PATH=$PWD/.venv/bin:$PATH      # of a checkout; elsewhere the environment from which sbatch was called
export RAY_AUTH_MODE=token            # others who reach these nodes run no code as you
ray get-auth-token --generate > /dev/null || exit

driver="" again=""
trap 'again=yes; [ -z "$driver" ] || kill -TERM "$driver"' TERM
trap 'again=no;  [ -z "$driver" ] || kill -TERM "$driver"' INT

# Ports hang on the job, as another one may be on the same node
address=$(hostname):$((20000 + SLURM_JOB_ID % 20000))
start=(ray start --block --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --min-worker-port=0 --max-worker-port=0
    --disable-usage-stats)
"${start[@]}" --head --port="${address#*:}" >> "$said" 2>&1 &
raylets=$!
if ((SLURM_NNODES > 1)); then
    srun --nodes=$((SLURM_NNODES - 1)) --ntasks=$((SLURM_NNODES - 1)) --cpus-per-task="$SLURM_CPUS_PER_TASK" \
        --exclude="$SLURMD_NODENAME" "${start[@]}" --address="$address" >> "$said" 2>&1 &
    raylets+=" $!"
fi
python - "$address" "$SLURM_NNODES" << 'END' || exit
import sys
import time

import ray
from ray._raylet import GcsClient

address, count = sys.argv[1], int(sys.argv[2])
deadline, alive = time.monotonic() + 300, 0
while alive < count:
    if time.monotonic() > deadline:
        sys.exit(f"{alive} of {count} nodes joined Ray at {address} in 5 minutes")
    time.sleep(1)
    try:
        alive = sum(node.state == 0 for node in GcsClient(address=address).get_all_node_info(timeout=10).values())
    except (ray.exceptions.RayError, RuntimeError):  # the first one isn't up yet
        continue
END

if [ -z "$again" ]; then
    begin=("name=$SLURM_JOB_NAME" "$@")
    if [ -e "$folder/settings.yaml" ]; then begin=("resume=$folder"); fi
    meltr-sweep "${begin[@]}" cluster="$address" train.grace=$grace &
    driver=$!
    while kill -0 $driver 2> /dev/null; do wait $driver; code=$?; done   # a signal ends `wait` before the driver ends
fi
# shellcheck disable=SC2086
kill $raylets
wait
if [ "$again" = yes ] && [ "${code:-143}" -eq 143 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "${code:-143}"
