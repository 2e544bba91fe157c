"""Settings of the L2RW models, of their local training, and of the camera task that joins them with data.

Defaults are the paper's (L2RW, arXiv 2503.12232v1, CVPR 2025) in the one-camera-per-client protocol. Where the paper
and its released code disagree, the default follows the paper and a setting replays the release; each is marked so
below.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from cloister.config import Config

Share = Annotated[float, Field(ge=0, le=1)]
Normalisation = Literal["averaged", "pooled", "local", "frozen", "group"]


class ModelConfig(Config):
    """A re-identification network.

    ``blocks``: bottlenecks per stage, ``width``: channels of the first stage's 3x3 convolution (the embedding is 32
    times as wide). ``image_height``, ``image_width``: pixels. ``num_classes``: rows of the head (0: taken from the
    data).

    ``normalisation``: ``averaged`` (BatchNorm, statistics averaged like weights: the paper), ``pooled`` (statistics
    joined as moments), ``local`` (every BatchNorm entry stays at its client: FedBN), ``frozen`` (stored statistics
    always), ``group`` (GroupNorm everywhere, no statistics). ``head``: averaged, or kept at its client.
    ``gem_p``: exponent of the generalised-mean pooling. ``pretrained``: file with ImageNet weights ("": none).
    ``train_neck_bias``: the BatchNorm neck's bias learns, as L2RW has it; AGW, hence ``two-stream``, never trains it.
    """

    architecture: Literal["one-stream", "two-stream"] = "one-stream"
    blocks: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (3, 4, 6, 3)
    width: PositiveInt = 64
    image_height: Annotated[int, Field(ge=32)] = 288
    image_width: Annotated[int, Field(ge=32)] = 144
    num_classes: NonNegativeInt = 0
    normalisation: Normalisation = "averaged"
    head: Literal["shared", "local"] = "shared"
    gem_p: PositiveFloat = 3.0
    pretrained: str = ""
    train_neck_bias: bool = True

    @property
    def embedding(self) -> int:
        """Length of the feature vector."""
        return 32 * self.width


class TrainConfig(Config):
    """One client's training within a round.

    A batch has ``identities_per_batch`` (P) people and ``images_per_identity`` (K) images of each; ``sampling`` is by
    identity alone, or ``balanced``: K/2 visible and K/2 infrared images (AGW, for clients that have both).

    ``learning_rate`` is the peak for neck and head, ``backbone_learning_rate`` for all else. ``schedule``:
    ``triangular`` with its peak in ``peak_round`` (0 is the first), or ``stepped`` (AGW: ten rounds of warm-up, a
    tenth from round 20, a hundredth from 50). ``schedule_order``: ``released`` replays the released code, whose step
    index is off by one.

    ``circle_weight``: 0 switches the circle loss off, as the released pooled baseline does. ``triplet_weight``: AGW's
    weighted-regularised triplet loss on the feature before the neck. ``mrb_weight``: the pull towards class centres;
    ``mrb_form`` is ``cosine`` in the paper and ``mixed`` in the release, ``centre_feature`` ``normalised`` in the paper
    and ``raw`` in the release, ``mrb_top_k`` 4 in the paper and 5 (one camera) or 3 (one entity) in the release.

    ``channel_augmentation``: ``rgb-copy`` in the paper, ``rgb-copy-luma`` in the release, ``grey`` in the ablation;
    drawn per image with ``channel_probability`` (release: 0.5 for cameras, 1 for entities). ``crop_padding``:
    pixels. ``restricted_softmax``: people absent from this client do not take part in its softmax.
    ``mixed_precision``: bfloat16 in the forward pass, on CUDA only.
    """

    identities_per_batch: Annotated[int, Field(ge=2)] = 8
    images_per_identity: Annotated[int, Field(ge=2)] = 8
    sampling: Literal["identity", "balanced"] = "identity"
    local_epochs: PositiveInt = 1
    learning_rate: PositiveFloat = 0.2
    backbone_learning_rate: PositiveFloat = 0.02
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NonNegativeFloat = 5e-4
    schedule: Literal["triangular", "stepped"] = "triangular"
    peak_round: PositiveInt = 16
    schedule_order: Literal["natural", "released"] = "natural"
    circle_weight: NonNegativeFloat = 1.0
    circle_margin: PositiveFloat = 0.45
    circle_scale: PositiveFloat = 64.0
    triplet_weight: NonNegativeFloat = 0.0
    mrb_weight: NonNegativeFloat = 1.0
    mrb_form: Literal["cosine", "euclidean", "mixed"] = "cosine"
    mrb_top_k: PositiveInt = 4
    centre_feature: Literal["normalised", "raw"] = "normalised"
    channel_augmentation: Literal["rgb-copy", "rgb-copy-luma", "grey", "none"] = "rgb-copy"
    channel_probability: Share = 0.5
    crop_padding: NonNegativeInt = 10
    restricted_softmax: bool = False
    mixed_precision: bool = False

    @property
    def batch_size(self) -> int:
        """Images in a batch."""
        return self.identities_per_batch * self.images_per_identity

    @model_validator(mode="after")
    def _halves(self) -> Self:
        if self.sampling == "balanced" and self.images_per_identity % 2:
            raise ValueError(f"balanced sampling halves images_per_identity, found the odd {self.images_per_identity}")
        return self


class DataConfig(Config):
    """Which data set, cut into which clients.

    ``protocol``: ``ci`` and ``uci`` make a client of each camera of ``layout`` (``uci``: identities are numbered
    privately), ``ei`` of each data set of ``sources``, ``es`` pools the ``sources`` (or ``layout`` alone).
    ``target``: the data set that nobody trains on. ``split``: RegDB's, 1 to 10. ``hold_out``: SYSU-MM01's validation
    identities take no part. ``label_space``: identities per data set (empty: counted in the index files, which a
    client cannot do alone). ``cache``: folder for decoded images and nothing else, one per client inside ("": memory).
    """

    layout: Literal["sysu-mm01", "regdb", "llcm"] = "sysu-mm01"
    protocol: Literal["ci", "uci", "ei", "es"] = "ci"
    split: Annotated[int, Field(ge=1, le=10)] = 1
    sources: tuple[Literal["sysu-mm01", "regdb", "llcm"], ...] = ()
    target: Literal["", "sysu-mm01", "regdb", "llcm"] = ""
    hold_out: bool = False
    label_space: dict[str, PositiveInt] = Field(default_factory=dict)
    cache: str = ""

    @model_validator(mode="after")
    def _protocol_fits(self) -> Self:
        if self.protocol in ("ci", "uci") and self.sources:
            raise ValueError(f"protocol {self.protocol} takes its cameras from layout; leave sources empty")
        if self.protocol == "ei" and len(set(self.sources)) < 2:
            raise ValueError(f"protocol ei needs two different sources, found {list(self.sources)}")
        return self


class CameraConfig(Config):
    """The settings of the camera task."""

    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    data: DataConfig = DataConfig()

    @model_validator(mode="after")
    def _private_labels_need_a_local_head(self) -> Self:
        if self.data.protocol == "uci" and self.model.head != "local":
            raise ValueError('protocol uci numbers identities privately; set settings.model.head = "local"')
        if self.train.sampling == "balanced" and self.data.protocol in ("ci", "uci") and self.data.layout != "llcm":
            raise ValueError(
                f"balanced sampling needs both modalities at a client; a camera of {self.data.layout} has one"
            )
        return self
