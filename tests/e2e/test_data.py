"""Data that are not what their CID says: refused, in words that name both hashes, and nothing is trained on them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import anyio
import pytest

from parity_blobs import Cid, cid_of_bytes
from parity_cli.demo.stack import PARITY
from parity_cli.testing.town import REWARD, Town
from parity_protocol.errors import ExecutionFailed, ParityError

pytestmark = pytest.mark.timeout(90)

WRONG = b"a,b,label\n9,9,9\n" * 100


class LyingGateway(BaseHTTPRequestHandler):
    """Answers every CID with the same bytes."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/vnd.ipld.raw")
        self.send_header("Content-Length", str(len(WRONG)))
        self.end_headers()
        self.wfile.write(WRONG)

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def gateway() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), LyingGateway)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def table(rows: int = 60) -> bytes:
    return ("a,b,label\n" + "\n".join(f"{at},{at % 5},{at % 2}" for at in range(rows)) + "\n").encode()


def forest_on(cid: str) -> dict[str, Any]:
    return {
        "type": "federated_learning",
        "model_type": "random_forest",
        "dataset_cid": cid,
        "data_format": "csv",
        "model_config": {"num_trees": 4},
        "partition_config": {"strategy": "stratified", "total_parts": 1, "min_samples": 5},
    }


async def test_data_that_a_gateway_delivers_under_a_wrong_cid_are_refused_with_both_hashes(
    town: Town, gateway: str
) -> None:
    wanted = cid_of_bytes(table(61))
    await town.restart_market(market_gateways=gateway)

    with pytest.raises(ParityError) as refused:
        await town.market.submit(forest_on(str(wanted)), REWARD)

    await town.restart_market()
    said = refused.value.message
    assert refused.value.status == 422
    assert str(wanted) in said or Cid.parse(str(wanted)).digest.hex() in said
    assert str(cid_of_bytes(WRONG)) in said or sha256(WRONG).hexdigest() in said


async def test_data_that_rot_at_the_market_are_never_trained_on_nor_paid_for(town: Town) -> None:
    content = table(40_000)  # large enough to lie in a file of its own
    file = town.stack.folder / "table.csv"
    await anyio.Path(file).write_bytes(content)
    cid = (await town.market.data.add(file)).cid
    submission = await town.market.submit(forest_on(cid), REWARD)

    packs = [path for path in (town.stack.folder / "market" / "blobs" / "packs").rglob("*") if path.is_file()]
    [pack] = [path for path in packs if Cid.parse(cid).digest.hex() in path.name]
    rotten = bytearray(pack.read_bytes())
    rotten[len(rotten) // 2] ^= 1
    pack.write_bytes(rotten)
    town.stack.start_node(town.nodes[0], [*PARITY, "node", "run"], RUNNER_SLOTS="1")
    with pytest.raises(ExecutionFailed):
        await submission.result(wait=60)

    task = await town.market.task(submission.task_ids[0])
    assert task.state in {"failed", "cancelled"}
    assert task.payout is None
