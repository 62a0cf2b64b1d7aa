#!/bin/bash
# A SLURM of two nodes on this machine, which lasts until its standard input ends:
#
#   tests/cluster/slurm.sh FOLDER         # prints "ready"; FOLDER has its configuration, sockets and logs
#   tests/cluster/slurm.sh FOLDER node 2  # on its head: starts the second node again, which was killed
#   tests/cluster/slurm.sh FOLDER check   # says what is missing here
#
# FOLDER is on a local disk, and its path is short: names of sockets, which lie in it, end after 107 letters.
# It needs root, and of Debian 12 the packages slurm-wlm and iproute2. Each node, and the head that they hang on, has a
# host name, a network and process numbers of its own (namespaces); files are those of this machine. GPUs are pretended.
# Whatever ends the first process ends all, and nothing of this machine has changed. A command on the head, if that
# process is P:
#
#   SLURM_CONF=FOLDER/slurm.conf nsenter --target P --mount --uts --net --pid=/proc/P/ns/pid_for_children sinfo
set -euo pipefail
PATH=$PATH:/usr/sbin
folder=$(realpath "$1")
self=$(realpath "$0")
apart="unshare --uts --net --pid --fork --kill-child --mount-proc"

check() {
    for name in slurmctld slurmd sbatch munged ip; do
        if ! command -v $name >/dev/null; then
            echo "no $name here: apt-get install slurm-wlm iproute2"
            return 1
        fi
    done
    if [ "$(id -u)" != 0 ]; then
        echo "no SLURM can be started here: that needs root"
    elif ! $apart ip link add name bridge type bridge 2>/dev/null; then
        echo "no SLURM can be started here: that needs namespaces and a network bridge"
    else
        return 0
    fi
    return 1
}

start_node() {
    ip link delete "node$1" 2>/dev/null || true
    $apart "$self" "$folder" inside "$1" > "$folder/node$1.log" 2>&1 < /dev/null &
    echo $! > "$folder/node$1.pid"
    until [ "$(readlink /proc/$!/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.02; done
    # a node that comes back has the address that the other nodes remember
    ip link add "node$1" type veth peer name eth0 address "02:00:0a:07:07:0$1" netns $!
    ip link set "node$1" master bridge up
}

node() {
    hostname "node$1"
    ip link set lo up
    until ip address add "10.7.7.$1/24" dev eth0 2>/dev/null; do sleep 0.02; done
    ip link set eth0 up
    slurmd -D -f "$SLURM_CONF" &
    wait
}

start_head() {
    hostname head
    ip link set lo up
    ip link add name bridge type bridge
    ip address add 10.7.7.100/24 dev bridge
    ip link set bridge up
    printf '%s\n' '127.0.0.1 localhost' '10.7.7.1 node1' '10.7.7.2 node2' '10.7.7.100 head' > "$folder/hosts"
    mount --bind "$folder/hosts" /etc/hosts
    mkdir -p "$folder/state" "$folder/spool.node1" "$folder/spool.node2"
    (umask 077 && head -c 128 /dev/urandom > "$folder/munge.key")
    munged --force --socket="$folder/munge" --key-file="$folder/munge.key" --seed-file="$folder/munge.seed" \
        --pid-file="$folder/munge.pid" --log-file="$folder/munge.log"
    echo 'Name=gpu File=/dev/null' > "$folder/gres.conf"
    # A job that is queued again waits for cred_expire. Without cgroups, processes are found by their parents.
    cat > "$SLURM_CONF" << END
ClusterName=test
SlurmctldHost=head
SlurmUser=root
AuthInfo=socket=$folder/munge,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool.%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=10
GresTypes=gpu
NodeName=node[1-2] CPUs=2 Gres=gpu:1
PartitionName=all Nodes=ALL Default=YES
END
    slurmctld -D -f "$SLURM_CONF" &
    start_node 1
    start_node 2
    for _ in $(seq 300); do
        if [ "$(sinfo --noheader --format=%T 2>/dev/null)" = idle ]; then
            echo ready
            cat >/dev/null
            exit
        fi
        sleep 0.1
    done
    echo "the nodes did not come within 30 s"
}

export SLURM_CONF="$folder/slurm.conf"
case "${2:-start}" in
    start) check && exec $apart --mount "$self" "$folder" head ;;
    check) check ;;
    head) start_head ;;
    node) start_node "$3" && disown ;;
    inside) node "$3" ;;
    *) echo "see the first lines of $self" && exit 2 ;;
esac
