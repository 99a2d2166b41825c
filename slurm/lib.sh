# shellcheck shell=bash
# Functions of the job scripts, which set $run and $iteration. What differs between clusters is in environment.sh, which
# `xlr submit` writes: $python, $container, $srun_options, $max_restarts, $reuses and the commands of slurm.setup.
# shellcheck disable=SC2154,SC1091
source "$run/slurm/environment.sh"

umask 077
# Nothing in the folder from which the job was submitted is imported. Python 3.10 ignores the variable, hence `cd`.
export PYTHONSAFEPATH=1
cd /
xlr=("${container[@]}" "$python" -m xlr)
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
# Four ports per job, below the ephemeral range (from 32768 on Linux). Jobs on the same node get different ones.
port=$((10000 + SLURM_JOB_ID % 5000 * 4))
# srun does not inherit it from sbatch. Where the job asks for none, srun must not ask for one.
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
# The login node has downloaded what the run needs. A node without a network would wait for the hub.
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}

fail() {
  echo "error: $*" >&2
  exit 1
}

# The IPv4 address by which Slurm reaches a node. A node may resolve its own name to 127.0.1.1, which others cannot use.
address() {
  local name found
  name=$(scontrol --oneliner show node "$1" | sed 's/.* NodeAddr=\([^ ]*\).*/\1/')
  found=$(getent ahostsv4 "$name" | awk '$1 !~ /^127\./ {print $1; exit}')
  echo "${found:-$(hostname -I | awk '{print $1}')}"
}

# Run a step and store its exit code in $code. Slurm sends USR1 or TERM to the tasks before it ends the job. If only this
# shell gets the signal, srun forwards it. A signal interrupts `wait` but not the step, so `wait` is repeated.
step() {
  local id signalled=yes
  srun --overlap --wait=30 "${srun_options[@]}" "$@" &
  id=$!
  trap 'signalled=yes; kill -USR1 "$id"' USR1 TERM
  while [ -n "$signalled" ]; do
    signalled=
    wait "$id" && code=0 || code=$?
  done
  trap - USR1 TERM
}

# Run a command on the first node, as the driver of a Ray cluster over all nodes.
on_ray() {
  start_ray
  on_first_node "$@"
  stop_ray
}

# Run a command once, on the first node, with all its CPUs and GPUs.
on_first_node() {
  step --nodes=1 --ntasks=1 --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_ON_NODE" --nodelist="${nodes[0]}" "$@"
}

# Take over what other runs have made by now: what training reads may lie in another run.
take_over() {
  [ -n "$reuses" ] || return 0
  on_first_node "${xlr[@]}" reuse "$run"
  [ "$code" = 0 ] || finish
}

# Run a command in all tasks of all nodes; each reads its rank from Slurm.
in_ranks() {
  local kept=$run/micro_batches.json before
  MASTER_ADDR=$(address "${nodes[0]}")
  export MASTER_ADDR MASTER_PORT=$((port + 2))
  while true; do
    before=$(cat "$kept" 2>/dev/null || true)
    # Ranks of one socket's GPUs get that socket's cores; by default srun deals the sockets out in turn.
    step --ntasks-per-node="${SLURM_NTASKS_PER_NODE:-1}" --kill-on-bad-exit=0 --distribution=block:block "$@"
    # A rank whose memory runs out records a smaller size and ends; then all ranks start again.
    case $code in 0 | 2 | 75 | 138) break ;; esac # see finish
    if [ "$(cat "$kept" 2>/dev/null || true)" = "$before" ]; then break; fi
    echo "memory ran out; the ranks start again with smaller micro-batches"
    MASTER_PORT=$((port + 2 + (MASTER_PORT - port - 1) % 2)) # the other one of two, which is free at once
  done
}

# Start a Ray cluster over the allocation. It accepts only clients with its token, which only this user can read. xlr
# waits until all nodes in XLR_RAY_NODES have joined.
start_ray() {
  local node secret=$run/slurm/secrets/$SLURM_JOB_ID
  mkdir -p "$secret"
  head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$secret/token"
  RAY_ADDRESS=$(address "${nodes[0]}"):$port
  export RAY_ADDRESS XLR_RAY_NODES="${nodes[*]}"
  export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$secret/token RAY_USAGE_STATS_ENABLED=0
  ray_steps=() ray_log=$run/slurm/logs/ray-$SLURM_JOB_ID.out
  trap stop_ray EXIT
  start_ray_on "${nodes[0]}" --head --port="$port" --ray-client-server-port=$((port + 1)) --include-dashboard=false
  # Wait for the port: a Ray client that connects too early waits for most of a minute.
  until (exec 3<>"/dev/tcp/${RAY_ADDRESS/://}") 2>/dev/null; do
    kill -0 "${ray_steps[0]}" 2>/dev/null || fail "${nodes[0]}: Ray does not start; see $ray_log"
    sleep 0.2
  done
  for node in "${nodes[@]:1}"; do start_ray_on "$node" --address="$RAY_ADDRESS"; done
}

start_ray_on() {
  local node=$1
  shift
  srun --overlap --nodes=1 --ntasks=1 --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_ON_NODE" --nodelist="$node" \
    "${srun_options[@]}" \
    bash -c "$(declare -f ray_node); ray_node \"\$@\"" ray_node "${container[@]}" "$python" -m ray.scripts.scripts start \
    --block --node-name="$node" --node-ip-address="$(address "$node")" --num-cpus="$SLURM_CPUS_ON_NODE" \
    ${SLURM_GPUS_ON_NODE:+"--num-gpus=$SLURM_GPUS_ON_NODE"} --min-worker-port=0 --max-worker-port=0 \
    --dashboard-agent-listen-port=0 "$@" \
    >>"$ray_log" 2>&1 &
  ray_steps+=($!)
}

# Run Ray on a node until stop_ray sends USR2, then remove its folder. USR1 and TERM are ignored, because the stage needs
# Ray until it has saved. Ray may time out while it starts on a busy node, so it is started up to three times.
ray_node() {
  local temp ray stopped=
  trap '' USR1 TERM
  trap 'stopped=yes; kill -KILL "$ray"' USR2  # Ray's processes end with it
  # Folders of this user's jobs that were killed: no process holds their lock.
  find /tmp -maxdepth 1 -name 'xlr-*' -type d -user "$(id -u)" -mmin +1 -exec test -f {}/.xlr-lock \; \
    -exec flock -n {}/.xlr-lock rm -rf {} \; 2>/dev/null
  # Other users cannot enter the folder. The path must be short, because Ray puts Unix sockets into it.
  temp=$(mktemp -d "/tmp/xlr-$SLURM_JOB_ID-XXXXXX") || return
  exec 9>"$temp/.xlr-lock"
  flock 9
  for _ in 1 2 3; do
    rm -rf "$temp/ray"
    "$@" --temp-dir="$temp/ray" &
    ray=$!
    wait "$ray" || true
    [ -z "$stopped" ] || break
  done
  # Ray's last processes may still write while their folder is removed, which then fails.
  for _ in {1..50}; do
    ! rm -rf "$temp" 2>/dev/null || break
    sleep 0.1
  done
}

stop_ray() {
  trap - EXIT
  kill -USR2 "${ray_steps[@]}" 2>/dev/null || true  # srun forwards it; some may have ended
  wait "${ray_steps[@]}" || true
  rm -rf "$run/slurm/secrets/$SLURM_JOB_ID"
  unset RAY_ADDRESS XLR_RAY_NODES RAY_AUTH_MODE RAY_AUTH_TOKEN_PATH # later steps must not look for it
}

# End the job with the exit code of its last step, or requeue it. 2 is bad input. 75 means that xlr has saved and can
# continue. 138 is USR1 before xlr had set its handler. Any other code may come from a lost node: the step fails long
# before Slurm notices.
finish() {
  local lost
  case $code in
    0 | 2) ;;
    75 | 138) requeue "saved" ;;
    *)
      lost=$(lost_nodes)
      [ -z "$lost" ] || requeue "lost $lost"
      ;;
  esac
  exit "$code"
}

# The nodes that restarted after the job began, or that do not answer.
lost_nodes() {
  local node begun started
  begun=$(scontrol --oneliner show job "$SLURM_JOB_ID" | sed 's/.* StartTime=\([^ ]*\).*/\1/')
  for node in "${nodes[@]}"; do
    started=$(scontrol --oneliner show node "$node" | sed 's/.* SlurmdStartTime=\([^ ]*\).*/\1/')
    if [[ $started > $begun ]] ||
      ! timeout 60 srun --overlap --nodes=1 --ntasks=1 --ntasks-per-node=1 --nodelist="$node" true >/dev/null 2>&1; then
      echo "$node"
    fi
  done
}

requeue() { # REASON
  local restarts=${SLURM_RESTART_COUNT:-0}
  # A cancelled job also saves and exits with 75, but must not be requeued.
  [[ ! $(scontrol --oneliner show job "$SLURM_JOB_ID") =~ JobState=(CANCELLED|COMPLETING) ]] || exit 75
  ((restarts < max_restarts)) || fail "restarted $restarts times, which is slurm.max_restarts; \
raise slurm.time, then run \`xlr submit\` again"
  echo "$1; job $SLURM_JOB_ID is requeued (restart $((restarts + 1)) of at most $max_restarts)"
  scontrol requeue "$SLURM_JOB_ID"
  exit 75
}

[ -d "$run" ] || fail "$run: not visible on ${nodes[0]}; choose a run_dir on a file system that all nodes share"
"${xlr[@]}" --help >/dev/null ||
  fail "${nodes[0]}: '${xlr[*]}' does not start; set slurm.setup, slurm.python or slurm.container"
