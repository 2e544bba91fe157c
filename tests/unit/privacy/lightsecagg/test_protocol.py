"""Users and a server together: exact sums whoever drops out and when, and the questions that no user answers."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.errors import SecureSumError
from cloister.privacy import lightsecagg
from cloister.privacy.lightsecagg.field import PRIME, centred, integers, uniform
from cloister.privacy.lightsecagg.messages import Answer, Request, Share, Upload
from cloister.privacy.lightsecagg.numbers import FixedPoint
from cloister.privacy.lightsecagg.server import Server, Sum
from cloister.privacy.lightsecagg.terms import Terms
from cloister.privacy.lightsecagg.user import User
from cloister.privacy.noise import NoiseSource


def party(terms: Terms) -> dict[int, User]:
    return {place: User(terms, place, NoiseSource(bytes([place] * 32))) for place in range(1, terms.users + 1)}


def offered(users: dict[int, User], number: int, by: Any = None) -> None:
    """Everybody (or those in ``by``) offers upload ``number`` to everybody, over the wire."""
    for sender in by or users:
        for share in users[sender].offer(number):
            received = Share.decode(share.encode(users[sender].terms), users[sender].terms)
            users[received.receiver].receive(received)


def sent(users: dict[int, User], server: Server, number: int, vectors: dict[int, np.ndarray]) -> None:
    for place, vector in vectors.items():
        upload = users[place].upload(number, integers(vector))
        assert server.take(Upload.decode(upload.encode(server.terms), server.terms))


def unmasked(users: dict[int, User], opened: Sum, answering: Any) -> np.ndarray:
    terms = users[1].terms
    for place in answering:
        request = Request.decode(opened.request.encode(terms), terms)
        opened.take(Answer.decode(users[place].answer(request).encode(terms), terms))
    return centred(opened.total())


def test_the_toy_sum_over_the_wire(lsa: SimpleNamespace) -> None:
    terms = lsa.terms()
    users, server = party(terms), Server(terms)
    offered(users, 1)
    vectors = {place: np.arange(6) * place - 7 for place in (1, 2, 4, 5)}  # user 3 drops out
    sent(users, server, 1, vectors)
    opened = server.open(dict.fromkeys(server.waiting, 1))
    assert unmasked(users, opened, (5, 4, 2, 1)).tolist() == sum(vectors.values()).tolist()


@settings(max_examples=40)
@given(data=st.data())
def test_sums_are_exact_wherever_users_drop_out(data: st.DataObject) -> None:
    number = st.integers
    size = data.draw(number(1, 20))
    count = data.draw(number(3, 9))
    colluders = data.draw(number(0, count - 2))
    survivors = data.draw(number(colluders + 1, count))
    terms = Terms(
        session=bytes(16),
        users=count,
        survivors=survivors,
        colluders=colluders,
        uploads=data.draw(number(colluders + 2, count)),
        size=size,
        heaviest=9,
    )
    users, server = party(terms), Server(terms)
    offered(users, 4)
    order = data.draw(st.permutations(range(1, count + 1)))
    uploading = order[: data.draw(number(terms.uploads, count))]
    vectors = {place: np.array([data.draw(number(-1000, 1000)) for _ in range(size)]) for place in uploading}
    sent(users, server, 4, vectors)
    weights = {upload: data.draw(number(1, 9)) for upload in server.waiting}
    answering = data.draw(st.permutations(range(1, count + 1)))[: data.draw(number(survivors, count))]
    expected = sum(vector * weights[place, 4] for place, vector in vectors.items())
    assert unmasked(users, server.open(weights), answering).tolist() == expected.tolist()


def test_uploads_of_different_rounds_are_in_one_sum(lsa: SimpleNamespace) -> None:
    """What a buffer of stale updates needs: numbers differ, weights are public, and some uploads are never summed."""
    terms = lsa.terms(heaviest=100)
    users, server = party(terms), Server(terms)
    offered(users, 1)
    offered(users, 2, by=(1, 2))
    vectors = {(1, 2): np.arange(6), (2, 2): -np.arange(6), (3, 1): np.full(6, 5), (4, 1): np.full(6, -9)}
    for (place, number), vector in vectors.items():
        sent(users, server, number, {place: vector})
    weights = {upload: weight for upload, weight in zip(vectors, (100, 71, 58, 50), strict=True)}
    expected = sum(vector * weights[upload] for upload, vector in vectors.items())
    for user in users.values():
        user.drop(1, 1)
    assert unmasked(users, server.open(weights), (1, 2, 3, 5)).tolist() == expected.tolist()
    assert repr(users[1]) == "User(place=1, masks=0, shares=2)"


def test_reals_come_back_within_rounding(lsa: SimpleNamespace) -> None:
    terms = lsa.terms(size=200)
    users, server = party(terms), Server(terms)
    point = FixedPoint.finest(clip=1.0, total_weight=5)
    draw = np.random.default_rng(0)
    reals = {place: draw.uniform(-1, 1, 200) for place in users}
    offered(users, 1)
    for place, vector in reals.items():
        server.take(users[place].upload(1, point.encode(vector, lsa.source("round", place))))
    opened = server.open(dict.fromkeys(server.waiting, 1))
    for place in (2, 3, 4, 5):
        opened.take(users[place].answer(opened.request))
    assert np.abs(point.decode(opened.total()) - sum(reals.values())).max() <= 5 / point.scale


def test_an_upload_says_nothing_without_its_mask(lsa: SimpleNamespace) -> None:
    terms = lsa.terms(size=4000)
    masked = User(terms, 1, NoiseSource(bytes(32)))
    masked.offer(1)
    values = masked.upload(1, np.zeros(4000, np.uint64)).values
    assert len(set(values.tolist())) > 3990
    assert abs(values.mean() / PRIME - 0.5) < 0.03


def test_fresh_masks_for_each_upload_and_user(lsa: SimpleNamespace) -> None:
    terms, zero = lsa.terms(), np.zeros(6, np.uint64)
    users = party(terms)
    found = set()
    for place, number in ((1, 1), (1, 2), (2, 1)):
        users[place].offer(number)
        found.add(users[place].upload(number, zero).values.tobytes())
    assert len(found) == 3


def refused(call: Any, *arguments: Any, match: str) -> None:
    with pytest.raises(SecureSumError, match=match):
        call(*arguments)


def test_a_user_answers_for_an_upload_once(lsa: SimpleNamespace) -> None:
    terms = lsa.terms()
    users = party(terms)
    offered(users, 1)
    everybody = {(place, 1): 1 for place in users}
    fewer = {(place, 1): 1 for place in (1, 2, 3, 4)}
    users[1].answer(Request(step=1, weights=everybody))
    # Two sums that differ by user 5's upload would show a share of her mask.
    refused(users[1].answer, Request(step=2, weights=fewer), match=r"none \(any more\) of \[\(1, 1\)")
    refused(users[1].answer, Request(step=1, weights=everybody), match="each summed once")


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        (
            {(1, 1): 1, (2, 1): 1, (3, 1): 1},
            "a sum of at least 4 uploads of as many users",
        ),
        ({(1, 1): 1, (2, 1): 1, (3, 1): 1, (3, 2): 1}, "found 4 of 3 users"),
        ({(1, 1): 1, (2, 1): 1, (3, 1): 1, (4, 1): 2}, "1 other weights"),
        ({(1, 1): 1, (2, 1): 1, (3, 1): 1, (4, 7): 1}, r"of \[\(4, 7\)\]"),
    ],
)
def test_questions_outside_the_terms_are_answered_by_nobody(
    lsa: SimpleNamespace, weights: dict[tuple[int, int], int], reason: str
) -> None:
    terms = lsa.terms()
    users = party(terms)
    offered(users, 1)
    offered(users, 2)
    refused(users[2].answer, Request(step=1, weights=weights), match=reason)
    users[2].answer(Request(step=1, weights={(place, 1): 1 for place in users}))  # nothing was used up


def test_masks_are_used_once(lsa: SimpleNamespace) -> None:
    terms, zero = lsa.terms(), np.zeros(6, np.uint64)
    user = User(terms, 1, NoiseSource(bytes(32)))
    refused(user.upload, 1, zero, match="found shape .* for upload 1; offer")
    user.offer(1)
    refused(user.offer, 1, match="found number 1 again")
    user.upload(1, zero)
    refused(user.upload, 1, zero, match="offer")
    refused(user.offer, 1, match="found number 1 again")


def test_shares_for_others_and_second_shares_are_refused(lsa: SimpleNamespace) -> None:
    users = party(lsa.terms())
    to_two, to_three, *_ = users[1].offer(1)
    users[2].receive(to_two)
    refused(users[2].receive, to_three, match="for this user, found one for user 3")
    refused(users[2].receive, to_two, match="one share of each upload")


def test_spent_secrets_are_overwritten(lsa: SimpleNamespace) -> None:
    terms = lsa.terms()
    users = party(terms)
    offered(users, 1)
    mask, shares = users[1]._masks[1], dict(users[1]._held)
    assert mask.any()
    assert all(share.any() for share in shares.values())
    users[1].upload(1, np.zeros(6, np.uint64))
    users[1].drop(5, 1)
    users[1].answer(Request(step=1, weights={(place, 1): 1 for place in (1, 2, 3, 4)}))
    assert not mask.any()
    assert not any(share.any() for share in shares.values())


def test_late_twice_and_lost_messages_at_the_server(lsa: SimpleNamespace) -> None:
    terms = lsa.terms()
    users, server = party(terms), Server(terms)
    offered(users, 1)
    uploads = [users[place].upload(1, integers(np.full(6, place))) for place in users]
    assert [server.take(upload) for upload in uploads[:4]] == [True] * 4
    assert not server.take(uploads[0])
    opened = server.open(dict.fromkeys(server.waiting, 1))
    assert server.take(uploads[4])  # waits for another sum
    assert not server.take(uploads[1])  # was summed
    answers = [users[place].answer(opened.request) for place in (5, 1, 3)]
    for answer in (*answers, answers[0]):
        assert not opened.take(answer)
    assert opened.missing == 1
    refused(opened.total, match="expected 4 answers, found 3; .* wait for 1 more users")
    assert opened.take(users[4].answer(opened.request))
    assert opened.take(users[2].answer(opened.request))  # late: changes nothing
    assert centred(opened.total()).tolist() == [1 + 2 + 3 + 4] * 6
    assert server.waiting == ((5, 1),)
    server.drop(5, 1)
    assert server.waiting == ()


def test_what_does_not_fit_is_refused_by_the_server(lsa: SimpleNamespace) -> None:
    terms = lsa.terms()
    server = Server(terms)
    refused(server.take, Upload(sender=9, number=1, values=uniform(6, lsa.source())), match="from 1 to 5, found 9")
    refused(server.take, Upload(sender=1, number=1, values=uniform(5, lsa.source())), match="an upload of 6 entries")
    for place in (1, 2, 3, 4):
        server.take(Upload(sender=place, number=1, values=uniform(6, lsa.source())))
    refused(server.open, {(1, 1): 1, (2, 1): 1, (3, 1): 1}, match="server: expected a sum of at least 4")
    refused(server.open, {(1, 1): 1, (2, 1): 1, (3, 1): 1, (5, 1): 1}, match=r"none \(any more\) of \[\(5, 1\)\]")
    refused(server.open, {(1, 1): 1, (2, 1): 1, (3, 1): 1, (4, 1): 2}, match="1 other weights")
    opened = server.open(dict.fromkeys(server.waiting, 1))
    values = uniform(3, lsa.source())
    refused(opened.take, Answer(sender=1, step=2, values=values), match="for step 1, found .* for step 2")
    refused(opened.take, Answer(sender=1, step=1, values=values[:2]), match="expected 3 elements")
    refused(opened.take, Answer(sender=0, step=1, values=values), match="from 1 to 5, found 0")


def test_it_is_labelled_honest_but_curious_wherever_it_is_described() -> None:
    assert "honest-but-curious" in lightsecagg.DEVIATION
    for described in (lightsecagg, User, Terms):
        assert "honest-but-curious" in (described.__doc__ or "").lower()
    assert "trusted to follow the protocol" in (Server.__doc__ or "")
