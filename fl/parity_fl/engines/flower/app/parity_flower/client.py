"""The node's side: hands a round's model to the node's own trainer and brings its update back."""

from __future__ import annotations

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from .line import Line

__all__ = ["app"]

TRAINING_S = 86_400.0  # the round's deadline is the market's, the task's wall time the node's


def train(message: Message, context: Context) -> Message:
    """Train the part's rows from the model in the message."""
    step = str(message.content["round"]["step"])
    model = message.content["model"]["file"].numpy().tobytes()
    with Line(str(context.node_config["trainer"]), timeout_s=TRAINING_S) as line:
        said, update = line.ask({"do": "train", "step": step}, model)
    if "error" in said:
        raise RuntimeError(str(said["error"]))
    numbers = {name: float(value) for name, value in said["metrics"].items()}
    content = RecordDict(
        {
            "update": ArrayRecord({"file": Array(np.frombuffer(update, dtype=np.uint8))}),
            "metrics": MetricRecord({**numbers, "num-examples": int(numbers.get("samples", 0))}),
        }
    )
    return Message(content, reply_to=message)


app = ClientApp()
app.train()(train)
