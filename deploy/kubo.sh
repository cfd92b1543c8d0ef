#!/bin/sh
# Run by Kubo's image before its daemon: API and gateway answer on loopback only, where the market and the node are too.
set -eu
ipfs config Addresses.API /ip4/127.0.0.1/tcp/5001
ipfs config Addresses.Gateway /ip4/127.0.0.1/tcp/8180
