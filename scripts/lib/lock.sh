# One lock at a time per process, held on file descriptor 9 and let go by the system if the script is killed.

# take_lock FILE WHY: waits for another process, saying why.
take_lock() {
  exec 9>>"$1" || die "cannot write $1"
  if ! lock_descriptor_9 now; then
    step "waiting: $2"
    lock_descriptor_9 wait || die "could not take the lock $1"
  fi
}

release_lock() { exec 9>&-; }

# The lock belongs to the open file, which this shell shares with the child that takes it. macOS has no flock(1).
lock_descriptor_9() {
  if command -v flock >/dev/null 2>&1; then
    if [ "$1" = now ]; then flock -n 9; else flock -w 1800 9; fi
  else
    local flags=LOCK_EX
    if [ "$1" = now ]; then flags='LOCK_EX | fcntl.LOCK_NB'; fi
    python3 -c "import fcntl; fcntl.flock(9, fcntl.$flags)" 2>/dev/null
  fi
}
