"""Options, parameters and FLOPs of the operators of this package; their layers are in the module of each family."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from grafting.operators.arithmetic import Arithmetic, Option, known


class AttentionFormulas(Arithmetic):
    """Four projections D → D with biases."""

    needs_heads = True
    lends = "all"

    @classmethod
    def count_parameters(cls, width: int, heads: int | None, tokens: int | None, options: Mapping[str, Any]) -> int:
        return 4 * width * width + 4 * width

    @classmethod
    def count_text_flops(cls, width: int, heads: int | None, tokens: int, text: int, options: Mapping[str, Any]) -> int:
        return super().count_text_flops(width, heads, cls.padded(tokens, options), text, options)

    @classmethod
    def padded(cls, tokens: int, options: Mapping[str, Any]) -> int:
        """Tokens that are computed, those that fill up a last block among them."""
        return tokens


@known("mha")
class MultiHeadFormulas(AttentionFormulas):
    """Attention over all tokens."""

    @classmethod
    def count_flops(cls, width: int, heads: int | None, tokens: int, options: Mapping[str, Any]) -> int:
        return 8 * tokens * width * width + 4 * tokens * tokens * width

    @classmethod
    def count_text_flops(cls, width: int, heads: int | None, tokens: int, text: int, options: Mapping[str, Any]) -> int:
        """Its keys are the picture's and the text's."""
        return 4 * tokens * text * width


@known("swa")
class SlidingWindowFormulas(AttentionFormulas):
    """Attention within a window, in blocks."""

    option_table: ClassVar[Mapping[str, Option]] = {"window": Option.integer(4)}

    @staticmethod
    def block_size(window: int) -> int:
        """Queries computed together; 32 was fastest of 16, 32, 64, 128 on a CPU at N = 4,096, D = 1152."""
        return max(32, 2 * window)

    @classmethod
    def count_flops(cls, width: int, heads: int | None, tokens: int, options: Mapping[str, Any]) -> int:
        keys = cls.block_size(options["window"]) + 2 * options["window"]
        return 8 * tokens * width * width + 4 * cls.padded(tokens, options) * keys * width

    @classmethod
    def padded(cls, tokens: int, options: Mapping[str, Any]) -> int:
        block = cls.block_size(options["window"])
        return -(-tokens // block) * block


@known("swa_2d")
class SquareWindowFormulas(AttentionFormulas):
    """Attention within a square window of the grid, in tiles."""

    option_table: ClassVar[Mapping[str, Option]] = {"window": Option.integer(2)}

    @staticmethod
    def tile_size(window: int) -> int:
        """Rows and columns of queries computed together; 6 was fastest of 4, 6, 8 on a CPU at N = 4,096, D = 1152."""
        return max(6, 2 * window)

    @classmethod
    def count_flops(cls, width: int, heads: int | None, tokens: int, options: Mapping[str, Any]) -> int:
        """On a square grid, where the number of tokens makes one; else on the next larger."""
        keys = (cls.tile_size(options["window"]) + 2 * options["window"]) ** 2
        return 8 * tokens * width * width + 4 * cls.padded(tokens, options) * keys * width

    @classmethod
    def padded(cls, tokens: int, options: Mapping[str, Any]) -> int:
        tile = cls.tile_size(options["window"])
        return int(-(-math.ceil(math.sqrt(tokens)) // tile) * tile) ** 2


@known("linear")
class LinearFormulas(AttentionFormulas):
    """Attention through the C x C sums of keys and values, and a square filter of the values where one is asked for."""

    option_table: ClassVar[Mapping[str, Option]] = {
        "feature_map": Option.choice("elu+1", "relu", "learned"),
        "local": Option.odd_or_none(),
    }

    @classmethod
    def count_parameters(cls, width: int, heads: int | None, tokens: int | None, options: Mapping[str, Any]) -> int:
        assert heads is not None
        maps = 2 * width * width // heads if options["feature_map"] == "learned" else 0
        local = width * (options["local"] ** 2 + 1) if options["local"] else 0
        return 4 * width * width + 4 * width + maps + local

    @classmethod
    def count_flops(cls, width: int, heads: int | None, tokens: int, options: Mapping[str, Any]) -> int:
        assert heads is not None
        size = width // heads
        learned = options["feature_map"] == "learned"
        # Sums, reads and normaliser over features of size C or 2C, and the maps themselves.
        core = tokens * width * (12 * size + 4 if learned else 4 * size + 2)
        return 8 * tokens * width * width + core + 2 * tokens * width * options["local"] ** 2

    @classmethod
    def count_text_flops(cls, width: int, heads: int | None, tokens: int, text: int, options: Mapping[str, Any]) -> int:
        """Its sums, and of learned features the map of its keys."""
        assert heads is not None
        return text * width * (width // heads) * (6 if options["feature_map"] == "learned" else 2)


@known("local_mean")
class LocalMeanFormulas(Arithmetic):
    """A value and a gate D → D, a square filter, an output 2D → D."""

    option_table: ClassVar[Mapping[str, Option]] = {"kernel": Option.integer(3, odd=True)}

    @classmethod
    def count_parameters(cls, width: int, heads: int | None, tokens: int | None, options: Mapping[str, Any]) -> int:
        return 4 * width * width + 3 * width + width * (options["kernel"] ** 2 + 1)

    @classmethod
    def count_flops(cls, width: int, heads: int | None, tokens: int, options: Mapping[str, Any]) -> int:
        return 2 * tokens * width * (4 * width + options["kernel"] ** 2)

    @classmethod
    def count_features(cls, width: int, options: Mapping[str, Any]) -> int:
        return 2 * width


class HyenaFormulas(Arithmetic):
    """in_proj D → 3D, depthwise filters, out_proj D → D."""

    option_table: ClassVar[Mapping[str, Option]] = {"kernel": Option.integer(4)}
    lends = "values"
    has_short: ClassVar[bool] = True
    has_inner: ClassVar[bool] = False
    dimensions: ClassVar[int] = 1

    @classmethod
    def filter_sizes(cls, width: int, options: Mapping[str, Any]) -> tuple[int, int]:
        """Filtered channels over both filters, and taps of each channel."""
        channels = (3 * width if cls.has_short else 0) + (width if cls.has_inner else 0)
        return channels, options["kernel"] ** cls.dimensions

    @classmethod
    def count_parameters(cls, width: int, heads: int | None, tokens: int | None, options: Mapping[str, Any]) -> int:
        channels, taps = cls.filter_sizes(width, options)
        return 4 * width * width + 4 * width + channels * (taps + 1)

    @classmethod
    def count_flops(cls, width: int, heads: int | None, tokens: int, options: Mapping[str, Any]) -> int:
        channels, taps = cls.filter_sizes(width, options)
        return 2 * tokens * (4 * width * width + channels * taps)


@known("hyena_se")
class HyenaSEFormulas(HyenaFormulas):
    """Both filters."""

    has_inner = True


@known("hyena_x")
class HyenaXFormulas(HyenaFormulas):
    """First filter only."""


@known("hyena_y")
class HyenaYFormulas(HyenaFormulas):
    """Inner filter only."""

    has_short = False
    has_inner = True


@known("hyena_x_centred")
class HyenaXCentredFormulas(HyenaFormulas):
    """First filter only, of odd length."""

    option_table: ClassVar[Mapping[str, Option]] = {"kernel": Option.integer(5, odd=True)}


@known("hyena_x_2d")
class HyenaX2DFormulas(HyenaFormulas):
    """First filter only, square."""

    option_table: ClassVar[Mapping[str, Option]] = {"kernel": Option.integer(3, odd=True)}
    dimensions = 2


@known("mamba2")
class Mamba2Formulas(Arithmetic):
    """Projections, a filter, and the scan in chunks."""

    option_table: ClassVar[Mapping[str, Option]] = {
        "state": Option.integer(64),
        "kernel": Option.integer(4),
        "expand": Option.integer(2),
        "head_dim": Option.integer(16),
        "chunk": Option.integer(64),
        "direction": Option.choice("forward", "both"),
    }

    @classmethod
    def size_problems(cls, width: int, heads: int | None, options: Mapping[str, Any]) -> list[str]:
        inner, size = width * options["expand"], options["head_dim"]
        return [f"expand x width = {inner} is not divisible by head_dim {size}"] if inner % size else []

    @classmethod
    def sizes(cls, width: int, options: Mapping[str, Any]) -> tuple[int, int, int]:
        """E, S and H."""
        inner = width * options["expand"]
        return inner, options["state"], inner // options["head_dim"]

    @staticmethod
    def ways(options: Mapping[str, Any]) -> int:
        """Scans over the tokens."""
        return 2 if options["direction"] == "both" else 1

    @classmethod
    def count_parameters(cls, width: int, heads: int | None, tokens: int | None, options: Mapping[str, Any]) -> int:
        inner, state, own = cls.sizes(width, options)
        channels = inner + 2 * state
        projections = width * (inner + channels + own) + inner * width
        return projections + cls.ways(options) * (channels * (options["kernel"] + 1) + 3 * own) + inner

    @classmethod
    def count_flops(cls, width: int, heads: int | None, tokens: int, options: Mapping[str, Any]) -> int:
        inner, state, own = cls.sizes(width, options)
        channels = inner + 2 * state
        chunk = min(options["chunk"], tokens)
        chunks = -(-tokens // chunk)
        outer = 2 * tokens * (width * (2 * inner + 2 * state + own) + inner * width)
        # Within chunks: C·B, then the mask times values; between them: states made, and states read.
        scan = 2 * chunks * chunk * (chunk * (state + inner) + 2 * inner * state)
        return outer + cls.ways(options) * (2 * tokens * channels * options["kernel"] + scan)

    @classmethod
    def count_features(cls, width: int, options: Mapping[str, Any]) -> int:
        return width * options["expand"]


def hidden_size(width: int, ratio: float) -> int:
    """Hidden units of a perceptron: the nearest whole number to ratio x width."""
    return max(1, round(width * ratio))


@known("mlp")
class MlpFormulas(Arithmetic):
    """Two layers of any ratio."""

    kind = "channel"
    option_table: ClassVar[Mapping[str, Option]] = {"ratio": Option.positive(4)}

    @classmethod
    def count_parameters(cls, width: int, heads: int | None, tokens: int | None, options: Mapping[str, Any]) -> int:
        hidden = hidden_size(width, options["ratio"])
        return 2 * width * hidden + hidden + width

    @classmethod
    def count_flops(cls, width: int, heads: int | None, tokens: int, options: Mapping[str, Any]) -> int:
        return 4 * tokens * width * hidden_size(width, options["ratio"])

    @classmethod
    def count_features(cls, width: int, options: Mapping[str, Any]) -> int:
        return hidden_size(width, options["ratio"])


@known("mlp_hyena_x")
class MlpHyenaXFormulas(Arithmetic):
    """in_proj D → 3·r·D, a filter along the features with a channel per token, out_proj r·D → D."""

    kind = "channel"
    needs_tokens = True
    option_table: ClassVar[Mapping[str, Option]] = {"ratio": Option.integer(2), "kernel": Option.integer(4)}

    @classmethod
    def count_parameters(cls, width: int, heads: int | None, tokens: int | None, options: Mapping[str, Any]) -> int:
        hidden = width * options["ratio"]
        assert tokens is not None
        return 4 * width * hidden + 3 * hidden + width + tokens * (options["kernel"] + 1)

    @classmethod
    def count_flops(cls, width: int, heads: int | None, tokens: int, options: Mapping[str, Any]) -> int:
        hidden = width * options["ratio"]
        return tokens * (8 * width * hidden + 6 * hidden * options["kernel"])

    @classmethod
    def count_features(cls, width: int, options: Mapping[str, Any]) -> int:
        return width * options["ratio"]


@known("mix_ffn")
class MixFfnFormulas(Arithmetic):
    """in_proj D → 2·r·D, a square filter on the grid, a gate, out_proj r·D → D."""

    kind = "channel"
    option_table: ClassVar[Mapping[str, Option]] = {
        "ratio": Option.positive(2.5),
        "kernel": Option.integer(3, odd=True),
    }

    @classmethod
    def count_parameters(cls, width: int, heads: int | None, tokens: int | None, options: Mapping[str, Any]) -> int:
        hidden = hidden_size(width, options["ratio"])
        return 3 * width * hidden + 2 * hidden + width + 2 * hidden * (options["kernel"] ** 2 + 1)

    @classmethod
    def count_flops(cls, width: int, heads: int | None, tokens: int, options: Mapping[str, Any]) -> int:
        hidden = hidden_size(width, options["ratio"])
        return tokens * hidden * (6 * width + 4 * options["kernel"] ** 2)

    @classmethod
    def count_features(cls, width: int, options: Mapping[str, Any]) -> int:
        return hidden_size(width, options["ratio"])
