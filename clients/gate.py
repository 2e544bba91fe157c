"""The gate: the only exit of a client.

The outermost Flower mod of the ClientApp. In this order: the site's own policy says whether the request may be served
at all, and the client itself whether the plan can hold for any experiment; a request that was served before gets the
same bytes again; the ledger says whether the budget covers it; the app trains; the plan's stages clip, weigh and noise
what it made; what is left is checked against what was declared and asked for; the ledger is written and synced; the
reply leaves. If the owner consents, the gate adds the head of the ledger.

A reply passes when everything in it is declared: the weights are exactly the entries that the model specification
releases in the form in which they came, every other record is of a kind that was asked for, and the metrics are finite
numbers. An exception leaves as a bare error code, its text stays in the client's own log; under a plan that noises
anything, a client that fails on its own data replies with the zero update instead, since that it failed says something
about its data.
"""

import json
import math
from collections.abc import Mapping
from contextlib import closing
from functools import partial

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp.typing import ClientAppCallable

from cloister.clients import stages
from cloister.clients.noise import noise_of
from cloister.clients.policy import Policy
from cloister.clients.request import Request
from cloister.clients.secure import Part
from cloister.clients.site import Account, Site
from cloister.errors import CloisterError, ConfigError, PlanError, PrivacyError, ReleaseError
from cloister.privacy.events import Event
from cloister.privacy.noise import NoiseSource
from cloister.privacy.transcript import HEAD

# What an app may make; the gate itself adds HEAD, the signed head of a ledger whose owner consents.
RELEASE_KINDS = frozenset({"arrays", "masked", "metrics", "centres", "control", "head"})
ACCOUNT = "account"  # the record in which the app tells the gate what its private steps cost; it goes no further


def gate(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Return what may leave of the app's reply, else an error reply that says nothing but a code."""
    site = Site.of(context)
    try:
        return Message(_released(site, message, context, call_next), reply_to=message)
    except Exception as error:  # nothing of an exception may leave, whatever its type
        code = error.code if isinstance(error, CloisterError) else CloisterError.code
        site.log(_round(message), type(error).__name__, error)
        return Message(Error(code, f"{type(error).__name__} (the text stays in the client's log)"), reply_to=message)


def _released(site: Site, message: Message, context: Context, call_next: ClientAppCallable) -> RecordDict:
    policy = site.policy()
    request = Request.of(message, site.server)
    if request.kind == "evaluate" and request.plan.noisy:
        raise PlanError(
            "evaluation: expected none under a plan with noise, found a request for metrics of private records; set "
            "strategy.evaluate_fraction = 0 and evaluate at the server"
        )
    with closing(Account.open(site, request, policy, message)) as account:
        try:
            policy.admit(request)
            request.check()
            if request.kind == "query":  # keys, shares and signatures; the vector leaves below, and is written down
                return Part.of(site, request, policy.limits()).answer(message)
            if (sent := account.sent_before()) is not None:
                return sent
            account.admit()
        except PrivacyError as error:
            account.refuse(error)
            raise
        plan = request.plan
        noisy_here = plan.local or plan.centres is not None or plan.secure is not None
        noise = noise_of(site.folder, request.run, request.round) if noisy_here else None
        seal = _seal(site, request, policy, message)
        content, spent, staged = _answer(site, request, message, context, call_next, noise, seal)
        check_release(message, content, request)
        if (head := account.head()) is not None:
            content[HEAD] = head
        return account.settle(content, (*(spent or account.of_weights()), *staged))


def _seal(site: Site, request: Request, policy: Policy, message: Message) -> stages.Seal | None:
    """Return what masks this client's vector, its session found to be about this very message; None without one."""
    if request.plan.secure is None or request.kind != "train":
        return None
    part = Part.of(site, request, policy.limits())
    part.enter(message)
    return partial(part.masked, message)


def _answer(
    site: Site,
    request: Request,
    message: Message,
    context: Context,
    call_next: ClientAppCallable,
    noise: NoiseSource | None,
    seal: stages.Seal | None,
) -> tuple[RecordDict, tuple[Event, ...], tuple[Event, ...]]:
    """Return what the app made after the plan's stages, the events of private steps, and those of noised centres."""
    try:
        reply = call_next(message, context)
        if reply.has_error():
            raise ReleaseError(f"an error reply (code {reply.error.code}): {reply.error.reason}")
        content, spent = reply.content, _spent(reply.content)
    except (ConfigError, PrivacyError):
        raise
    except Exception as error:
        quiet = request.plan.noisy or request.plan.secure is not None
        if not quiet or request.plan.private_steps or request.kind != "train":
            raise
        site.log(request.round, type(error).__name__, error)
        content, spent = stages.zero(message.content.array_records["arrays"]), ()
    staged, events = stages.staged(request, content, noise, seal)
    return staged, spent, events


def _spent(content: RecordDict) -> tuple[Event, ...]:
    """Take the account out of the app's reply: events of private steps."""
    record = content.pop(ACCOUNT, None)
    if not isinstance(record, ConfigRecord):
        return ()
    return tuple(Event.of(values) for values in json.loads(str(record["events"])))


def check_release(message: Message, content: RecordDict, request: Request) -> None:
    """Raise :class:`ReleaseError` unless it holds kinds that were declared and asked for, and exactly those entries."""
    client = f"node {message.metadata.dst_node_id}"
    for kind, record in content.items():
        if kind not in RELEASE_KINDS:
            raise ReleaseError(
                f"{client}: release kind {kind!r} is not declared; expected one of {sorted(RELEASE_KINDS)}"
            )
        if kind not in request.kinds:
            raise ReleaseError(f"{client}: release kind {kind!r} was not asked for; expected {sorted(request.kinds)}")
        expected = MetricRecord if kind == "metrics" else ArrayRecord
        if not isinstance(record, expected):
            raise ReleaseError(
                f"{client}: release {kind!r}: expected {expected.__name__}, found {type(record).__name__}"
            )
        if isinstance(record, MetricRecord):
            _check_metrics(client, record)
    asked, released = message.content.get("arrays"), content.get("arrays")
    if isinstance(released, ArrayRecord):
        _check_entries(client, asked if isinstance(asked, ArrayRecord) else ArrayRecord(), released)


def _check_entries(client: str, asked: ArrayRecord, released: ArrayRecord) -> None:
    if released.keys() != asked.keys():
        extra, missing = sorted(released.keys() - asked.keys()), sorted(asked.keys() - released.keys())
        raise ReleaseError(
            f"{client}: weights to be released differ from those received: undeclared {extra[:5]}, "
            f"missing {missing[:5]}; declare groups in ModelSpec.groups()"
        )
    for name, array in released.items():
        if array.dtype != asked[name].dtype or tuple(array.shape) != tuple(asked[name].shape):
            expected, found = ((it.dtype, tuple(it.shape)) for it in (asked[name], array))
            raise ReleaseError(f"{client}: weights to be released: {name}: expected {expected}, found {found}")


def _check_metrics(client: str, record: MetricRecord) -> None:
    for key, value in record.items():
        values = value if isinstance(value, list) else [value]
        if not all(math.isfinite(number) for number in values):
            raise ReleaseError(f"{client}: metric {key!r} is not finite; look at the client's data and learning rate")


def _round(message: Message) -> object:
    records: Mapping[str, ConfigRecord] = message.content.config_records if message.has_content() else {}
    config = records.get("config")
    return config.get("server-round") if config else None
