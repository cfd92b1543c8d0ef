"""The golden messages: each that travels has an example, which its model reads and writes again without a difference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from eth_account.messages import encode_defunct
from pydantic import BaseModel, ValidationError

from parity_market.app import ENDPOINTS
from parity_protocol import manifest, policy, receipt, task
from parity_protocol.api import market, problem
from parity_protocol.api.nodes import enrolment_statement
from parity_protocol.lease import LeaseDocument
from parity_protocol.signing.eip191 import personal_digest, recover_personal, sign_personal
from parity_protocol.testing.keys import deterministic_evm_key

VECTORS = Path(__file__).parents[2] / "vectors"
MESSAGES: dict[str, dict[str, Any]] = json.loads((VECTORS / "messages/messages.json").read_text(encoding="utf-8"))
ENROLMENTS: list[dict[str, Any]] = json.loads((VECTORS / "eip191/enrolment.json").read_text(encoding="utf-8"))
MODELS: dict[str, type[BaseModel]] = {
    model.__name__: model
    for model in (
        task.CommandSpec,
        task.DockerSpec,
        task.LlmSpec,
        task.FederatedLearningSpec,
        manifest.Manifest,
        LeaseDocument,
        market.MarketDocument,
        policy.Policy,
        problem.Problem,
        receipt.Voucher,
        *(model for one in ENDPOINTS for model in (one.body, one.reply) if model is not None),
    )
}
REQUESTS = sorted({one.body.__name__ for one in ENDPOINTS if one.body is not None})


def test_each_message_that_travels_has_an_example() -> None:
    assert set(MESSAGES) == set(MODELS)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_an_example_is_read_and_written_again_without_a_difference(name: str) -> None:
    message = MESSAGES[name]["message"]

    read = MODELS[name].model_validate_json(json.dumps(message))

    written = read.model_dump(mode="json", by_alias=True, exclude_unset=True)
    assert _unordered(written) == _unordered(message)


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_with_one_more_field_is_refused(name: str) -> None:
    message = {**MESSAGES[name]["message"], "surprise": 1}

    with pytest.raises(ValidationError, match="surprise"):
        MODELS[name].model_validate_json(json.dumps(message))


@pytest.mark.parametrize("name", REQUESTS)
def test_each_field_of_a_request_is_checked_for_its_type(name: str) -> None:
    message = MESSAGES[name]["message"]

    for field in message:
        for wrong in ({"an": "object"}, [[]], True):
            with pytest.raises(ValidationError, match=field):
                MODELS[name].model_validate_json(json.dumps({**message, field: wrong}))


@pytest.mark.parametrize("vector", ENROLMENTS, ids=lambda vector: vector["name"])
def test_recorded_enrolments_are_signed_as_wallets_sign_texts(vector: dict[str, Any]) -> None:
    key, signature = deterministic_evm_key(vector["key"]), bytes.fromhex(vector["signature"][2:])

    statement = enrolment_statement(**vector["fields"])

    assert statement == vector["statement"]
    assert personal_digest(statement).hex() == vector["digest"][2:]
    assert sign_personal(statement, key) == signature
    assert recover_personal(statement, signature) == key.address
    assert Account.recover_message(encode_defunct(text=statement), signature=signature).lower() == key.address


def _unordered(value: Any) -> Any:
    """Sets have no order in a document."""
    if isinstance(value, dict):
        return {key: _unordered(item) for key, item in value.items()}
    if isinstance(value, list):
        items = [_unordered(item) for item in value]
        return sorted(items, key=json.dumps) if all(isinstance(item, str) for item in items) else items
    return value
