"""Re-identification across visible and infrared light: one model against the test images of one data set.

SYSU-MM01 and LLCM are searched in ten galleries drawn from the test images, RegDB in one per test list. Protocols: Wu
et al., ICCV 2017 (SYSU-MM01), Nguyen et al., Sensors 2017 (RegDB), Zhang and Wang, CVPR 2023 (LLCM), and as the L2RW
code (github.com/Joey623/L2RW) runs them. A data set that nobody trained on is evaluated in the same way.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field
from torch import nn

from cloister.config import Config
from cloister.datasets.images import read_images
from cloister.datasets.records import Modality, Record
from cloister.datasets.reid import LAYOUTS, TestSplit, test_split, validation_split
from cloister.errors import ConfigError
from cloister.models.l2rw.config import CameraConfig, DataConfig
from cloister.server.evaluation.cameras import CELLS, camera_scores, cell_scores, mean_metrics, row_scores
from cloister.server.evaluation.draws import draw_gallery
from cloister.server.evaluation.features import Feature, extract, extract_recalibrated, refuse_copies
from cloister.server.evaluation.ranking import RULES, Labels, Ranking, distances, rank, summarise
from cloister.server.evaluation.retrieval import choose_queries, top
from cloister.server.evaluation.scores import CameraScores, ReidScores, Retrieval, Retrieved

NDArray = np.ndarray[Any, np.dtype[Any]]
DIRECTIONS = {"ir2rgb": (Modality.INFRARED, Modality.VISIBLE), "rgb2ir": (Modality.VISIBLE, Modality.INFRARED)}
"""Modality of the queries and of the gallery."""

_REGDB_SPLITS = tuple(range(1, 11))


class EvaluationConfig(Config):
    """How a model is judged.

    ``draws``: galleries drawn (RegDB draws none). ``mode``: SYSU-MM01's all search, or ``indoor`` (visible cameras 1
    and 2). ``shots``: gallery images per person and camera, one or (``multi``) ten. ``directions``: ``ir2rgb`` is
    infrared queries in a visible gallery. ``part``: ``validation`` is SYSU-MM01's 99 validation people, who must then
    be held out of training (``settings.data.hold_out``). ``splits``: RegDB's test lists, averaged (empty: the training
    split's; all ten where RegDB is the unseen target).

    ``feature``: ``post-bn`` is what L2RW reports. ``batch_size``: images per forward pass. ``recalibrate``: BatchNorm
    statistics of each camera from its unlabelled test images (None: only where ``normalisation`` is ``local``).
    ``retrievals``: queries kept with their images for the report (0: no test image is kept).
    """

    draws: Annotated[int, Field(ge=1)] = 10
    mode: Literal["all", "indoor"] = "all"
    shots: Literal["single", "multi"] = "single"
    directions: Annotated[tuple[Literal["ir2rgb", "rgb2ir"], ...], Field(min_length=1)] = ("ir2rgb", "rgb2ir")
    part: Literal["test", "validation"] = "test"
    splits: tuple[Annotated[int, Field(ge=1, le=10)], ...] = ()
    feature: Feature = "post-bn"
    batch_size: Annotated[int, Field(ge=2)] = 128
    recalibrate: bool | None = None
    retrievals: Annotated[int, Field(ge=0)] = 6


@dataclass(frozen=True, kw_only=True)
class _Search:
    """One repetition in one direction: images searched for and searched among, their labels, and the ranking."""

    queries: Sequence[Record]
    gallery: Sequence[Record]
    ranking: Ranking
    distance: NDArray
    asked: Labels
    among: Labels


class ReidEvaluator:
    """Ranks test images by a model's features and scores the rankings under the data set's rules.

    Images are decoded once, on first use, and kept as uint8 (a memory map where there is a cache folder).
    """

    def __init__(
        self,
        splits: Sequence[TestSplit],
        config: EvaluationConfig,
        *,
        height: int,
        width: int,
        recalibrate: bool = False,
        cache: Path | None = None,
    ) -> None:
        """Evaluate on ``splits``, test lists of one data set; images are resized to ``height`` x ``width`` pixels."""
        self.splits = [split.indoor() for split in splits] if config.mode == "indoor" else list(splits)
        self.config = config
        self.layout = self.splits[0].layout
        self.recalibrate = recalibrate if config.recalibrate is None else config.recalibrate
        everything = (record for split in self.splits for record in (*split.visible, *split.infrared))
        self.records = list({record.path: record for record in everything}.values())
        self._place = {record.path: place for place, record in enumerate(self.records)}
        self._size, self._cache = (height, width), cache
        self._images: NDArray | None = None

    @classmethod
    def check(cls, settings: Mapping[str, Any], evaluation: Mapping[str, Any]) -> None:
        """Raise :class:`ConfigError` naming the key that cannot be used. Opens nothing."""
        _parse(settings, evaluation)

    @classmethod
    def of(cls, root: Path, settings: Mapping[str, Any], evaluation: Mapping[str, Any]) -> Self:
        """Return the evaluator of the camera task with these ``settings``, on the data at ``root``.

        The data set is the task's target, or the one that it trains on. Raises :class:`ConfigError` naming the key
        that cannot be used, and ``DataError`` where test images or index files are missing.
        """
        task, config = _parse(settings, evaluation)
        layout = _layout(task.data)
        if config.part == "validation":
            splits = [validation_split(root, layout)]
        else:
            unseen = _REGDB_SPLITS if task.data.target == "regdb" else (task.data.split,)
            splits = [test_split(root, layout, split=number) for number in config.splits or unseen]
        return cls(
            splits,
            config,
            height=task.model.image_height,
            width=task.model.image_width,
            recalibrate=task.model.normalisation == "local",
            cache=Path(task.data.cache) / "server" if task.data.cache else None,
        )

    @property
    def images(self) -> NDArray:
        """The test images in the order of :attr:`records`, uint8 ``[N, H, W, 3]``."""
        if self._images is None:
            paths = [record.path for record in self.records]
            self._images = read_images(
                self.splits[0].folder, paths, *self._size, cache=self._cache, owner="test images"
            )
        return self._images

    def evaluate(self, model: nn.Module) -> ReidScores:
        """Return the scores of ``model``, whose mode, weights and statistics are left as they were.

        Raises :class:`EvaluationError` for features from which no score follows: not finite, too long, of length zero,
        the same for different people, or tied.
        """
        features = self._features(model)
        metrics: dict[str, float] = {}
        per_draw: list[dict[str, float]] = [{} for _ in range(len(self.splits) * self._draws())]
        matrices: dict[str, CameraScores] = {}
        for direction in self.config.directions:
            prefix = "" if direction == "ir2rgb" else f"{direction}/"
            found, matrices[direction] = self._score(self._searches(features, direction))
            worst = matrices[direction].query_cameras[matrices[direction].worst]
            lowest = {f"worst_camera_{name}": worst[name] for name in CELLS}
            metrics |= {prefix + name: value for name, value in (mean_metrics(found) | lowest).items()}
            for values, repetition in zip(per_draw, found, strict=True):
                values |= {prefix + name: value for name, value in repetition.items()}
        for split in self.splits:
            records = (*split.visible, *split.infrared)
            refuse_copies(features, self.images, self._places(records), _labels(records).identities)
        return ReidScores(
            metrics=metrics,
            per_draw=per_draw,
            camera_matrix=matrices,
            camera_names={record.camera: self._camera(record) for record in self.records},
            retrievals=self._retrievals(features, self.config.directions[0]),
        )

    def _score(self, searches: Iterable[_Search]) -> tuple[list[dict[str, float]], CameraScores]:
        found, cells, rows = [], [], []
        for search in searches:
            found.append(summarise(search.ranking))
            cells.append(cell_scores(search.distance, search.asked, search.among, RULES[self.layout]))
            rows.append(row_scores(search.ranking, search.asked))
        return found, camera_scores(cells, rows)

    def _features(self, model: nn.Module) -> NDArray:
        infrared = np.array([record.modality is Modality.INFRARED for record in self.records])
        size, feature = self.config.batch_size, self.config.feature
        if not self.recalibrate:
            return extract(model, self.images, infrared, batch_size=size, feature=feature)
        cameras = np.array([record.camera for record in self.records])
        return extract_recalibrated(model, self.images, infrared, cameras, batch_size=size, feature=feature)

    def _draws(self) -> int:
        return 1 if self.layout == "regdb" else self.config.draws

    def _searches(self, features: NDArray, direction: str) -> Iterator[_Search]:
        asked, among = DIRECTIONS[direction]
        for split in self.splits:
            queries = split.of(asked)
            for draw in range(self._draws()):
                yield self._search(features, queries, self._gallery(split.of(among), draw))

    def _gallery(self, candidates: Sequence[Record], draw: int) -> Sequence[Record]:
        if self.layout == "regdb":
            return candidates
        shots = 1 if self.config.shots == "single" else 10
        return [candidates[place] for place in draw_gallery(candidates, draw, shots)]

    def _search(self, features: NDArray, queries: Sequence[Record], gallery: Sequence[Record]) -> _Search:
        distance = distances(features[self._places(queries)], features[self._places(gallery)])
        asked, among = _labels(queries), _labels(gallery)
        return _Search(
            queries=queries,
            gallery=gallery,
            ranking=rank(distance, asked, among, RULES[self.layout]),
            distance=distance,
            asked=asked,
            among=among,
        )

    def _retrievals(self, features: NDArray, direction: str) -> list[Retrieval]:
        if not self.config.retrievals:
            return []
        search = next(self._searches(features, direction))
        ranking = search.ranking
        chosen = choose_queries(ranking, search.asked.identities, self.config.retrievals)
        return [
            Retrieval(
                direction=direction,
                query=self._retrieved(record, None, None),
                results=[
                    self._retrieved(search.gallery[place], record, -float(search.distance[query, place]))
                    for place in top(ranking, query)
                ],
                average_precision=float(ranking.average_precision[query]),
                first_hit=1 + int(np.argmax(search.among.identities[ranking.order[query]] == record.identity)),
            )
            for query, record in ((query, search.queries[query]) for query in chosen)
        ]

    def _retrieved(self, record: Record, query: Record | None, similarity: float | None) -> Retrieved:
        return Retrieved(
            path=record.path,
            identity=record.identity,
            camera=self._camera(record),
            pixels=self.images[self._place[record.path]],
            correct=None if query is None else record.identity == query.identity,
            similarity=similarity,
        )

    def _camera(self, record: Record) -> str:
        return LAYOUTS[self.layout].clients[record.camera - 1]

    def _places(self, records: Sequence[Record]) -> NDArray:
        return np.array([self._place[record.path] for record in records])


def _labels(records: Sequence[Record]) -> Labels:
    return Labels(
        identities=np.array([record.identity for record in records]),
        cameras=np.array([record.camera for record in records]),
    )


def _parse(settings: Mapping[str, Any], evaluation: Mapping[str, Any]) -> tuple[CameraConfig, EvaluationConfig]:
    task = CameraConfig.parse(dict(settings), at="settings")
    config = EvaluationConfig.parse(dict(evaluation), at="evaluation")
    layout = _layout(task.data)
    if config.part == "validation":
        _check_held_out(task.data, layout)
    if config.splits and layout != "regdb":
        raise ConfigError(
            f"evaluation.splits: expected none, found {list(config.splits)}: {layout} has one test list; leave it empty"
        )
    if config.mode == "indoor" and layout != "sysu-mm01":
        raise ConfigError(f'evaluation.mode: expected "all", found "indoor": {layout} has no indoor search; set "all"')
    return task, config


def _layout(data: DataConfig) -> str:
    if data.target:
        return data.target
    if len(data.sources) > 1:
        raise ConfigError(
            f"settings.data.target: expected the data set to evaluate on, found none beside sources {data.sources}; "
            "name the one that nobody trains on"
        )
    return data.sources[0] if data.sources else data.layout


def _check_held_out(data: DataConfig, layout: str) -> None:
    """Raise ConfigError if the validation people of ``layout`` take part in training."""
    if layout in (data.sources or (data.layout,)) and not data.hold_out:
        raise ConfigError(
            f"evaluation.part: expected test, found validation while the validation people of {layout} are trained on "
            "(settings.data.hold_out is false); set settings.data.hold_out to true, for SYSU-MM01, which alone has some"
        )
