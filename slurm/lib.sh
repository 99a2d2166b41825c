# shellcheck shell=bash
# What the job scripts share; they set $run and $iteration. Nothing here belongs to one cluster: that is in
# environment.sh, which `xlr submit` writes: $python, $container, $srun_options, $max_restarts and the site's own lines.
# shellcheck disable=SC2154,SC1091
source "$run/slurm/environment.sh"

xlr=("${container[@]}" "$python" -m xlr)
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
# Four ports a job, below the ephemeral range (32768 on Linux) and other than those of the jobs beside it.
port=$((10000 + SLURM_JOB_ID % 5000 * 4))
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}  # srun no longer takes it from sbatch by itself
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SRUN_CPUS_PER_TASK}

fail() {
  echo "error: $*" >&2
  exit 1
}

# The address of a node by which Slurm reaches it, as a number; a node may call itself 127.0.1.1.
address() {
  local name found
  name=$(scontrol --oneliner show node "$1" | sed 's/.* NodeAddr=\([^ ]*\).*/\1/')
  found=$(getent ahostsv4 "$name" | awk '$1 !~ /^127\./ {print $1; exit}')
  echo "${found:-$(hostname -I | awk '{print $1}')}"
}

# Run a step and keep its exit code in $code. Warnings (USR1, TERM) reach the tasks from Slurm; one that comes to this
# shell alone is passed on by srun. A warning ends `wait`, not the step: it is waited for again.
step() {
  local id warned=yes
  srun --overlap --wait=30 "${srun_options[@]}" "$@" &
  id=$!
  trap 'warned=yes; kill -USR1 "$id"' USR1 TERM
  while [ -n "$warned" ]; do
    warned=
    wait "$id" && code=0 || code=$?
  done
  trap - USR1 TERM
}

# Run a command on a Ray cluster over all nodes.
on_ray() {
  start_ray
  step --nodes=1 --ntasks=1 --ntasks-per-node=1 --nodelist="${nodes[0]}" "$@"
  stop_ray
}

# Run a command in all tasks of all nodes; each reads its rank from Slurm.
in_ranks() {
  MASTER_ADDR=$(address "${nodes[0]}")
  export MASTER_ADDR MASTER_PORT=$((port + 2))
  step --kill-on-bad-exit=0 "$@"
}

# A Ray cluster over the allocation, for this user's token only. xlr waits until all of XLR_RAY_NODES have joined.
start_ray() {
  local node secret=$run/slurm/secrets/$SLURM_JOB_ID
  (umask 077 && mkdir -p "$secret" && head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$secret/token")
  RAY_ADDRESS=$(address "${nodes[0]}"):$port
  export RAY_ADDRESS XLR_RAY_NODES="${nodes[*]}"
  export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$secret/token RAY_USAGE_STATS_ENABLED=0
  ray_steps=() ray_log=$run/slurm/logs/ray-$SLURM_JOB_ID.out
  trap stop_ray EXIT
  start_ray_on "${nodes[0]}" --head --port="$port" --ray-client-server-port=$((port + 1)) --include-dashboard=false \
    --temp-dir="/tmp/xlr-$SLURM_JOB_ID"
  # Before it answers nobody may ask: Ray's clients then wait for most of a minute.
  until (exec 3<>"/dev/tcp/${RAY_ADDRESS/://}") 2>/dev/null; do
    kill -0 "${ray_steps[0]}" 2>/dev/null || fail "${nodes[0]}: Ray does not start; see $ray_log"
    sleep 0.2
  done
  for node in "${nodes[@]:1}"; do start_ray_on "$node" --address="$RAY_ADDRESS"; done
}

start_ray_on() {
  local node=$1
  shift
  srun --overlap --nodes=1 --ntasks=1 --ntasks-per-node=1 --nodelist="$node" "${srun_options[@]}" \
    bash -c "$(declare -f ray_node); ray_node \"\$@\"" ray_node "${container[@]}" "$python" -m ray.scripts.scripts start \
    --block --node-name="$node" --node-ip-address="$(address "$node")" --num-cpus="$SLURM_CPUS_ON_NODE" \
    ${SLURM_GPUS_ON_NODE:+"--num-gpus=$SLURM_GPUS_ON_NODE"} --min-worker-port=0 --max-worker-port=0 \
    --dashboard-agent-listen-port=0 "$@" \
    >>"$ray_log" 2>&1 &
  ray_steps+=($!)
}

# On each node: Ray until stop_ray says USR2, and its folder gone afterwards. Warnings are for the stage; Ray has to
# outlive it. On a busy node Ray may lose its own patience, and is tried again.
ray_node() {
  local temp=/tmp/xlr-$SLURM_JOB_ID ray ended=
  trap '' USR1 TERM
  trap 'ended=yes; kill -KILL "$ray"' USR2  # what Ray started ends with it
  for _ in 1 2 3; do
    rm -rf "$temp"
    mkdir -m 700 "$temp"
    "$@" &
    ray=$!
    wait "$ray" || true
    [ -z "$ended" ] || break
  done
  rm -rf "$temp"
}

stop_ray() {
  trap - EXIT
  kill -USR2 "${ray_steps[@]}" 2>/dev/null || true  # some may have ended; srun passes it on
  wait "${ray_steps[@]}" || true
  rm -rf "$run/slurm/secrets/$SLURM_JOB_ID"
}

# End the job as its last step ended: 2 is bad input, 75 is xlr's "saved; start me again", 138 a warning that came
# before xlr listened. Other failures may be those of a node: what works with it fails long before Slurm notices.
finish() {
  local lost
  case $code in
    0 | 2) ;;
    75 | 138) start_again "saved" ;;
    *)
      lost=$(lost_nodes)
      [ -z "$lost" ] || start_again "lost $lost"
      ;;
  esac
  exit "$code"
}

# The nodes that started anew since the job did, or do not answer.
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

start_again() { # WHY
  local restarts=${SLURM_RESTART_COUNT:-0}
  # A job that was cancelled saves as well, but must not come back.
  [[ ! $(scontrol --oneliner show job "$SLURM_JOB_ID") =~ JobState=(CANCELLED|COMPLETING) ]] || exit 75
  ((restarts < max_restarts)) || fail "started again $restarts times, which is slurm.max_restarts; \
give the job more time, or \`xlr submit\` again"
  echo "$1; job $SLURM_JOB_ID goes back to the queue (restart $((restarts + 1)) of at most $max_restarts)"
  scontrol requeue "$SLURM_JOB_ID"
  exit 75
}

[ -d "$run" ] || fail "$run: not visible on ${nodes[0]}; choose a run_dir on a file system that all nodes share"
"${xlr[@]}" --help >/dev/null ||
  fail "${nodes[0]}: '${xlr[*]}' does not start; set slurm.setup, slurm.python or slurm.container"
