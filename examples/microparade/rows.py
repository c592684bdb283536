"""Synthetic rows: tweets that users met, what they did, and what they had engaged with before.

A row is a (tweet, reader) pair. It holds the challenge's fields of the author (`a_`), the reader (`b_`) and the tweet,
the tweet's tokens, and the last `past` tweets before it that the reader engaged with, the newest first:

==============================  =======================================================================
`text_tokens`                   the candidate tweet's tokens, without [CLS] and [SEP]
`text_tokens_hist_1`, `_2`, ..  each past tweet's; empty where there is none, or no text
`mask_hist`                     1 where there is a past tweet, for each of them
`interaction_time_hist`         seconds of each of them
`like_hist`, `reply_hist`, ..   1 where the reader did that to it
`..._before`                    the reader's counts, the language and the time of the row before; null in a first row
==============================  =======================================================================

Whether a reader engages depends on habits, on what the text is about, and on the reader's taste for that, of which past
tweets tell something.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from examples.microparade import TARGETS
from examples.microparade.sizes import Sizes

__all__ = ["BEFORE", "FIRST_WORD", "draw", "engaged", "past_tokens"]

FIRST_WORD = 110  # ids below it are BERT's own
BEFORE = ("b_follower_count", "b_following_count", "language", "timestamp")
_START = 1_612_396_800  # Thursday, 4 February 2021, 00:00 UTC, where the challenge's rows begin
_WEEK = 7 * 86_400
_TOPICS = 8
_RATES = np.array([0.1, 0.2, 0.06, 0.45])  # of TARGETS, about
_MEDIA = (None, "Photo", "Video", "GIF", "Photo\tPhoto", "Photo\tPhoto\tPhoto")
_TYPES = ("TopLevel", "Retweet", "Quote")


def past_tokens(past: int) -> list[str]:
    """The columns of the past tweets' tokens, the newest first."""
    return [f"text_tokens_hist_{number + 1}" for number in range(past)]


def engaged(target: str) -> str:
    """The column that says of each past tweet whether the reader did `target` to it."""
    return f"{target}_hist"


def draw(sizes: Sizes) -> pd.DataFrame:
    """`rows` + `golden` rows in the order of time, with TARGETS as float32, 0 or 1."""
    random = np.random.default_rng(sizes.seed)
    count, users = sizes.rows + sizes.golden, sizes.users
    seconds = np.sort(random.integers(_START, _START + _WEEK, count))
    reader, author = ((users * random.random(count) ** 2).astype(np.int64) for _ in range(2))
    taste = random.normal(size=(users, _TOPICS))
    topic = np.argmax(taste[author] + random.gumbel(size=(count, _TOPICS)), axis=1)
    kind, media = random.integers(0, len(_TYPES), count), random.integers(0, len(_MEDIA), count)
    speaks = random.integers(0, sizes.languages, users)
    language = np.where(random.random(count) < 0.1, random.integers(0, sizes.languages, count), speaks[author])
    logits = np.log(_RATES / (1 - _RATES)) + 1.5 * taste[reader, topic][:, None]
    logits += random.normal(size=(users, len(TARGETS)))[reader] + random.normal(size=(_TOPICS, len(TARGETS)))[topic]
    logits += 0.5 * (language == speaks[reader])[:, None] + 0.3 * (media > 0)[:, None] - 0.3 * (kind == 1)[:, None]
    logits += 0.5 * np.sin(((seconds // 3600) % 24 - 14) * np.pi / 12)[:, None]
    targets = random.random((count, len(TARGETS))) < 1 / (1 + np.exp(-logits))
    columns: dict[str, Any] = {
        "text_tokens": _texts(random, topic, sizes),
        "hashtags": _tabs(random, count, 0.6),
        "domains": _tabs(random, count, 0.8),
        "links": _tabs(random, count, 0.8),
        "media": pd.Series([_MEDIA[one] for one in media], dtype=object),
        "tweet_type": pd.Series([_TYPES[one] for one in kind], dtype=object),
        "language": pd.Series([f"L{one}" for one in language], dtype=object).where(random.random(count) > 0.005, None),
        "timestamp": seconds,
    }
    for side, who in (("a", author), ("b", reader)):
        grown = 1 + 0.01 * np.arange(count) / count  # what a user has grows with time
        for name, middle in (("follower_count", 6.8), ("following_count", 6.0)):
            columns[f"{side}_{name}"] = (np.exp(random.normal(middle, 1.3, users))[who] * grown).astype(np.int64)
        columns[f"{side}_user_id"] = pd.Series([f"u{one}" for one in who], dtype=object)
        columns[f"{side}_is_verified"] = (random.random(users) < 0.1)[who]
        columns[f"{side}_account_creation"] = random.integers(1_230_768_000, 1_609_459_200, users)[who]
    columns["b_follows_a"] = random.random(count) < 0.4
    rows = pd.DataFrame(columns)
    rows = rows.join(_before(rows, reader)).join(_histories(rows, reader, targets, sizes.past))
    return rows.join(pd.DataFrame(targets.astype(np.float32), columns=list(TARGETS)))


def _texts(random: np.random.Generator, topic: NDArray[np.int64], sizes: Sizes) -> pd.Series:
    """Words of each text's topic among others; some texts are longer than what is read, and some are empty."""
    lengths = np.minimum(random.geometric(2 / sizes.tokens, len(topic)) - 1, 3 * sizes.tokens)
    words = sizes.vocabulary - FIRST_WORD
    own = words // _TOPICS
    about = np.repeat(topic, lengths) * own + random.integers(0, own, lengths.sum())
    other = random.integers(0, words, lengths.sum())
    flat = FIRST_WORD + np.where(random.random(len(about)) < 0.7, about, other)
    return pd.Series(np.split(flat, np.cumsum(lengths)[:-1]), dtype=object)


def _tabs(random: np.random.Generator, count: int, none: float) -> pd.Series:
    """Texts of one to four values with tabs between them; null, or empty, where there is none."""
    lengths = np.where(random.random(count) < none, 0, random.integers(1, 5, count))
    texts = ["\t".join(f"{value:x}" for value in random.integers(0, 99, length)) for length in lengths]
    return pd.Series(texts, dtype=object).where((lengths > 0) | (random.random(count) < 0.5), None)


def _before(rows: pd.DataFrame, reader: NDArray[np.int64]) -> pd.DataFrame:
    """What the reader's row before this one held."""
    earlier = rows[list(BEFORE)].groupby(reader, sort=False).shift(1)
    return earlier.rename(columns=lambda name: f"{name}_before")


def _histories(rows: pd.DataFrame, reader: NDArray[np.int64], targets: NDArray[np.bool_], past: int) -> pd.DataFrame:
    """The last tweets that each row's reader engaged with before it."""
    kept: dict[int, deque[int]] = {}
    found: list[list[int]] = []
    for row, who in enumerate(reader.tolist()):
        its = kept.setdefault(who, deque(maxlen=past))
        found.append(list(its))
        if targets[row].any():
            its.appendleft(row)
    tokens, seconds, nothing = list(rows["text_tokens"]), rows["timestamp"].to_numpy(), np.array([], np.int64)
    made: dict[str, list[Any]] = {
        name: [tokens[its[at]] if at < len(its) else nothing for its in found]
        for at, name in enumerate(past_tokens(past))
    }
    made["mask_hist"] = [np.arange(past) < len(its) for its in found]
    made["mask_hist"] = [mask.astype(np.int64) for mask in made["mask_hist"]]
    made["interaction_time_hist"] = [seconds[its] for its in found]
    for at, target in enumerate(TARGETS):
        did = targets[:, at].astype(np.int64)
        made[engaged(target)] = [did[its] for its in found]
    return pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in made.items()})
