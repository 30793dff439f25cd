#!/usr/bin/env bash
# A one-node Slurm in a folder of its own, a sweep of two jobs on it, and one of them queued again in the middle:
#
#     apt-get install -y slurm-wlm munge && pip install 'slimdown[slurm]'
#     sudo bench/slurm.sh      # as root: munged and slurmd ask for it
#
# Slurm lets a job that is queued again wait for two minutes. The end is what Slurm and the record say, and everything is
# taken down again; the exit code is the sweep's.
set -eu
python=${PYTHON:-python}
here=$(mktemp -d) host=$(hostname -s) pids=()
take_down() {
    scancel --partition=all 2>/dev/null && sleep 5  # before those who would end them are gone
    kill "${pids[@]}" 2>/dev/null || true
    sleep 1
    rm -rf "$here"
}
trap take_down EXIT INT TERM

mkdir -p "$here"/{munge,state,spool,log} && chmod 700 "$here/munge" && chmod 755 "$here"
head -c 128 /dev/urandom > "$here/munge/key" && chmod 400 "$here/munge/key"
munged --foreground --force --key-file="$here/munge/key" --socket="$here/munge/socket" --pid-file="$here/munge/pid" \
    --seed-file="$here/munge/seed" --log-file="$here/munge/log" & pids+=($!)

cat > "$here/slurm.conf" <<CONF
ClusterName=bench
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$here/munge/socket
CredType=cred/munge
StateSaveLocation=$here/state
SlurmdSpoolDir=$here/spool
SlurmctldPidFile=$here/slurmctld.pid
SlurmdPidFile=$here/slurmd.pid
SlurmctldLogFile=$here/log/slurmctld
SlurmdLogFile=$here/log/slurmd
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
KillWait=20
MinJobAge=3600
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$(free -m | awk '/Mem:/ {print int($2 * 0.9)}') State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF=$here/slurm.conf
sleep 1
slurmctld -D -f "$SLURM_CONF" & pids+=($!)
slurmd -D -f "$SLURM_CONF" -N "$host" & pids+=($!)
for _ in $(seq 30); do sinfo -h -o %T 2>/dev/null | grep -q idle && break; sleep 1; done
sinfo

export PYTHONPATH=${PYTHONPATH:-$PWD}
cd "$here"
"$python" -m slimdown.run -m hydra/launcher=submitit_slurm hydra.launcher.cpus_per_task=1 hydra.launcher.timeout_min=30 \
    seed=0,1 train.max_steps=40 train.checkpoint_minutes=0.01 'benchmark=[pocket_cs]' benchmark.pocket_cs.limit=20 \
    dataset.pocket_instructions.max_examples=64 dataset.pocket_instructions.validation_examples=8 &
sweep=$! pids+=($!)
for _ in $(seq 300); do  # until a run is open in the first job
    grep -qs '"run_id": "[0-9a-f]' outputs/*/.jobs/0.json && break; sleep 1
done
sleep "${AFTER:-3}"
first=$(basename "$(ls -d outputs/*/.submitit/*_0)")
echo "queued again: $first"
scontrol requeue "$first"
wait $sweep && code=0 || code=$?
squeue -a -t all -o '%i %T %r'
scontrol show job "$first" | grep -o 'Restarts=[0-9]*' || true
"$python" -m slimdown.compare --rows 5 --tracking-uri "sqlite:///$here/mlruns/mlflow.db"
exit $code
