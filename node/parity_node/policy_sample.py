"""The commented policy file that ``parity node policy init`` writes: as it is, it limits nothing."""

from __future__ import annotations

__all__ = ["POLICY_SAMPLE"]

POLICY_SAMPLE = """\
# The policy of this node: what it runs, what that may reach and use, and for how much.
#
# A line that is missing or commented out limits nothing, with two exceptions: tasks reach no host on the network unless
# `domains` names it, and of Flower's apps only this program's own runs unless `bundles` names others. RUNNER_POLICY_* settings limit beside this file, and what a [[deny]] rule refuses no list allows.
# The node reads the file again when it changes; tasks that run already go on. Try a task on it, then show what holds:
#
#   parity node policy test task.json
#   parity node policy show

[allow]
# kinds = ["docker", "command", "llm", "federated_learning"]

# A name covers all its tags. A tag covers no digest, since the engine would look at the digest alone. `*` is any text.
# An image that the submitter brings as an archive is known by its content only: tar:CID, tar:sha256:DIGEST, tar:*
# images = ["debian:12", "python@sha256:<64 hex digits>", "ghcr.io/me/*"]
# registries = ["docker.io", "ghcr.io", "tar"]
# digest_only = true

# Of command tasks. A name is looked up in the sandbox; a path is that very file. This says what you like to run, it is
# no wall: a program can run another one. The sandbox is the wall.
# programs = ["ffmpeg", "/usr/bin/*"]
# shell = false

# Hosts that tasks may ask to reach, through the node's proxy, at port 443 unless another follows.
# domains = ["pypi.org", "*.pythonhosted.org", "example.org:8443"]

# models = ["llama3*"]

# Flower apps, by the SHA-256 of their bundle, that may run in a session with `engine: flower` beside this program's own.
# bundles = ["<64 hex digits>"]
# sources = ["cid", "https", "shard"]
# creators = ["0x0000000000000000000000000000000000000001"]

# When new tasks are taken. A window that ends before it starts goes on into the next day; without a zone it is UTC.
# hours = ["mon-fri 22:00-06:00 Europe/Rome", "sat,sun Europe/Rome"]

[limits]
# What one task may ask for at most.
# wall_time = "15m"
# memory = "2g"
# cpus = 2
# pids = 256
# disk = "4g"
# gpus = 0
# input = "1g"
# output = "256m"
# egress = "100m"

# The node's own cache of images and data sets.
# cache = "20g"

[price]
# In tokens, in quotes. The price of an hour counts the wall time that the task asks for.
# min_reward = "0.01"
# min_reward_per_hour = "0.25"

[isolation]
# The least that a kind of task runs in: none, process, bwrap, docker, docker+gvisor, vm.
# docker = "docker"
# command = "bwrap"

# Each rule refuses the tasks of which everything that it says is true. Refusals carry its name: policy.deny.miners
# [[deny]]
# name = "miners"
# images = ["*miner*", "xmrig*"]
"""
