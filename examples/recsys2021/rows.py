"""Synthetic rows of the challenge's schema: four weeks of (tweet, reader) pairs and whether the reader engaged.

As in the challenge, a field that holds several values is one text with tabs between them: tokens, hashtags, media,
links, domains. Where there are none it is empty; of hashtags, links and domains some are null then.

Whether a reader engages depends on who reads and who wrote (each user has habits and tastes), on what the text is
about, on marked words in it and on whom it mentions, on language, tweet type, media, followers and the hour, and the
four engagements depend on each other. In week 4 the base rates and some effects have moved, as they had in the
challenge, so that a model which learns from newer rows has something to gain.

Where `known_users` are wished for, the second week holds a row more for each of them, in which the user reads what the
next one wrote: so tables of more than a million users need no more rows than users.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from examples.recsys2021 import MENTION, TARGETS
from examples.recsys2021.sizes import Sizes

__all__ = ["FIRST_SECOND", "Rows", "make_rows", "token_classes"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FIRST_SECOND = 1_612_396_800  # Thursday, 4 February 2021, 00:00 UTC, where the challenge's four weeks began
WEEK = 7 * 86_400
MARKS = 40  # ids of words that ask, and as many of words that praise
MEDIA = (
    "",
    "Photo",
    "Video",
    "GIF",
    "Photo\tPhoto",
    "Photo\tPhoto\tPhoto",
    "Photo\tPhoto\tPhoto\tPhoto",
    "Video\tPhoto",
    "Photo\tVideo",
    "Video\tVideo",
    "GIF\tPhoto",
    "Photo\tGIF",
    "Photo\tPhoto\tVideo",
)
MEDIA_SHARE = (0.56, 0.2, 0.08, 0.04, 0.04, 0.02, 0.02, 0.01, 0.01, 0.005, 0.005, 0.005, 0.005)
TYPES = ("TopLevel", "Retweet", "Quote", "Reply")
TYPE_SHARE = (0.36, 0.4, 0.07, 0.17)
RATES = (0.06, 0.12, 0.04, 0.40)  # of reply, retweet, quote, like in weeks 1 to 3

# effects on the logits of reply, retweet, quote, like: what they are in weeks 1 to 3, and what week 4 adds
BASE_DRIFT = np.array([0.2, -0.2, 0.25, -0.2])
TYPE_EFFECT = np.array([[0.5, 0.1, 0.1, 0.25], [-0.8, 0.7, -0.2, -0.1], [-0.2, -0.2, 0.7, 0.0], [0.8, -1.0, -0.8, 0.1]])
TYPE_DRIFT = np.array([[0.1, 0.2, 0.0, 0.2], [0.3, -0.3, 0.2, -0.2], [0.2, 0.2, -0.3, 0.2], [-0.3, 0.2, 0.2, 0.1]])
MEDIA_EFFECT = np.array([-0.1, 0.2, 0.25, 0.4])
MEDIA_DRIFT = np.array([0.2, 0.2, -0.2, -0.2])
ASKS = np.array([1.5, -0.3, 0.3, -0.2])
PRAISES = np.array([-0.2, 1.1, 0.9, 0.6])
MENTIONS = np.array([0.4, -0.15, 0.0, 0.0])  # of each mention
MENTION_SHARE = (0.6, 0.25, 0.1, 0.05)  # of texts with none to three
NULL_SHARE = 0.02  # of fields that hold nothing
FOLLOWS = np.array([0.9, 0.4, 0.3, 0.6])
SAME_LANGUAGE = np.array([0.7, 0.4, 0.5, 0.5])
FOLLOWERS = np.array([-0.25, 0.2, 0.2, -0.05])
FOLLOWERS_DRIFT = np.array([0.15, -0.15, 0.1, 0.15])
HOUR = np.array([0.3, 0.2, 0.2, 0.3])
HOUR_DRIFT = np.array([-0.3, -0.2, -0.2, -0.3])
WEEKEND = np.array([0.2, -0.15, -0.1, 0.2])


@dataclass(frozen=True)
class Rows:
    """All rows, in the order of time.

    Attributes:
        table: one column per raw field, then the four targets as int8, 0 or 1 (the challenge's own targets are
            timestamps, empty where there was no engagement).
        week: [rows] int64, 0 to 3.
        validation: [rows] bool: the part of week 3 (the fourth) that stage 2 learns from.
        test: [rows] bool: the rest of that week.
    """

    table: pa.Table
    week: Ints
    validation: NDArray[np.bool_]
    test: NDArray[np.bool_]


def token_classes(sizes: Sizes) -> Ints:
    """What each token id is about: [vocabulary] int64.

    0 is a neutral word, 1 to `topics` a topic's word, `topics` + 1 a word that asks, `topics` + 2 one that praises.
    The frozen token table of NN2 and NN3 stands in for BERT's, in which words of one subject lie near each other, so
    it is made from these classes.
    """
    classes = np.zeros(sizes.vocabulary, np.int64)
    first = _first_topic_word(sizes)
    classes[first:] = 1 + (np.arange(sizes.vocabulary - first) * sizes.topics) // (sizes.vocabulary - first)
    classes[1 : 1 + MARKS] = sizes.topics + 1
    classes[1 + MARKS : 1 + 2 * MARKS] = sizes.topics + 2
    return classes


def make_rows(sizes: Sizes) -> Rows:
    """Draw the rows of four weeks; the same sizes give the same bytes."""
    draw = np.random.default_rng(sizes.seed)
    users = _Users(sizes, np.random.default_rng(sizes.seed + 1))
    each = sizes.rows_per_week
    week = np.repeat(np.arange(4), [each, each + sizes.known_users, each, each])
    count = len(week)
    seconds = _seconds(draw, week)
    reader, author = users.pairs(draw, count)
    if sizes.known_users:
        extra = np.random.default_rng(sizes.seed + 8)
        rows = extra.permutation(np.flatnonzero(week == 1))[: sizes.known_users]
        known = extra.permutation(sizes.users)[: sizes.known_users]
        reader[rows], author[rows] = known, np.roll(known, 1)
    language = np.where(draw.random(count) < 0.95, users.language[author], draw.integers(0, sizes.languages, count))
    topic = np.argmax(1.2 * users.taste[author] + draw.gumbel(size=(count, sizes.topics)), axis=1)
    asks, praises = draw.random(count) < 0.25, draw.random(count) < 0.25
    more = np.random.default_rng(sizes.seed + 6)
    mentions = more.choice(len(MENTION_SHARE), count, p=MENTION_SHARE)
    kind = draw.choice(len(TYPES), count, p=TYPE_SHARE)
    media = draw.choice(len(MEDIA), count, p=MEDIA_SHARE)
    follows = draw.random(count) < _sigmoid(-0.6 + 1.2 * (users.language[reader] == users.language[author]))

    hour = (seconds // 3600) % 24
    new = (week == 3)[:, None]
    logits = users.habit[reader] + users.appeal[author]
    logits += users.topic_effect[topic] + new * users.topic_drift[topic]
    logits += np.outer(users.taste[reader, topic], [0.3, 0.5, 0.4, 0.6])
    logits += TYPE_EFFECT[kind] + new * TYPE_DRIFT[kind]
    logits += (media > 0)[:, None] * (MEDIA_EFFECT + new * MEDIA_DRIFT)
    logits += np.outer(asks, ASKS) + np.outer(praises, PRAISES) + np.outer(mentions, MENTIONS)
    logits += np.outer(follows, FOLLOWS)
    logits += np.outer(users.language[reader] == language, SAME_LANGUAGE)
    logits += np.log(np.maximum(users.followers[author], 1) / 900.0)[:, None] * (FOLLOWERS + new * FOLLOWERS_DRIFT)
    logits += np.sin((hour - 14) * np.pi / 12)[:, None] * (HOUR + new * HOUR_DRIFT)
    logits += np.outer(((seconds // 86_400) + 3) % 7 >= 5, WEEKEND) + new * BASE_DRIFT
    targets = _engagements(draw, logits, week < 3)

    tokens = _texts(sizes, draw, topic, asks, praises, mentions)
    hashtag_names = pa.array(_hex(np.random.default_rng(sizes.seed + 2), sizes.hashtags, 16))
    domain_names = pa.array(_hex(np.random.default_rng(sizes.seed + 3), 300, 16))
    lengths = np.where(draw.random(count) < 0.65, 0, np.minimum(draw.geometric(0.4, count), 12))
    tags = np.repeat(topic, lengths) + sizes.topics * _power(draw, sizes.hashtags // sizes.topics, int(lengths.sum()))
    links = np.where(draw.random(count) < 0.8, 0, draw.integers(1, 3, count))
    domains = _power(draw, len(domain_names), int(links.sum()))
    names = pa.array(users.names)
    columns: dict[str, Any] = {
        "text_tokens": tokens,
        "hashtags": _some_null(more, _joined(lengths, hashtag_names.take(pa.array(tags)))),
        "tweet_id": pa.array(_hex(draw, count, 32)),
        "present_media": pa.array(MEDIA).take(pa.array(media)),
        "present_links": _some_null(more, _joined(links, pa.array(_hex(draw, int(links.sum()), 32), pa.string()))),
        "present_domains": _some_null(more, _joined(links, domain_names.take(pa.array(domains)))),
        "tweet_type": pa.array(TYPES).take(pa.array(kind)),
        "language": pa.array(_hex(np.random.default_rng(sizes.seed + 4), sizes.languages, 32)).take(
            pa.array(language, mask=draw.random(count) < 0.005)
        ),
        "tweet_timestamp": seconds,
    }
    for side, who in (("a", author), ("b", reader)):
        columns[f"{side}_user_id"] = names.take(pa.array(who))
        columns[f"{side}_follower_count"] = users.followers[who]
        columns[f"{side}_following_count"] = users.following[who]
        columns[f"{side}_is_verified"] = users.verified[who]
        columns[f"{side}_account_creation"] = users.created[who]
    columns["b_following_count"] = pa.array(users.following[reader], mask=draw.random(count) < 0.01)
    columns["a_follows_b"] = follows
    columns.update({target: targets[:, index] for index, target in enumerate(TARGETS)})
    validation = (week == 3) & (draw.random(count) < sizes.validation_share)
    return Rows(pa.table(columns), week, validation, (week == 3) & ~validation)


class _Users:
    """The users' traits, all [users, ...], and each topic's effects, [topics, 4]."""

    def __init__(self, sizes: Sizes, draw: np.random.Generator) -> None:
        count = sizes.users
        self.names = _hex(draw, count, 32)
        share = 1.0 / np.arange(1, sizes.languages + 1) ** 1.4
        self.language = np.sort(draw.choice(sizes.languages, count, p=share / share.sum()))
        self.taste = draw.normal(size=(count, sizes.topics))
        self.habit = 0.5 * draw.normal(size=(count, 1)) + 0.9 * draw.normal(size=(count, 4))
        self.appeal = 0.3 * draw.normal(size=(count, 1)) + 0.6 * draw.normal(size=(count, 4))
        self.followers = np.exp(draw.normal(6.8, 1.6, count)).astype(np.int64)
        self.following = np.exp(draw.normal(6.0, 1.0, count)).astype(np.int64)
        self.verified = draw.random(count) < _sigmoid(np.log(self.followers + 1.0) - 10.5)
        self.created = draw.integers(1_230_768_000, 1_609_459_200, count)  # 2009 to the end of 2020
        self.topic_effect = 0.75 * draw.normal(size=(sizes.topics, 4))
        self.topic_drift = 0.2 * draw.normal(size=(sizes.topics, 4))
        self._order = draw.permutation(count)
        self._starts = np.searchsorted(self.language, np.arange(sizes.languages + 1))

    def pairs(self, draw: np.random.Generator, count: int) -> tuple[Ints, Ints]:
        """Readers and authors, both by a power law; four authors in five speak the reader's language."""
        users = len(self.language)
        reader = self._order[_power(draw, users, count)]
        start = self._starts[self.language[reader]]
        size = self._starts[self.language[reader] + 1] - start
        near = start + (size * draw.random(count) ** 2.5).astype(np.int64)
        return reader, np.where(draw.random(count) < 0.8, near, self._order[::-1][_power(draw, users, count)])


def _texts(
    sizes: Sizes, draw: np.random.Generator, topic: Ints, asks: Any, praises: Any, mentions: Ints
) -> pa.StringArray:
    """Token ids: mentions, then neutral words, the topic's words, and words that ask or praise where the text does."""
    count = len(topic)
    lengths = np.clip(np.exp(draw.normal(2.65, 0.65, count)), 3, 64).astype(np.int64)
    total = int(lengths.sum())
    first = _first_topic_word(sizes)
    own = (sizes.vocabulary - first) // sizes.topics
    about = np.repeat(topic, lengths)
    start = first + (about * (sizes.vocabulary - first) + sizes.topics - 1) // sizes.topics
    words = np.where(
        draw.random(total) < 0.4,
        start + _power(draw, own, total),
        1 + 2 * MARKS + _power(draw, first - 1 - 2 * MARKS, total),
    )
    offsets = np.cumsum(lengths) - lengths
    for which, base in ((asks, 1), (praises, 1 + MARKS)):
        for _ in range(2):  # two marked words a text, anywhere in its first half
            place = offsets + (draw.random(count) * (lengths + 1) / 2).astype(np.int64)
            words[place[which]] = base + _power(draw, MARKS, int(which.sum()))
    words[words == MENTION] += 1  # a neutral word drew its number
    words = np.insert(words, np.repeat(offsets, mentions), MENTION)
    return _joined(lengths + mentions, pa.array(words).cast(pa.string()))


def _first_topic_word(sizes: Sizes) -> int:
    return int(0.3 * sizes.vocabulary)


def _seconds(draw: np.random.Generator, week: Ints) -> Ints:
    """Times, ascending, with quiet nights."""
    hours = np.arange(168) % 24
    share = 1.0 + 0.8 * np.sin((hours - 9) * np.pi / 12)
    hour = draw.choice(168, len(week), p=share / share.sum())
    return np.sort(FIRST_SECOND + week * WEEK + hour * 3600 + draw.integers(0, 3600, len(week)))


def _engagements(draw: np.random.Generator, logits: Floats, known: NDArray[np.bool_]) -> NDArray[np.int8]:
    """Draw the four targets, [rows, 4]: a like makes the others likelier, a retweet a quote."""
    targets = np.zeros(logits.shape, np.int8)
    pulls = {3: [], 1: [(3, 1.1)], 2: [(1, 0.8), (3, 0.4)], 0: [(3, 0.7)]}
    for target, because in pulls.items():
        logit = logits[:, target] + sum((weight * targets[:, other] for other, weight in because), np.zeros(1))
        low, high = -12.0, 12.0
        for _ in range(40):  # the base that gives the wished rate in weeks 1 to 3
            base = (low + high) / 2
            low, high = (base, high) if _sigmoid(logit[known] + base).mean() < RATES[target] else (low, base)
        targets[:, target] = draw.random(len(logit)) < _sigmoid(logit + base)
    return targets


def _power(draw: np.random.Generator, size: int, count: int) -> Ints:
    """Indices below `size`, small ones far more often."""
    return (size * draw.random(count) ** 2.5).astype(np.int64)


def _sigmoid(logit: Any) -> Floats:
    return np.asarray(1.0 / (1.0 + np.exp(-np.asarray(logit, np.float64))))


def _hex(draw: np.random.Generator, count: int, width: int) -> NDArray[np.str_]:
    """Distinct-looking hexadecimal names, [count]."""
    text = draw.bytes(count * width // 2).hex().upper().encode()
    return np.frombuffer(text, f"S{width}").astype(f"U{width}")


def _joined(lengths: Ints, texts: pa.StringArray) -> pa.StringArray:
    """The next `lengths` texts of every row, with tabs between them."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets), texts), "\t")


def _some_null(draw: np.random.Generator, texts: pa.StringArray) -> pa.StringArray:
    """Some of the empty texts become null."""
    null = np.asarray(pc.equal(texts, "")) & (draw.random(len(texts)) < NULL_SHARE)
    return pc.if_else(pa.array(null), pa.scalar(None, pa.string()), texts)
