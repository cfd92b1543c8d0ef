#!/bin/sh
# Joins the market, makes a node's keys where they are missing, and stakes if the node has no bond yet.
# PARITY_FAUCET=yes asks the embedded chain for play money; on a real chain send some to the owner that this prints.
set -eu
: "${PARITY_JOIN_FILE:?}" "${PARITY_PASSPHRASE_FILE:?}" "${PARITY_STAKE:?}"
parity config use --name compose "$(cat "$PARITY_JOIN_FILE")"
parity node init --yes
bond() { parity node balance --json | python3 -c 'import json, sys; print(int(json.load(sys.stdin)["chain"]["bond"]))'; }
if [ "$(bond)" != 0 ]; then
  echo "the node has a bond already"
  exit 0
fi
if [ "${PARITY_FAUCET:-no}" = yes ]; then
  owner=$(parity node balance --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["owner"])')
  parity wallet faucet --to "$owner"
fi
parity node stake --amount "$PARITY_STAKE" --yes
