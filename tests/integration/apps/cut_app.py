"""A ClientApp whose replies are Flower's own arrays of bytes, some of them damaged: which, says the client's number."""

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()
DAMAGE = {
    1: lambda array: Array(array.dtype, array.shape, array.stype, array.data[:-7]),
    2: lambda array: Array(array.dtype, array.shape, array.stype, array.data[:20]),
    3: lambda array: Array(array.dtype, array.shape, array.stype, b""),
    4: lambda array: Array(array.dtype, (10**6, *array.shape), array.stype, array.data),
    5: lambda array: Array("float64", array.shape, array.stype, array.data),
}


@app.train()
def train(message: Message, context: Context) -> Message:
    """Move every weight by 1; a damaged client spoils the bytes of its last array."""
    arrays = {key: Array(array.numpy() * 0 + 1) for key, array in message.content["arrays"].items()}
    damage = DAMAGE.get(int(context.node_config["partition-id"]))
    if damage is not None:
        last = list(arrays)[-1]
        arrays[last] = damage(arrays[last])
    metrics = MetricRecord({"num-examples": 10, "steps": 1})
    return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)
