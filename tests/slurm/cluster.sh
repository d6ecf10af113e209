#!/usr/bin/env bash
# A real Slurm on this machine: a controller and two nodes on loopback, as root, without systemd or accounting.
#
#   tests/slurm/cluster.sh install            Debian's packages (apt), if they are missing
#   tests/slurm/cluster.sh start FOLDER       idempotent; FOLDER is a new one that all users may search (x)
#   source FOLDER/env                         before every client: squeue, sbatch, egokit …
#   tests/slurm/cluster.sh stop FOLDER        end its jobs and daemons
#   tests/slurm/cluster.sh node FOLDER node2  start a node's daemon that was killed
#
# Partitions: main (default), and high, whose jobs preempt main's by requeue, after SIGUSR2 and 30 s.
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
PATH=$PATH:/usr/sbin
NODES="node1 node2"

running() { # pid file, command: succeed if that daemon runs; one that has ended may stay a zombie for a while
    local pid
    pid=$(cat "$1" 2>/dev/null) || return 1
    [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$2" ] && ! grep -q '^State:.Z' "/proc/$pid/status"
}

wait_for() { # seconds, command …: wait until the command succeeds
    local until=$((SECONDS + $1)) output=
    shift
    until output=$("$@" 2>&1); do
        [ $SECONDS -lt $until ] || { echo "timed out: $*: $output" >&2; return 1; }
        sleep 0.1
    done
}

install() {
    command -v slurmctld slurmd squeue munged >/dev/null && return
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update
    apt-get -qq install -y --no-install-recommends slurmctld slurmd slurm-client munge >/dev/null
}

configure() {
    local host
    host=$(hostname -s)
    mkdir -p "$ROOT"/{etc,run,log,state,spool/node1,spool/node2}
    chmod 755 "$ROOT" "$ROOT/run"
    if [ ! -s "$ROOT/etc/munge.key" ]; then
        (umask 077; head -c 1024 /dev/urandom > "$ROOT/etc/munge.key")
    fi
    # gloo resolves the nodes' names, and waits a minute for one that doesn't resolve
    grep -qw node1 /etc/hosts || echo "127.0.0.1 $NODES" >> /etc/hosts
    cat > "$ROOT/etc/slurm.conf" <<CONF
ClusterName=egokit
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# credentials expire soon, because a requeued job waits until its old credential has expired
AuthInfo=socket=$ROOT/run/munge.socket,cred_expire=5
SlurmctldPort=16817
SlurmctldPidFile=$ROOT/run/slurmctld.pid
SlurmdPidFile=$ROOT/run/slurmd.%n.pid
StateSaveLocation=$ROOT/state
SlurmdSpoolDir=$ROOT/spool/%n
SlurmctldLogFile=$ROOT/log/slurmctld.log
SlurmdLogFile=$ROOT/log/slurmd.%n.log
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=512
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=100000,batch_sched_delay=0
SlurmdTimeout=20
SlurmctldTimeout=20
ReturnToService=2
KillWait=5
MinJobAge=3600
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
# the nodes have the resources given below, whatever the machine has
SlurmdParameters=config_overrides
EnforcePartLimits=ALL
NodeName=node[1-2] NodeHostname=$host NodeAddr=127.0.0.1 Port=[17001-17002] CPUs=4 RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes=node[1-2] Default=YES PriorityTier=1 GraceTime=30 MaxTime=INFINITE State=UP
PartitionName=high Nodes=node[1-2] PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP
CONF
    cat > "$ROOT/env" <<ENV
export SLURM_CONF=$ROOT/etc/slurm.conf PATH=$HERE/bin:\$PATH:/usr/sbin
ENV
}

idle() { [ "$(sinfo -h -N -p main -o %t | grep -cxE 'idle|alloc|mix')" = 2 ]; }
empty() { [ -z "$(squeue -h)" ]; }
gone() { ! running "$@"; }

node() { # name: start that node's daemon, which must not hold the caller's output or lock
    running "$ROOT/run/slurmd.$1.pid" slurmd || slurmd -N "$1" </dev/null >/dev/null 2>&1 9>&-
}

start() {
    configure
    if ! running "$ROOT/run/munged.pid" munged; then
        rm -f "$ROOT/run/munge.socket"
        munged --key-file="$ROOT/etc/munge.key" --socket="$ROOT/run/munge.socket" --pid-file="$ROOT/run/munged.pid" \
               --log-file="$ROOT/log/munged.log" --seed-file="$ROOT/run/munged.seed" </dev/null 9>&-
    fi
    wait_for 20 munge -n --socket="$ROOT/run/munge.socket"
    running "$ROOT/run/slurmctld.pid" slurmctld || slurmctld </dev/null >/dev/null 2>&1 9>&-
    wait_for 60 scontrol ping
    for name in $NODES; do node "$name"; done
    wait_for 60 idle
}

end() { # pid file, command, seconds: end that daemon, after so many seconds by kill -9
    running "$1" "$2" || return 0
    local pid
    pid=$(cat "$1")
    kill "$pid"
    wait_for "$3" gone "$1" "$2" || kill -9 "$pid"
}

stop() {
    if running "$ROOT/run/slurmctld.pid" slurmctld; then
        scancel --full --user=root </dev/null >/dev/null 2>&1 || true
        wait_for 30 empty || true
    fi
    for name in $NODES; do end "$ROOT/run/slurmd.$name.pid" slurmd 15; done
    end "$ROOT/run/slurmctld.pid" slurmctld 30
    end "$ROOT/run/munged.pid" munged 10
}

case "${1:-}" in
install) install ;;
start | stop | node)
    ROOT=$(realpath -m "${2:?a folder}")
    export SLURM_CONF=$ROOT/etc/slurm.conf
    mkdir -p "$ROOT/run"
    exec 9> "$ROOT/run/lock"
    flock -w 120 9 || { echo "another start or stop of $ROOT is running" >&2; exit 1; }
    "$1" "${@:3}"
    ;;
*) sed -n '2,10p' "$0"; exit 2 ;;
esac
