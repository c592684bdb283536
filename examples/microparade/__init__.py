"""MicroParade: BERT reads a tweet beside each of a user's past tweets, a transformer weighs them, four engagements."""

from __future__ import annotations

TARGETS: tuple[str, ...] = ("reply", "retweet", "retweet_with_comment", "like")
"""The four engagements, in the order in which every model answers them."""
