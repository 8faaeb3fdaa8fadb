#!/bin/bash
# A Slurm of one node on this machine, for trying things out. It needs root and Debian's slurm-wlm and munge:
#
#   apt-get update && apt-get install -y slurm-wlm munge
#   experiments/schedulers/slurm_cluster.sh up /tmp/slurm
#   export SLURM_CONF=/tmp/slurm/slurm.conf
#   experiments/schedulers/slurm_cluster.sh down /tmp/slurm
#
# Everything is in the one folder: configuration, key, logs, state. Services that are installed as Debian sets them up
# are not started. Neither systemd nor cgroups are needed.
set -eu

usage() {
    echo "error: usage: $0 up|down FOLDER" >&2
    exit 2
}

wait_for() {  # wait_for SECONDS COMMAND: until the command succeeds
    for _ in $(seq "$1"); do
        if "${@:2}" >/dev/null 2>&1; then return; fi
        sleep 1
    done
    echo "error: gave up after $1 s: ${*:2}; see the logs in $folder" >&2
    exit 1
}

write_config() {
    cat >"$folder/slurm.conf" <<END
ClusterName=trial
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmUser=root
SlurmctldPort=${SLURM_TRIAL_PORT:-16817}
SlurmdPort=$((${SLURM_TRIAL_PORT:-16817} + 1))
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=1,sched_interval=5
ReturnToService=0
KillWait=10
MinJobAge=86400
NodeName=$(hostname -s) NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES DefaultTime=60 MaxTime=INFINITE State=UP
END
}

up() {
    rm -rf "${folder:?}"/{state,spool} # jobs of an earlier cluster would come back
    mkdir -p "$folder"/{state,spool,munge}
    # munged refuses a key that others can read, and a folder that others can write to.
    chmod 755 "$folder" "$folder/munge"
    (umask 077 && head -c 1024 /dev/urandom >"$folder/munge/key")
    munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munge/pid" \
        --log-file="$folder/munge/log" --seed-file="$folder/munge/seed"
    write_config
    export SLURM_CONF=$folder/slurm.conf
    slurmctld -f "$SLURM_CONF"
    slurmd -f "$SLURM_CONF" -N "$(hostname -s)"
    wait_for 60 bash -c "sinfo --noheader --format=%T | grep --quiet idle"
    echo "up: export SLURM_CONF=$SLURM_CONF"
}

stop() {  # stop PIDFILE: asks the process to end, and waits for it
    if [ ! -s "$1" ]; then return; fi
    local process
    process=$(cat "$1")
    kill "$process" 2>/dev/null || true
    wait_for 30 bash -c "! kill -0 $process"
}

down() {
    export SLURM_CONF=$folder/slurm.conf
    scancel --user="$(id -un)" 2>/dev/null || true
    stop "$folder/slurmd.pid"
    stop "$folder/slurmctld.pid"
    stop "$folder/munge/pid"
    echo "down: $folder has the logs"
}

if [ $# -ne 2 ]; then usage; fi
mkdir -p "$2"
folder=$(cd "$2" && pwd)
case $1 in
    up) up ;;
    down) down ;;
    *) usage ;;
esac
