"""Degrees and thresholds: every published row, the chances they rest on by another library, and what is refused."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from cloister.errors import SecureSumError
from cloister.privacy.secagg import parameters
from cloister.privacy.secagg.parameters import Parameters, Server, derive, regular

CURIOUS, SEMI, MALICIOUS = Server.CURIOUS, Server.SEMI_MALICIOUS, Server.MALICIOUS

# clients, adversaries, dropouts, server, degree, threshold: as another implementation of Bell et al. finds them.
ROWS = [
    (100, 0.33, 0.33, CURIOUS, 68, 34),
    (1000, 0.33, 0.33, CURIOUS, 286, 150),
    (10_000, 0.33, 0.33, CURIOUS, 422, 221),
    (100, 0.05, 0.33, CURIOUS, 28, 6),
    (1000, 0.05, 0.33, CURIOUS, 72, 24),
    (100, 0.33, 0.05, CURIOUS, 34, 29),
    (1000, 0.33, 0.05, CURIOUS, 78, 60),
    (100, 0.33, 0.0, CURIOUS, 26, 25),
    (1000, 0.0, 0.33, SEMI, 228, 115),
    (100, 0.05, 0.05, CURIOUS, 12, 6),
    (1000, 0.05, 0.05, CURIOUS, 30, 17),
    (10_000, 0.05, 0.05, CURIOUS, 34, 20),
    (1_000_000, 0.05, 0.05, CURIOUS, 38, 22),
    (100, 0.05, 0.05, SEMI, 16, 11),
    (1000, 0.05, 0.05, SEMI, 52, 37),
    (10_000, 0.05, 0.05, SEMI, 62, 44),
    (100, 0.05, 0.33, SEMI, 72, 39),
    (1000, 0.05, 0.33, SEMI, 398, 223),
    (1000, 0.30, 0.30, SEMI, 872, 584),
    (32, 0.1, 0.1, CURIOUS, 8, 4),
    (32, 0.1, 0.1, SEMI, 10, 7),
    (64, 0.1, 0.1, CURIOUS, 14, 7),
    (64, 0.1, 0.1, SEMI, 20, 14),
    (128, 0.1, 0.1, CURIOUS, 24, 13),
    (128, 0.1, 0.1, SEMI, 38, 26),
    (512, 0.1, 0.1, CURIOUS, 42, 24),
    (512, 0.1, 0.1, SEMI, 82, 57),
]


@pytest.mark.parametrize(("clients", "adversaries", "dropouts", "server", "degree", "threshold"), ROWS)
def test_every_published_row_comes_out(
    clients: int, adversaries: float, dropouts: float, server: Server, degree: int, threshold: int
) -> None:
    found = derive(clients, adversaries=adversaries, dropouts=dropouts, server=server)
    assert (found.degree, found.threshold, found.complete) == (degree, threshold, False)
    assert (found.clients, found.adversaries, found.dropouts, found.server) == (clients, adversaries, dropouts, server)


def test_a_share_is_the_number_that_is_meant_and_not_the_double_below() -> None:
    assert 0.29 * 100 < 29
    for dropouts in (0.05, 0.2):
        found = [regular(100, adversaries=share, dropouts=dropouts, server=CURIOUS) for share in (0.28, 0.29, 0.2901)]
        assert found[0] != found[1] == found[2]


def test_published_rows_of_few_clients_come_out_of_the_search_alone() -> None:
    assert regular(10, adversaries=0.33, dropouts=0.33, server=CURIOUS) == (8, 4)
    assert regular(6, adversaries=0.1, dropouts=0.1, server=CURIOUS) == (2, 2)  # floor(0.6) = 0: promises nothing
    for clients, adversaries in ((10, 0.33), (6, 0.1)):
        assert derive(clients, adversaries=adversaries, dropouts=0.33, server=CURIOUS).complete


@pytest.mark.parametrize(
    ("clients", "marked", "drawn"), [(10, 3, 4), (100, 5, 12), (100, 60, 70), (1000, 330, 286), (50, 0, 6), (50, 50, 6)]
)
def test_chances_are_those_of_the_hypergeometric_distribution(clients: int, marked: int, drawn: int) -> None:
    found = parameters._at_least(clients, marked, drawn)
    expected = stats.hypergeom(clients, marked, drawn).sf(np.arange(-1, drawn))
    assert found == pytest.approx(expected, rel=1e-8, abs=0)


def test_the_chance_of_being_cut_off_is_bounded_as_stated() -> None:
    for clients, degree, bad in ((100, 12, 30), (1000, 30, 100), (100, 20, 40)):
        bound = clients * (clients - degree - 1) / 2 * math.comb(bad, degree) / math.comb(clients, degree)
        assert parameters._connected(clients, degree, bad, bound * 1.0001)
        assert not parameters._connected(clients, degree, bad, bound * 0.9999)
    assert parameters._connected(100, 12, 11, 1e-300)  # not all neighbours can be bad
    assert parameters._connected(13, 12, 12, 1e-300)  # nobody is left who is no neighbour


@pytest.mark.parametrize("row", [row for row in ROWS if row[0] <= 1000])
def test_the_stated_guarantees_hold_and_a_smaller_graph_has_none(row: tuple[Any, ...]) -> None:
    clients, adversaries, dropouts, server, degree, threshold = row
    colluding = stats.hypergeom(clients, math.floor(adversaries * clients + 1e-9), degree)
    staying = stats.hypergeom(clients, math.ceil((1 - dropouts) * clients - 1e-9), degree)
    enough = threshold if server is CURIOUS else 2 * threshold - degree  # the honest ones give one kind each
    assert colluding.sf(enough - 1) <= 2.0**-41 / clients
    assert staying.cdf(threshold - 1) <= 2.0**-20 / clients
    assert colluding.sf(enough - 3) > 2.0**-41 / clients or threshold == 2  # a lower threshold would not do


@pytest.mark.parametrize(
    ("clients", "adversaries", "dropouts", "server", "threshold"),
    [
        (3, 0.0, 0.0, CURIOUS, 2),
        (5, 0.2, 0.2, CURIOUS, 2),
        (10, 0.3, 0.3, CURIOUS, 4),
        (10, 0.33, 0.33, CURIOUS, 5),
        (29, 0.01, 0.2, CURIOUS, 2),  # a share above none is somebody
        (10, 0.0, 0.0, SEMI, 6),  # above (n + g) / 2
        (10, 0.2, 0.2, MALICIOUS, 7),
        (9, 0.2, 0.1, MALICIOUS, 6),
        (29, 0.3, 0.25, MALICIOUS, 20),  # floor(2n/3) + 1
    ],
)
def test_few_clients_get_the_complete_graph(
    clients: int, adversaries: float, dropouts: float, server: Server, threshold: int
) -> None:
    found = derive(clients, adversaries=adversaries, dropouts=dropouts, server=server)
    assert (found.degree, found.threshold, found.complete) == (clients - 1, threshold, True)


@pytest.mark.parametrize("clients", range(3, 30))
def test_thresholds_of_complete_graphs_keep_what_they_promise(clients: int) -> None:
    for adversaries in (0.0, 0.1, 0.2, 0.3):
        for server in Server:
            try:
                found = derive(clients, adversaries=adversaries, dropouts=0.1, server=server)
            except SecureSumError:
                continue
            g, t = math.ceil(adversaries * clients - 1e-9), found.threshold
            honest = clients - g
            assert t > g  # those who collude hold too few shares
            assert server is CURIOUS or 2 * t > 2 * g + honest  # and too few of both kinds with everybody's help
            assert t <= math.ceil(0.9 * clients - 1e-9) - 1  # whoever stays has enough others that stay


def test_where_a_regular_graph_would_promise_nothing_the_graph_is_complete() -> None:
    assert derive(50, adversaries=0.01, dropouts=0.1, server=CURIOUS).complete  # floor(0.5) = 0
    assert not derive(50, adversaries=0.02, dropouts=0.1, server=CURIOUS).complete
    assert not derive(50, adversaries=0.0, dropouts=0.1, server=CURIOUS).complete  # nothing was asked


def test_the_smallest_graph_that_serves_may_be_the_complete_one() -> None:
    found = derive(59, adversaries=0.33, dropouts=0.33, server=SEMI)
    assert (found.degree, found.threshold, found.complete) == (58, 39, True)


def test_a_malicious_server_that_tries_many_keys_is_reckoned_with() -> None:
    semi, malicious = (derive(1000, adversaries=0.05, dropouts=0.05, server=server) for server in (SEMI, MALICIOUS))
    assert (malicious.degree, malicious.threshold) == (66, 49)
    assert malicious.degree > semi.degree
    colluding = stats.hypergeom(1000, 50, malicious.degree)
    assert colluding.sf(2 * malicious.threshold - malicious.degree - 1) <= 2.0**-81 / 1000


@pytest.mark.parametrize(
    ("clients", "adversaries", "dropouts", "server", "match"),
    [
        (
            100,
            0.33,
            0.33,
            SEMI,
            r"100 clients under a semi-malicious server, 33 colluding: expected the threshold, 67",
        ),
        (10, 0.33, 0.33, SEMI, r"threshold, 8 \(above half .*found 6 of them \(dropouts 0.33\)"),
        (1000, 0.5, 0.5, CURIOUS, r"threshold, 501 \(above the number of those that collude\).*found 499"),
        (10_000, 0.9, 0.2, CURIOUS, "so that no graph serves"),
        (3, 0.0, 0.4, CURIOUS, "found 1 of them"),
        (4, 0.3, 0.0, MALICIOUS, "threshold, 4"),
    ],
)
def test_rates_that_no_graph_satisfies_are_refused_and_the_reason_said(
    clients: int, adversaries: float, dropouts: float, server: Server, match: str
) -> None:
    with pytest.raises(SecureSumError, match=match):
        derive(clients, adversaries=adversaries, dropouts=dropouts, server=server)


@pytest.mark.parametrize("clients", [-1, 0, 1, 2, 5.0, True])
def test_too_few_clients_are_refused(clients: int) -> None:
    with pytest.raises(SecureSumError, match="expected at least 3 clients"):
        derive(clients, adversaries=0.0, dropouts=0.0, server=CURIOUS)


@pytest.mark.parametrize("share", [-0.1, 1.0, 1.5, float("nan"), float("inf")])
def test_shares_that_are_none_are_refused(share: float) -> None:
    with pytest.raises(SecureSumError, match="expected a share of adversaries"):
        derive(100, adversaries=share, dropouts=0.1, server=CURIOUS)
    with pytest.raises(SecureSumError, match="expected a share of dropouts"):
        derive(100, adversaries=0.1, dropouts=share, server=CURIOUS)


@pytest.mark.parametrize(
    ("degree", "threshold", "complete"),
    [(13, 6, False), (12, 13, False), (12, 1, False), (12, 6, True), (99, 50, False), (100, 50, False), (0, 0, False)],
)
def test_parameters_that_no_graph_has_are_refused(degree: int, threshold: int, complete: bool) -> None:
    with pytest.raises(SecureSumError, match="use derive"):
        Parameters(
            clients=100,
            adversaries=0.05,
            dropouts=0.05,
            server=CURIOUS,
            degree=degree,
            threshold=threshold,
            complete=complete,
        )
