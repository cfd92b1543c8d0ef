"""A result folder's whole way: a task's output, the node, the market's store, its gateway, and the submitter's disk."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from parity_blobs import Cid
from parity_client import Client
from parity_market.app import create_app
from parity_market.operations import blobs
from parity_market.testing.served import TOKEN, Served, serve_in_process
from parity_node.executors.base import ExecutionResult
from parity_node.market.http import HttpMarket
from parity_node.outputs import gather_output
from parity_node.results import build_report, store_result
from parity_node.store.base import Execution
from parity_protocol.api import leases as wire
from parity_protocol.errors import NotFound
from parity_protocol.ids import NodeId
from parity_protocol.join import JoinString
from parity_protocol.manifest import VerifiedManifest, verify_manifest
from parity_protocol.needs import OutputFolder
from parity_protocol.report import Outcome
from parity_protocol.testing.keys import deterministic_ed25519, deterministic_evm_key

URL = "http://127.0.0.1:8080"
INSTANCE = "ab" * 32
MODEL = bytes(range(251)) * 4_000


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    (tmp_path / "market").mkdir()
    async with serve_in_process(tmp_path / "market") as made:
        yield made


def client_of(served: Served, name: str) -> Client:
    transport = httpx.ASGITransport(create_app(served.state))
    return Client(
        JoinString(URL, served.state.identity.thumbprint),
        deterministic_evm_key(name),
        clock=served.clock,
        transport=transport,
    )


class Node:
    """A node's own code against the market, one step at a time."""

    def __init__(self, served: Served, folder: Path) -> None:
        key = deterministic_ed25519("node")
        transport = httpx.ASGITransport(create_app(served.state))
        self.market = HttpMarket(URL, key=key, clock=served.clock, identity=None, transport=transport)
        self.served = served
        self.folder = folder
        self.id = NodeId("")

    async def join(self) -> None:
        self.id = NodeId((await self.served.enrol("node")).keyid)
        await self.market.trust()

    async def claim(self) -> tuple[VerifiedManifest, wire.ClaimReply]:
        trusted = await self.market.trust()
        (token,) = (await self.market.poll(wire.PollRequest(instance=INSTANCE, slots=1, wait_s=0))).manifests
        verified = verify_manifest(
            token,
            trusted.manifest_keys,
            issuer=trusted.thumbprint,
            node_id=self.id,
            chain=trusted.document.chain,
            node_version="9.0.0",
            now=self.served.clock.now(),
        )
        item = wire.ClaimItem(manifest=verified.token, claim_id=str(uuid.uuid4()))
        reply = await self.market.claim(wire.ClaimsRequest(instance=INSTANCE, claims=(item,)))
        return verified, reply.claims[0]

    async def deliver(self, output: Path, *, uploads: bool = True) -> wire.ReportReply:
        """Take a task, and give what lies in ``output`` as its result."""
        verified, lease = await self.claim()
        (output.parent / "printed.log").write_bytes(b"epoch 1\n")
        gathered = gather_output(output, output.parent / "printed.log", self.folder / "result", OutputFolder())
        result = ExecutionResult(Outcome.SUCCEEDED, exit_code=0, result_path=gathered)
        row = Execution(
            id=str(uuid.uuid4()),
            task_id=verified.task_id,
            jti=verified.manifest.jti,
            jti_expires_at=0,
            claim_id=lease.claim_id,
            kind="command",
            manifest=verified.token,
            manifest_hash=verified.hash,
            order_hash=verified.order_hash,
            reward=1,
            lease_id=lease.lease_id,
            fence=lease.fence,
        )
        stored = await store_result(result, self.folder, row.id)
        assert stored.path is not None
        if uploads:
            assert (await self.market.upload(stored.path)).cid == stored.cid
        _, report = build_report(
            row,
            result,
            stored,
            chain=verified.manifest.chain,
            node_id=self.id,
            operator=deterministic_evm_key("node"),
            finished_at=self.served.clock.now().timestamp(),
        )
        return await self.market.report(wire.ReportsRequest(reports=(report,)))


@pytest.fixture
async def node(served: Served, tmp_path: Path) -> Node:
    (tmp_path / "node").mkdir()
    found = Node(served, tmp_path / "node")
    await found.join()
    return found


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "execution" / "output"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "model.bin").write_bytes(MODEL)
    (folder / ".metrics").write_text("{}")
    return folder


async def test_what_a_task_left_is_on_the_submitters_disk_verified(
    served: Served, node: Node, output: Path, tmp_path: Path
) -> None:
    await served.fund(deterministic_evm_key("submitter"), 10 * TOKEN)

    async with client_of(served, "submitter") as client:
        submission = await client.submit({"type": "command", "command": ["train"], "output": {}}, "1")
        reply = await node.deliver(output)
        result = await client.result(submission.id)
        await client.data.get(result.cid or "", tmp_path / "out")
        receipt = client.verify(await client.proof(submission.id))

    assert [item.status for item in reply.reports] == [200]
    assert result.output == "epoch 1\n"
    assert [each.path for each in result.files or ()] == ["files/.metrics", "files/deep/model.bin", "output.log"]
    assert (tmp_path / "out" / "files" / "deep" / "model.bin").read_bytes() == MODEL
    assert (tmp_path / "out" / "output.log").read_bytes() == b"epoch 1\n"
    assert receipt.result_cid == result.cid


async def test_a_result_folder_is_for_its_submitter_alone(
    served: Served, node: Node, output: Path, tmp_path: Path
) -> None:
    await served.fund(deterministic_evm_key("submitter"), 10 * TOKEN)
    async with client_of(served, "submitter") as client, client_of(served, "stranger") as stranger:
        submission = await client.submit({"type": "command", "command": ["train"], "output": {}}, "1")
        await node.deliver(output)
        cid = (await client.result(submission.id)).cid or ""
        blocks = [block.cid async for block in served.state.blobs.blocks(Cid.parse(cid))]

        for each in (cid, *map(str, blocks)):
            with pytest.raises(NotFound):
                await stranger.data.get(each, tmp_path / "stolen")

    assert len(blocks) > 4


async def test_an_accepted_result_leaves_the_nodes_quota_and_counts_for_its_next_task(
    served: Served, node: Node, output: Path
) -> None:
    await served.fund(deterministic_evm_key("submitter"), 10 * TOKEN)
    spec = {"type": "command", "command": ["train"], "output": {}}

    async with client_of(served, "submitter") as client:
        for uploads in (True, False):  # the same result again: the market has it, from this very node
            submission = await client.submit(spec, "1")
            await node.deliver(output, uploads=uploads)
            cid = (await client.result(submission.id)).cid or ""

    stat = await served.state.blobs.stat(Cid.parse(cid))
    used = await served.state.store.read(lambda tx: blobs.bytes_of_owner(tx, node.id))
    assert used == 0
    assert stat is not None
    assert stat.is_pinned
    assert await served.state.store.read(lambda tx: blobs.is_held(tx, cid))


async def test_a_folder_that_was_not_uploaded_earns_nothing(served: Served, node: Node, output: Path) -> None:
    account = deterministic_evm_key("submitter")
    await served.fund(account, 10 * TOKEN)

    async with client_of(served, "submitter") as client:
        submission = await client.submit({"type": "command", "command": ["train"], "output": {}}, "1")
        reply = await node.deliver(output, uploads=False)
        state = (await client.task(submission.id)).status

    assert [item.status for item in reply.reports] == [422]
    assert state != "completed"
