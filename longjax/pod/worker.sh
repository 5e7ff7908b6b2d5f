#!/usr/bin/env bash
# On each worker of a slice, from the tree that launch/pod.py pushed there:
#
#   worker.sh install       Python, the packages; then `code` leads to this tree
#   worker.sh start B ARGS  bucket B, if not '', as bucket/, read-only; then
#                           launch/tpu.py ARGS, in a session of its own
#   worker.sh status        a line: idle, running, exited with a code, or lost
#   worker.sh stop          SIGTERM, which saves a checkpoint; in the end SIGKILL
#
# What it knows lies beside the tree: pid, exit, log, lock. Who trains holds the
# lock, so a pid that another process has taken over is never taken for ours.
set -euo pipefail
tree=$(cd "$(dirname "$0")/../.." && pwd -P)
home=$(dirname "$tree")
gcsfuse=3.11.1
patience=${LONGJAX_STOP_SECONDS:-90}

say() { echo "longjax worker=$(hostname) $*"; }
free() { (flock -n 9) 9>>"$home/lock"; }

install() {
  cd "$tree"
  if [ ! -f .installed ]; then
    # The image's own Python may be too old; uv brings one.
    python3 -m pip --version >/dev/null 2>&1 ||
      sudo apt-get install -qq -y python3-pip >/dev/null
    python3 -m pip install -q --target "$home/uv" uv
    export PYTHONPATH="$home/uv"
    python3 -m uv venv -q --clear --python 3.12 .venv
    python3 -m uv pip install -q --python .venv/bin/python \
      -r requirements.txt 'jax[tpu]' gcsfs
    touch .installed
  fi
  ln -sfn "$(basename "$tree")" "$home/code"
  say state=installed
}

bucket() {
  if ! command -v gcsfuse >/dev/null; then
    deb=gcsfuse_${gcsfuse}_amd64.deb
    url=https://github.com/GoogleCloudPlatform/gcsfuse/releases/download
    place=$(mktemp -d)
    curl -fsSL "$url/v$gcsfuse/$deb" -o "$place/$deb"
    sudo apt-get install -qq -y "$place/$deb" >/dev/null
    rm -r "$place"
  fi
  mkdir -p "$home/bucket"
  if ! mountpoint -q "$home/bucket"; then
    gcsfuse --implicit-dirs -o ro "$1" "$home/bucket" >&2
  fi
  ln -sfn "$home/bucket" "$tree/bucket"
}

# Without them the start and the end of libtpu take long, from v5e on.
huge_pages() {
  file=/sys/kernel/mm/transparent_hugepage/enabled
  if [ -e $file ] && ! echo always | sudo -n tee $file >/dev/null; then
    say "transparent huge pages stay: $(cat $file)" >&2
  fi
}

start() {
  cd "$tree"
  if [ -n "$1" ]; then bucket "$1"; fi
  shift
  huge_pages
  exec 9>>"$home/lock"
  if ! flock -n 9; then
    say state=running "pid=$(cat "$home/pid")" already
    return
  fi
  rm -f "$home/exit"
  # The signal that ends training must not end who writes down its exit code.
  setsid bash -c '
    home=$1 && shift
    trap : TERM
    echo "--- $(date -u +%FT%TZ) $*"
    code=0
    "$@" || code=$?
    echo "$code" >"$home/exit.tmp" && mv "$home/exit.tmp" "$home/exit"
  ' run "$home" .venv/bin/python launch/tpu.py "$@" \
    >>"$home/log" 2>&1 </dev/null &
  echo $! >"$home/pid"
  say state=started "pid=$!"
}

status() {
  if ! free; then
    say state=running "pid=$(cat "$home/pid")"
  elif [ -f "$home/exit" ]; then
    say state=exited "code=$(cat "$home/exit")" \
      "said=$(tail -n 1 "$home/log" | tr -cd '[:print:]')"
  elif [ -f "$home/pid" ]; then
    say state=lost
  else
    say state=idle
  fi
}

stop() {
  if ! free; then
    pid=$(cat "$home/pid")
    kill -TERM -- "-$pid" 2>/dev/null || true
    if ! flock -w "$patience" "$home/lock" true; then
      kill -KILL -- "-$pid" 2>/dev/null || true
      flock -w 10 "$home/lock" true || { say state=stuck; exit 1; }
    fi
  fi
  say state=stopped
}

case ${1:-} in
  install | start | status | stop) "$@" ;;
  *) echo "worker.sh: install, start, status or stop" >&2; exit 2 ;;
esac
