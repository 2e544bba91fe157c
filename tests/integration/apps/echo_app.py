"""A plain Flower ClientApp, free of Cloister, for the engines' tests."""

import os
import signal
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

app = ClientApp()


def make_model() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.linspace(-0.5, 0.5, parameter.numel()).reshape(parameter.shape) * (index + 1))
    return model


def fit(model: nn.Module, partition: int) -> int:
    generator = torch.Generator().manual_seed(partition)
    images, labels = torch.randn(20, 6, generator=generator), torch.randint(0, 3, (20,), generator=generator)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimiser.step()
    return 20 + partition


@app.train()
def train(message: Message, context: Context) -> Message:
    model = make_model()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    examples = fit(model, int(context.node_config["partition-id"]))
    metrics = MetricRecord({"num-examples": examples, "loss": 1.0})
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1, "ok": 1.0})}), reply_to=message)


@app.query("echo")
def echo(message: Message, context: Context) -> Message:
    """Send everything back, and change what came in: no other node may see that."""
    content = RecordDict(dict(message.content))
    for record in message.content.array_records.values():
        for array in record.values():
            values = array.numpy()
            if values.size:
                values[...] = 0
    return Message(content, reply_to=message)


@app.query("who")
def who(message: Message, context: Context) -> Message:
    config = {"pid": os.getpid(), "node": context.node_id, **context.node_config, **context.run_config}
    return Message(RecordDict({"config": ConfigRecord(config)}), reply_to=message)


@app.query("count")
def count(message: Message, context: Context) -> Message:
    """Count this node's calls in Flower's own per-node state, which ``weight`` bytes make heavy."""
    calls = context.state.metric_records.get("calls", MetricRecord({"n": 0}))
    context.state["calls"] = MetricRecord({"n": int(calls["n"]) + 1})
    weight = int(message.content["config"].get("weight", 0))
    if weight:
        context.state["weight"] = ConfigRecord({"bytes": bytes(weight)})
    return Message(RecordDict({"metrics": MetricRecord({"n": int(calls["n"]) + 1})}), reply_to=message)


@app.query("die")
def die(message: Message, context: Context) -> Message:
    """End the process as a crash would: always, or only once per marker file."""
    marker = Path(str(message.content["config"]["marker"]))
    if not message.content["config"]["always"] and marker.exists():
        return Message(RecordDict({"config": ConfigRecord({"survived": True})}), reply_to=message)
    marker.write_text("")
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


@app.query("hang")
def hang(message: Message, context: Context) -> Message:
    signal.pause()
    raise AssertionError("unreachable")


@app.query("fail")
def fail(message: Message, context: Context) -> Message:
    raise ValueError("a bad day")
