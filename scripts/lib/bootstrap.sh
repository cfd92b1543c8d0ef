# Makes the environment in .venv. Sourced by every script that needs Python; works with bash 3.2 (macOS) and later.
#
#   . "$(dirname "$0")/lib/bootstrap.sh"
#   bootstrap default     # what users run; satisfied by an up-to-date dev environment too
#   bootstrap dev         # and the tools of those who work here
#
# Every package comes from requirements/*.lock and must match its hash. Progress goes to stderr, so that a script's own
# stdout stays clean. It needs neither root nor pip nor uv; it changes nothing outside the checkout but tools' caches.

REPO_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
VENV=$REPO_ROOT/.venv
VENV_PYTHON=$VENV/bin/python

. "$REPO_ROOT/scripts/lib/say.sh"
. "$REPO_ROOT/scripts/lib/lock.sh"

# The interpreter must be one that the lock files and all wheels cover, with the modules that Python's own build may lack.
readonly PYTHON_TEST='import sys, ssl, sqlite3, ctypes, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'

bootstrap() {
  local kind=$1
  if is_current "$kind"; then return 0; fi
  local began=$SECONDS
  mkdir -p "$VENV"
  # Not `.lock`: that name is uv's own, which would wait for us while we wait for it.
  take_lock "$VENV/.bootstrap.lock" "another script is setting up .venv"
  if ! is_current "$kind"; then
    # Who works here keeps the tools when a script for users renews the environment.
    if [ -f "$VENV/.stamp-dev" ]; then kind=dev; fi
    rm -f "$VENV"/.stamp-*
    make_environment
    install_locked "$kind"
    stamp_of "$kind" >"$VENV/.stamp-$kind.new" && mv "$VENV/.stamp-$kind.new" "$VENV/.stamp-$kind"
    done_line "environment ready in $((SECONDS - began)) s (.venv)"
  fi
  release_lock
}

# A stamp names all that the environment was made from; the folder counts because scripts in .venv/bin hold its path.
stamp_of() {
  { printf '%s\n' "$REPO_ROOT"; cat "$REPO_ROOT/pyproject.toml" "$REPO_ROOT/requirements/$1.lock"; } | cksum
}

is_current() {
  local kind
  [ -x "$VENV_PYTHON" ] || return 1
  for kind in "$1" dev; do
    if [ -f "$VENV/.stamp-$kind" ] && [ "$(cat "$VENV/.stamp-$kind")" = "$(stamp_of "$kind")" ]; then return 0; fi
  done
  return 1
}

is_suitable() { "$1" -c "$PYTHON_TEST" >/dev/null 2>&1; }

find_python() {
  local candidate
  for candidate in ${PARITY_PYTHON:+"$PARITY_PYTHON"} python3 python3.13 python3.12 python3.11 \
    "$HOME"/.pyenv/versions/3.1[123].*/bin/python3 /usr/bin/python3.1[123] /usr/local/bin/python3.1[123] \
    /opt/homebrew/bin/python3.1[123]; do
    if is_suitable "$candidate"; then
      # A shim's own path means nothing to uv and venv, so ask the interpreter.
      "$candidate" -c 'import sys; print(sys.executable)'
      return 0
    fi
  done
  return 1
}

make_environment() {
  local python
  python=$(find_python) || die "no Python 3.11, 3.12 or 3.13 found. Install one and run this again: $(how_to_install_python)"
  if ! is_suitable "$VENV_PYTHON" || [ "$(cat "$VENV/.home" 2>/dev/null)" != "$REPO_ROOT" ]; then
    step "Python $("$python" -c 'import platform; print(platform.python_version())') at $python"
    find "$VENV" -mindepth 1 -maxdepth 1 ! -name .bootstrap.lock -exec rm -rf {} +
    "$python" -m venv --without-pip "$VENV"
    printf '%s\n' "$REPO_ROOT" >"$VENV/.home"
  fi
  use_pip_configuration
  find_uv || fetch_uv "$python" || die "uv is needed and could not be fetched. Install one thing and run this again: $(how_to_install_uv)"
}

find_uv() {
  # The version is asked for because a shim may stand in PATH for a uv that is not there.
  for UV in uv "$VENV/bin/uv"; do
    if "$UV" --version >/dev/null 2>&1; then return 0; fi
  done
  return 1
}

# Puts the pinned uv into .venv, by whatever this machine has: each way checks the same hashes.
fetch_uv() {
  local python=$1 scratch ok=1
  scratch=$(mktemp -d "${TMPDIR:-/tmp}/parity-bootstrap.XXXXXX")
  step "uv, pinned by hash"
  if uv_by_ensurepip || uv_by_pip_of "$python" || uv_by_index || uv_by_pip_wheel "$scratch"; then ok=0; fi
  rm -rf "$scratch"
  [ $ok -eq 0 ] && find_uv
}

uv_by_ensurepip() {
  "$VENV_PYTHON" -m ensurepip --default-pip >/dev/null 2>&1 && pip_install_uv "$VENV_PYTHON" -m pip
}

uv_by_pip_of() {
  pip_install_uv "$1" -m pip --python "$VENV_PYTHON"
}

# Without any pip, the standard library fetches the wheel, if a package index is configured for this machine.
uv_by_index() {
  "$VENV_PYTHON" "$REPO_ROOT/scripts/lib/fetch_uv.py" "$REPO_ROOT/requirements/bootstrap.lock"
}

# Stock Debian and Ubuntu have neither pip nor ensurepip, but apt can fetch the package that holds pip, without root.
uv_by_pip_wheel() {
  local scratch=$1 wheel
  for wheel in /usr/share/python-wheels/pip-*.whl; do
    if [ -f "$wheel" ] && pip_install_uv "$VENV_PYTHON" "$wheel/pip"; then return 0; fi
  done
  command -v apt-get >/dev/null 2>&1 && command -v dpkg-deb >/dev/null 2>&1 || return 1
  step "pip, from the system's own package source (nothing is installed into the system)"
  mkdir -p "$scratch/lists/partial" "$scratch/cache/archives/partial"
  (
    cd "$scratch"
    apt-get -qq download python3-pip-whl >/dev/null 2>&1 || {
      local private=(-qq -o "Dir::State::Lists=$scratch/lists" -o "Dir::Cache=$scratch/cache" -o APT::Sandbox::User=)
      apt-get "${private[@]}" update >/dev/null 2>&1 && apt-get "${private[@]}" download python3-pip-whl >/dev/null 2>&1
    } || exit 1
    dpkg-deb -x python3-pip-whl_*.deb unpacked
  ) || return 1
  for wheel in "$scratch"/unpacked/usr/share/python-wheels/pip-*.whl; do
    if [ -f "$wheel" ] && pip_install_uv "$VENV_PYTHON" "$wheel/pip"; then return 0; fi
  done
  return 1
}

pip_install_uv() {
  "$@" --disable-pip-version-check install --quiet --require-hashes --only-binary :all: \
    -r "$REPO_ROOT/requirements/bootstrap.lock" >/dev/null 2>&1 && [ -x "$VENV/bin/uv" ]
}

install_locked() {
  local kind=$1 lock=requirements/$1.lock
  step "$(grep -c '^[a-zA-Z0-9].*==' "$REPO_ROOT/$lock") packages of $lock, each checked against its hash"
  # Not `sync`: a later `bootstrap default` need not take away what `bootstrap dev` brought.
  (cd "$REPO_ROOT" && uv_pip install --require-hashes -r "$lock" && uv_pip install --no-deps --no-build-isolation -e .) ||
    die "the packages of $lock could not be installed (the reason stands above)"
}

uv_pip() {
  local command=$1
  shift
  # The system's certificates, by the name of newer and of older versions: a company's own authority is only there.
  UV_SYSTEM_CERTS="${UV_SYSTEM_CERTS:-1}" UV_NATIVE_TLS="${UV_NATIVE_TLS:-1}" \
    UV_PYTHON_DOWNLOADS=never "$UV" pip "$command" --quiet --python "$VENV_PYTHON" "$@"
}

# uv does not read pip's settings; whoever configured a mirror or an own certificate for pip means it for uv too.
use_pip_configuration() {
  local index
  if [ -z "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ]; then
    index=$("$VENV_PYTHON" "$REPO_ROOT/scripts/lib/fetch_uv.py" --print-index) && export UV_DEFAULT_INDEX=$index
  fi
  if [ -n "${PIP_CERT:-}" ] && [ -z "${SSL_CERT_FILE:-}" ]; then export SSL_CERT_FILE=$PIP_CERT; fi
}

how_to_install_python() {
  if command -v apt-get >/dev/null 2>&1; then echo "sudo apt-get install python3 python3-venv"
  elif command -v dnf >/dev/null 2>&1; then echo "sudo dnf install python3.12"
  elif command -v brew >/dev/null 2>&1; then echo "brew install python@3.12"
  else echo "your system's package python3.12"; fi
}

how_to_install_uv() {
  if command -v apt-get >/dev/null 2>&1; then echo "sudo apt-get install python3-venv"
  elif command -v dnf >/dev/null 2>&1; then echo "sudo dnf install python3-pip"
  elif command -v brew >/dev/null 2>&1; then echo "brew install uv"
  else echo "your system's package of pip or uv"; fi
}
