"""Records of outliers in weights and activations: where they are, who carries them, what to do about them.

Plain data as in types.py. A weight is an outlier beyond `OUTLIER_SIGMA` standard deviations of its site; a
range without outliers is that of the values within `RANGE_SIGMA`. A channel of an input stands out at a token
where its magnitude is over `STANDS_OUT` times that token's mean magnitude. Sigma is the population's.
"""

from typing import Literal

from quantriage.records.types import Record

OUTLIER_SIGMA = 6.0
RANGE_SIGMA = 3.0
RANGE_WARNING = 2.0  # range over range without outliers
STANDS_OUT = 6.0  # a channel: over the mean channel's maximum; at a token: over the token's mean magnitude
PERSISTENT = 0.5  # share of tokens
MASSIVE = 100.0  # maximum over mean magnitude

Place = Literal["weights", "input", "state"]


class Magnitudes(Record, frozen=True):
    """Counts of magnitudes in consecutive bins, four to each doubling.

    Bin b holds magnitudes from edge(b) to below edge(b + 1), edge(b) = 2**(b // 4 - 127) * (1 + b % 4 / 4):
    the bins that a float32's exponent and the first two bits of its mantissa make.
    """

    zeros: int  # and what is too small for the first bin of all
    first: int  # bin of counts[0]
    counts: tuple[int, ...]

    def edges(self) -> list[float]:
        """Edges of the bins, one more than there are counts."""
        bins = range(self.first, self.first + len(self.counts) + 1)
        return [2.0 ** (b // 4 - 127) * (1 + b % 4 / 4) for b in bins]

    def share_beyond(self, threshold: float) -> float:
        """Share of magnitudes over `threshold`, taking those of a bin to be spread evenly over it."""
        edges = self.edges()
        beyond = 0.0
        for count, low, high in zip(self.counts, edges, edges[1:], strict=False):
            beyond += count * min(1.0, max(0.0, (high - threshold) / (high - low)))
        return beyond / max(1, self.zeros + sum(self.counts))


class CarrierChannel(Record, frozen=True):
    """A row (output channel) or column (input channel) of a weight that holds outliers."""

    index: int
    outliers: int
    largest: float  # distance from the site's mean, in sigma


class SchemeWaste(Record, frozen=True):
    """What outliers do to one scheme at one site, rounded to nearest with min-max scales."""

    asked: str
    scheme: str  # as asked, but with smaller groups where those asked for do not divide the rows
    wasted: float  # share of code points that no value within 3 sigma of its group needs
    wasted_gaussian: float  # the same for Gaussian weights of this width
    error: float  # Frobenius of the rounding error over Frobenius of the weight
    error_apart: float | None  # the same with the outliers kept exactly; None without outliers


class WeightOutliers(Record, frozen=True):
    """One weight matrix."""

    site: str
    block: int
    module: str
    category: str
    shape: tuple[int, int]  # [out, in]
    mean: float
    std: float
    maximum: float  # largest magnitude
    beyond: dict[str, float]  # "3", "4", "6": share of weights further than so many sigma from the mean
    outliers: int  # weights beyond 6 sigma
    range_all: float
    range_without: float  # of the values within 3 sigma
    range_ratio: float
    kurtosis: float  # excess; 0 for a Gaussian
    schemes: tuple[SchemeWaste, ...]
    input_channels: tuple[CarrierChannel, ...]  # those with most outliers, first
    output_channels: tuple[CarrierChannel, ...]
    inputs_touched: int  # how many input channels hold at least one
    outputs_touched: int
    warning: bool  # range ratio of 2 or more


class OutlierChannel(Record, frozen=True):
    """A channel of an input that is far larger than the others, or stands out at most tokens."""

    index: int
    maximum: float
    ratio: float  # to the mean of all channels' maxima
    persistence: float  # share of tokens at which it stands out


class MassiveToken(Record, frozen=True):
    """A token at which some channel reaches 100 times the mean magnitude. -1: not known which token."""

    sequence: int
    position: int
    token: str
    kind: Literal["first token", "delimiter", "other"]
    channel: int
    value: float  # magnitude
    ratio: float  # to the mean magnitude


class InputOutliers(Record, frozen=True):
    """What several sites read, or (`kind` "state") the hidden state between two blocks."""

    name: str  # the first of `sites`; "state before block 3"
    kind: Place
    sites: tuple[str, ...]
    block: int  # a state's block is the one that reads it; the last state's is the number of blocks
    module: str
    width: int
    tokens: int
    mean: float
    std: float
    mean_magnitude: float
    maximum: float
    ratio: float  # maximum over mean magnitude
    typical_ratio: float  # median over tokens of the token's own maximum over its mean magnitude
    channels_beyond: int  # channels whose maximum is over 6 times the mean channel's
    channels_persistent: int  # channels that stand out at half of the tokens or more
    channels: tuple[OutlierChannel, ...]  # of either kind, largest ratio first
    massive: int  # massive tokens
    massive_first: int  # of them at the start of a sequence
    massive_delimiters: int  # of them white space, punctuation or special tokens elsewhere
    massive_tokens: tuple[MassiveToken, ...]  # the largest
    alert: bool  # ratio of 100 or more


class OutlierHistogram(Record, frozen=True):
    """The magnitudes of one place."""

    place: str
    kind: Place
    std: float
    maximum: float  # largest magnitude
    role: Literal["worst", "ordinary"]
    magnitudes: Magnitudes


class ErrorMap(Record, frozen=True):
    """Rounding error by group: root mean square in a group over that of the whole weight; worst in a cell."""

    site: str
    scheme: str
    rows_per_cell: int
    groups_per_cell: int
    errors: tuple[tuple[float, ...], ...]


class OutlierConclusion(Record, frozen=True):
    """One answer in words: what was found, where, and what to do."""

    code: str
    places: tuple[str, ...]
    sentence: str
    action: str


class Outliers(Record, frozen=True):
    """Everything that looking for outliers found."""

    model: str
    text: str  # sources of the tokens; empty: weights only
    sequences: int
    length: int
    blocks: int
    weights: tuple[WeightOutliers, ...]
    inputs: tuple[InputOutliers, ...]
    states: tuple[InputOutliers, ...]
    unreached: tuple[str, ...]  # sites that no token reached
    histograms: tuple[OutlierHistogram, ...]
    maps: tuple[ErrorMap, ...]
    conclusions: tuple[OutlierConclusion, ...]
    seconds: float
    peak_memory_bytes: int
